"""The int8 accumulator of task bwaa, one definition for training and for packed files.

The products of a sum are added in tiles of 64; those of a convolution in the order row, column, channel, so
that 64 channels of a pixel are a tile. After each tile the running sum is brought back to -128 ... 127:
saturated, or wrapped as in WrapNet (Ni et al. 2021).
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
    tiles: str = "pixel"  # of a convolution; "channel" in files of format 1: channel, row, column


@dataclass(frozen=True)
class Window:
    """How a convolution goes over an image that is already padded, but for zeros that it may add itself."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    zeros: tuple[int, int] = (0, 0)
    """Rows above and below, columns left and right: only `FloatAccumulator` is asked for them."""


class Accumulator(Protocol):
    """What adds up the products of a binary layer with binary inputs."""

    def linear(self, values: Tensor, weights: Tensor) -> Tensor:
        """Return the sums of [..., K] by [out, K]: [..., out]."""

    def conv(self, images: Tensor, weights: Tensor, window: Window) -> Tensor:
        """Return the sums of [N, C, H, W] by [out, C / groups, kh, kw]: [N, out, H', W']."""

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the sums of [..., L, K] by [..., M, K], row by row: [..., L, M]."""


def accumulate(
    tile: Callable[[int, int], Tensor], length: int, rule: AccumulatorRule
) -> tuple[Tensor, Tensor]:
    """Return the sums of `length` products, times 2^shift, and where they overflowed on the way.

    `tile(start, stop)` returns the sums of products start ... stop - 1: of integers in any type, or of real
    numbers while F is soft; in a tensor of its own, which is written to. A tile's sum is shifted with
    rounding, halves upwards.

    >>> accumulate(lambda start, stop: torch.tensor([stop - start, 1]), 192, AccumulatorRule("saturate"))
    (tensor([127,   3]), tensor([ True, False]))
    """
    total: Tensor | None = None
    overflowed: Tensor | None = None
    for start in range(0, length, TILE):
        part = _shifted(tile(start, min(start + TILE, length)), rule.shift)
        total = part if total is None else total.add_(part)
        if _fits(total):
            continue
        kept = total.clamp(LOW, HIGH)
        out = kept != total
        overflowed = out if overflowed is None else overflowed.logical_or_(out)
        total = kept if rule.overflow == "saturate" else (total - LOW) % (HIGH - LOW + 1) + LOW
    assert total is not None, "a sum has at least one product"
    if overflowed is None:
        overflowed = torch.zeros_like(total, dtype=torch.bool)
    return total.mul_(2**rule.shift) if rule.shift else total, overflowed


def _fits(total: Tensor) -> bool:
    """Return whether int8 surely holds all of these sums. A GPU is not asked: one would wait for it."""
    return total.device.type == "cpu" and bool(total.amin() >= LOW) and bool(total.amax() <= HIGH)


def _shifted(part: Tensor, shift: int) -> Tensor:
    """Shift a tile's sums, in place."""
    if shift == 0:
        return part
    part += 2 ** (shift - 1)
    return part.mul_(2.0**-shift).floor_() if part.is_floating_point() else part.bitwise_right_shift_(shift)
