"""What an export computes, held against its packed file: the same images through both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from binarize_cli.data.datasets import open_recorded
from binarize_cli.data.loaders import ScoreBatches
from binarize_cli.errors import BnnppError, InputError
from binarize_cli.models.load import Preprocessing
from binarize_cli.packed.schema import Document

IMAGES = 32
EXACT = 1e-3  # of the largest logit: other kernels add in another order
ROUNDED = 0.25  # of the spread of the logits, on average; int8 inputs and signs near a threshold do that
FEWEST = 0.9  # of the images get the same class, where sums are rounded


@dataclass(frozen=True)
class Agreement:
    """Logits of an export against those of its packed file."""

    images: int
    of: str
    """Which images: of the file's dataset, or noise."""
    largest_difference: float
    same_top1: int
    """Images of which both say the same class."""

    def to_json(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        same = f"top-1 the same on {self.same_top1} of {self.images}"
        return f"largest difference of logits {self.largest_difference:.2g}, {same} ({self.of})"


def some_images(document: Document, count: int = IMAGES) -> tuple[Tensor, str]:
    """Return images [N, C, H, W] as the network takes them, and what they are.

    They are spread over the validation images of the dataset that the file names, if it is here, else noise.
    """
    assert document.preprocessing and document.data, "only a file of the caller's own model has none"
    preprocessing = Preprocessing.from_json(document.preprocessing.model_dump())
    try:
        dataset = open_recorded(document.data.dataset, document.data.data_dir)
        split = dataset.val.subset(range(0, len(dataset.val), max(1, len(dataset.val) // count))[:count])
        images, _ = next(iter(ScoreBatches(split, preprocessing, count)))
    except InputError:
        draw = torch.Generator().manual_seed(0)
        return torch.randn(count, *preprocessing.input_size, generator=draw), "noise: the dataset is not here"
    return images, f"images of {dataset.name}"


@torch.no_grad()
def hold(
    packed: nn.Module, export: Callable[[Tensor], Tensor], images: Tensor, of: str, exact: bool
) -> Agreement:
    """Return how far the logits agree. Raises BnnppError if they differ by more than rounding explains.

    `exact` exports compute what the file computes, in another order. Others round on the way: inputs to
    int8, or a number near a threshold to the other sign.
    """
    expected, found = packed(images).float(), export(images).float()
    difference = (expected - found).abs()
    same = int((expected.argmax(1) == found.argmax(1)).sum())
    agreement = Agreement(len(images), of, float(difference.max()), same)
    if exact:
        agrees = float(difference.max()) <= EXACT * float(expected.abs().max())
    else:
        agrees = float(difference.mean()) <= ROUNDED * float(expected.std())
        agrees = agrees and (of.startswith("noise") or same >= FEWEST * len(images))
    if not agrees:
        raise BnnppError(f"the export does not compute what the packed file does: {agreement}")
    return agreement
