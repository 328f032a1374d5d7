"""Results side by side: runs that differ in their seed alone are one row."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from binarize_cli.dotted import flat
from binarize_cli.report.means import LOSS_DIGITS, spread
from binarize_cli.report.results import NETWORKS
from binarize_cli.report.settings import settings

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A result, and where it came from: its place is a path or an address that pages link to, or empty."""

    result: Result
    place: str = ""
    label: str = ""
    """What the user called it; empty: the recipe or method of its command."""


def compare_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the comparison: what compare.json holds, and what its tables and its page are drawn from.

    `rows` has an entry for each label, task, model, dataset and recipe, in order of their first runs. Of
    top-1 (per cent), of the packed file's `loss`, of `flips` (per cent of signs, added up) and of `seconds`
    (a run) it has `mean`, `half_range`, `standard_error` (null for one run) and `values`; each is null if a
    run lacks it.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_kind(run), []).append(run)
    rows = [_row(group) for group in groups.values()]
    _tell_apart(rows, [group[0].result for group in groups.values()])
    settings = ("model", "data", "epochs", "selection")
    common = [key for key in settings if len({json.dumps(row[key]) for row in rows}) == 1]
    return {"schema": "bnnpp comparison 1", "common": {key: rows[0][key] for key in common}, "rows": rows}


def name_of(result: Result) -> str:
    """Return the recipe that the command names, else the method."""
    named = re.search(r"--recipe[ =](\S+)", result["command"])
    return named[1].removesuffix(".yaml") if named else result["method"]


def _kind(run: Run) -> str:
    """Return what runs of one row have in common: all but the seed."""
    result = run.result
    data = result["data"]
    facts = [
        run.label or name_of(result),
        result["task"],
        result["model"],
        data["name"],
        data["train_images"],
    ]
    return json.dumps([*facts, data["fingerprint"], settings(result)], sort_keys=True)


def _row(group: Sequence[Run]) -> dict[str, Any]:
    results = [run.result for run in group]
    first = results[0]
    row: dict[str, Any] = {
        "row": group[0].label or name_of(first),
        "method": first["method"],
        "task": first["task"],
        "model": first["model"],
        "data": f"{first['data']['name']} ({first['data']['train_images']:,} training images)",
        "epochs": max(result["epochs"] for result in results),
        "selection": first["recipe"]["train"].get("select", "val"),
        "n": len(group),
        "seeds": [result["seed"] for result in results],
    }
    for name in NETWORKS:
        row[name] = spread([_top1(result, name) for result in results])
    losses = [(result["accuracy"]["packed"] or {}).get("loss") for result in results]
    row["loss"] = spread(losses, LOSS_DIGITS)
    row["flips"] = spread([None if r["flips"] is None else 100 * r["flips"] for r in results])
    row["seconds"] = spread([result["seconds"] for result in results])
    row["minutes"] = round(statistics.fmean(row["seconds"]["values"]) / 60, 1)  # of a run
    row["bytes"] = round(statistics.fmean(result["bytes"] for result in results))
    row["ratio"] = round(statistics.fmean(r["float32_bytes"] / r["bytes"] for r in results), 2)
    row["curves"] = [result["curve"] for result in results]
    row["commands"] = [result["command"] for result in results]
    row["reports"] = [run.place for run in group]
    return row


def _top1(result: Result, network: str) -> float | None:
    """Return the top-1 of a network, if it was scored; of the soft one what the log says of its epoch."""
    curve, packed = result["curve"], result["packed_epoch"]
    if network == "soft" and packed in curve["epoch"]:
        return curve["soft"][curve["epoch"].index(packed)]
    return (result["accuracy"][network] or {}).get("top1")


def _tell_apart(rows: Sequence[dict[str, Any]], firsts: Sequence[Result]) -> None:
    """Add to labels that several rows have what differs: task, model, data, or else a recipe's keys."""
    facts = [_facts(first) for first in firsts]
    of_recipes = [key for key in dict.fromkeys(key for own in facts for key in own) if key not in PLAIN]
    for kind, most in ((PLAIN, len(PLAIN)), (of_recipes, 3)):
        for places in _alike([row["row"] for row in rows]):
            keys = [key for key in kind if len({facts[place].get(key) for place in places}) > 1][:most]
            for place in places:
                told = ((key, facts[place].get(key, "-")) for key in keys)
                words = [text if key in PLAIN else f"{key}={text}" for key, text in told]
                rows[place]["row"] = " ".join([rows[place]["row"], *words])


def _alike(labels: Sequence[str]) -> list[list[int]]:
    """Return the places of each label that stands at several."""
    places: dict[str, list[int]] = {}
    for place, each in enumerate(labels):
        places.setdefault(each, []).append(place)
    return [found for found in places.values() if len(found) > 1]


PLAIN = ("task", "model", "data")


def _facts(result: Result) -> dict[str, str]:
    """Return what may tell two rows apart, as texts."""
    data = result["data"]
    facts = {"task": result["task"], "model": result["model"].partition("/")[2] or result["model"]}
    facts["data"] = f"{data['name']} ({data['train_images']:,})"
    recipe = flat({k: v for k, v in settings(result).items() if k not in ("task", "method")})
    return facts | {key: str(value) for key, value in recipe.items()}


def runs_of(results: Sequence[tuple[Path, Result]], folder: Path) -> list[Run]:
    """Return what was read as runs whose places are the reports beside the files, as seen from `folder`."""
    return [Run(result, _report_beside(file, folder)) for file, result in results]


def _report_beside(file: Path, folder: Path) -> str:
    page = file.with_name("report.html")
    if file.name != "report.json" or not page.exists():
        return ""
    return quote(os.path.relpath(page.absolute(), folder.absolute()))
