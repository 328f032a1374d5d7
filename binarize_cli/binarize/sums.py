"""The sums of products of a binary layer with binary inputs, as training computes them: in float32.

Where both sides are +-1 the sums are integers below 2^24, so float32 holds them exactly, and
`packed/integer.py` gets the same ones from int8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize_cli.binarize.accumulator import Rule, accumulate

CHUNK = 2**22  # sums under way at a time: what bounds the memory of tiles


@dataclass(frozen=True)
class Window:
    """How a convolution goes over an image that is already padded."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class FloatSums(nn.Module):
    """Sums over the inputs of a layer; tile by tile under a rule for the accumulator, plain without one.

    The gradient goes straight through where the sum did not overflow. `sums` and `overflows` count since
    `count_anew`.
    """

    def __init__(self, rule: Rule | None = None):
        super().__init__()
        self.rule = rule
        self.count_anew()

    def count_anew(self) -> None:
        self.sums = self.overflows = 0

    @property
    def overflowed(self) -> float:
        """The share of sums that overflowed on the way."""
        return float(self.overflows) / self.sums if self.sums else 0.0

    def linear(self, values: Tensor, weights: Tensor) -> Tensor:
        """[..., K] by [out, K] -> [..., out]."""
        if self.rule is None:
            return F.linear(values, weights)
        rows = values.detach().flatten(0, -2)
        parts = [self._rows(rows[at], weights.detach()) for at in _chunks(len(rows), len(weights))]
        return self._joined(lambda: F.linear(values, weights), parts, (*values.shape[:-1], len(weights)))

    def conv(self, images: Tensor, weights: Tensor, window: Window) -> Tensor:
        """[N, C, H, W] by [out, C / groups, kh, kw] -> [N, out, H', W']."""

        def plain() -> Tensor:
            return F.conv2d(images, weights, None, window.stride, 0, window.dilation, window.groups)

        if self.rule is None:
            return plain()
        height, width = (
            (images.shape[i + 2] - window.dilation[i] * (window.kernel[i] - 1) - 1) // window.stride[i] + 1
            for i in (0, 1)
        )
        out = len(weights)
        fixed, seen = weights.detach().flatten(1), images.detach()
        parts = [self._columns(seen[at], fixed, window) for at in _chunks(len(images), out * height * width)]
        return self._joined(plain, parts, (len(images), out, height, width))

    def pairs(self, left: Tensor, right: Tensor) -> Tensor:
        """[..., L, K] by [..., M, K], row by row -> [..., L, M]."""
        if self.rule is None:
            return left @ right.mT
        rows, columns = left.detach().flatten(0, -3), right.detach().flatten(0, -3)
        each = rows.shape[1] * columns.shape[1]
        parts = [self._pairs(rows[at], columns[at]) for at in _chunks(len(rows), each)]
        return self._joined(lambda: left @ right.mT, parts, (*left.shape[:-1], right.shape[-2]))

    def _pairs(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """[n, L, K] by [n, M, K] -> [n, L, M]."""
        return accumulate(lambda a, b: rows[..., a:b] @ columns[..., a:b].mT, rows.shape[-1], self.rule)

    def _rows(self, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """[R, K] -> [R, out]."""
        return accumulate(lambda a, b: rows[:, a:b] @ weights[:, a:b].T, weights.shape[1], self.rule)

    def _columns(self, images: Tensor, weights: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """[n, C, H, W] by [out, K] -> [n, out, H' * W']."""
        columns = F.unfold(images, window.kernel, window.dilation, 0, window.stride)
        pairs = zip(columns.chunk(window.groups, 1), weights.chunk(window.groups, 0), strict=True)
        done = [
            accumulate(lambda a, b, x=x, w=w: w[:, a:b] @ x[:, a:b], weights.shape[1], self.rule)
            for x, w in pairs
        ]
        return torch.cat([sums for sums, _ in done], 1), torch.cat([over for _, over in done], 1)

    def _joined(self, plain, parts: list[tuple[Tensor, Tensor]], shape: tuple[int, ...]) -> Tensor:
        exact = torch.cat([sums for sums, _ in parts]).view(shape)
        overflowed = torch.cat([over for _, over in parts]).view(shape)
        self.sums += overflowed.numel()
        self.overflows = self.overflows + overflowed.count_nonzero()
        return _StraightThrough.apply(plain(), exact, overflowed) if torch.is_grad_enabled() else exact


class _StraightThrough(torch.autograd.Function):
    """The exact sums forwards; backwards, the gradient of the plain ones where nothing overflowed."""

    @staticmethod
    def forward(ctx, plain: Tensor, exact: Tensor, overflowed: Tensor) -> Tensor:
        ctx.save_for_backward(overflowed)
        return exact

    @staticmethod
    def backward(ctx, grad: Tensor):
        (overflowed,) = ctx.saved_tensors
        return grad.masked_fill(overflowed, 0), None, None


def _chunks(items: int, each: int) -> list[slice]:
    size = max(1, CHUNK // each)
    return [slice(at, at + size) for at in range(0, items, size)]
