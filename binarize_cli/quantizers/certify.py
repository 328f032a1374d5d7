"""Is a pair (F, B) principled? Decided numerically, never by a hand-kept flag (Lu et al. 2023; DESIGN.md, 2).

A pair comes from a proximal map P and a smooth transform T, F = T o P and B = T' o P, exactly if
P(w) = integral dF / B is non-decreasing and bounded on bounded sets, and F and B are constant wherever P is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from binarize_cli.quantizers.functions import sign
from binarize_cli.quantizers.method import Method
from binarize_cli.quantizers.parts import MAPS, TRANSFORMS
from binarize_cli.quantizers.schedules import Schedule

MOMENTS = (0.0, 0.5, 1.0)
POINTS = 2001  # odd, so that 0 is one of them
REACH = 2.5  # the grid covers |x| <= 2.5: beyond, every quantizer here is flat or linear
ZERO = 1e-9  # relative to the peak of |B|, or to F's height of 1


@dataclass(frozen=True)
class Fault:
    """Why a pair is a heuristic, and the interval of x where that shows."""

    reason: str
    interval: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.reason} on [{self.interval[0]:.3g}, {self.interval[1]:.3g}]"


@dataclass(frozen=True)
class Certificate:
    """The answer for a method with its schedules."""

    kind: str
    """`pair`; `map` for an update rule that applies P itself; `none` without training."""
    fault: Fault | None
    progress: float
    """Where in the schedule the fault was found; 1 if there is none."""
    map_name: str
    transform_name: str
    """The proximal map P and the transform T, by their names here where they are ours."""
    gap: float
    """max |F - sign| at the end of the schedule, away from 0: 0 where F has become sign."""

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
    """Decide at the start, middle and end of the schedules; those given replace the method's own."""
    if not method.applies_map and method.backward is None:
        return Certificate("none", None, 1.0, "-", "-", _gap(method, method.values(1.0, schedules)))
    moments = MOMENTS if schedules or method.schedules else (1.0,)
    fault, at, names = None, 1.0, set()
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
    """The first fault at these parameters, and, where there is none, P's name (empty for none of ours)."""
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
    """B for each interval: in its middle, or, where B ends inside the interval, at the side it comes from."""
    left, right = ends[:-1], ends[1:]
    return np.where(middle == 0, np.where(np.abs(left) > np.abs(right), left, right), middle)


def _atoms(F, low: np.ndarray, high: np.ndarray, rise: np.ndarray) -> np.ndarray:
    """Which intervals hold a jump of F: halving again and again keeps the rise of a jump and no other."""
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


def _level_sets(x: np.ndarray, F, B, flat: np.ndarray, peak: float) -> Fault | None:
    """A fault where F or B varies inside an interval on which P is constant."""
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
    """The map here that grows as P does, jumps apart, with the parameters the method shares with it."""
    for name, part in MAPS.items():
        if set(part.schedules) <= set(values):
            known = np.diff(part.apply(x, **{key: values[key] for key in part.schedules}))
            if np.abs(known - growth)[~apart].max() < 0.05 * (x[1] - x[0]):
                return name
    return ""


def _transform_name(method: Method, values: Mapping[str, float], map_name: str) -> str:
    """The transform here that makes F of P, with the parameters the method shares with it."""
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
