"""Schedules: pure functions of training progress t in [0, 1], so that resuming needs no schedule state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """A quantizer parameter over training progress.

    `linear` moves evenly, `log` by equal factors (both ends > 0), from `start` at t = 0 to `end` at t = 1.
    """

    start: float
    end: float
    shape: Literal["linear", "log"] = "linear"

    def __call__(self, progress: float) -> float:
        t = min(max(progress, 0.0), 1.0)
        if self.shape == "log":
            return math.exp(math.log(self.start) * (1 - t) + math.log(self.end) * t)
        return self.start * (1 - t) + self.end * t

    def __str__(self) -> str:
        if self.start == self.end:
            return f"{self.start:g}, fixed"
        return f"{self.start:g} -> {self.end:g} ({self.shape})"


def constant(value: float) -> Schedule:
    """The same value from start to end."""
    return Schedule(value, value)
