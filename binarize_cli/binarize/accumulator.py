"""The int8 accumulator of task bwaa, one definition for training and for packed files.

The products of a sum are added in tiles of 64, in the order in which the weights are packed. After each tile
the running sum is brought back to -128 ... 127: saturated, or wrapped as in WrapNet (Ni et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

TILE = 64
LOW, HIGH = -128, 127


@dataclass(frozen=True)
class AccumulatorRule:
    """What happens at the ends of int8, and how many bits a tile's sum loses before it is added."""

    overflow: str  # saturate or wrap
    shift: int = 0


@dataclass(frozen=True)
class Window:
    """How a convolution goes over an image that is already padded."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class Accumulator(Protocol):
    """What adds up the products of a binary layer with binary inputs."""

    def linear(self, values: Tensor, weights: Tensor) -> Tensor:
        """[..., K] by [out, K] -> [..., out]."""

    def conv(self, images: Tensor, weights: Tensor, window: Window) -> Tensor:
        """[N, C, H, W] by [out, C / groups, kh, kw] -> [N, out, H', W']."""

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        """[..., L, K] by [..., M, K], row by row -> [..., L, M]."""


def accumulate(
    tile: Callable[[int, int], Tensor], length: int, rule: AccumulatorRule
) -> tuple[Tensor, Tensor]:
    """(the sums, times 2^shift; where they overflowed on the way), for sums of `length` products.

    `tile(start, stop)` gives the sums of products start ... stop - 1: of integers in any type, or of real
    numbers while F is soft; in a tensor of its own, which is written to. A tile's sum is shifted with
    rounding, halves upwards.
    """
    total = overflowed = None
    for start in range(0, length, TILE):
        part = _shifted(tile(start, min(start + TILE, length)), rule.shift)
        total = part if total is None else total.add_(part)
        if _fits(total):
            continue
        kept = total.clamp(LOW, HIGH)
        out = kept != total
        overflowed = out if overflowed is None else overflowed.logical_or_(out)
        total = kept if rule.overflow == "saturate" else (total - LOW) % (HIGH - LOW + 1) + LOW
    if overflowed is None:
        overflowed = torch.zeros_like(total, dtype=torch.bool)
    return total.mul_(2**rule.shift) if rule.shift else total, overflowed


def _fits(total: Tensor) -> bool:
    """Whether int8 holds all of these sums, as it mostly does. Not asked of a GPU: one would wait for it."""
    return total.device.type == "cpu" and bool(total.amin() >= LOW) and bool(total.amax() <= HIGH)


def _shifted(part: Tensor, shift: int) -> Tensor:
    """In place."""
    if shift == 0:
        return part
    part += 2 ** (shift - 1)
    return part.mul_(2.0**-shift).floor_() if part.is_floating_point() else part.bitwise_right_shift_(shift)
