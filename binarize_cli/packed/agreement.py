"""Whether the file computes what the network computed: the same batch through both."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5  # of the largest logit: an accelerator may choose another kernel the second time
FLIPPED = 0.02  # of the predictions: a last bit that turns the sign of an input moves a logit by a whole step


@dataclass(frozen=True)
class Agreement:
    """Logits of the hard network against those of the file, on one batch."""

    images: int
    largest_difference: float
    equal: bool
    same_predictions: int
    """Images that both take for the same class."""
    agrees: bool
    """Whether an accelerator's choice of kernels explains the difference."""

    def __str__(self) -> str:
        return (
            f"the packed file's logits differ from the hard network's by up to {self.largest_difference:g}, "
            f"and {self.images - self.same_predictions} of {self.images} predictions differ"
        )

    def to_json(self) -> dict:
        return asdict(self)


@torch.no_grad()
def compare_logits(
    hard: nn.Module, loaded: nn.Module, images: Tensor, binary_inputs: bool = False
) -> Agreement:
    """Return how far the logits of two networks agree; with binary inputs their predictions decide.

    >>> compare_logits(nn.Identity(), nn.ReLU(), torch.tensor([[2.0, -1.0]])).agrees
    False
    """
    expected, found = hard.eval()(images), loaded.eval()(images)
    difference = float((expected - found).abs().max())
    same = int((expected.argmax(1) == found.argmax(1)).sum())
    agrees = difference <= TOLERANCE * float(expected.abs().max())
    if binary_inputs and bool(torch.isfinite(found).all()):
        agrees = agrees or len(images) - same <= FLIPPED * len(images)
    return Agreement(len(images), difference, difference == 0, same, agrees)
