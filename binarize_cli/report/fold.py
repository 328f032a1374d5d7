"""Rows of the table of layers that say the same, as one: `blocks.0-11.attn.qkv`, twelve times."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

WORDS = {
    "every layer but those kept float": "",
    "every layer but those kept float, here the downsample branch": "downsample",
    "neither a linear nor a convolution layer": "",
    "gains of the shortcuts around single convolutions": "shortcut",
    "RPReLU for ReLU": "",
    "first layer": "first",
    "classifier head": "head",
}
"""Reasons that the columns beside them say already, or that take too many words for a table."""


def fold(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with equal ones as one, in the order of their first.

    Equal are rows that differ in nothing but the numbers in their names. Each has `count` and `names`
    besides; `bytes` and `macs` are sums, and the share of sums that overflowed is the largest.
    """
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        alike.setdefault(_likeness(row), []).append(row)
    groups = [group for same in alike.values() for group in _expressible(same)]
    order = {row["name"]: place for place, row in enumerate(rows)}
    groups.sort(key=lambda group: order[group[0]["name"]])
    return [_merged(group) for group in groups]


def _likeness(row: Mapping[str, Any]) -> str:
    facts = {key: row[key] for key in row if key not in ("name", "accumulator")}
    rule = {k: v for k, v in (row.get("accumulator") or {}).items() if k != "overflowed"}
    return json.dumps([re.sub(r"\d+", "#", row["name"]), facts, rule], sort_keys=True)


def _expressible(rows: list[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Split rows until one name can say each group: until its numbers occur in every combination."""
    columns = _numbers(rows)
    if math.prod(len(set(column)) for column in columns) == len(rows):
        return [rows]
    varying = next(column for column in columns if len(set(column)) > 1)
    parts: dict[int, list[Mapping[str, Any]]] = {}
    for row, value in zip(rows, varying, strict=True):
        parts.setdefault(value, []).append(row)
    return [group for part in parts.values() for group in _expressible(part)]


def _numbers(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, ...]]:
    """Return the values of each number in the names, one tuple a place in the name."""
    return list(zip(*(map(int, re.findall(r"\d+", row["name"])) for row in rows), strict=True))


def _merged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    spans = iter([_span(sorted(set(column))) for column in _numbers(rows)])
    merged = {**rows[0], "name": re.sub(r"\d+", lambda _: next(spans), rows[0]["name"]), "count": len(rows)}
    merged["names"] = [row["name"] for row in rows]
    for key in ("bytes", "macs"):
        if key in rows[0]:
            merged[key] = sum(row[key] for row in rows)
    shares = [row["accumulator"].get("overflowed", 0) for row in rows if row.get("accumulator")]
    if shares and "overflowed" in rows[0]["accumulator"]:
        merged["accumulator"] = {**rows[0]["accumulator"], "overflowed": max(shares)}
    return merged


def _span(values: Sequence[int]) -> str:
    """Return 0-11 for a row of numbers, 0,2,5 for others."""
    if len(values) > 2 and values[-1] - values[0] == len(values) - 1:
        return f"{values[0]}-{values[-1]}"
    return ",".join(map(str, values))


def folded_name(row: Mapping[str, Any]) -> str:
    """Return `blocks.0-11.attn.qkv x12`."""
    return f"{row['name']} x{row['count']}" if row["count"] > 1 else row["name"]


def reason(why: str) -> str:
    """Return why a layer is binary or float in few words, without the key of the recipe that says so."""
    short = re.sub(r" \([\w.]+\)$", "", why)
    return WORDS.get(short, short)
