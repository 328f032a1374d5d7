"""The int8 accumulator of task bwaa, one definition for training and for packed files.

The products of a sum are added in tiles of 64, in the order in which the weights are packed. After each tile
the running sum is brought back to -128 ... 127: saturated, or wrapped as in WrapNet (Ni et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 64
LOW, HIGH = -128, 127


@dataclass(frozen=True)
class Rule:
    """What happens at the ends of int8, and how many bits a tile's sum loses before it is added."""

    overflow: str  # saturate or wrap
    shift: int = 0


def accumulate(tile: Callable[[int, int], Tensor], length: int, rule: Rule) -> tuple[Tensor, Tensor]:
    """(the sums, times 2^shift; where they overflowed on the way), for sums of `length` products.

    `tile(start, stop)` gives the sums of products start ... stop - 1: of integers in any type, or of real
    numbers while F is soft. A tile's sum is shifted with rounding, halves upwards.
    """
    total = overflowed = None
    for start in range(0, length, TILE):
        part = _shifted(tile(start, min(start + TILE, length)), rule.shift)
        total = part if total is None else total.add_(part)
        kept = total.clamp(LOW, HIGH)
        out = kept != total
        overflowed = out if overflowed is None else overflowed.logical_or_(out)
        total = kept if rule.overflow == "saturate" else (total - LOW) % (HIGH - LOW + 1) + LOW
    return total * 2**rule.shift, overflowed


def _shifted(part: Tensor, shift: int) -> Tensor:
    if shift == 0:
        return part
    half = 2 ** (shift - 1)
    return torch.floor((part + half) / 2**shift) if part.is_floating_point() else (part + half) >> shift
