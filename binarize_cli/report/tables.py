"""Tables for the terminal, and sizes in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from binarize_cli.report.fold import fold, folded_name, reason

NETWORKS = {
    "float": "float model",
    "soft": "soft network (as it was trained)",
    "hard": "hard network (signs)",
    "packed": "packed file",
}
PARTS = {
    "binary": "binary weights",
    "scales": "scales",
    "float": "float tensors",
    "metadata": "metadata",
}


def size(count: int) -> str:
    """Return bytes as a person reads them.

    >>> size(812), size(45056), size(1289749)
    ('812 bytes', '44.0 KiB', '1.23 MiB')
    """
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 2**10:.1f} KiB" if count < 2**20 else f"{count / 2**20:.2f} MiB"


def size_sentence(sizes: Mapping[str, int], float32_bytes: int, ratio: float, binary_weights: int) -> str:
    """Return why the file is as small as it is. `sizes` in bytes: total, binary, scales, float, metadata."""
    smaller = f"so the file ({size(sizes['total'])}) is {ratio:.1f} times smaller than float32"
    smaller += f" ({size(float32_bytes)})"
    rest = {part: sizes[part] for part in ("scales", "float", "metadata")}
    if not binary_weights:
        return f"No weight is binary; {PARTS['float']} take {size(sizes['float'])}, {smaller}."
    most = PARTS[max(rest, key=lambda part: rest[part])]
    return (
        f"{binary_weights:,} binary weights take {size(sizes['binary'])} at one bit each, their scales "
        f"{size(sizes['scales'])}, the tensors that stay float {size(sizes['float'])} and the metadata "
        f"{size(sizes['metadata'])}, {smaller}; what keeps it from 32 times is mostly the {most}."
    )


def bound_sentence(smaller_than: Mapping[str, float], bound: int, over: float) -> str:
    """Return how small the file is beside other types, and beside the least its tensors could take."""
    times = ", ".join(f"{ratio:.1f} than {name}" for name, ratio in smaller_than.items())
    return (
        f"Times smaller: {times}. One bit a binary weight and the rest as it is would be {size(bound)}: "
        f"the file takes {over:.2f} times that."
    )


def macs_sentence(macs: Mapping[str, int]) -> str:
    """Return what the layers multiply for one image. `macs`: binary, signs and float, counts."""
    words = {
        "binary": "sign by sign (a bit operation)",
        "signs": "float by sign (an addition)",
        "float": "float by float",
    }
    total = sum(macs.values())
    parts = [
        f"{macs[kind]:,} {text} ({100 * macs[kind] / total:.1f}%)"
        for kind, text in words.items()
        if macs[kind]
    ]
    return f"MACs of one image, in the layers listed: {', '.join(parts)}."


def accumulator_text(rule: Mapping | None) -> str:
    """Return what an accumulator is: `int8`, the bits that a tile's sum loses, the share of overflows."""
    if rule is None:
        return ""
    wraps = " wraps" if rule["overflow"] == "wrap" else ""
    shift = f" >>{rule['shift']}" if rule["shift"] else ""
    share = f" {100 * rule['overflowed']:.3g}% over" if "overflowed" in rule else ""
    return f"int8{wraps}{shift}{share}"


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def layers_table(rows: Sequence[Mapping]) -> Table:
    """Return every layer, binary or float and why, with totals; columns that say nothing are left out.

    Layers that are alike are one row: `blocks.0-11.attn.qkv x12`, with the bytes of all of them.
    """
    binary = [row for row in rows if row.get("binary") or row.get("bits") == 1]
    weights = sum(math.prod(row["shape"]) for row in binary if row["shape"])  # a product has none
    total = sum(row.get("bytes", 0) for row in rows)
    columns: dict[str, tuple[Literal["left", "right"], Callable[[Any], str]]] = {
        "name": ("left", str),
        "kind": ("left", str),
        "shape": ("right", shape_text),
        "binary": ("left", lambda yes: "1 bit" if yes else "float"),
        "bits": ("right", str),
        "bytes": ("right", "{:,}".format),
        "input": ("left", str),
        "accumulator": ("left", accumulator_text),
        "why": ("left", reason),
    }
    plain = {"input": "float", "accumulator": None}  # a column that says the same of all layers is left out
    present = [
        name
        for name in columns
        if rows and name in rows[0] and any(row[name] != plain.get(name, "") for row in rows)
    ]
    words = f"{len(rows)} layers, {len(binary)} binary: {weights:,} binary weights"
    words += f"; {total:,} bytes" if total else ""
    table = Table(box=box.SIMPLE, caption=words, caption_justify="left")
    for name in present:
        whole = name in ("name", "kind")  # the others may be broken between words
        head = {"accumulator": "sums"}.get(name, name)
        table.add_column(head, justify=columns[name][0], overflow="fold", no_wrap=whole)
    for row in fold(rows):
        shown = {**row, "name": folded_name(row)}
        cells = (escape(columns[name][1](shown[name])) for name in present)
        table.add_row(*cells, style="green" if row.get("binary") or row.get("bits") == 1 else None)
    return table


def accuracy_table(accuracy: Mapping[str, Mapping | None]) -> Table:
    """Return a table of what each network scored; one that was not scored is left out."""
    table = Table(box=box.SIMPLE)
    table.add_column("network")
    for column in ("top-1", "top-5", "loss", "images"):
        table.add_column(column, justify="right")
    for key, name in NETWORKS.items():
        if scored := accuracy.get(key):
            numbers = [f"{scored['top1']:.2f}", f"{scored['top5']:.2f}", f"{scored['loss']:.4f}"]
            style = "bold" if key == "packed" else None
            table.add_row(name, *numbers, str(scored["images"]), style=style)
    return table


def comparison_table(rows: Sequence[Mapping], cell: Callable[[Mapping | None], str]) -> Table:
    """Return the rows of `comparison.compare_runs`, with `cell` for the text of a mean and its spread."""
    table = Table(box=box.SIMPLE)
    table.add_column("method or recipe", overflow="fold")
    for column in ("n", "epochs", "float", "soft", "hard", "packed file", "flips %", "minutes a run"):
        table.add_column(column, justify="right")
    for row in rows:
        scores = [cell(row[name]) for name in ("float", "soft", "hard", "packed", "flips")]
        table.add_row(escape(row["row"]), str(row["n"]), str(row["epochs"]), *scores, str(row["minutes"]))
    return table


def gains_table(gains: Sequence[Mapping]) -> Table:
    """Return what each layer or block gains by being float, the most a KiB first, with bars."""
    table = Table(box=box.SIMPLE)
    table.add_column("layer or block", overflow="fold")
    for column in ("points", "loss", "KiB", "loss a KiB"):
        table.add_column(column, justify="right")
    table.add_column("")
    rows = sorted(gains, key=lambda gain: -gain["loss_a_kib"])
    largest = max((abs(gain["loss_a_kib"]) for gain in rows), default=0) or 1
    for gain in rows:
        length = round(24 * abs(gain["loss_a_kib"]) / largest)
        bar = ("█" if gain["loss_a_kib"] >= 0 else "░") * length
        figures = f"{gain['points']:+.2f}", f"{-gain['loss']:+.4f}", f"{gain['bytes'] / 1024:.1f}"
        table.add_row(escape(gain["name"]), *figures, f"{-gain['loss_a_kib']:+.5f}", bar)
    return table


def worst_table(worst: Sequence[Mapping]) -> Table:
    """Return the classes most often mistaken, from `evaluation.worst_confusions`."""
    table = Table(box=box.SIMPLE)
    table.add_column("class")
    table.add_column("top-1", justify="right")
    table.add_column("mistaken for (images)")
    for row in worst:
        table.add_row(escape(row["class"]), f"{row['top1']:.2f}", escape(mistaken_for(row)))
    return table


def mistaken_for(row: Mapping) -> str:
    """Return what a class is mistaken for, such as `cat (5), dog (2)`."""
    return ", ".join(f"{other['for']} ({other['images']})" for other in row["taken"])
