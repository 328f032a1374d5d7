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
from binarize_cli.packed.format import FORMAT
from binarize_cli.recipe import Recipe


def packed_document(
    model: FloatModel,
    recipe: Recipe,
    table: Sequence[Layer],
    dataset: ImageDataset,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """The document, but for the accuracy, which the file itself has yet to score.

    It holds no date, so that the same run writes the same bytes.
    """
    return {
        "format": FORMAT,
        "model": {
            "source": model.source,
            "name": model.name,
            "num_classes": model.num_classes,
            "kwargs": model.kwargs,
            "classes": list(dataset.classes),
        },
        "preprocessing": model.preprocessing.to_json(),
        "method": recipe.method,
        "task": recipe.task,
        "recipe": recipe.model_dump(mode="json"),
        "layers": [row.to_json() for row in table],
        "accuracy": None,
        "data": {"name": dataset.name, "reference": dataset.reference, "fingerprint": dataset.fingerprint},
        "provenance": provenance,
    }


def provenance(model: FloatModel, recipe: Recipe, device: torch.device, steps: int) -> dict[str, Any]:
    """Versions, device, precision, seed, steps and weights: what made the numbers."""
    return {
        "bnnpp": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": precision(recipe.train.amp, device),
        "seed": recipe.train.seed,
        "steps": steps,
        "weights": model.weights,
        "weights_sha256": model.weights_sha256,
    }
