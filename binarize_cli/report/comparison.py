"""Results side by side: runs that differ in their seed alone are one row, with its mean and its spread."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from binarize_cli.dotted import flat
from binarize_cli.errors import counted
from binarize_cli.files import write_text
from binarize_cli.report.results import NETWORKS, as_json
from binarize_cli.report.settings import settings

Result = Mapping[str, Any]
Error = Literal["half-range", "standard-error"]
COLUMNS = (*NETWORKS, "loss", "flips", "seconds")


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
    row["loss"] = spread([(result["accuracy"]["packed"] or {}).get("loss") for result in results], digits=4)
    row["flips"] = spread([None if r["flips"] is None else 100 * r["flips"] for r in results])
    row["seconds"] = spread([result["seconds"] for result in results])
    row["minutes"] = round(sum(result["seconds"] for result in results) / 60, 1)
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


def spread(values: Sequence[float | None], digits: int = 2) -> dict[str, Any] | None:
    """Return mean, half the range and standard error (null for one value); None if a value is missing.

    `spread` is half the range rounded to `digits`, as the mean is.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    several = len(known) > 1
    error = statistics.stdev(known) / math.sqrt(len(known)) if several else None
    half = (max(known) - min(known)) / 2
    return {
        "mean": round(statistics.fmean(known), digits),
        "spread": round(half, digits),
        "half_range": round(half, digits + 2),
        "standard_error": None if error is None else round(error, digits + 2),
        "values": known,
    }


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


# --- as text -----------------------------------------------------------------------------------------------


def cell(value: Mapping[str, Any] | None, error: Error = "half-range", digits: int = 2) -> str:
    """Return `95.74 ± 0.69`; the mean alone for one run, a dash for none."""
    if value is None:
        return "-"
    around = value["half_range"] if error == "half-range" else value["standard_error"]
    more = f" ± {around:.{digits}f}" if len(value["values"]) > 1 else ""
    return f"{value['mean']:.{digits}f}{more}"


def as_markdown(comparison: Mapping[str, Any], error: Error = "half-range") -> str:
    """Return the comparison as a table for a README, with the commands that repeat it."""
    common = comparison["common"]
    own = [key for key in ("model", "data", "epochs", "selection") if key not in common]
    heads = ["method or recipe", *own, "task", "n", "float", "soft", "hard", "packed file"]
    heads += ["loss", "flips %", "file, KiB", "minutes"]
    lines = [_line(heads), _line([*["---"] * (2 + len(own)), *["---:"] * 9])]
    for row in comparison["rows"]:
        cells = [f"`{row['row']}`", *(str(row[key]) for key in own), row["task"], str(row["n"])]
        cells += [cell(row[name], error) for name in ("float", "soft", "hard")]
        cells += [f"**{cell(row['packed'], error)}**", cell(row["loss"], error, 4), cell(row["flips"], error)]
        cells += [f"{row['bytes'] / 1024:.1f} ({row['ratio']:.1f}x)", f"{row['minutes']:.1f}"]
        lines.append(_line(cells))
    words = "half the range" if error == "half-range" else "the standard error"
    facts = [_fact(key, value) for key, value in common.items()]
    caption = ", ".join([*facts, f"top-1 in per cent; mean and {words} over n runs"])
    commands = "\n".join(f"$ {command}" for row in comparison["rows"] for command in row["commands"])
    table = "\n".join(lines)
    return f"{caption}.\n\n{table}\n\n```console\n{commands}\n```\n"


def _fact(key: str, value: Any) -> str:
    if key == "epochs":
        return counted(value, "epoch")
    return f"packed epoch: {value}" if key == "selection" else str(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in cells) + " |"


def as_csv(comparison: Mapping[str, Any]) -> str:
    """Return the comparison as CSV: a line a row, with mean, half range and standard error of each score."""
    plain = (
        "row",
        "method",
        "task",
        "model",
        "data",
        "epochs",
        "selection",
        "n",
        "bytes",
        "ratio",
        "minutes",
    )
    parts = ("mean", "half_range", "standard_error")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*plain, *(f"{name}_{part}" for name in COLUMNS for part in parts)])
    for row in comparison["rows"]:
        spreads = [(row[name] or {}).get(part) for name in COLUMNS for part in parts]
        writer.writerow([*(row[name] for name in plain), *spreads])
    return out.getvalue()


def write_comparison(folder: Path, comparison: Mapping[str, Any], error: Error = "half-range") -> Path:
    """Write compare.json, .csv, .md and .html to a folder, and return the last of them."""
    from binarize_cli.report.compare_page import render_comparison

    write_text(folder / "compare.json", as_json(comparison))
    write_text(folder / "compare.csv", as_csv(comparison))
    write_text(folder / "compare.md", as_markdown(comparison, error))
    write_text(folder / "compare.html", render_comparison(comparison, error))
    return folder / "compare.html"


def runs_of(results: Sequence[tuple[Path, Result]], folder: Path) -> list[Run]:
    """Return what was read as runs whose places are the reports beside the files, as seen from `folder`."""
    return [Run(result, _report_beside(file, folder)) for file, result in results]


def _report_beside(file: Path, folder: Path) -> str:
    page = file.with_name("report.html")
    if file.name != "report.json" or not page.exists():
        return ""
    return quote(os.path.relpath(page.absolute(), folder.absolute()))
