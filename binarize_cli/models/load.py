"""The float model: network, preprocessing, labels, and where its weights came from."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torchvision
from pydantic import ValidationError
from safetensors import SafetensorError
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from binarize_cli.errors import InputError
from binarize_cli.files import kind_of
from binarize_cli.models import hub
from binarize_cli.models.build import build, check_installed
from binarize_cli.models.digits import embedded_weights
from binarize_cli.models.fit import adapt_keys, fit_weights, resample_positions
from binarize_cli.models.heads import fresh_rows, head_names
from binarize_cli.models.names import ModelName, resolve
from binarize_cli.models.saved import CONFIG, SavedModel, read_saved
from binarize_cli.models.weights import read_weights
from binarize_cli.recipe import Preprocess


@dataclass(frozen=True)
class Preprocessing:
    """From an image to the network's input: resize to size / crop_pct, crop, scale to [0, 1], normalise."""

    input_size: tuple[int, int, int]  # channels, height, width
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def overridden(self, wanted: Preprocess) -> Preprocessing:
        """Return this with what the recipe sets. Raises InputError where mean or std is not one a channel."""
        values: dict[str, Any] = {
            key: value for key, value in wanted.model_dump().items() if value is not None
        }
        for key in ("mean", "std"):
            if key in values and len(values[key]) != self.input_size[0]:
                what = f"{len(values[key])} numbers, but the input has {self.input_size[0]} channels"
                raise InputError(what, where=f"preprocess.{key}", hint="Give one number a channel.")
        changes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return replace(self, **changes)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Preprocessing:
        sequences = {key: tuple(document[key]) for key in ("input_size", "mean", "std")}
        return cls(**(document | sequences))


@dataclass
class FloatModel:
    """A classifier as its library knows it; `build(source, name, num_classes, **kwargs)` gives its twin."""

    net: nn.Module  # float32, in evaluation mode, on the CPU
    source: str  # "timm" or "torchvision"
    name: str
    num_classes: int
    kwargs: dict[str, Any]  # what `build` needs besides
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None  # labels of the head's rows; None if unknown
    pretrained: bool
    weights: str  # where they came from, as a phrase
    weights_sha256: str | None  # of the file they were read from; None for random weights


def load(
    name: ModelName,
    *,
    weights: Path | None = None,
    pretrained: bool = True,
    num_classes: int | None = None,
    img_size: int | None = None,
    new_head: bool = False,
) -> FloatModel:
    """Return the model `name` with the weights of a file, of its library (`pretrained`), or random ones.

    `weights` is a file, or a folder of config.json and weights. Its head says how many classes there are;
    where `num_classes` says otherwise, that is an error, unless a `new_head` (untrained) is asked for.
    Random weights never stand in for a download that failed. Raises InputError for all that can be wrong
    with name, file, hub and sizes.
    """
    check_installed(name.source, name.name)
    saved = name.saved
    if weights is not None and kind_of(weights) == "folder":
        saved = _saved_for(name, weights)
    own_classes, labels = _own_labels(name, saved)
    rows = own_classes or num_classes
    if not rows:
        hint = "--num-classes N gives it an untrained one."
        raise InputError("not a classifier: its pretrained weights have no head", where=name.name, hint=hint)
    kwargs = {**(saved.model_args if saved else {}), **_size_kwargs(name, img_size)}

    if weights is not None:
        file = saved.weights_file() if saved and kind_of(weights) == "folder" else weights
        net, origin = _from_file(name, file, rows, kwargs), f"file {weights.name}"
    elif saved and pretrained:
        file, origin = _files_of(name, saved)
        net = _from_file(name, file, rows, kwargs)
    elif not pretrained:
        net, file, origin = build(name.source, name.name, rows, **kwargs), None, "random"
    elif name.own:
        file = _embedded(name)
        net, origin = _from_file(name, file, rows, kwargs), "embedded in bnnpp"
    elif name.source == "torchvision":
        net, file, origin = _from_torchvision(name, kwargs)
    else:
        net, file, origin = _from_timm(name, rows, kwargs)

    if saved:
        _check_pooling(net, saved)
    rows = _set_head(net, name, num_classes, new_head or file is None)
    return FloatModel(
        net=net.float().eval(),
        source=name.source,
        name=name.name,
        num_classes=rows,
        kwargs=kwargs,
        preprocessing=_preprocessing(name, net, img_size, saved),
        classes=labels if labels and len(labels) == rows else None,
        pretrained=file is not None,
        weights=origin,
        weights_sha256=_sha256(file) if file else None,
    )


def _saved_for(name: ModelName, folder: Path) -> SavedModel:
    """Return the model saved in a folder. Raises InputError where it is another architecture than `name`."""
    saved = read_saved(folder)
    if resolve(saved.architecture).name.partition(".")[0] != name.name.partition(".")[0]:
        hint = f"Name the model as local-dir:{folder}, or as {saved.architecture}."
        raise InputError(
            f"holds weights of {saved.architecture}, not of {name.name}", where=str(folder), hint=hint
        )
    return saved


def _check_pooling(net: nn.Module, saved: SavedModel) -> None:
    """Raise InputError where a saved model pools otherwise than its architecture, which no file records."""
    layers = [module.pool_type for module in net.modules() if hasattr(module, "pool_type")]
    usual = getattr(net, "global_pool", None)
    usual = usual if isinstance(usual, str) else next(iter(layers), None)
    if saved.global_pool is not None and usual is not None and saved.global_pool != usual:
        what = (
            f"model_args: global_pool is {saved.global_pool!r}, and a packed file can record {usual!r} only"
        )
        raise InputError(what, where=str(saved.folder / CONFIG))


def _files_of(name: ModelName, saved: SavedModel) -> tuple[Path, str]:
    """Return the file of weights of a saved model, and where it came from."""
    if saved.repository:
        return hub.fetch_from_hf(name.typed, saved.repository), f"Hugging Face {saved.repository}"
    return saved.weights_file(), f"folder {saved.folder.name}"


def _own_labels(name: ModelName, saved: SavedModel | None) -> tuple[int, tuple[str, ...] | None]:
    """Return how many classes the model's own weights have (0 for a backbone), and their labels if known."""
    if saved and saved.num_classes is not None:
        if saved.labels:
            return saved.num_classes, saved.labels
        subset = infer_imagenet_subset({"num_classes": saved.num_classes})
        return saved.num_classes, tuple(ImageNetInfo(subset).label_names()) if subset else None
    if name.source == "torchvision":
        return 1000, tuple(ImageNetInfo().label_names())
    config = timm.models.get_pretrained_cfg(name.name)
    if config is None or not config.num_classes:
        return 0, None
    if config.label_names:
        return config.num_classes, tuple(config.label_names)
    subset = infer_imagenet_subset({"num_classes": config.num_classes})
    return config.num_classes, tuple(ImageNetInfo(subset).label_names()) if subset else None


def _size_kwargs(name: ModelName, img_size: int | None) -> dict[str, Any]:
    """Return the builder's keyword for the image size; a network that takes any size needs none."""
    if img_size is None:
        return {}
    if name.source == "torchvision":
        return {"image_size": img_size} if name.name.startswith("vit_") else {}
    config = timm.models.get_pretrained_cfg(name.name)
    return {"img_size": img_size} if config and config.fixed_input_size else {}


def _embedded(name: ModelName) -> Path:
    path = embedded_weights(name.name)
    if path.is_file():
        return path
    raise InputError(
        "this package holds no pretrained weights for it",
        where=name.name,
        hint="Give them with --weights FILE, or start from random weights with --no-pretrained.",
    )


def _from_file(name: ModelName, path: Path, rows: int, kwargs: dict[str, Any]) -> nn.Module:
    """Return the network with the weights in `path`, and with as many classes as the file's head has rows."""
    net = build(name.source, name.name, rows, **kwargs)
    state = adapt_keys(read_weights(path), net)
    heads = [state[key] for head in head_names(net) if (key := f"{head}.weight") in state]
    counts = {len(head) for head in heads if head.dim()}
    if len(counts) == 1 and counts != {rows}:
        fresh_rows(net, counts.pop())
    state = resample_positions(state, net)
    fit_weights(net, state, where=f"{path} for {name.name}")
    return net


def _from_timm(name: ModelName, rows: int, kwargs: dict[str, Any]) -> tuple[nn.Module, Path, str]:
    """Return the network with timm's own weights, the file they lie in, and where that came from."""
    config = timm.models.get_pretrained_cfg(name.name)
    assert config, "timm describes all of its models"
    if config.hf_hub_id:
        file, origin = hub.fetch_from_hf(name.name, config.hf_hub_id), f"Hugging Face {config.hf_hub_id}"
    elif config.url:
        file, origin = hub.fetch_url(name.name, str(config.url)), str(config.url)
    else:
        hint = "Give them with --weights FILE, or start from random weights with --no-pretrained."
        raise InputError("timm has no pretrained weights for it", where=name.name, hint=hint)
    # Given the file, timm asks no network, and still adapts old spellings of its own weights.
    source = {"file": str(file), "custom_load": False}
    with _faults_of(file, name):
        net = timm.create_model(
            name.name, pretrained=True, pretrained_cfg_overlay=source, num_classes=rows, **kwargs
        )
    return net, file, origin


def _from_torchvision(name: ModelName, kwargs: dict[str, Any]) -> tuple[nn.Module, Path, str]:
    default = torchvision.models.get_model_weights(name.name).DEFAULT
    file = hub.fetch_url(name.name, default.url)
    return _from_file(name, file, 1000, kwargs), file, f"torchvision {default}"


@contextmanager
def _faults_of(file: Path, name: ModelName) -> Iterator[None]:
    """Say which file of the cache it is that the library chokes on."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, OSError, pickle.UnpicklingError, SafetensorError) as error:
        hint = "If a download was cut short, delete that file and run again."
        raise InputError(f"cannot be loaded into {name.name}: {error}", where=str(file), hint=hint) from error


def _set_head(net: nn.Module, name: ModelName, num_classes: int | None, new_head: bool) -> int:
    """Return how many rows the head has, after giving it `num_classes` untrained ones where they differ.

    Raises InputError where that would drop a trained head without `new_head`.
    """
    heads = head_names(net)
    if not heads:
        raise InputError("not a classifier: it has no head", where=name.name)
    rows = len(net.get_parameter(f"{heads[0]}.weight"))
    if num_classes is None or num_classes == rows:
        return rows
    if not new_head:
        what = f"the head of these weights has {rows} classes, not {num_classes}"
        hint = "Leave --num-classes out, or pass --head replace for an untrained head."
        raise InputError(what, where=name.short, hint=hint)
    fresh_rows(net, num_classes)
    return num_classes


def _preprocessing(
    name: ModelName, net: nn.Module, img_size: int | None, saved: SavedModel | None
) -> Preprocessing:
    if name.source == "torchvision":
        found = _torchvision_preprocessing(name.name)
    else:
        config = resolve_model_data_config(net)
        found = Preprocessing(**{key: config[key] for key in Preprocessing.__dataclass_fields__})
    if saved:
        found = _as_saved(found, saved)
    if img_size is None:
        return found
    return replace(found, input_size=(found.input_size[0], img_size, img_size))


def _as_saved(found: Preprocessing, saved: SavedModel) -> Preprocessing:
    """Return what config.json says of it. Raises InputError where that makes no sense."""
    said = dict(saved.preprocessing)
    size = said.pop("input_size", list(found.input_size))
    mode = said.pop("crop_mode", found.crop_mode)
    where = str(saved.folder / "config.json")
    sides = (
        isinstance(size, list) and len(size) == 3 and all(isinstance(n, int) and 0 < n < 5000 for n in size)
    )
    if not sides or size[0] != found.input_size[0] or mode not in ("center", "squash", "border"):
        raise InputError(f"input_size or crop_mode makes no sense: {size!r}, {mode!r}", where=where)
    try:
        wanted = Preprocess.model_validate(said)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise InputError(f"pretrained_cfg.{key}: {fault['msg']}", where=where) from None
    return replace(found, input_size=tuple(size), crop_mode=mode).overridden(wanted)


def _torchvision_preprocessing(name: str) -> Preprocessing:
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    size = preset.crop_size[0]
    return Preprocessing(
        input_size=(3, size, size),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        crop_pct=size / preset.resize_size[0],
        crop_mode="center",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
