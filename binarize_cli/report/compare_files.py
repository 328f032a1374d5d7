"""The files of a comparison: compare.json, .csv, .md and .html."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from binarize_cli.errors import counted
from binarize_cli.files import write_text
from binarize_cli.report.means import LOSS_DIGITS, Error, cell
from binarize_cli.report.results import NETWORKS, as_json

FACTS = ("row", "method", "task", "model", "data", "epochs", "selection", "n", "bytes", "ratio", "minutes")
MEASURED = (*NETWORKS, "loss", "flips", "seconds")


def as_markdown(comparison: Mapping[str, Any], error: Error = "half-range") -> str:
    """Return the comparison as a table for a README, with the commands that repeat it."""
    common = comparison["common"]
    own = [key for key in ("model", "data", "epochs", "selection") if key not in common]
    heads = ["method or recipe", *own, "task", "n", "float", "soft", "hard", "packed file"]
    heads += ["loss", "flips %", "file, KiB", "minutes a run"]
    lines = [_line(heads), _line([*["---"] * (2 + len(own)), *["---:"] * 9])]
    for row in comparison["rows"]:
        cells = [f"`{row['row']}`", *(str(row[key]) for key in own), row["task"], str(row["n"])]
        cells += [cell(row[name], error) for name in ("float", "soft", "hard")]
        cells += [f"**{cell(row['packed'], error)}**", cell(row["loss"], error, LOSS_DIGITS)]
        cells += [cell(row["flips"], error)]
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
    parts = ("mean", "half_range", "standard_error")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*FACTS, *(f"{name}_{part}" for name in MEASURED for part in parts)])
    for row in comparison["rows"]:
        spreads = [(row[name] or {}).get(part) for name in MEASURED for part in parts]
        writer.writerow([*(row[name] for name in FACTS), *spreads])
    return out.getvalue()


def write_comparison(folder: Path, comparison: Mapping[str, Any], error: Error = "half-range") -> Path:
    """Write compare.json, .csv, .md and .html to a folder, and return the last of them."""
    from binarize_cli.report.compare_page import render_comparison

    write_text(folder / "compare.json", as_json(comparison))
    write_text(folder / "compare.csv", as_csv(comparison))
    write_text(folder / "compare.md", as_markdown(comparison, error))
    write_text(folder / "compare.html", render_comparison(comparison, error))
    return folder / "compare.html"
