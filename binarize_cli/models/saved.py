"""A model as timm saves one: a folder, or a Hugging Face repository, of config.json and weights."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from binarize_cli.errors import InputError
from binarize_cli.files import kind_of

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which timm tries them
PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
RECORDED = ("img_size",)  # the arguments of a model that a packed file can record
CHECKED = ("num_classes", "in_chans", "global_pool")  # those that timm always writes; the usual ones are fine
LARGEST = 10 * 2**20  # bytes of a config.json


@dataclass(frozen=True)
class SavedModel:
    """What config.json says: the architecture, and how it was trained."""

    folder: Path
    architecture: str
    num_classes: int | None = None
    labels: tuple[str, ...] | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    """Those of PREPROCESSING that it names, not yet checked."""
    model_args: dict[str, Any] = field(default_factory=dict)
    global_pool: Any = None
    repository: str | None = None
    """`owner/name`, perhaps `@revision`, where the folder is Hugging Face's cache of that."""

    def weights_file(self) -> Path:
        """Return the file of weights in the folder. Raises InputError where there is none."""
        for name in WEIGHTS:
            if kind_of(self.folder / name) == "file":
                return self.folder / name
        raise InputError(f"holds neither {' nor '.join(WEIGHTS)}", where=str(self.folder))


def read_saved(folder: Path, repository: str | None = None) -> SavedModel:
    """Read config.json in `folder`. Raises InputError where it is missing or not what timm writes."""
    where = str(folder / CONFIG)
    config = _read_json(folder / CONFIG)
    settings = config.get("pretrained_cfg", {})
    architecture = config.get("architecture")
    if not (isinstance(architecture, str) and re.fullmatch(r"[\w.\-]+", architecture)):
        hint = "Models saved by timm (timm.models.push_to_hf_hub, save_for_hf) have one."
        raise InputError("names no architecture of timm", where=where, hint=hint)
    if not isinstance(settings, dict):
        raise InputError("pretrained_cfg is not a mapping", where=where)
    count = config.get("num_classes", settings.get("num_classes"))
    labels = config.get("label_names", settings.get("label_names"))
    if not (count is None or (isinstance(count, int) and 0 <= count <= 10**6)):
        raise InputError(f"num_classes is not a number of classes: {count!r}", where=where)
    if not (labels is None or (isinstance(labels, list) and all(isinstance(name, str) for name in labels))):
        raise InputError("label_names is not a list of names", where=where)
    args = config.get("model_args") or {}
    if not isinstance(args, dict):
        raise InputError("model_args is not a mapping", where=where)
    if unknown := [key for key in args if key not in (*RECORDED, *CHECKED)]:
        hint = f"A packed file can record {', '.join(RECORDED)} only."
        raise InputError(f"model_args cannot be used: {', '.join(unknown)}", where=where, hint=hint)
    return SavedModel(
        folder=folder,
        architecture=architecture,
        num_classes=count,
        labels=tuple(labels) if labels else None,
        preprocessing={key: settings[key] for key in PREPROCESSING if settings.get(key) is not None},
        model_args={key: args[key] for key in RECORDED if key in args},
        global_pool=args.get("global_pool"),
        repository=repository,
    )


def _read_json(path: Path) -> dict[str, Any]:
    where = str(path)
    if kind_of(path.parent) != "folder":
        raise InputError("is not a folder", where=str(path.parent))
    if kind_of(path) != "file":
        hint = f"Expected a folder of {CONFIG} and {' or '.join(WEIGHTS)}, as timm saves them."
        raise InputError(f"holds no {CONFIG}", where=str(path.parent), hint=hint)
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"larger than {LARGEST >> 20} MiB", where=where)
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=where) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}", where=where) from error
    if not isinstance(content, dict):
        raise InputError("not a mapping", where=where)
    return content
