"""Convolutions of packed images, with what follows them in the same pass over the output."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from binarize_cli.machine_code import Ready, part, specialised
from binarize_cli.packed.kernels.accumulator import Int8, count_table, factor, kernel_numbers
from binarize_cli.packed.kernels.clock import timed
from binarize_cli.packed.kernels.geometry import Plan, Window, plan
from binarize_cli.packed.kernels.matrix import (
    Norm,
    PackedMatrix,
    channel_table,
    fill_outputs,
    pack_matrix,
    padded,
    signs_of,
)
from binarize_cli.packed.kernels.products import products
from binarize_cli.packed.kernels.vectors import ROWS
from binarize_cli.threads import in_parts


class _Tables(NamedTuple):
    """What the kernel takes for images of one size; `ready` holds addresses of the plan and the counts."""

    plan: Plan
    counts: Tensor
    output: tuple[int, int]
    pixels: int
    windows: tuple[int, int]
    ready: Ready


class PopcountConv:
    """A convolution of packed images: sums * scale + bias, then `after` (BatchNorm, shortcuts, RPReLU)."""

    def __init__(
        self,
        window: Window,
        matrix: PackedMatrix,
        scale: Tensor,  # [out]: alpha * beta
        bias: Tensor | None = None,  # [out]
        rule: Int8 | None = None,
        after: Norm | None = None,
    ):
        self.window, self.rule, self.ending = window, rule, "block" if after else "plain"
        self.each, self.padded, self.blocks = matrix.outputs, matrix.padded, matrix.blocks
        table = channel_table(self.each * window.groups, scale.float() * factor(rule), bias, after)
        self.channels = torch.stack([_of_group(table, g, self.each) for g in range(window.groups)])
        self.width = self.each * (window.groups - 1) + self.padded  # room for a last group's last vector
        self.table_of_group = self.channels.data_ptr(), self.channels[0].nbytes
        self.nothing = torch.zeros(self.width)
        self.compute = convolution(rule is not None, self.ending)
        self._tables: dict[tuple[int, int], _Tables] = {}

    @timed("binary products")
    def __call__(
        self, bits: Tensor, size: tuple[int, int], past: Tensor | None = None, more: Tensor | None = None
    ) -> Tensor:
        """Take int64 [N, padded H, padded W, words] of images of that size.

        `past` and `more`, which `after` adds, and the result are float32 [N, out, H', W'], the result with
        channels last in memory.
        """
        tables = self._tables.get(size) or self._tables_of(size)
        count, pixels, width = bits.shape[0], tables.pixels, self.width
        out = torch.empty(count, *tables.output, width)
        old, new = self._addend(past), self._addend(more)
        images = bits.numpy().view(np.uint64).reshape(count, -1)
        addends = (
            old.data_ptr(),
            width if past is not None else 0,
            new.data_ptr(),
            width if more is not None else 0,
        )
        results = (out.data_ptr(), width, *self.table_of_group, *addends)
        work = count * pixels * width * self.window.length

        def some(*part: int) -> None:
            self.compute(images, tables.ready, results, np.empty(tables.windows, np.uint64), *part)

        if count >= torch.get_num_threads():
            in_parts(lambda first, last: some(first, last, 0, pixels), count, work)
        else:
            in_parts(lambda first, last: some(0, count, first, last), pixels, work, ROWS)
        return out[..., : self.each * self.window.groups].permute(0, 3, 1, 2)

    def _addend(self, x: Tensor | None) -> Tensor:
        """Return x [N, out, H', W'] as [N, H', W', width]; without x, a row of zeros."""
        return self.nothing if x is None else fill_outputs(x.permute(0, 2, 3, 1), self.width)

    def _tables_of(self, size: tuple[int, int]) -> _Tables:
        """Make what the kernel takes for images of that size beside them."""
        p, groups, words = plan(self.window, *size), self.window.groups, self.window.pixel_words
        counts = count_table(p.valid, self.rule).contiguous()
        lines = (p.output[1], self.window.stride[1] * words)
        rows = (p.starts.data_ptr(), p.steps.data_ptr(), p.places.data_ptr())
        group = (groups, words // groups, self.blocks[0].numel(), self.each)
        weights = (self.blocks.data_ptr(), len(p.masks[0]), self.padded)
        kinds = (p.masks.data_ptr(), counts.data_ptr(), p.classes.data_ptr())
        tables = (each.numpy() for each in (p.starts, p.pieces, p.own_steps))
        ready = Ready(*tables, lines, rows, group, weights, kinds, kernel_numbers(self.rule))
        pixels = p.output[0] * p.output[1]
        windows = len(p.own_steps), (pixels if len(p.pieces) else 0)
        self._tables[size] = _Tables(p, counts, p.output, pixels, windows, ready)
        return self._tables[size]


def pack_kernels(signs: np.ndarray, window: Window) -> PackedMatrix:
    """Pack +-1 [out, channels / groups, kh, kw] in the order of the window."""
    return pack_matrix(window.taps_in_order(np.moveaxis(signs, 1, -1)), window.groups)


def unpack_kernels(matrix: PackedMatrix, window: Window) -> np.ndarray:
    """Return +-1, int8 [out, channels / groups, kh, kw]: `pack_kernels` undone."""
    return np.moveaxis(window.by_tap(signs_of(matrix)), -1, 1)


def _of_group(table: Tensor, group: int, each: int) -> Tensor:
    """Take [rows, outputs of a group padded] of [rows, outputs padded]."""
    return fill_outputs(table[:, group * each : (group + 1) * each], padded(each))


rows_by_weights = None  # each kernel that is `specialised` has its own


@cache
def convolution(tiled: bool, ending: str) -> Callable:
    """Return the kernel that convolves images, with an int8 accumulator if tiled."""
    rows_by_weights = products(masked=True, tiled=tiled, ending=ending)
    return specialised(_convolve, f"convolve_{ending}{'_tiled' * tiled}", rows_by_weights=rows_by_weights)


def _convolve(
    bits,  # uint64 [N, words of an image]
    starts,  # int64 [pixels + 4]
    pieces,  # int64 [pieces, 5]
    own_steps,  # int64 [words]: where the words of windows lie
    lines,  # (output pixels of a line, words from one to the next)
    rows,  # (starts, steps, places), addresses of tables
    group,  # (groups, words of a pixel, words of weights, outputs), each of one group
    weights,  # (blocks, words of a window, outputs with padding)
    kinds,  # (masks, counts, classes)
    accumulator,
    results,  # (out, width, channels, bytes of a group's, past, past_width, more, more_width)
    windows,  # uint64 [words of a window, pixels if they are put together], any content
    first_image,
    last_image,
    first,
    last,
):
    """Convolve images first_image ... last_image - 1, output pixels first ... last - 1."""
    pixels = starts.size - ROWS
    length, outputs = weights[1], weights[2]
    for n in range(first_image, last_image):
        for g in range(group[0]):
            if len(pieces):
                gather_windows(bits[n, g * group[1] :], starts, pieces, lines, windows, first, last)
                where = (np.int64(windows.ctypes.data), rows[2], np.int64(own_steps.ctypes.data))
            else:
                where = (np.int64(bits[n].ctypes.data) + 8 * g * group[1], rows[0], rows[1])
            w = (weights[0] + 8 * g * group[2], length, outputs)
            column = 4 * g * group[3]
            image = 4 * n * pixels
            to = (
                results[0] + image * results[1] + column,
                rows[2],
                results[1],
                results[2] + g * results[3],
                results[4] + image * results[5] + (column if results[5] else 0),
                results[5],
                results[6] + image * results[7] + (column if results[7] else 0),
                results[7],
            )
            rows_by_weights(where, w, kinds, accumulator, to, first, last)


@part
def gather_windows(image, starts, pieces, lines, windows, first, last):
    """Put the bits of the windows of pixels first ... last - 1 together, in windows [words, pixels].

    The innermost loop goes along a line of pixels, which is what the vectoriser wants.
    """
    width, step = lines
    begin, end = first // width, -(-last // width)
    windows[:, begin * width : end * width] = 0
    for piece in range(len(pieces)):
        offset, word = pieces[piece, 0], pieces[piece, 4]
        right, left = np.uint64(pieces[piece, 1]), np.uint64(pieces[piece, 3])
        mask = np.uint64(pieces[piece, 2])
        for line in range(begin, end):
            source = image[starts[line * width] + offset :]
            target = windows[word, line * width : (line + 1) * width]
            if step == 1:
                for x in range(width):
                    target[x] |= ((source[x] >> right) & mask) << left
            else:
                for x in range(width):
                    target[x] |= ((source[x * step] >> right) & mask) << left
