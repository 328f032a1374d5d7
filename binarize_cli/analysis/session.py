"""An analysis from its target to its document: opened, measured unit by unit, continued if interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from binarize_cli.analysis.choice import Choice, Gain, Score, Unit, snippet, until_points, within_budget
from binarize_cli.analysis.sensitivity import Batch, Forecast, Trained, candidates, units_of
from binarize_cli.binarize.convert import binary_layers
from binarize_cli.binarize.prepare import rewrite_and_choose
from binarize_cli.data.decode import decode
from binarize_cli.data.images import ImageDataset, Split
from binarize_cli.data.loaders import ScoreBatches, shuffled
from binarize_cli.device import find_device, place
from binarize_cli.errors import InputError
from binarize_cli.files import write_text
from binarize_cli.models.classes import adapt_head
from binarize_cli.models.heads import head_names
from binarize_cli.models.load import Preprocessing, load
from binarize_cli.models.names import ModelName
from binarize_cli.packed.format import PackedFile
from binarize_cli.packed.runtime import rebuild
from binarize_cli.recipe import Recipe
from binarize_cli.report.results import as_json

SCHEMA = "bnnpp analysis 2"


@dataclass(frozen=True)
class Asked:
    """What an analysis is asked for, beside its target."""

    images: int = 512
    """To measure on."""
    batch_size: int = 32
    """Every batch of a file sees other signs at wrong places: the smaller, the more are tried."""
    by_block: bool = False
    budget: int | None = None
    """The file's size in bytes, at most."""
    points: float | None = None
    """Of top-1 to gain, at least."""
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class Session:
    """An analysis whose target is open."""

    measured: Trained | Forecast
    units: list[Unit]
    bytes: int
    """Of the packed file; of a float model what it would be, without its document."""
    keep_float: list[str]
    """What the recipe keeps float now."""
    identity: dict[str, Any]
    """By which an analysis that was interrupted is known again."""
    asked: Asked


def open_file(packed: PackedFile, dataset: ImageDataset, asked: Asked) -> Session:
    """Open a packed file to analyse. Raises InputError if it holds no binary layer, or the classes differ."""
    document = packed.document
    if list(dataset.classes) != list(document.model.classes):
        what = f"its {len(dataset.classes)} classes are not the file's {len(document.model.classes)}"
        raise InputError(what, where=dataset.name, hint="Give the dataset that the file was made for.")
    device = find_device(asked.device)
    net = rebuild(packed)
    names = [name for name, _ in binary_layers(net)]
    if not names:
        raise InputError("holds no binary layer", where=str(packed.path))
    if document.preprocessing is None:
        raise InputError("does not say how its images are prepared", where=str(packed.path))
    preprocessing = Preprocessing.from_json(document.preprocessing.model_dump())
    judge = images(dataset.train, preprocessing, asked, device, document.full_recipe["train"]["seed"])
    identity = {"kind": "file", "sha256": document.sha256, **_facts(dataset, asked)}
    keep = list(document.full_recipe["layers"]["keep_float"])
    units = units_of(net, names, asked.by_block)
    return Session(Trained(packed, judge, device), units, packed.total_bytes, keep, identity, asked)


def open_model(
    name: ModelName, recipe: Recipe, dataset: ImageDataset, weights: Path | None, asked: Asked
) -> Session:
    """Open a float model to forecast. Raises InputError if its head does not know the dataset's classes."""
    device = find_device(asked.device)
    model = load(name, weights=weights)
    if adapt_head(model, dataset.classes) == "replaced":
        what = f"the head does not know the classes of {dataset.name}, so there is no accuracy to lose"
        raise InputError(what, where=name.name, hint="Give the weights of a model trained for them.")
    example = torch.zeros(2, *model.preprocessing.input_size)
    net, table = rewrite_and_choose(model.net, example, recipe, head_names(model.net))
    judge = images(dataset.train, model.preprocessing, asked, device, asked.seed)
    names = candidates(net, table)
    units = units_of(net, names, asked.by_block)
    growth = sum(unit.bytes for unit in units)
    whole = sum(2 * tensor.numel() for tensor in net.state_dict().values())
    facts = {"model": name.name, "weights": model.weights_sha256, "recipe": recipe.model_dump(mode="json")}
    identity = {"kind": "forecast", **facts, **_facts(dataset, asked)}
    forecast = Forecast(place(net, device).eval(), table, recipe, judge, device)
    return Session(forecast, units, whole - growth, list(recipe.layers.keep_float), identity, asked)


def _facts(dataset: ImageDataset, asked: Asked) -> dict[str, Any]:
    """Return what of the question a gain depends on; the budget is asked of the gains, again if need be."""
    own = {key: value for key, value in asdict(asked).items() if key not in ("budget", "points", "device")}
    return {"dataset": dataset.fingerprint, **own}


def images(
    split: Split, preprocessing: Preprocessing, asked: Asked, device: torch.device, seed: int
) -> list[Batch]:
    """Return batches of training images to measure on, a third of them at most.

    They come first in the order in which a run with that `seed` sets images aside: as far as it did, the
    network has not seen them. Raises InputError if there are fewer than three.
    """
    if len(split) < 3:
        raise InputError("needs training images to measure on", hint="Name a dataset.")
    chosen = shuffled(len(split), seed)[: min(asked.images, len(split) // 3)]
    part = decode(split.subset(chosen), skip_unreadable=True, limit_gb=4.0)
    loaded = ScoreBatches(part, preprocessing, asked.batch_size, device=device)
    return [(inputs.to(device), targets.to(device)) for inputs, targets in loaded]


def analyse(
    session: Session, file: Path, progress: Callable[[int, int, Gain | None], None] = lambda *_: None
) -> dict[str, Any]:
    """Measure every unit, and return the document, which `file` holds after each of them.

    What `file` holds of the same analysis is not measured again; `progress(done, of, last)` is called before
    and after each unit.
    """
    known = _known(file, session.identity)
    measured, asked = session.measured, session.asked
    binary = Score(**known["binary"]) if known else measured.base()
    better = None
    if isinstance(measured, Forecast):
        better = Score(**known["float"]) if known else measured.float_score()
    gains = [gain_from(row) for row in known["gains"]] if known else []
    document = {
        "schema": SCHEMA,
        "identity": session.identity,
        "bytes": session.bytes,
        "binary": asdict(binary),
        "float": asdict(better) if better else None,
        "units": len(session.units),
        "gains": [gain.to_json() for gain in gains],
        "choice": None,
    }
    progress(len(gains), len(session.units), None)
    for gain in measured.gains(session.units[len(gains) :], better or binary):
        gains.append(gain)
        document["gains"] = [gain.to_json() for gain in gains]
        write_text(file, as_json(document))
        progress(len(gains), len(session.units), gains[-1])
    choice = _choose(gains, binary, session)
    if choice:
        every = [name for unit in session.units for name in unit.layers]
        document["choice"] = {
            "budget": asked.budget,
            "points": asked.points,
            "layers": choice.layers,
            "bytes": session.bytes + choice.bytes,
            "score": asdict(choice.score) if choice.score else None,
            "snippet": snippet(choice, session.keep_float, every),
        }
    write_text(file, as_json(document))
    return document


def _choose(gains: Sequence[Gain], binary: Score, session: Session) -> Choice | None:
    """Return what is asked to stay float; of a float model with what it scores then, untrained."""
    asked, measured = session.asked, session.measured
    if asked.budget is not None:
        if asked.budget < session.bytes:
            what = f"the file has {session.bytes:,} bytes with every such layer binary"
            raise InputError(what, where="--budget", hint="Ask for a larger file.")
        choice = within_budget(gains, asked.budget - session.bytes)
        return (
            replace(choice, score=measured.with_float(choice.layers))
            if isinstance(measured, Forecast)
            else choice
        )
    if asked.points is not None:
        assert isinstance(measured, Forecast), "the command refuses it for files"
        return until_points(gains, asked.points, binary, measured.with_float)
    return None


def _known(file: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return what was measured before of the same analysis; None if the file is not there, or of another."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        same = document["schema"] == SCHEMA and document["identity"] == json.loads(json.dumps(identity))
        return document if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def gain_from(row: dict[str, Any]) -> Gain:
    return Gain(**{key: row[key] for key in ("name", "layers", "bytes", "points", "loss")})
