"""What the rest of training needs to know of a measurement (evaluation comes later in the journey)."""

from __future__ import annotations

from typing import Protocol


class Score(Protocol):
    """A network's accuracy on some images; top-1 in per cent, loss the mean cross-entropy."""

    top1: float
    loss: float
    images: int
