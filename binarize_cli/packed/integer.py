"""The sums of +-1 products in integers: int8 by int8 into int32, as hardware would compute them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize_cli.binarize.accumulator import Rule, accumulate
from binarize_cli.binarize.sums import Window

CHUNK = 2**24  # int8 inputs of products under way at a time


class IntegerSums(nn.Module):
    """As `FloatSums`: signs arrive in float32, and the sums leave in float32, which holds them exactly."""

    def __init__(self, rule: Rule | None = None):
        super().__init__()
        self.rule = rule

    def linear(self, values: Tensor, weights: Tensor) -> Tensor:
        """[..., K] of +-1 by [out, K] -> [..., out]."""
        rows = values.flatten(0, -2).to(torch.int8)
        return self._products(rows, weights.to(torch.int8)).view(*values.shape[:-1], len(weights)).float()

    def conv(self, images: Tensor, weights: Tensor, window: Window) -> Tensor:
        """[N, C, H, W] of +-1, and 0 around, by [out, C / groups, kh, kw] -> [N, out, H', W']."""
        signs, kernels = images.to(torch.int8), weights.to(torch.int8).flatten(1)
        each = len(kernels[0]) * window.groups * signs[0, 0].numel()
        parts = [self._conv(some, kernels, window) for some in signs.split(max(1, CHUNK // each))]
        return torch.cat(parts).permute(0, 3, 1, 2).float()

    def pairs(self, left: Tensor, right: Tensor) -> Tensor:
        """[..., L, K] of +-1 by [..., M, K], row by row -> [..., L, M]."""
        rows, columns = (side.to(torch.int8).flatten(0, -3) for side in (left, right))
        if rows.device.type == "cpu":
            sums = torch.stack([self._products(a, b) for a, b in zip(rows, columns, strict=True)])
        else:
            sums = self._products(rows, columns)
        return sums.view(*left.shape[:-1], right.shape[-2]).float()

    def _conv(self, signs: Tensor, kernels: Tensor, window: Window) -> Tensor:
        """[n, C, H, W] by [out, K] -> [n, H', W', out]."""
        rows = patches(signs, window)  # [n, H', W', groups, K]
        pairs = zip(rows.unbind(3), kernels.chunk(window.groups), strict=True)
        done = [self._products(x.reshape(-1, x.shape[-1]), w) for x, w in pairs]
        return torch.cat(done, 1).view(*rows.shape[:3], len(kernels))

    def _products(self, rows: Tensor, weights: Tensor) -> Tensor:
        """int8 [..., R, K] by [..., out, K] -> int32 [..., R, out]."""
        if self.rule is None:
            return product(rows, weights)
        length = weights.shape[-1]
        return accumulate(lambda a, b: product(rows[..., a:b], weights[..., a:b]), length, self.rule)[0]


def patches(signs: Tensor, window: Window) -> Tensor:
    """[n, C, H, W] -> [n, H', W', groups, C / groups * kh * kw]: what an output pixel sees."""
    channels = signs.shape[1]
    (dy, dx), (kh, kw) = window.dilation, window.kernel
    view = signs.unfold(2, dy * (kh - 1) + 1, window.stride[0])[..., ::dy]  # [n, C, H', W, kh]
    view = view.unfold(3, dx * (kw - 1) + 1, window.stride[1])[..., ::dx]  # [n, C, H', W', kh, kw]
    rows = view.permute(0, 2, 3, 1, 4, 5)
    return rows.reshape(*rows.shape[:3], window.groups, channels // window.groups * kh * kw)


def product(rows: Tensor, weights: Tensor) -> Tensor:
    """int8 [..., R, K] by [..., out, K] -> int32 [..., R, out].

    By int8 instructions on a CPU, where it takes matrices alone; elsewhere by float32, which is exact.
    """
    if rows.device.type == "cpu":
        return torch._int_mm(rows.contiguous(), weights.T)
    return (rows.float() @ weights.float().mT).to(torch.int32)
