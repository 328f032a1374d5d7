"""Whether the file computes what the network computed: the same batch through both."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from binarize_cli.errors import BnnppError

TOLERANCE = 1e-5  # of the largest logit: an accelerator may choose another kernel the second time


@dataclass(frozen=True)
class Agreement:
    """Logits of the hard network against those of the file, on one batch."""

    images: int
    largest_difference: float
    equal: bool

    def to_json(self) -> dict:
        return asdict(self)


@torch.no_grad()
def compare_logits(hard: nn.Module, loaded: nn.Module, images: Tensor) -> Agreement:
    """Raises BnnppError where the logits differ by more than an accelerator's choice of kernels explains."""
    expected, found = hard.eval()(images), loaded.eval()(images)
    difference = float((expected - found).abs().max())
    if not difference <= TOLERANCE * float(expected.abs().max()):
        raise BnnppError(f"the packed file's logits differ from the hard network's by up to {difference:g}")
    return Agreement(len(images), difference, difference == 0)
