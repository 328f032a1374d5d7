"""The table of layers between the run's words and the file's: short codes for what is said of many rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WHY = {
    "default": "every layer but those kept float",
    "downsample": "every layer but those kept float, here the downsample branch",
    "first": "first layer (keep_float)",
    "head": "classifier head (keep_float)",
    "float": "method float",
}
"""Why a layer is binary or float. Other reasons (a pattern of the recipe) stand in the file as they are."""
ATTENTION = "activation.attention: binary"
"""Why a matmul is."""
INPUTS = {"sign": "1 bit", "one-sided": "1 bit, one-sided"}

OTHER = "neither a linear nor a convolution layer"
OTHERS = {
    "running_mean": ("batchnorm", OTHER),
    "slope": ("rprelu", "RPReLU for ReLU (activation.blocks)"),
    "gain1": ("parameter", "gains of the shortcuts around single convolutions (activation.blocks)"),
    "gain2": ("parameter", "gains of the shortcuts around single convolutions (activation.blocks)"),
}
"""What a module without a row is, by a tensor that only such modules have."""


def is_row(layer: Mapping[str, Any]) -> bool:
    """Return whether the file lists that row of the run's table; the tensors say what all others are."""
    return layer["kind"] == "linear" or layer["kind"].startswith("matmul ") or "conv " in layer["kind"]


def row_of(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file's row for a row of the run's table (`binarize.select.Layer.to_json()`)."""
    codes = {text: code for code, text in WHY.items()}
    inputs = {text: code for code, text in INPUTS.items()}
    rule = layer["accumulator"] or {}
    row = {
        "name": layer["name"],
        "kind": layer["kind"],
        "shape": list(layer["shape"]) if layer["binary"] and layer["shape"] else None,
        "input": inputs.get(layer["input"]) if layer["binary"] else None,
        "shift": rule.get("shift"),
        "overflowed": rule.get("overflowed"),
        "why": "default" if layer["why"] == ATTENTION else codes.get(layer["why"], layer["why"]),
        "macs": layer["macs"],
    }
    return {key: value for key, value in row.items() if value is not None}


def described(row: Any, overflow: str | None) -> dict[str, Any]:
    """Return a row of the file (`schema.Row`) in the run's words. The inverse of `row_of`."""
    rule = None
    if row.shift is not None:
        rule = {"overflow": overflow, "shift": row.shift}
        rule |= {"overflowed": row.overflowed}
    return {
        "name": row.name,
        "kind": row.kind,
        "input": INPUTS.get(row.input, "float"),
        "accumulator": rule,
        "why": ATTENTION if row.is_matmul else WHY.get(row.why, row.why),
        "macs": row.macs,
    }
