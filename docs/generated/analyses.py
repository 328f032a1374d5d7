"""What `bnnpp analyze` named, and the runs by which the default recipe was chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
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
    heads = ("file", "budget", "kept float", "loss", "top-1")
    parts = []
    for each in _kept():
        rows = [(each["network"], "", "nothing", *_scores(each["binary"]))]
        for asked in each["budgets"]:
            size = f"+{asked['budget'] / 1024:.0f} KiB"
            rows.append(("", size, "what `analyze` named", *_scores(asked["named"])))
            rows += [("", "", "drawn at random", *_scores(drawn)) for drawn in asked["random"]]
        parts.append(table(heads, rows, right=2) + f"\n\n{each['how']}")
    return "\n\n".join(parts)


def _scores(score: Mapping[str, float]) -> tuple[str, str]:
    return f"{score['loss']:.4f}", f"{score['top1']:.2f}"


def store_analyses(files: Sequence[Path]) -> None:
    """Keep what `tests/analyses.py --json` wrote: each analysis replaces an older one of the same network."""
    new = [each for file in files for each in json.loads(file.read_text(encoding="utf-8"))["analyses"]]
    analyses = {each["network"]: each for each in [*_kept(), *new]}
    for each in analyses.values():
        each.pop("gains", None)
    ANALYSES.write_text(as_json({"analyses": list(analyses.values())}), encoding="utf-8")


def _kept() -> list[dict[str, Any]]:
    return json.loads(ANALYSES.read_text(encoding="utf-8"))["analyses"] if ANALYSES.exists() else []


def search() -> str:
    """Return the runs by which the default recipe was chosen, the best first."""
    document = json.loads(SEARCH.read_text(encoding="utf-8"))
    rows = [
        (f"`{each['flags']}`", *_scores(each), f"{each['flips']:.2f}")
        for each in sorted(document["rows"], key=lambda each: -each["top1"])
    ]
    heads = ("flags", "loss", "top-1", "flips %")
    return f"Setting: {document['setting']}.\n\n{table(heads, rows, right=3)}"
