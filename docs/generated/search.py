"""The runs by which the default recipes were chosen."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from generated.markdown import over_seeds, table
from generated.places import RESULTS

SEARCH = RESULTS / "search.json"


def blocks() -> Mapping[str, Callable[[], str]]:
    """Return what makes the tables of each topic, by the name of its block."""
    topics: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for each in json.loads(SEARCH.read_text(encoding="utf-8"))["searches"]:
        topics[each["topic"]].append(each)
    return {f"search-{topic}": partial(_tables, searches) for topic, searches in topics.items()}


def _tables(searches: Sequence[Mapping[str, Any]]) -> str:
    """Return a table a setting, the lowest loss first."""
    heads = ("flags or recipe", "n", "top-1", "loss", "flips %")
    parts = []
    for each in searches:
        cells = [_cells(row) for row in sorted(each["rows"], key=_loss)]
        parts.append(f"Setting: {each['setting']}.\n\n{table(heads, cells, right=4)}")
    return "\n\n".join(parts)


def _loss(row: Mapping[str, Any]) -> float:
    return fmean(run["loss"] for run in row["runs"])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    runs = row["runs"]
    return row["recipe"], str(len(runs)), *(over_seeds(runs, key) for key in ("top1", "loss", "flips"))
