"""Which layers to keep float: those that gain most within a size, or most a byte until points are gained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from binarize_cli.errors import InputError

FLOAT_BYTES = 2  # the packed file holds float layers in float16
PARTS = 1000  # of a budget, as finely as sizes are told apart


@dataclass(frozen=True)
class Unit:
    """A layer, or the layers of a block, that stay float or become binary together."""

    name: str
    layers: list[str]
    bytes: int
    """What the file grows by if they are float."""


@dataclass(frozen=True)
class Score:
    """What a network scored: top-1 in per cent, and the mean cross-entropy."""

    top1: float
    loss: float


@dataclass(frozen=True)
class Gain:
    """What a unit gains by being float: the network with it float against the one with it binary."""

    name: str
    layers: list[str]
    bytes: int
    points: float
    """Of top-1."""
    loss: float
    """By which the cross-entropy falls, in nats: finer than points on a few hundred images. Of a file, the
    cross-entropy of answers with the file's own answers."""

    @property
    def per_kib(self) -> float:
        """The fall of the loss for each KiB: what units are ranked by."""
        return 1024 * self.loss / self.bytes

    def to_json(self) -> dict[str, Any]:
        """Return the gain with what it is a KiB."""
        return asdict(self) | {"points_a_kib": 1024 * self.points / self.bytes, "loss_a_kib": self.per_kib}


@dataclass(frozen=True)
class Choice:
    """Layers to keep float, and what the network scores with all of them float together, if that is known."""

    units: list[Gain]
    score: Score | None = None

    @property
    def layers(self) -> list[str]:
        return [name for unit in self.units for name in unit.layers]

    @property
    def bytes(self) -> int:
        return sum(unit.bytes for unit in self.units)


def within_budget(gains: Sequence[Gain], spare: int) -> Choice:
    """Return the units that gain most, their own gains added up, of those that fit in `spare` bytes together.

    A knapsack, filled by dynamic programming in thousandths of the budget; what gains most a byte goes first.
    """
    part = max(1, spare // PARTS)
    count = max(spare, 0) // part + 1  # of fillings: of no part, one, two ...
    fullest: list[tuple[float, list[Gain]]] = [(0.0, [])] * count
    for gain in ranked(gains):
        size = -(-gain.bytes // part)
        for used in range(len(fullest) - 1, size - 1, -1):
            value, units = fullest[used - size]
            if value + gain.loss > fullest[used][0]:
                fullest[used] = value + gain.loss, [*units, gain]
    return Choice(fullest[-1][1])


def until_points(
    gains: Sequence[Gain], wanted: float, base: Score, together: Callable[[Sequence[str]], Score]
) -> Choice:
    """Return as few units, of those that gain most a byte, as gain `wanted` points together.

    Raises InputError if all that gain anything do not.
    """
    useful = [gain for gain in ranked(gains) if gain.loss > 0]
    best = base.top1
    for count in range(1, len(useful) + 1):
        found = together([name for unit in useful[:count] for name in unit.layers])
        best = max(best, found.top1)
        if found.top1 - base.top1 >= wanted:
            return Choice(useful[:count], found)
    what = f"no choice of layers gains {wanted:g} points; the most is {best - base.top1:.2f}"
    raise InputError(what, where="--points", hint="Ask for fewer, or look at more --images.")


def ranked(gains: Sequence[Gain]) -> list[Gain]:
    """Return the gains, the largest a byte first."""
    return sorted(gains, key=lambda gain: -gain.per_kib)


def snippet(choice: Choice, keep_float: Sequence[str], every: Sequence[str]) -> str:
    """Return the lines of a recipe that keep those layers float beside what it kept before."""
    names = [*keep_float, *patterns(choice.layers, every)]
    lines = "".join(f'\n    - "{name}"' for name in names)
    return f"layers:\n  keep_float:{lines}\n"


def patterns(names: Sequence[str], every: Sequence[str]) -> list[str]:
    """Return glob patterns for exactly those of `every` name: `blocks.0.*` for all layers of a block."""
    chosen, left, found = set(names), list(names), []
    while left:
        parts = left[0].split(".")
        prefixes = [".".join(parts[:depth]) + "." for depth in range(1, len(parts))]
        whole = next((p for p in prefixes if _inside(p, every) and _inside(p, every) <= chosen), None)
        covered = _inside(whole, every) if whole and len(_inside(whole, every)) > 1 else {left[0]}
        found.append(f"{whole}*" if len(covered) > 1 else left[0])
        left = [name for name in left if name not in covered]
    return found


def _inside(prefix: str, every: Sequence[str]) -> set[str]:
    return {name for name in every if name.startswith(prefix)}
