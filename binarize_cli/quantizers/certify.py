"""Is a pair (F, B) principled? Decided numerically, never by a hand-kept flag (Lu et al. 2023).

A pair comes from a proximal map P and a smooth transform T, F = T o P and B = T' o P, exactly if
P(w) = integral dF / B is non-decreasing and bounded on bounded sets, and F and B are constant wherever P is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from binarize_cli.quantizers.functions import sign
from binarize_cli.quantizers.method import Method
from binarize_cli.quantizers.parts import MAPS, TRANSFORMS
from binarize_cli.quantizers.schedules import Schedule

Elementwise = Callable[[np.ndarray], np.ndarray]

MOMENTS = (0.0, 0.5, 1.0)
POINTS = 2001  # odd, so that 0 is one of them
REACH = 2.5  # the grid covers |x| <= 2.5: beyond, every quantizer here is flat or linear
ZERO = 1e-9  # relative to the peak of |B|, or to F's height of 1


@dataclass(frozen=True)
class Fault:
    """Why a pair is a heuristic, and an interval of x in which it fails."""

    reason: str
    interval: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.reason} on [{self.interval[0]:.3g}, {self.interval[1]:.3g}]"


@dataclass(frozen=True)
class Certificate:
    """Whether a method with its schedules is guaranteed, and why."""

    kind: str
    """`pair`; `map` if the update rule applies P itself; `none` if nothing is trained."""
    fault: Fault | None
    progress: float
    """Where in the schedule the fault was found; 1 if there is none."""
    map_name: str
    transform_name: str
    """The proximal map P and the transform T, by name if they are among MAPS and TRANSFORMS."""
    gap: float
    """max |F - sign| over x != 0 at the end of the schedule: 0 if F has become sign."""

    @property
    def guaranteed(self) -> bool:
        return self.kind != "none" and self.fault is None

    @property
    def verdict(self) -> str:
        """One of `guaranteed`, `heuristic`, `-`."""
        if self.kind == "none":
            return "-"
        return "guaranteed" if self.guaranteed else "heuristic"

    @property
    def explanation(self) -> str:
        """A sentence: P and T of a guaranteed pair, or what fails and where."""
        if self.kind == "none":
            return "there is no backward quantizer: nothing is trained"
        if self.fault:
            return f"{self.fault}, at progress {self.progress:g}"
        if self.kind == "map":
            return f"P = {self.map_name} is a proximal map, applied to the weights themselves"
        return f"F = T o P and B = T' o P with P = {self.map_name}, T = {self.transform_name}"

    @property
    def ending(self) -> str:
        """Whether F becomes sign by itself."""
        if self.gap < 1e-6:
            return "F is sign at the end of its schedule"
        return f"F ends within {self.gap:.3g} of sign; hardening takes the rest"

    def to_json(self) -> dict:
        return {
            "verdict": self.verdict,
            "explanation": self.explanation,
            "P": self.map_name,
            "T": self.transform_name,
            "interval": list(self.fault.interval) if self.fault else None,
            "reaches_sign": self.gap < 1e-6,
            "gap": self.gap,
        }


def certify(method: Method, schedules: Mapping[str, Schedule] | None = None) -> Certificate:
    """Decide whether a method is guaranteed, at the start, middle and end of its schedules.

    `schedules` replace the method's own, name by name.

    >>> from binarize_cli.quantizers.methods import METHODS
    >>> certify(METHODS["bnn++"]).verdict, certify(METHODS["bnn+"]).verdict
    ('guaranteed', 'heuristic')
    >>> str(certify(METHODS["bnn"]).fault)
    'P is constant but B is not (it runs from 0 to 1) on [-2.5, -0.0025]'
    """
    if not method.applies_map and method.backward is None:
        return Certificate("none", None, 1.0, "-", "-", _gap(method, method.values(1.0, schedules)))
    moments = MOMENTS if schedules or method.schedules else (1.0,)
    fault: Fault | None = None
    at, names = 1.0, set()
    for progress in moments:
        values = method.values(progress, schedules)
        fault, name = _examine(method, values)
        if fault:
            at = progress
            break
        names.add(name)
    # At the end of its schedule a map may have become sign: it is named by its way there.
    known = [each for each in MAPS if each in names and (each != "sign" or len(names) == 1)]
    name = known[-1] if known else "x, held where T is flat"
    kind = "map" if method.applies_map else "pair"
    transform = _transform_name(method, method.values(0.0, schedules), known[-1] if known else "identity")
    if fault:
        name = transform = "-"
    return Certificate(kind, fault, at, name, transform, _gap(method, method.values(1.0, schedules)))


def _examine(method: Method, values: Mapping[str, float]) -> tuple[Fault | None, str]:
    """Return the first fault at these parameters, or None and the name of P ("" if it is not among MAPS)."""
    x = np.linspace(-REACH, REACH, POINTS)
    F = partial(method.F, values=values)
    B = np.ones_like if method.applies_map else partial(method.B, values=values)
    rise, b = np.diff(F(x)), B(x)
    jump = _atoms(F, x[:-1], x[1:], rise)
    peak = max(np.abs(b).max(), 1.0)  # a B that has vanished everywhere is constant, not noise
    slope = _slopes(b, B((x[:-1] + x[1:]) / 2))
    moving, dead = np.abs(rise) > ZERO, np.abs(slope) <= ZERO * peak
    turning = (b[:-1] * b[1:] < 0) & ~jump  # B passes through 0 where F turns round: dF / B is 0 / 0 there
    if (stuck := dead & moving & ~turning & ~jump).any():
        return Fault("F moves where B is 0", _first_run(x, stuck)), ""
    growth = np.where(dead | ~moving | turning, 0.0, rise / np.where(dead, 1.0, slope))
    # P skips what lies between the two sides of a jump: T is free there, and its slopes say nothing of dP.
    growth = np.where(jump, np.abs(rise), growth)
    if (falling := growth < -ZERO).any():
        return Fault("P = integral dF / B decreases", _first_run(x, falling)), ""
    flat = ~(growth > 0) & ~(turning & moving)
    return _level_sets(x, F, B, flat, peak), _name(x, growth, jump | turning, values)


def _slopes(ends: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Return B of each interval: in its middle or, if B ends inside, at the side where it is not 0."""
    left, right = ends[:-1], ends[1:]
    return np.where(middle == 0, np.where(np.abs(left) > np.abs(right), left, right), middle)


def _atoms(F: Elementwise, low: np.ndarray, high: np.ndarray, rise: np.ndarray) -> np.ndarray:
    """Return which intervals hold a jump of F: halving again and again keeps the rise of a jump alone."""
    steep = np.flatnonzero(np.abs(rise) > 1e-5)
    a, b, left = low[steep], high[steep], np.abs(rise[steep])
    for _ in range(40):
        middle = (a + b) / 2
        at_a, at_middle, at_b = F(a), F(middle), F(b)
        first, second = np.abs(at_middle - at_a), np.abs(at_b - at_middle)
        a, b = np.where(first >= second, a, middle), np.where(first >= second, middle, b)
        left = np.maximum(first, second)
    jump = np.zeros(len(rise), dtype=bool)
    jump[steep] = left > 1e-6
    return jump


def _level_sets(x: np.ndarray, F: Elementwise, B: Elementwise, flat: np.ndarray, peak: float) -> Fault | None:
    """Return the fault that F or B varies inside an interval on which P is constant, or None."""
    middle = (x[:-1] + x[1:]) / 2
    f, b = F(middle), B(middle)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]]).astype(int)))
    for start, stop in edges.reshape(-1, 2):
        inside = slice(start, stop)
        interval = (float(x[start]), float(x[stop]))
        if np.ptp(b[inside]) > 1e-6 * peak:
            lowest, highest = b[inside].min(), b[inside].max()
            return Fault(f"P is constant but B is not (it runs from {lowest:.3g} to {highest:.3g})", interval)
        if np.ptp(f[inside]) > 1e-6:
            return Fault("P is constant but F is not", interval)
    return None


def _first_run(x: np.ndarray, bad: np.ndarray) -> tuple[float, float]:
    start = int(np.argmax(bad))
    length = int(np.argmin(bad[start:])) or len(bad) - start
    return float(x[start]), float(x[start + length])


def _name(x: np.ndarray, growth: np.ndarray, apart: np.ndarray, values: Mapping[str, float]) -> str:
    """Return the name of the map that grows as P does outside of jumps; "" if none of MAPS does.

    Only maps are tried whose parameters the method has too.
    """
    for name, part in MAPS.items():
        if set(part.schedules) <= set(values):
            known = np.diff(part.apply(x, **{key: values[key] for key in part.schedules}))
            if np.abs(known - growth)[~apart].max() < 0.05 * (x[1] - x[0]):
                return name
    return ""


def _transform_name(method: Method, values: Mapping[str, float], map_name: str) -> str:
    """Return the name of the transform T with F = T(P), or words for one that is not among TRANSFORMS."""
    x = np.linspace(-REACH, REACH, POINTS)
    p = MAPS[map_name].apply(x, **{key: values[key] for key in MAPS[map_name].schedules})
    f = method.F(x, values)
    for name, part in TRANSFORMS.items():
        if set(part.schedules) <= set(values):
            made = part.value(p, **{key: values[key] for key in part.schedules})
            if np.abs(made - f).max() < 1e-9:
                return name
    return "the function with F = T(P)"


def _gap(method: Method, values: Mapping[str, float]) -> float:
    x = np.linspace(-REACH, REACH, POINTS)
    x = x[x != 0]
    return float(np.abs(method.F(x, values) - sign(x)).max())
