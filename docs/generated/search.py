"""The runs by which the default recipes were chosen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from generated.markdown import over_seeds, table
from generated.places import RESULTS

SEARCH = RESULTS / "search.json"
TOPICS = ("latents-rate", "hardening", "binary-inputs", "beta", "soft-steps", "float-rate")


def blocks() -> Mapping[str, Callable[[], str]]:
    """Return what makes the tables of each topic, by the name of its block."""
    return {f"search-{topic}": partial(_tables, topic) for topic in TOPICS}


def _tables(topic: str) -> str:
    """Return a table a setting, the lowest loss first."""
    heads = ("flags or recipe", "n", "top-1", "loss", "flips %")
    parts = []
    for each in json.loads(SEARCH.read_text(encoding="utf-8"))["searches"]:
        if each["topic"] == topic:
            cells = [_cells(row) for row in sorted(each["rows"], key=_loss)]
            parts.append(f"Setting: {each['setting']}.\n\n{table(heads, cells, right=4)}")
    return "\n\n".join(parts)


def _loss(row: Mapping[str, Any]) -> float:
    return sum(run["loss"] for run in row["runs"]) / len(row["runs"])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    runs = row["runs"]
    scores = over_seeds(runs, "top1"), over_seeds(runs, "loss", digits=4), over_seeds(runs, "flips")
    return row["recipe"], str(len(runs)), *scores
