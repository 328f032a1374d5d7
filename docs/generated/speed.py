"""Images a second: the table, the plot, and what `bnnpp bench score` said."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from binarize_cli.report.results import as_json
from generated.markdown import table
from generated.places import RESULTS

SPEED = RESULTS / "speed.json"


def measured() -> Sequence[Mapping[str, Any]]:
    """Return the rows of `bnnpp bench score --json` that are kept; none if there are none yet."""
    return json.loads(SPEED.read_text(encoding="utf-8"))["rows"] if SPEED.exists() else []


def speed() -> str:
    """Return a table of images a second, of the ratio to float, and of what the time goes into."""
    if not measured():
        return "Nothing is stored yet."
    kept = json.loads(SPEED.read_text(encoding="utf-8"))
    where = f"{kept['machine']}, torch {kept['torch']}, {kept['date']}"
    facts = f"{where}; medians of {kept['rounds']} rounds or more, images a second."
    heads = ("network", "task", "threads", "batch", "float", "onnxruntime", "packed", "ratio")
    rows = [_speed(row) for row in measured()]
    shares = [
        (_network(row), row["task"], *(f"{share:.0f}" for share in row["of_packed"].values()), _limit(row))
        for row in measured()
        if (row["batch_size"], row["threads"]) == (32, 1)
    ]
    sizes = {(_network(row), row["task"]): row["bytes"] for row in measured()}
    memory = [(*key, *(f"{each / 1024:.0f}" for each in size.values())) for key, size in sizes.items()]
    return "\n\n".join(
        [
            facts,
            table(heads, rows, right=6),
            "## Where the time goes",
            "Per cent of a packed network's time, 32 images, one thread. The limit is the ratio to float "
            "that would be reached if float layers and float attention alone took time.",
            table(("network", "task", *measured()[0]["of_packed"], "limit"), shares, right=6),
            "## Weights in memory",
            "KiB: the signs in the file and in memory, everything else in memory (in float32), the file.",
            table(
                ("network", "task", "signs, file", "signs, memory", "rest, memory", "file"), memory, right=4
            ),
        ]
    )


def _network(row: Mapping[str, Any]) -> str:
    return f"{row['model']}{', binary attention' * row.get('binary_attention', False)}"


def _limit(row: Mapping[str, Any]) -> str:
    """Return the ratio to float if only what stays float took time (Amdahl's law); not of bw, all float."""
    if row["task"] == "bw":
        return ""
    stays = row["of_packed"]["float layers"] + row["of_packed"]["float attention"]
    return f"{100 * row['ratio'] / stays:.1f}"


def _speed(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the row of a packed file; with inputs of 8 bits where it has them, which are faster then."""
    kind = "int8" if "int8" in row else "packed"
    task = f"{row['task']}, inputs int8" if kind == "int8" else row["task"]
    speeds = (row["float"], row.get("onnxruntime"), row[kind])
    images = ("" if each is None else f"{each:.0f}" for each in speeds)
    numbers = (str(row["threads"]), str(row["batch_size"]), *images)
    return _network(row), task, *numbers, f"{row[kind] / row['float']:.2f}"


WIDTH, LABELS, BAR = 860, 250, 14  # of the plot, of its labels, of a bar: pixels
COLOURS = {"float": "#9aa5b1", "int8": "#e0a030", "packed": "#2f6fb2"}


def speed_plot() -> str:
    """Return images a second by network as bars on a logarithmic scale: an SVG picture."""
    rows = [row for row in measured() if (row["batch_size"], row["threads"]) == (32, 1)]
    bars, y = [], 40
    top = max((max(row["float"], row["packed"], row.get("int8", 0)) for row in rows), default=1)
    for row in rows:
        kinds = ("float", "int8") if row["task"] == "bw" else ("float", "packed")
        label = f"{_network(row)}, {row['task']}"
        bars.append(f'<text x="{LABELS - 8}" y="{y + BAR + 3}" text-anchor="end">{label}</text>')
        for kind in kinds:
            width = (WIDTH - LABELS - 70) * math.log10(max(row[kind], 1)) / math.log10(top)
            place = f'x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR - 2}"'
            bars.append(f'<rect {place} fill="{COLOURS[kind]}"/>')
            bars.append(f'<text x="{LABELS + width + 5:.1f}" y="{y + BAR - 3}">{row[kind]:.0f}</text>')
            y += BAR
        y += 12
    legend = [
        f'<rect x="{LABELS + 110 * i}" y="10" width="12" height="12" fill="{colour}"/>'
        f'<text x="{LABELS + 110 * i + 18}" y="20">{kind}</text>'
        for i, (kind, colour) in enumerate(COLOURS.items())
    ]
    size = f'width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}"'
    style = 'font-family="sans-serif" font-size="12" fill="#555"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    title = "<title>Images a second, 32 at a time, one thread, logarithmic</title>"
    return "\n".join([head, title, *legend, *bars, "</svg>"]) + "\n"


def store_speed(files: Sequence[Path]) -> None:
    """Keep the rows of documents that `bnnpp bench score --json` printed."""
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    rows = [row for document in documents for row in document["rows"]]
    for row in rows:
        row["binary_attention"] = "attn" in row.pop("file")
    facts = {key: documents[0][key] for key in ("machine", "torch", "device")}
    facts["machine"] = facts["machine"].partition(",")[0]
    facts["rounds"] = min(document["rounds"] for document in documents)
    RESULTS.mkdir(exist_ok=True)
    SPEED.write_text(as_json(facts | {"date": date.today().isoformat(), "rows": rows}), encoding="utf-8")
