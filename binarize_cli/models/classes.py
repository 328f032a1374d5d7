"""The dataset's classes against the labels of the model's head."""

from __future__ import annotations

from typing import Literal

from binarize_cli.console import warn
from binarize_cli.models.heads import fresh_rows, head_names, keep_rows
from binarize_cli.models.load import FloatModel

__all__ = ["adapt_head", "head_names"]


def adapt_head(model: FloatModel, classes: tuple[str, ...]) -> Literal["kept", "subset", "replaced"]:
    """Make the head's rows those of the dataset's `classes`, in their order; `model` is changed in place.

    "kept": the labels already are the classes, or are unknown but as many (a warning then says that the
    order is taken on trust). "subset": all classes are among the labels, and the head keeps their rows.
    "replaced": they are not, and the head is new and untrained.
    """
    if model.classes == classes:
        return "kept"
    if model.classes is None and model.num_classes == len(classes):
        warn(f"the labels of {model.name} are unknown: its rows are taken in the dataset's order")
        outcome = "kept"
    elif model.classes is not None and set(classes) <= set(model.classes):
        keep_rows(model.net, [model.classes.index(name) for name in classes])
        outcome = "subset"
    else:
        fresh_rows(model.net, len(classes))
        outcome = "replaced"
    model.num_classes, model.classes = len(classes), classes
    return outcome
