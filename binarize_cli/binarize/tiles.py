"""Sums tile by tile under a rule for the accumulator, as operators with a straight-through gradient.

The gradient is that of the plain sums, where nothing overflowed. They are operators to PyTorch, so that
torch.compile calls them as they are: their loops, traced, would take it minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from binarize_cli.binarize.accumulator import TILE, AccumulatorRule, accumulate
from binarize_cli.binarize.fused.formulas import plain_on_cpu
from binarize_cli.binarize.fused.launch import fuses_on_cuda
from binarize_cli.binarize.fused.scan import conv_scanned, scanned

CHUNK = 2**20  # sums under way at a time: what bounds the memory of tiles, and suits a CPU's caches
CHUNK_ON_CUDA = 2**26  # there every chunk has launches of its own, and 2**26 sums are 256 MiB


@custom_op("bnnpp::linear_in_tiles", mutates_args=())
def linear_in_tiles(rows: Tensor, weights: Tensor, overflow: str, shift: int) -> tuple[Tensor, Tensor]:
    """Multiply [R, K] by [out, K]: the sums [R, out], and where they overflowed on the way (bool)."""

    def sums(rows: Tensor) -> tuple[Tensor, Tensor]:
        if fuses_on_cuda(rows):
            return scanned(rows, weights, AccumulatorRule(overflow, shift))
        if plain_on_cpu(rows):
            return _of_rows(rows, weights, AccumulatorRule(overflow, shift))
        return matmul_in_tiles(rows, weights, AccumulatorRule(overflow, shift), _by_row)

    return _by_chunks(sums, len(weights) * _tiles_at_once(rows), rows)


@custom_op("bnnpp::batched_matmul_in_tiles", mutates_args=())
def batched_matmul_in_tiles(left: Tensor, right: Tensor, overflow: str, shift: int) -> tuple[Tensor, Tensor]:
    """Multiply [n, L, K] by [n, M, K], row by row: the sums [n, L, M], and where they overflowed (bool)."""

    def sums(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        if fuses_on_cuda(left):
            return scanned(left, right, AccumulatorRule(overflow, shift))
        return matmul_in_tiles(left, right, AccumulatorRule(overflow, shift), _by_row)

    each = left.shape[1] * right.shape[1] * _tiles_at_once(left)
    return _by_chunks(sums, each, left, right)


@custom_op("bnnpp::conv_in_tiles", mutates_args=())
def conv_in_tiles(
    images: Tensor,
    weights: Tensor,
    stride: Sequence[int],
    zeros: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    overflow: str,
    shift: int,
) -> tuple[Tensor, Tensor]:
    """Convolve [N, C, H, W] with [out, C / groups, kh, kw]: sums [N, out, H', W'], where they overflowed.

    `zeros`: rows of them above and below the images, columns left and right.
    """

    def conv(images: Tensor, weights: Tensor) -> Tensor:
        y = _conv(images, weights, stride, (0, 0), dilation, groups)
        # cuDNN may sum by Winograd's method, which returns integers almost.
        return y.round(decimals=2) if y.is_cuda else y

    def sums(images: Tensor) -> tuple[Tensor, Tensor]:
        images = F.pad(images, (zeros[1], zeros[1], zeros[0], zeros[0])) if any(zeros) else images
        if groups == 1 and fuses_on_cuda(images):
            rule = AccumulatorRule(overflow, shift)
            return conv_scanned(images, weights, stride, dilation, rule)
        if groups == 1 and plain_on_cpu(images):
            return _of_pixels(images, weights, stride, dilation, AccumulatorRule(overflow, shift))
        tile = tiles_of_conv(images, weights, dilation, groups, conv)
        return accumulate(tile, weights[0].numel(), AccumulatorRule(overflow, shift))

    height, width = images.shape[2] // stride[0], images.shape[3] // stride[1]
    each = len(weights) * height * width
    if groups == 1 and fuses_on_cuda(images):  # a pixel's patch, and its sums in every tile
        each = height * width * (weights[0].numel() + len(weights) * -(-weights[0].numel() // TILE))
    return _by_chunks(sums, each, images)


def _of_rows(rows: Tensor, weights: Tensor, rule: AccumulatorRule) -> tuple[Tensor, Tensor]:
    """Return what `accumulate` makes of [R, K] by [out, K], twice [R, out], by one kernel."""
    from binarize_cli.binarize.fused.numba_tiles import sums_in_tiles

    count, length = rows.shape
    return sums_in_tiles(
        rows.contiguous(), torch.arange(count) * length, torch.arange(length), weights.T, rule
    )


def _of_pixels(
    images: Tensor, weights: Tensor, stride: Sequence[int], dilation: Sequence[int], rule: AccumulatorRule
) -> tuple[Tensor, Tensor]:
    """Return the same of [N, C, H, W] by [out, C, kh, kw], twice [N, out, H', W'], channels last."""
    from binarize_cli.binarize.fused.numba_tiles import sums_in_tiles

    pixels = images.permute(0, 2, 3, 1).contiguous()
    count, height, width, channels = pixels.shape
    first = channels * torch.arange(count * height * width).view(count, height, width)  # of every pixel
    (high, wide), (dy, dx), (sy, sx) = weights.shape[2:], dilation, stride
    steps = (first[0, : dy * high : dy, : dx * wide : dx, None] + torch.arange(channels)).flatten()
    starts = first[:, : height - dy * (high - 1) : sy, : width - dx * (wide - 1) : sx]
    matrix = weights.permute(2, 3, 1, 0).flatten(0, 2)
    found = sums_in_tiles(pixels, starts.flatten(), steps, matrix, rule)
    sums, overflowed = (each.view(*starts.shape, -1).permute(0, 3, 1, 2) for each in found)
    return sums, overflowed


def matmul_in_tiles(
    left: Tensor, right: Tensor, rule: AccumulatorRule, product: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Multiply [..., L, K] by [..., M, K], a tile at a time by `product`; return what `accumulate` gives."""
    return accumulate(lambda a, b: product(left[..., a:b], right[..., a:b]), left.shape[-1], rule)


def tiles_of_conv(
    images: Tensor,
    weights: Tensor,
    dilation: Sequence[int],
    groups: int,
    conv: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[int, int], Tensor]:
    """Return `tile(start, stop)`, which sums products start ... stop - 1 of a convolution, by `conv`.

    A tile is a convolution too: of the rows, columns and channels that it touches, by weights that are zero
    outside it. Products are in the order row, column, channel.
    """
    by_group = images.unflatten(1, (groups, -1))
    depth, rows, columns = weights.shape[1:]
    index = torch.arange(weights[0].numel(), device=weights.device)
    index = index.view(rows, columns, depth).permute(2, 0, 1)

    def tile(start: int, stop: int) -> Tensor:
        first, last = start // depth, (stop - 1) // depth  # taps
        high, wide, deep = slice(first // columns, last // columns + 1), slice(0, columns), slice(0, depth)
        if high.stop - high.start == 1:
            wide = slice(first % columns, last % columns + 1)
        if first == last:
            deep = slice(start - first * depth, stop - first * depth)
        part, kept = weights[:, deep, high, wide], index[deep, high, wide]
        if kept.numel() != stop - start:
            part = part * ((kept >= start) & (kept < stop))
        seen = by_group[..., _seen(high, rows, dilation[0]), :][..., _seen(wide, columns, dilation[1])]
        return conv(seen[:, :, deep].flatten(1, 2), part)

    return tile


def _seen(taps: slice, size: int, dilation: int) -> slice:
    """Return the part of an image's axis that these taps of a kernel of that size go over."""
    return slice(taps.start * dilation, (taps.stop - size) * dilation or None)


def _tiles_at_once(x: Tensor) -> int:
    """Return how many tiles of [..., K] are under way at a time."""
    return -(-x.shape[-1] // TILE) if fuses_on_cuda(x) else 1


def _by_chunks(
    sums: Callable[..., tuple[Tensor, Tensor]], each: int, *inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `sums` of the inputs, some items of their first axis at a time; an item has `each` of them.

    In the type of the inputs also within autocast.
    """
    size = max(1, (CHUNK_ON_CUDA if inputs[0].is_cuda else CHUNK) // each)
    with torch.autocast(inputs[0].device.type, enabled=False):
        parts = [sums(*some) for some in zip(*(x.split(size) for x in inputs), strict=True)]
    done, overflowed = zip(*parts, strict=True)
    return joined(done), joined(overflowed)


def joined(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Return the parts, one after another; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)


def _by_row(left: Tensor, right: Tensor) -> Tensor:
    return left @ right.mT


def _conv(images: Tensor, weights: Tensor, *geometry: Any) -> Tensor:
    """Convolve by stride, zeros, dilation and groups; channels last whatever the images are.

    A compiled network must know how its tensors lie.
    """
    y = F.conv2d(images, weights, None, *geometry)
    return y.contiguous(memory_format=torch.channels_last)


def _gradient_of_conv(
    grad: Tensor,
    images: Tensor,
    weights: Tensor,
    stride: Sequence[int],
    zeros: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    needed = [True, True, False]  # images, weights, no bias
    return torch.ops.aten.convolution_backward(
        grad, images, weights, None, stride, zeros, dilation, False, [0, 0], groups, needed
    )[:2]


def _register(
    operator: Any, plain: Callable[..., Tensor], gradient: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    """Give an operator the shapes and the gradient of the plain sums."""

    def shapes(*inputs):
        y = plain(*inputs[:-2])
        return torch.empty_like(y), torch.empty_like(y, dtype=torch.bool)

    def remember(ctx, inputs, output):
        left, right, *ctx.geometry, _, _ = inputs
        ctx.save_for_backward(left, right, output[1])

    def backward(ctx, grad, _):
        left, right, overflowed = ctx.saved_tensors
        passed = grad.masked_fill(overflowed, 0)
        return *gradient(passed, left, right, *ctx.geometry), *[None] * (len(ctx.geometry) + 2)

    operator.register_fake(shapes)
    operator.register_autograd(backward, setup_context=remember)


_register(linear_in_tiles, _by_row, lambda grad, rows, weights: (grad @ weights, grad.T @ rows))
_register(batched_matmul_in_tiles, _by_row, lambda grad, left, right: (grad @ right, grad.mT @ left))
_register(conv_in_tiles, _conv, _gradient_of_conv)
