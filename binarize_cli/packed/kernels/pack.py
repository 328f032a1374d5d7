"""Thresholds, signs and packing in one pass over the input: no float tensor is written."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from binarize_cli.machine_code import kernel, part
from binarize_cli.packed.kernels.clock import timed
from binarize_cli.packed.kernels.geometry import Window
from binarize_cli.packed.kernels.matrix import channel_table, words_of
from binarize_cli.packed.kernels.vectors import signs_of_1, signs_of_16, signs_of_64, store_word
from binarize_cli.threads import in_parts

WORK = 64  # what packing a number costs, in products of bits


@dataclass(frozen=True)
class Limits:
    """Which numbers become +1: x >= high or x <= low, float32 of the same shape [..., K]; NaN is no limit.

    Behind a function that falls once and rises once, as GELU does, both are needed: `fused/activation.py`.
    """

    high: Tensor
    low: Tensor

    @classmethod
    def of_threshold(cls, threshold: Tensor) -> Limits:
        """Return x - t >= 0: that is x >= t to the bit, since float32 never rounds a difference to 0."""
        high = threshold.detach().float().contiguous()
        return cls(high, torch.full_like(high, math.nan))


def sign_table(outputs: int, scale: Tensor, bias: Tensor | None, limits: Limits) -> Tensor:
    """Return float32 [4, outputs padded] of scale, bias, high and low; padding becomes bits 0."""
    table = channel_table(outputs, scale, bias)
    ends = torch.tensor([math.inf, math.nan]).unsqueeze(1).repeat(1, table.shape[1])
    ends[0, :outputs], ends[1, :outputs] = limits.high, limits.low
    return torch.cat([table, ends])


def pack_signs(x: Tensor, limits: Limits) -> Tensor:
    """Pack float32 [..., K] by limits [K] -> int64 [rows, words], the first number in bit 0."""
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    words = words_of(rows.shape[1])
    bits = torch.empty(len(rows), words, dtype=torch.int64)
    sizes = (len(rows), 1, 1, 1)
    _pack(rows, limits, bits, rows.shape[1], sizes, (rows.stride(0), 0, 0, 0), (0, 0, 0, 0), (words, 0, 0, 0))
    return bits


def pack_heads(x: Tensor, limits: Limits) -> Tensor:
    """Pack float32 [N, heads, L, K] by limits [heads, K] -> int64 [N, heads, L, words]."""
    x = x if x.stride(3) == 1 else x.contiguous()
    words, depth = words_of(x.shape[3]), x.shape[3]
    bits = torch.empty(*x.shape[:3], words, dtype=torch.int64)
    sizes, strides = (*x.shape[:3], 1), (*x.stride()[:3], 0)
    _pack(x, limits, bits, depth, sizes, strides, (0, depth, 0, 0), (*bits.stride()[:3], 0))
    return bits


def pack_image(x: Tensor, limits: Limits, window: Window) -> Tensor:
    """Pack float32 [N, C, H, W] by limits [C] -> int64 [N, padded H, padded W, words]."""
    pixels = x.permute(0, 2, 3, 1)
    pixels = pixels if pixels.stride(3) == 1 else pixels.contiguous()  # no copy if channels are last
    count, height, width, _ = pixels.shape
    bits = _background(window, (count, *window.padded_size(height, width), window.pixel_words))
    left, _, top, _ = window.margins
    sizes, strides = (count, height, width, window.groups), (*pixels.stride()[:3], window.depth)
    to = (*bits.stride()[:3], words_of(window.depth))
    _pack(pixels, limits, bits[:, top:, left:], window.depth, sizes, strides, (0, 0, 0, window.depth), to)
    return bits


@timed("packing")
def _pack(
    x: Tensor, limits: Limits, bits: Tensor, depth: int, sizes, strides, limit_strides, bit_strides
) -> None:
    """Pack runs of `depth` numbers along four axes; strides in numbers and words."""
    arguments = x.data_ptr(), limits.high.data_ptr(), limits.low.data_ptr(), bits.data_ptr(), depth
    arguments += sizes, strides, limit_strides, bit_strides
    in_parts(lambda first, last: pack_runs(*arguments, first, last), sizes[0] * sizes[1], WORK * x.numel())


def _background(window: Window, shape: tuple[int, ...]) -> Tensor:
    """Bits of an image that is padding all over. Zero padding may be any sign, since masks leave it out."""
    if not any(window.margins):
        return torch.empty(shape, dtype=torch.int64)
    if window.pad != 1:
        return torch.zeros(shape, dtype=torch.int64)
    ones = np.zeros((1, words_of(window.depth) * 64), bool)
    ones[:, : window.depth] = True
    pixel = np.tile(np.packbits(ones, axis=1, bitorder="little").view(np.int64), window.groups)
    return torch.from_numpy(pixel[0]).expand(shape).contiguous()


@kernel
def pack_runs(x, high, low, bits, depth, sizes, strides, limit_strides, bit_strides, first, last):
    """Pack x into bits, for first ... last - 1 of the first two axes together."""
    for outer in range(first, last):
        a, b = outer // sizes[1], outer % sizes[1]
        from_ab = x + 4 * (a * strides[0] + b * strides[1])
        limit_ab = 4 * (a * limit_strides[0] + b * limit_strides[1])
        to_ab = bits + 8 * (a * bit_strides[0] + b * bit_strides[1])
        for c in range(sizes[2]):
            for d in range(sizes[3]):
                limit = limit_ab + 4 * (c * limit_strides[2] + d * limit_strides[3])
                source = from_ab + 4 * (c * strides[2] + d * strides[3])
                target = to_ab + 8 * (c * bit_strides[2] + d * bit_strides[3])
                pack_run(source, high + limit, low + limit, target, depth)


@part
def pack_run(x, high, low, bits, count):
    """Pack `count` numbers at one address into words at another."""
    for word in range(count // 64):
        at = 256 * word
        store_word(bits + 8 * word, signs_of_64(x + at, high + at, low + at))
    done = count - count % 64
    if done < count:
        rest, filled = np.uint64(0), np.uint64(0)
        while count - done >= 16:
            at = 4 * done
            rest |= signs_of_16(x + at, high + at, low + at) << filled
            done, filled = done + 16, filled + np.uint64(16)
        while done < count:
            at = 4 * done
            rest |= signs_of_1(x + at, high + at, low + at) << filled
            done, filled = done + 1, filled + np.uint64(1)
        store_word(bits + 8 * (count // 64), rest)
