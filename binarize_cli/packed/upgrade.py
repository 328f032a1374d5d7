"""Files of format 1 in the terms of format 2. The one place that knows how format 1 spelt things."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from binarize_cli.packed.check import COUNTER
from binarize_cli.packed.codes import is_row, row_of
from binarize_cli.packed.recipe_defaults import differences

OLD_MATMULS = {"products.scores": "matmuls.qk", "products.mix": "matmuls.av"}
OLD_KINDS = {"product q k^T": "matmul q k^T", "product p v": "matmul p v"}
KWARGS = ("img_size", "image_size")


def upgrade(
    old: dict[str, Any], tensors: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return document and tensors of a format 1 file as format 2 has them, without checksums.

    Raises KeyError, TypeError and the like where the document is not what format 1 was; whether it is valid
    is for `schema` to say.
    """
    layers = [_row(layer) for layer in old["layers"]]
    rows = [row_of(layer) for layer in layers if is_row(layer)]
    recipe, model = old["recipe"], old["model"]
    if model["num_classes"] != len(model["classes"]):
        raise ValueError(f"{model['num_classes']} classes, but {len(model['classes'])} names of classes")
    document = {
        "format": 2,
        "model": {key: model[key] for key in ("source", "name", "classes", "kwargs")},
        "preprocessing": old["preprocessing"],
        "method": old["method"],
        "task": old["task"],
        "layers": rows,
        "recipe": differences(recipe),
        "accuracy": old["accuracy"],
        "data": {**old["data"]["reference"], "fingerprint": old["data"]["fingerprint"]},
        "provenance": {key: value for key, value in old["provenance"].items() if key != "seed"},
    }
    if any("input" in row for row in rows):
        made = recipe["activation"]
        document["inputs"] = {key: made[key] for key in ("threshold", "padding", "blocks", "attention")}
        if old["task"] == "bwaa":
            document["inputs"] |= {"overflow": recipe["accumulator"]["overflow"], "tiles": "channel"}
    renamed = {_renamed(name): tensor for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise ValueError("two tensors have one name")
    return document, {n: t for n, t in renamed.items() if not n.endswith(COUNTER)}


def _row(layer: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table, with names and keys as they are now."""
    macs = layer["products"] if "products" in layer else layer["macs"]
    kind = OLD_KINDS.get(layer["kind"], layer["kind"])
    return layer | {"name": _renamed(layer["name"]), "kind": kind, "macs": macs}


def _renamed(name: str) -> str:
    """Return the name of a module or tensor, now that attention calls its products matmuls."""
    return re.sub(r"\bproducts\.(scores|mix)\b", lambda old: OLD_MATMULS[old[0]], name)
