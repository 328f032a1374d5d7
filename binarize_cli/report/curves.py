"""F and B of a method over x, at the start, the middle and the end of training: what its plots draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from binarize_cli.quantizers.method import Method
from binarize_cli.quantizers.schedules import Schedule

MOMENTS = {"start": 0.0, "middle": 0.5, "end": 1.0}
POINTS = 2001  # odd, so that x = 0, where B has its peak, is one of them


@dataclass(frozen=True)
class Curve:
    """F and B at one moment of training."""

    label: str
    """Such as `start: mu = 5`."""
    forward: np.ndarray  # [POINTS]
    backward: np.ndarray | None  # [POINTS], over its peak
    peak: float
    """The largest B: at the end of a schedule it may be thirty times that of the start."""


@dataclass(frozen=True)
class Curves:
    """The curves of a method; one alone where nothing moves."""

    x: np.ndarray  # [POINTS]
    lines: list[Curve]
    reach: float | None
    """Nearly all weights lie in |x| <= reach: within 3 mean |w*|, as 98% of a normal distribution do."""


def sample(method: Method, schedules: Mapping[str, Schedule], normalize: float | None) -> Curves:
    """Return the curves with these schedules; `normalize` is n in multiples of mean |w*|, None for n = 1."""
    reach = 3 / normalize if normalize else None
    half = max(1.25, reach or 0)  # beyond 1, where the clipped estimators end
    x = np.linspace(-half, half, POINTS)
    moves = any(s.start != s.end for s in schedules.values())
    moments = MOMENTS if moves else {"throughout": 0.0}
    return Curves(x, [_curve(method, method.values(t, schedules), m, x) for m, t in moments.items()], reach)


def _curve(method: Method, values: Mapping[str, float], moment: str, x: np.ndarray) -> Curve:
    label = ", ".join(f"{name} = {value:.3g}" for name, value in values.items())
    backward = method.B(x, values) if method.backward else None
    peak = 0.0 if backward is None else float(np.abs(backward).max())
    return Curve(
        label=f"{moment}: {label}" if label else moment,
        forward=method.F(x, values),
        backward=None if backward is None else backward / (peak or 1),
        peak=peak,
    )
