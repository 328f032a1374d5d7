"""A teacher that is another model than the float one that becomes binary: a larger one, say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from binarize_cli.errors import InputError
from binarize_cli.models.classes import adapt_head, check_known
from binarize_cli.models.load import FloatModel, Preprocessing, load
from binarize_cli.models.names import resolve

TEACHER = "distill.teacher"


def load_teacher(
    name: str,
    weights: Path | None,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    img_size: int | None = None,
) -> FloatModel:
    """Return the pretrained classifier `name`, for batches that were prepared for the student.

    Its network takes images [N, C, H, W] normalised as `preprocessing` says, and gives the logits of
    `classes`, in their order. Raises InputError if it takes images of another size, or knows other classes.
    """
    teacher = load(resolve(name), weights=weights, img_size=img_size)
    _check_size(teacher.preprocessing, preprocessing)
    if teacher.classes is not None:
        hint = "Choose a teacher that was trained on the same classes."
        check_known(teacher.classes, classes, "the", where=TEACHER, hint=hint)
    adapt_head(teacher, classes)
    own = teacher.preprocessing
    if (own.mean, own.std) != (preprocessing.mean, preprocessing.std):
        teacher.net = nn.Sequential(Renormalise(preprocessing, own), teacher.net)
    return teacher


def _check_size(own: Preprocessing, student: Preprocessing) -> None:
    if own.input_size != student.input_size:
        sizes = [" x ".join(map(str, each.input_size)) for each in (own, student)]
        what = f"it takes images of {sizes[0]}, the model that becomes binary takes {sizes[1]}"
        hint = "Choose another teacher, or set --img-size where both take it."
        raise InputError(what, where=TEACHER, hint=hint)


class Renormalise(nn.Module):
    """Images [N, C, H, W] normalised by one mean and std -> the same, normalised by another."""

    factor: Tensor
    offset: Tensor

    def __init__(self, given: Preprocessing, wanted: Preprocessing):
        super().__init__()
        mean, std, new_mean, new_std = map(_column, (given.mean, given.std, wanted.mean, wanted.std))
        self.register_buffer("factor", std / new_std)
        self.register_buffer("offset", (mean - new_mean) / new_std)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.factor + self.offset


def _column(numbers: Sequence[float]) -> Tensor:
    return torch.tensor(numbers).view(-1, 1, 1)
