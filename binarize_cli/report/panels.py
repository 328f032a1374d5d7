"""The pictures of report.html, each made of one part of report.json; None if the part is not there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from binarize_cli.quantizers.method import Method
from binarize_cli.quantizers.schedules import Schedule
from binarize_cli.recipe import (
    Recipe,
    activation_method,
    activation_normalize,
    activation_schedules,
    effective_method,
    effective_normalize,
    effective_schedules,
)
from binarize_cli.report import tables
from binarize_cli.report.charts import Chart, Series, line_chart, outline, size_chart
from binarize_cli.report.confusion import dense
from binarize_cli.report.curves import sample
from binarize_cli.report.fold import fold, folded_name
from binarize_cli.report.picture import heat_map
from binarize_cli.report.treemap import squarify

SMALL_MATRIX = 20  # classes; a larger matrix is not drawn
MOST_COLUMNS = 120  # epochs of a heat map; more are averaged
MOST_LABELS = 26  # rows of a heat map that each have their name
MOST_PANELS = 12  # layers whose distributions are drawn, evenly over the network
MOMENT_STYLES = (4, 2, 0)  # start, middle, end


def size_picture(document: Mapping[str, Any]) -> Chart:
    """Return top-1 against the file's size, beside float32, float16 and int8 (of those two the sizes)."""
    float32, own = document["float32_bytes"], document["bytes"]["total"]
    sizes = [("float32", float32), ("float16", float32 / 2), ("int8", float32 / 4), ("this file", own)]
    scored = {"float32": document["accuracy"].get("float"), "this file": document["accuracy"]["packed"]}
    return size_chart(
        "top-1, %, against the size of the file",
        [(name, tables.size(round(count)), count) for name, count in sizes],
        {name: score["top1"] for name, score in scored.items() if score},
    )


def training(document: Mapping[str, Any]) -> list[Chart]:
    """Return the curves of the last stage; an earlier float stage fitted the reference, a line here."""
    rows = [row for row in document["epochs"] if row["stage"] == document["epochs"][-1]["stage"]]
    if len(rows) < 2:
        return []
    twofold = any(row["soft_top1"] != row["hard_top1"] for row in rows)  # otherwise F is sign throughout
    charts = [
        _top1(rows, twofold, document["accuracy"].get("float"), document["packed_epoch"]),
        _losses(rows, twofold),
        _schedule(rows),
    ]
    if any(row["flip_ratio"] is not None for row in rows):
        line = Series("", [(row["epoch"], _percent(row["flip_ratio"])) for row in rows[1:]], 0, marks=True)
        largest = max(y for _, y in line.points if y is not None)
        charts.append(line_chart("signs that changed, % an epoch", [line], height=130, y_range=(0, largest)))
    return charts


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _column(rows: Sequence[Mapping], key: str) -> list[tuple[float, float | None]]:
    return [(row["epoch"], row[key]) for row in rows]


def _top1(rows: Sequence[Mapping], twofold: bool, float_score: Mapping | None, best: int | None) -> Chart:
    lines = [Series("soft", _column(rows, "soft_top1"), 1, marks=True)] * twofold
    lines.append(Series("hard" if twofold else "network", _column(rows, "hard_top1"), 0, marks=True))
    kept = next((row for row in rows if row["epoch"] == best), None)
    return line_chart(
        "top-1, %",
        lines,
        level=(float_score["top1"], "float model") if float_score else None,
        ring=(kept["epoch"], kept["hard_top1"], f"kept: epoch {best}") if kept else None,
    )


def _losses(rows: Sequence[Mapping], twofold: bool) -> Chart:
    lines = [Series("validation, soft", _column(rows, "soft_loss"), 1)] * twofold
    lines.append(Series("validation, hard" if twofold else "validation", _column(rows, "hard_loss"), 0))
    if any(row["loss"] is not None for row in rows):
        lines.append(Series("training objective", _column(rows, "loss"), 6))
    return line_chart("loss", lines)


def _schedule(rows: Sequence[Mapping]) -> Chart:
    """Return the learning rate and the method's parameters, each as a share of its largest value."""
    names = list(dict.fromkeys(name for row in rows for name in row["parameters"]))
    columns = {"lr": _column(rows, "lr")}
    columns |= {name: [(row["epoch"], row["parameters"].get(name)) for row in rows] for name in names}
    lines = []
    for style, (name, points) in enumerate(columns.items()):
        peak = max((abs(y) for _, y in points if y is not None), default=0)
        shares = [(x, None if y is None else y / (peak or 1)) for x, y in points]
        lines.append(Series(f"{name}, 1 = {peak:.3g}", shares, (2, 4, 3, 5)[style % 4]))
    return line_chart("schedule", lines, height=130, y_range=(0, 1))


def movement(flips: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the heat map of signs that changed: a row a layer, a column an epoch, darker for more."""
    if not flips or not flips["shares"] or not flips["shares"][0]:
        return None
    columns = [_binned(row) for row in flips["shares"]]
    largest = max(max(row) for row in columns) or 1.0
    return {
        "picture": heat_map([[math.sqrt(value / largest) for value in row] for row in columns]),
        "labels": row_labels(flips["layers"]),
        "rows": len(columns),
        "largest": 100 * largest,
        "first": flips["first_epoch"],
        "last": flips["first_epoch"] + len(flips["shares"][0]) - 1,
    }


def _binned(values: Sequence[float]) -> list[float]:
    """Return at most MOST_COLUMNS means of neighbours."""
    width = math.ceil(len(values) / MOST_COLUMNS)
    return [sum(part) / len(part) for part in (values[i : i + width] for i in range(0, len(values), width))]


def row_labels(names: Sequence[str]) -> list[tuple[str, int]]:
    """Return (text, rows it stands for): a name each, or of many layers the part that neighbours share."""
    if len(names) <= MOST_LABELS:
        return [(name, 1) for name in names]
    for depth in (2, 1):
        labels: list[tuple[str, int]] = []
        for name in names:
            head = ".".join(name.split(".")[:depth])
            count = labels.pop()[1] if labels and labels[-1][0] == head else 0
            labels.append((head, count + 1))
        if len(labels) <= MOST_LABELS:
            return labels
    step = math.ceil(len(labels) / MOST_LABELS)
    groups = [labels[i : i + step] for i in range(0, len(labels), step)]
    return [(group[0][0], sum(count for _, count in group)) for group in groups]


def bytes_map(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tiles of the file's bytes: layers that are alike are one tile, the metadata is another."""
    cells = []
    for row in fold(document["layers"]):
        kind = "binary" if row["bits"] == 1 else "float"
        cells.append({"name": folded_name(row), "kind": kind, "bytes": row["bytes"]})
    cells.append({"name": "metadata", "kind": "metadata", "bytes": document["bytes"]["metadata"]})
    total = sum(cell["bytes"] for cell in cells) or 1
    return [
        {**cells[t.index], "share": 100 * cells[t.index]["bytes"] / total, "box": t}
        for t in squarify([cell["bytes"] for cell in cells])
    ]


def quantizers(recipe: Recipe) -> list[Chart]:
    """Return F, and B if the method has one, of weights and of binary inputs; none for the float network.

    F of inputs that is sign all along is not drawn: `hardening.of_inputs` says so.
    """
    weights = (effective_method(recipe), effective_schedules(recipe), effective_normalize(recipe))
    if not weights[0].binary:
        return []
    if recipe.task == "bw":
        return _pair(*weights, "")
    inputs = (activation_method(recipe), activation_schedules(recipe), activation_normalize(recipe))
    if not inputs[0].is_sign and recipe.train.inputs_hardened == 1:
        return _pair(*weights, " of weights")
    if inputs == weights:
        return _pair(*weights, " of weights and of inputs")
    return _pair(*weights, " of weights") + _pair(*inputs, " of inputs")


def _pair(
    method: Method, schedules: Mapping[str, Schedule], normalize: float | None, whose: str
) -> list[Chart]:
    curves = sample(method, schedules, normalize)
    band = (-curves.reach, curves.reach) if curves.reach else None
    styles = MOMENT_STYLES if len(curves.lines) > 1 else MOMENT_STYLES[-1:]
    x = curves.x.tolist()
    forward = [
        Series(curve.label, list(zip(x, curve.forward.tolist(), strict=True)), style)
        for curve, style in zip(curves.lines, styles, strict=True)
    ]
    settings: dict[str, Any] = {"x_label": "x", "whole_x": False, "band": band, "height": 180}
    charts = [line_chart(f"F(x){whose}", forward, **settings)]
    if curves.lines[0].backward is not None:
        backward = [
            Series(
                f"{curve.label.split(':')[0]}: peak {curve.peak:.3g}",
                list(zip(x, curve.backward.tolist(), strict=True)),
                style,
            )
            for curve, style in zip(curves.lines, styles, strict=True)
            if curve.backward is not None
        ]
        charts.append(line_chart(f"B(x) / its peak{whose}", backward, **settings))
    return charts


def evenly(rows: Sequence[Any], most: int = MOST_PANELS) -> list[Any]:
    """Return at most `most` of the rows, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def inputs(rows: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    """Return a small histogram a layer of what its threshold cuts, and the layer with most dead channels."""
    if not rows:
        return None
    return {
        "panels": [_small(row, f"{100 * row['plus']:.0f}% become +1") for row in evenly(rows)],
        "worst": max(rows, key=lambda row: row["constant"]),
    }


def latents(rows: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    """Return the latent weights as training left them: all layers' histograms, and the shares near zero."""
    if not rows:
        return None
    worst = sorted(rows, key=lambda row: -row["near_zero"])
    weights = sum(row["weights"] for row in rows)
    return {
        "panels": [_small(row, f"{100 * row['near_zero']:.1f}% near 0") for row in evenly(rows)],
        "near_zero": 100 * sum(row["near_zero"] * row["weights"] for row in rows) / weights,
        "worst": worst[0],
    }


def _small(row: Mapping[str, Any], words: str) -> dict[str, Any]:
    """Return a histogram as the points of an SVG polygon, 100 wide and 40 high, its middle at 50."""
    counts = row["histogram"]
    peak, width = max(counts) or 1, 100 / len(counts)
    steps = " ".join(f"{x * width:.1f},{40 - 38 * y / peak:.1f}" for x, y in outline(counts))
    return {"name": row["name"], "points": steps, "words": words, "reach": row["reach"]}


def overflow(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the share of sums that left int8, a row a layer, with the length of its bar in per cent."""
    rows = [row for row in layers if (row.get("accumulator") or {}).get("overflowed") is not None]
    largest = max((row["accumulator"]["overflowed"] for row in rows), default=0)
    return [
        {
            "name": row["name"],
            "percent": 100 * row["accumulator"]["overflowed"],
            "length": 100 * row["accumulator"]["overflowed"] / largest if largest else 0,
            "shift": row["accumulator"]["shift"],
        }
        for row in rows
    ]


def confusion_table(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> dict[str, Any] | None:
    """Return rows of (count, share of the true class); None for a matrix too large to read.

    Columns are headed by the names where they are short, else by numbers that the rows carry too.
    """
    if len(classes) > SMALL_MATRIX:
        return None
    short = all(len(name) <= 3 for name in classes)
    heads = list(classes) if short else [str(i) for i in range(len(classes))]
    names = list(classes) if short else [f"{i} {name}" for i, name in enumerate(classes)]
    matrix = dense(counts, len(classes))
    shares = [[(n, n / (sum(row) or 1)) for n in row] for row in matrix]
    return {"heads": heads, "rows": list(zip(names, shares, strict=True))}
