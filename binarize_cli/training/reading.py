"""The numbers of a step on their way from the device to the host, which may look at them a step later.

A host that waits for the loss of a step has not yet asked for the next one, and a GPU idles meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]  # images [M, C, H, W] and targets [M] of a micro-batch


@dataclass(frozen=True)
class Outcome:
    """What came of a step."""

    loss: float
    means: list[float]
    """The means over all ranks of what was asked."""


class Reading:
    """Numbers of step `number`, which took `batches`: loss, norm of the gradient, and what was asked.

    Made, it copies them without waiting.
    """

    def __init__(self, number: int, batches: Sequence[Batch], numbers: Tensor):
        self.number, self.batches = number, batches
        self.copied = torch.cuda.Event() if numbers.is_cuda else None
        self.numbers = numbers.to("cpu", non_blocking=True)
        if self.copied:
            self.copied.record()

    def wait(self) -> list[float]:
        """Return the numbers, as soon as the device has computed and copied them."""
        if self.copied:
            self.copied.synchronize()
        return self.numbers.tolist()


def not_finite(numbers: Tensor) -> Tensor:
    """Return 1 if any of the numbers is NaN or infinite, else 0: []. Nobody waits for it.

    >>> not_finite(torch.tensor([1.0, torch.inf])), not_finite(torch.tensor([1.0, 2.0]))
    (tensor(1.), tensor(0.))
    """
    total = numbers.sum()
    return (total - total).nan_to_num_(nan=1.0)
