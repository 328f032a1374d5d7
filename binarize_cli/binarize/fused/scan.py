"""Sums in an int8 accumulator: all tiles in one batched product, and one kernel that adds them up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize_cli.binarize.accumulator import TILE, AccumulatorRule
from binarize_cli.binarize.fused.launch import BLOCK, blocks, launch


def scanned(left: Tensor, right: Tensor, rule: AccumulatorRule) -> tuple[Tensor, Tensor]:
    """Return what `accumulate` makes of [..., R, K] by [..., out, K]: [..., R, out], twice."""
    left, right = _in_tiles(left), _in_tiles(right)  # [tiles, ..., R, 64], [tiles, ..., out, 64]
    parts = (left @ right.mT).contiguous()
    sums = torch.empty(parts.shape[1:], device=parts.device)
    overflowed = torch.empty_like(sums, dtype=torch.bool)
    launch(
        "scan_tiles",
        blocks(sums.numel()),
        *(parts, sums, overflowed, sums.numel(), len(parts)),
        WRAP=rule.overflow == "wrap",
        SHIFT=rule.shift,
        BLOCK=BLOCK,
    )
    return sums, overflowed


def conv_scanned(
    images: Tensor, weights: Tensor, stride: Sequence[int], dilation: Sequence[int], rule: AccumulatorRule
) -> tuple[Tensor, Tensor]:
    """Return the same of [N, C, H, W] by [out, C, kh, kw]: [N, out, H', W'], channels last."""
    seen = patches(images, weights.shape[2:], stride, dilation)
    kernels = weights.permute(0, 2, 3, 1).flatten(1)
    found = scanned(seen.flatten(0, 2), kernels, rule)
    sums, overflowed = (each.view(*seen.shape[:3], len(weights)).permute(0, 3, 1, 2) for each in found)
    return sums, overflowed


def patches(images: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Return what each output pixel sees: [N, C, H, W] -> [N, H', W', kh * kw * C].

    Channels last, so that they are copied in runs: 20 times faster than one number at a time.
    """
    (dy, dx), (kh, kw) = dilation, kernel
    pixels = images.permute(0, 2, 3, 1).contiguous()
    view = pixels.unfold(1, dy * (kh - 1) + 1, stride[0])[..., ::dy]  # [N, H', W, C, kh]
    view = view.unfold(2, dx * (kw - 1) + 1, stride[1])[..., ::dx]  # [N, H', W', C, kh, kw]
    return view.permute(0, 1, 2, 4, 5, 3).flatten(3)


def _in_tiles(x: Tensor) -> Tensor:
    """Return [..., R, K] as [tiles, ..., R, 64], the last tile filled up with zeros."""
    missing = -x.shape[-1] % TILE
    x = F.pad(x, (0, missing)) if missing else x
    return x.unflatten(-1, (-1, TILE)).movedim(-2, 0)
