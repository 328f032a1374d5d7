"""The JSON document inside a packed file: enough to rebuild it, and to know where it came from."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torchvision

from binarize_cli import __version__
from binarize_cli.binarize.select import Layer
from binarize_cli.data.images import ImageDataset
from binarize_cli.device import precision
from binarize_cli.models.load import FloatModel
from binarize_cli.packed.codes import is_row, row_of
from binarize_cli.packed.format import validated
from binarize_cli.packed.recipe_defaults import differences
from binarize_cli.packed.schema import FORMAT, Document
from binarize_cli.recipe import Recipe


def packed_document(
    model: FloatModel,
    recipe: Recipe,
    table: Sequence[Layer],
    dataset: ImageDataset,
    provenance: dict[str, Any],
) -> Document:
    """Return the document, but for the accuracy, which the file itself has yet to score.

    It holds no date, so that the same run writes the same bytes. Raises InputError, naming the field, for
    what a packed file cannot say.
    """
    rows = [row_of(layer) for row in table if is_row(layer := row.to_json())]
    tree = {
        "format": FORMAT,
        "model": {
            "source": model.source,
            "name": model.name,
            "classes": list(dataset.classes),
            "kwargs": model.kwargs,
        },
        "preprocessing": _as_json(model.preprocessing.to_json()),
        "method": recipe.method,
        "task": recipe.task,
        "inputs": _inputs(recipe) if any("input" in row for row in rows) else None,
        "layers": rows,
        "recipe": differences(recipe.model_dump(mode="json")),
        "data": {**dataset.reference, "fingerprint": dataset.fingerprint},
        "provenance": provenance,
    }
    return validated(tree, "the packed file")


def document_of_caller(
    name: str, classes: Sequence[str], recipe: Recipe, table: Sequence[Layer], device: torch.device
) -> Document:
    """Return the document of a network that is the caller's own: `name` is that of its class."""
    rows = [row_of(layer) for row in table if is_row(layer := row.to_json())]
    tree = {
        "format": FORMAT,
        "model": {"source": "caller", "name": name, "classes": list(classes)},
        "method": recipe.method,
        "task": recipe.task,
        "inputs": _inputs(recipe) if any("input" in row for row in rows) else None,
        "layers": rows,
        "recipe": differences(recipe.model_dump(mode="json")),
        "provenance": {**versions(device), "precision": "-", "steps": 0, "weights": "the caller's"},
    }
    return validated(tree, "the packed file")


def _inputs(recipe: Recipe) -> dict[str, Any]:
    """Return what of the recipe the arithmetic of binary inputs depends on."""
    made = recipe.activation
    return {
        "threshold": made.threshold,
        "padding": made.padding,
        "blocks": made.blocks,
        "attention": made.attention,
        "overflow": recipe.accumulator.overflow if recipe.task == "bwaa" else None,
    }


def _as_json(tree: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as JSON has them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in tree.items()}


def provenance(model: FloatModel, recipe: Recipe, device: torch.device, steps: int) -> dict[str, Any]:
    """Return versions, device, precision, steps and float weights: what made the numbers."""
    return {
        **versions(device),
        "precision": precision(recipe.train.amp, device),
        "steps": steps,
        "weights": model.weights,
        "weights_sha256": model.weights_sha256,
    }


def versions(device: torch.device) -> dict[str, str]:
    """Return the versions of what computes, and the device."""
    return {
        "bnnpp": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
