"""The dataset's classes against the labels of the model's head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from timm.data import ImageNetInfo

from binarize_cli.console import warn
from binarize_cli.errors import InputError
from binarize_cli.models.heads import fresh_rows, head_names, keep_rows
from binarize_cli.models.load import FloatModel
from binarize_cli.models.names import HeadChoice

__all__ = ["adapt_head", "head_names"]


def described(classes: Sequence[str]) -> list[str]:
    """Return the classes as a person reads them: `tench` for ImageNet's n01440764, others unchanged."""
    known = ImageNetInfo()
    labels = set(known.label_names())
    return [known.label_name_to_description(c).split(",")[0] if c in labels else c for c in classes]


def adapt_head(
    model: FloatModel, classes: tuple[str, ...], choice: HeadChoice = "auto"
) -> Literal["kept", "subset", "replaced"]:
    """Make the head's rows those of the dataset's `classes`, in their order; `model` is changed in place.

    "kept": the labels already are the classes, or are unknown but as many (a warning then says that the
    order is taken on trust). "subset": all classes are among the labels, and the head keeps their rows.
    "replaced": they are not, and the head is new and untrained.

    `choice` asks for one of these: `keep` leaves every row in its place, though the dataset may have only
    some of the classes (its targets are then to be `relabelled`); `replace` starts anew in any case. Raises
    InputError where the choice is not possible, and for `auto` where it would drop the trained head of a
    file whose labels are unknown.
    """
    if choice == "replace":
        return _replaced(model, classes)
    if model.classes == classes:
        return "kept"
    if choice in ("keep", "subset") and model.classes is not None:
        hint = "Name the class folders as the labels are named, or pass --head replace."
        check_known(model.classes, classes, "the dataset's", where=f"--head {choice}", hint=hint)
    if choice == "keep" and model.classes is not None:
        return "kept"
    if model.classes is None and model.num_classes != len(classes) and (model.pretrained or choice != "auto"):
        what = f"the labels of its {model.num_classes} classes are unknown, and {len(classes)} are needed"
        raise InputError(what, where=model.name, hint="Pass --head replace for an untrained head.")
    if model.classes is None and model.num_classes == len(classes):
        warn(f"the labels of {model.name} are unknown: its rows are taken in the dataset's order")
        outcome: Literal["kept", "subset"] = "kept"
    elif model.classes is not None and set(classes) <= set(model.classes):
        keep_rows(model.net, [model.classes.index(name) for name in classes])
        outcome = "subset"
    else:
        return _replaced(model, classes)
    model.num_classes, model.classes = len(classes), classes
    return outcome


def check_known(
    labels: tuple[str, ...], classes: tuple[str, ...], whose: str, *, where: str, hint: str
) -> None:
    """Raise InputError, which names the first of them, if classes are not among a model's labels."""
    unknown = [name for name in classes if name not in labels]
    if unknown:
        more = ", ..." if len(unknown) > 3 else ""
        what = f"{len(unknown)} of {whose} {len(classes)} classes are not among its labels: "
        raise InputError(what + ", ".join(unknown[:3]) + more, where=where, hint=hint)


def _replaced(model: FloatModel, classes: tuple[str, ...]) -> Literal["replaced"]:
    fresh_rows(model.net, len(classes))
    model.num_classes, model.classes = len(classes), classes
    return "replaced"
