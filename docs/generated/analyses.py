"""What `bnnpp analyze` named, and the runs by which the default recipe was chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import Any

from binarize_cli.report.results import as_json
from generated.markdown import table
from generated.places import RESULTS

ANALYSES = RESULTS / "analyses.json"
SEARCH = RESULTS / "search.json"


def analyses() -> str:
    """Return what the layers that `bnnpp analyze` names gain, beside as many bytes drawn at random."""
    if not _kept():
        return "No analysis is stored yet."
    heads = ("kept float beside the first layer and the head", "KiB more", "n", "top-1", "loss")
    parts = []
    for each in _kept():
        rows = [
            (row["kept"], f"{row['bytes'] / 1024:.1f}", str(len(row["runs"])), *_over_seeds(row["runs"]))
            for row in each["rows"]
        ]
        trained = "not trained" if each["method"] == "ptq" else f"{each['epochs']} epochs"
        what = f"`{each['network']}`, task `{each['task']}`, `{each['method']}`, {trained}"
        images = f"{each['train_images']:,} training and {each['val_images']:,} validation images"
        of = "a trained file" if each["kind"] == "file" else "a forecast"
        head = f"{what}, {images}; named by {of} for {each['budget'] / 1024:.0f} KiB more."
        parts.append(f"{head}\n\n{table(heads, rows, right=4)}")
    return "\n\n".join(parts)


def _over_seeds(runs: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the mean and half the range of top-1 and of the loss."""
    return _spread(_values(runs, "top1"), 2), _spread(_values(runs, "loss"), 4)


def _values(runs: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [run[key] for run in runs]


def _spread(values: Sequence[float], digits: int) -> str:
    """Return `0.5371 ± 0.0035`: losses need more digits than per cents, which `spread` rounds."""
    around = f" ± {(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{around}"


def store_analyses(files: Sequence[Path]) -> None:
    """Keep what `tests/analyses.py` wrote: each replaces an older one of its kind."""
    new = [each for file in files for each in json.loads(file.read_text(encoding="utf-8"))["analyses"]]
    kind = itemgetter("network", "task", "method", "kind", "budget")
    kept = {kind(each): each for each in [*_kept(), *new]}
    ANALYSES.write_text(as_json({"analyses": [kept[key] for key in sorted(kept)]}), encoding="utf-8")


def _kept() -> list[dict[str, Any]]:
    return json.loads(ANALYSES.read_text(encoding="utf-8"))["analyses"] if ANALYSES.exists() else []


def search() -> str:
    """Return the runs by which the default recipe was chosen, the lowest loss first."""
    heads = ("flags or recipe", "n", "top-1", "loss", "flips %")
    parts = []
    for each in json.loads(SEARCH.read_text(encoding="utf-8"))["searches"]:
        rows = sorted(each["rows"], key=_loss)
        cells = [
            (row["recipe"], str(len(row["runs"])), *_over_seeds(row["runs"]), _flips(row)) for row in rows
        ]
        parts.append(f"Setting: {each['setting']}.\n\n{table(heads, cells, right=4)}")
    return "\n\n".join(parts)


def _loss(row: Mapping[str, Any]) -> float:
    return mean(_values(row["runs"], "loss"))


def _flips(row: Mapping[str, Any]) -> str:
    return _spread(_values(row["runs"], "flips"), 2)
