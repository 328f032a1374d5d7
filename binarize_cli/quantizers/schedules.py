"""Schedules: pure functions of training progress t in [0, 1], so that resuming needs no schedule state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["linear", "log", "sigmoid"]
STEEPNESS = 10.0  # of the sigmoid, as in PARQ (Jin et al. 2025)


@dataclass(frozen=True)
class Schedule:
    """A quantizer parameter over training progress, from `start` at t = 0 to `end` at t = 1.

    `linear` moves evenly, `log` by equal factors (both ends > 0), `sigmoid` mostly in the middle.

    >>> Schedule(5.0, 150.0)(0.5), round(Schedule(0.1, 10.0, "log")(0.25), 3)
    (77.5, 0.316)
    >>> str(Schedule(5.0, 150.0))
    '5 -> 150 (linear)'
    """

    start: float
    end: float
    shape: Shape = "linear"

    def __call__(self, progress: float) -> float:
        t = min(max(progress, 0.0), 1.0)
        if self.shape == "log":
            return self.start ** (1 - t) * self.end**t
        share = _sigmoid_share(t) if self.shape == "sigmoid" else t
        return self.start * (1 - share) + self.end * share

    def __str__(self) -> str:
        if self.start == self.end:
            return f"{self.start:g}, fixed"
        return f"{self.start:g} -> {self.end:g} ({self.shape})"


def _sigmoid_share(t: float) -> float:
    """Return the logistic curve around t = 1/2, stretched so that it runs from 0 to 1 exactly."""
    low, here = (math.tanh(STEEPNESS * (p - 0.5) / 2) for p in (0.0, t))
    return (here - low) / (-2 * low)


def constant(value: float) -> Schedule:
    """Return the schedule that has the same value from start to end.

    >>> constant(5.0)(0.7)
    5.0
    """
    return Schedule(value, value)
