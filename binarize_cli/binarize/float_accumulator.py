"""The sums of products of a binary layer with binary inputs, as training computes them: in float32.

Where both sides are +-1 the sums are integers below 2^24, so float32 holds them exactly, and
`packed/integer.py` gets the same ones from int8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize_cli.binarize.accumulator import AccumulatorRule, Window
from binarize_cli.binarize.tiles import batched_matmul_in_tiles, conv_in_tiles, linear_in_tiles


class FloatAccumulator(nn.Module):
    """Sums over the inputs of a layer; tile by tile under a rule for the accumulator, plain without one.

    The gradient goes straight through where the sum did not overflow. `count` and `overflows` count since
    `count_anew`, while no gradient is asked for: training would count for nothing.
    """

    def __init__(self, rule: AccumulatorRule | None = None):
        super().__init__()
        self.rule = rule
        self.integers = False  # whether all factors are signs for good, and sums are integers: see `harden`
        self.count_anew()

    def count_anew(self) -> None:
        """Start counting at 0."""
        self.count = 0
        self.overflows: Tensor | int = 0

    @property
    def overflowed(self) -> float:
        """The share of sums that overflowed on the way."""
        return float(self.overflows) / self.count if self.count else 0.0

    @property
    def plain(self) -> bool:
        """Whether nothing is asked of the sums by themselves, so that weights may hold what scales them."""
        return self.rule is None and not self.integers

    def linear(self, values: Tensor, weights: Tensor) -> Tensor:
        """Return the sums of [..., K] by [out, K]: [..., out]."""
        if self.rule is None:
            return self._whole(F.linear(values, weights))
        y = self._in_tiles(self.rule, linear_in_tiles, values.flatten(0, -2), weights)
        return y.view(*values.shape[:-1], len(weights))

    def conv(self, images: Tensor, weights: Tensor, window: Window) -> Tensor:
        """Return the sums of [N, C, H, W] by [out, C / groups, kh, kw]: [N, out, H', W']."""
        if self.rule is None:
            y = F.conv2d(images, weights, None, window.stride, window.zeros, window.dilation, window.groups)
            return self._whole(y)
        geometry = window.stride, window.zeros, window.dilation, window.groups
        return self._in_tiles(self.rule, conv_in_tiles, images, weights, *geometry)

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the sums of [..., L, K] by [..., M, K], row by row: [..., L, M]."""
        if self.rule is None:
            return self._whole(left @ right.mT)
        flat = left.flatten(0, -3), right.flatten(0, -3)
        y = self._in_tiles(self.rule, batched_matmul_in_tiles, *flat)
        return y.view(*left.shape[:-1], right.shape[-2])

    def _whole(self, sums: Tensor) -> Tensor:
        """Return sums of signs as integers: cuDNN's Winograd and FFT return almost that."""
        return sums.round() if self.integers and sums.is_cuda else sums

    def _in_tiles(self, rule: AccumulatorRule, operator: Callable, *operands: Any) -> Tensor:
        """Return the operator's sums, and count. `operands`: two factors, then the geometry, if any.

        The factors are cast to float32: autocast's bfloat16 would not hold every sum.
        """
        left, right, *geometry = operands
        sums, overflowed = operator(left.float(), right.float(), *geometry, rule.overflow, rule.shift)
        if not torch.is_grad_enabled():
            self.count += overflowed.numel()
            self.overflows = self.overflows + overflowed.count_nonzero()
        return sums
