"""compare.html: a comparison as one page that needs nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from binarize_cli.report import tables
from binarize_cli.report.charts import (
    Chart,
    Series,
    line_chart,
    line_sample,
    mark_sample,
    number,
    scatter,
    ticks,
)
from binarize_cli.report.html import environment
from binarize_cli.report.means import LOSS_DIGITS, Error, cell

Row = Mapping[str, Any]
MOST_CURVES = 14  # as many styles as there are
TASK_STYLES = {"bw": 0, "bwa": 1, "bwaa": 2}


def render_comparison(comparison: Mapping[str, Any], error: Error = "half-range") -> str:
    """Return the comparison as an HTML page: styles and pictures inside it, no script, every text escaped."""
    rows = comparison["rows"]
    curves = [
        (place, row) for place, row in enumerate(rows) if any(len(c["epoch"]) > 1 for c in row["curves"])
    ]
    return (
        environment()
        .get_template("compare.html")
        .render(
            c=comparison,
            rows=rows,
            error="half the range" if error == "half-range" else "the standard error",
            dots=dots(rows, error),
            legend=[(row["row"], mark_sample(place), line_sample(place)) for place, row in enumerate(rows)],
            curves=_curves(curves[:MOST_CURVES]),
            drawn=[place for place, _ in curves[:MOST_CURVES]],
            left_out=len(curves) - len(curves[:MOST_CURVES]),
            sizes=_scatter("packed top-1, %, against bytes", rows, error, "bytes"),
            times=_scatter("packed top-1, %, against time", rows, error, "seconds"),
            flips=_flips(rows),
            cell=lambda value: cell(value, error),
            loss=lambda value: cell(value, error, LOSS_DIGITS),
            unequal=unequal(rows),
        )
    )


def unequal(rows: Sequence[Row]) -> list[str]:
    """Return what is not the same in all rows although a fair comparison would have it so."""
    words = {
        "model": "models",
        "data": "datasets",
        "epochs": "numbers of epochs",
        "selection": "selection of the packed epoch",
    }
    found = [text for key, text in words.items() if len({row[key] for row in rows}) > 1]
    return found + ["numbers of runs"] * (len({row["n"] for row in rows}) > 1)


def _around(value: Mapping[str, Any], error: Error) -> float:
    return value["half_range" if error == "half-range" else "standard_error"] or 0.0


def dots(rows: Sequence[Row], error: Error) -> dict[str, Any]:
    """Return a line a row with its dots: the runs, mean and error, in per cent of the picture's width."""
    scores = [v for row in rows for v in row["packed"]["values"]]
    floats = [row["float"]["mean"] for row in rows if row["float"]]
    marks = ticks(min(scores), max([*scores, *floats]), 6)
    low, high = marks[0], marks[-1]

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    lines = []
    for row in rows:
        mean, around = row["packed"]["mean"], _around(row["packed"], error)
        lines.append(
            {
                "name": row["row"],
                "mean": place(mean),
                "low": place(max(low, mean - around)),
                "width": place(min(high, mean + around)) - place(max(low, mean - around)),
                "runs": [place(v) for v in row["packed"]["values"]],
                "float": place(row["float"]["mean"]) if row["float"] else None,
                "text": cell(row["packed"], error),
                "style": TASK_STYLES.get(row["task"], 3),
                "task": row["task"],
            }
        )
    tasks = [task for task in TASK_STYLES if any(row["task"] == task for row in rows)]
    return {
        "lines": lines,
        "ticks": [(number(v), place(v)) for v in marks],
        "tasks": [(task, TASK_STYLES[task]) for task in tasks],
    }


def _curves(rows: Sequence[tuple[int, Row]]) -> Chart | None:
    """Return hard top-1 over the epochs, the mean of a row's runs."""
    lines = []
    for place, row in rows:
        curves = [curve for curve in row["curves"] if len(curve["epoch"]) > 1]
        epochs = min((curve["epoch"] for curve in curves), key=len)
        means = [statistics.fmean(curve["hard"][i] for curve in curves) for i in range(len(epochs))]
        lines.append(Series("", list(zip(epochs, means, strict=True)), place))
    return line_chart("hard top-1, %", lines, height=230) if lines else None


def _scatter(title: str, rows: Sequence[Row], error: Error, key: str) -> Chart:
    points = []
    for place, row in enumerate(rows):
        x = row["bytes"] if key == "bytes" else row["seconds"]["mean"]
        points.append((row["row"], place, float(x), row["packed"]["mean"], _around(row["packed"], error)))
    if key == "bytes":
        return scatter(title, points, x_label="size of the file", x_text=lambda v: tables.size(round(v)))
    return scatter(title, points, x_label="time of a run", x_text=_duration)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _flips(rows: Sequence[Row]) -> list[dict[str, Any]]:
    known = [(place, row) for place, row in enumerate(rows) if row["flips"]]
    largest = max((row["flips"]["mean"] for _, row in known), default=0) or 1
    return [
        {"name": row["row"], "length": 100 * row["flips"]["mean"] / largest, "text": cell(row["flips"])}
        for _, row in known
    ]
