"""What the layers that `bnnpp analyze` names gain, kept float."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from binarize_cli.report.results import as_json
from generated.markdown import over_seeds, table
from generated.places import RESULTS

ANALYSES = RESULTS / "analyses.json"


def analyses() -> str:
    """Return what the layers that `bnnpp analyze` names gain, beside as many bytes drawn at random."""
    if not _kept():
        return "No analysis is stored yet."
    heads = ("kept float beside the first layer and the head", "KiB more", "n", "top-1", "loss")
    parts = []
    for each in _kept():
        rows = [_cells(row) for row in each["rows"]]
        trained = "not trained" if each["method"] == "ptq" else f"{each['epochs']} epochs"
        what = f"`{each['network']}`, task `{each['task']}`, `{each['method']}`, {trained}"
        images = f"{each['train_images']:,} training and {each['val_images']:,} validation images"
        of = "a trained file" if each["kind"] == "file" else "a forecast"
        head = f"{what}, {images}; named by {of} for {each['budget'] / 1024:.0f} KiB more."
        parts.append(f"{head}\n\n{table(heads, rows, right=4)}")
    return "\n\n".join(parts)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    runs = row["runs"]
    scores = over_seeds(runs, "top1"), over_seeds(runs, "loss")
    return row["kept"], f"{row['bytes'] / 1024:.1f}", str(len(runs)), *scores


def store_analyses(files: Sequence[Path]) -> None:
    """Keep what `tests/analyses.py` wrote: each replaces an older one of its kind."""
    new = [each for file in files for each in json.loads(file.read_text(encoding="utf-8"))["analyses"]]
    kind = itemgetter("network", "task", "method", "kind", "budget")
    kept = {kind(each): each for each in [*_kept(), *new]}
    ANALYSES.write_text(as_json({"analyses": [kept[key] for key in sorted(kept)]}), encoding="utf-8")


def _kept() -> list[dict[str, Any]]:
    return json.loads(ANALYSES.read_text(encoding="utf-8"))["analyses"] if ANALYSES.exists() else []
