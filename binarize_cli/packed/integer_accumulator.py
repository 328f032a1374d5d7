"""The sums of +-1 products in integers: int8 by int8 into int32, as hardware would compute them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize_cli.binarize.accumulator import AccumulatorRule, Window
from binarize_cli.binarize.fused.scan import patches
from binarize_cli.binarize.tiles import joined, matmul_in_tiles

CHUNK = 2**24  # int8 inputs of products under way at a time


class IntegerAccumulator(nn.Module):
    """As `FloatAccumulator`: signs arrive and sums leave in float32, which holds them exactly."""

    def __init__(self, rule: AccumulatorRule | None = None):
        super().__init__()
        self.rule = rule

    def linear(self, values: Tensor, weights: Tensor) -> Tensor:
        """Multiply [..., K] of +-1 by [out, K]: [..., out]."""
        rows = values.flatten(0, -2).to(torch.int8)
        return self._matmul(rows, weights.to(torch.int8)).view(*values.shape[:-1], len(weights)).float()

    def conv(self, images: Tensor, weights: Tensor, window: Window) -> Tensor:
        """Convolve [N, C, H, W] of +-1, and 0 around, with [out, C / groups, kh, kw]: [N, out, H', W']."""
        signs, kernels = images.to(torch.int8), weights.to(torch.int8)
        each = kernels[0, 0].numel() * signs[0].numel()
        parts = [self._conv(some, kernels, window) for some in signs.split(max(1, CHUNK // each))]
        return joined(parts).float()

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        """Multiply [..., L, K] of +-1 by [..., M, K], row by row: [..., L, M]."""
        rows, columns = (side.to(torch.int8).flatten(0, -3) for side in (left, right))
        if rows.device.type == "cpu":
            sums = torch.stack([self._matmul(a, b) for a, b in zip(rows, columns, strict=True)])
        else:
            sums = self._matmul(rows, columns)
        return sums.view(*left.shape[:-1], right.shape[-2]).float()

    def _conv(self, signs: Tensor, kernels: Tensor, window: Window) -> Tensor:
        """Convolve [n, C, H, W] with [out, C / groups, kh, kw] by matrix products: int32 [n, out, H', W']."""
        done = []
        for x, w in zip(signs.chunk(window.groups, 1), kernels.chunk(window.groups), strict=True):
            seen = patches(x, window.kernel, window.stride, window.dilation)
            rows, columns = seen.flatten(0, 2), w.permute(0, 2, 3, 1).flatten(1)
            if self.rule and self.rule.tiles == "channel":
                rows, columns = (by_channel(each, w.shape[1]) for each in (rows, columns))
            done.append(self._matmul(rows, columns).view(*seen.shape[:3], len(w)))
        return joined(done, 3).permute(0, 3, 1, 2)

    def _matmul(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Multiply int8 [..., R, K] by [..., out, K]: int32 [..., R, out]."""
        if self.rule is None:
            return int8_matmul(rows, weights)
        return matmul_in_tiles(rows, weights, self.rule, int8_matmul)[0]


def by_channel(rows: Tensor, channels: int) -> Tensor:
    """Reorder [R, kh * kw * C] to [R, C * kh * kw]: the order of format 1."""
    return rows.unflatten(1, (-1, channels)).mT.flatten(1)


def int8_matmul(rows: Tensor, weights: Tensor) -> Tensor:
    """Multiply int8 [..., R, K] by [..., out, K]: int32 [..., R, out].

    By int8 instructions on a CPU, where it takes matrices alone; elsewhere by float32, which is exact.
    """
    if rows.shape[-1] == 1:  # torch 2.11 reads past the ends of such matrices
        return rows.int() * weights.mT.int()
    if rows.device.type == "cpu":
        return torch._int_mm(rows.contiguous(), weights.T)
    return (rows.float() @ weights.float().mT).round().to(torch.int32)
