"""Results: what a comparison needs of a run, and the one place that says what that is.

A result is a report.json without its layers, confusions and class names: 4 to 10 KiB, small enough to be kept
in `docs/results`. A reader of results takes either.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from binarize_cli.errors import InputError
from binarize_cli.files import kind_of

SCHEMA = "bnnpp result 1"
NETWORKS = ("float", "soft", "hard", "packed")
NEEDED = ("accuracy", "bytes", "data", "epochs", "method", "model", "provenance", "recipe", "task")


def trim(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result that a report.json holds; a result is returned as it is.

    - `schema`: "bnnpp result 1"
    - `command`, `tool`: what was run, and by which version
    - `model`: source/name, such as `timm/deit_tiny_patch16_224`
    - `method`, `task`, `recipe` (resolved), `seed`
    - `data`: `name` (of a folder its last part), `fingerprint`, `classes` (a count), `train_images`,
      `val_images`
    - `accuracy`: of the networks `float`, `soft`, `hard` and `packed` each `top1`, `top5` (per cent) and
      `loss`, or null if it was not scored
    - `bytes` (of the packed file), `float32_bytes`, `binary_weights`
    - `epochs` (trained, in all stages), `packed_epoch`, `seconds` (of the whole run)
    - `flips`: the share of signs that changed from epoch to epoch, added up; null without training
    - `curve`: `epoch`, `soft` and `hard` (top-1) of the last stage, lists of one length
    - `provenance`: versions, the code's commit, machine, device, precision, steps, weights

    Raises KeyError or TypeError if the document is something else.
    """
    if document.get("schema") == SCHEMA:
        return dict(document)
    rows = document["epochs"]
    last = [row for row in rows if row["stage"] == rows[-1]["stage"]]
    flips = [row["flip_ratio"] for row in rows if row["flip_ratio"] is not None]
    model, data, facts = document["model"], document["data"], dict(document["provenance"])
    return {
        "schema": SCHEMA,
        "tool": document["tool"],
        "command": document["command"],
        "model": f"{model['source']}/{model['name']}",
        "method": document["method"],
        "task": document["task"],
        "recipe": document["recipe"],
        "seed": document["recipe"]["train"]["seed"],
        "data": {
            "name": PurePath(data["name"]).name,
            "fingerprint": data["fingerprint"],
            "classes": len(data["classes"]),
            "train_images": data["train_images"],
            "val_images": data["val_images"],
        },
        "accuracy": {name: _scores(document["accuracy"].get(name)) for name in NETWORKS},
        "bytes": document["bytes"]["total"],
        "float32_bytes": document["float32_bytes"],
        "binary_weights": document["binary_weights"],
        "epochs": sum(row["epoch"] > 0 for row in rows),
        "packed_epoch": document["packed_epoch"],
        "seconds": facts.pop("seconds"),
        "flips": round(sum(flips), 6) if flips else None,
        "curve": {
            "epoch": [row["epoch"] for row in last],
            "soft": [row["soft_top1"] for row in last],
            "hard": [row["hard_top1"] for row in last],
        },
        "provenance": facts,
    }


def _scores(scored: Mapping[str, Any] | None) -> dict[str, float] | None:
    return {key: scored[key] for key in ("top1", "top5", "loss")} if scored else None


def as_json(document: Mapping[str, Any]) -> str:
    """Return the text of a report or a result: a line a key, and a line for each entry of a list of objects.

    With `indent`, the confusions of 1,000 classes would take a line a number.
    """
    lines = [f" {json.dumps(key)}: {_value(value)}" for key, value in document.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _value(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        return "[\n  " + ",\n  ".join(json.dumps(entry, allow_nan=False) for entry in value) + "\n ]"
    return json.dumps(value, allow_nan=False)


def read_results(places: Iterable[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Return (file, result) of every report.json and every result in these files and folders.

    Raises InputError if a file is neither, if a folder holds none, or if there is no such place.
    """
    found: dict[Path, dict[str, Any]] = {}
    for place in places:
        files = _files(place)
        read = ((file, _read(file, named=file == place)) for file in files)
        mine = {file: result for file, result in read if result}
        if not mine:
            hint = "Name run folders, folders of them, report.json files or results that were kept from them."
            raise InputError("holds no finished run and no result", where=str(place), hint=hint)
        found |= mine
    return list(found.items())


def _files(place: Path) -> list[Path]:
    kind = kind_of(place)
    if kind is None:
        raise InputError("there is no such file or folder", where=str(place))
    if kind == "file":
        return [place]
    own = sorted(place.glob("*.json"))
    reports = [file for file in own if file.name == "report.json"]  # beside it lie parts of the same run
    return reports or sorted({*own, *(f for f in place.rglob("*.json") if "state" not in f.parts)})


def _read(file: Path, named: bool) -> dict[str, Any] | None:
    """Return the result in a file; None if a folder happens to hold another kind of JSON."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        known = isinstance(document, dict) and (document.get("schema") == SCHEMA or "accuracy" in document)
        if not known and not named and file.name != "report.json":
            return None
        missing = [key for key in NEEDED if key not in document]
        if missing:
            raise KeyError(missing[0])
        return trim(document)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        what = (
            "is no report of a run" if not isinstance(error, OSError) else f"cannot be read: {error.strerror}"
        )
        detail = f" ({type(error).__name__}: {error})" if not isinstance(error, OSError) else ""
        raise InputError(
            f"{what}{detail}", where=str(file), hint="Leave it out, or run that again."
        ) from None
