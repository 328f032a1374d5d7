"""Attention's products of signs: alone, q k^T with the softmax behind it, and p v, head by head.

With the softmax, scores and probabilities of a head stay in the cache: of size L x L only bits go to memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from binarize_cli.machine_code import kernel, specialised
from binarize_cli.packed.kernels.accumulator import Int8, count_table, factor, kernel_numbers, tile_sizes
from binarize_cli.packed.kernels.clock import timed
from binarize_cli.packed.kernels.linear import row_tables
from binarize_cli.packed.kernels.matrix import padded, words_of
from binarize_cli.packed.kernels.products import products
from binarize_cli.packed.kernels.softmax import softmax_signs
from binarize_cli.packed.kernels.vectors import load_float32
from binarize_cli.threads import in_parts


class PackedColumns:
    """The right factors of n products, made like weights: bits int64 [n, M, words] of M rows each.

    A sum of `length` products becomes sum * scale + bias, with bias [n, M].
    """

    @timed("packing")
    def __init__(
        self, bits: Tensor, length: int, scale: float, bias: Tensor | None = None, rule: Int8 | None = None
    ):
        count, self.outputs, self.words = bits.shape
        self.padded, self.length, self.rule = padded(self.outputs), length, rule
        self.blocks = torch.empty(count, self.padded * self.words, dtype=torch.int64)
        to_blocks(bits.contiguous().numpy(), self.blocks.numpy())
        self.channels = torch.zeros(count, 2, self.padded)
        self.channels[:, 0] = scale * factor(rule)
        if bias is not None:
            self.channels[:, 1, : self.outputs] = bias
        self.counts = count_table(tile_sizes(length), rule)

    @property
    def numbers(self) -> tuple[int, int, int, int, int]:
        """As the kernels take them."""
        addresses = self.blocks.data_ptr(), self.channels.data_ptr(), self.counts.data_ptr()
        return *addresses, self.words, self.padded


@timed("binary products")
def popcount_pairs(left: Tensor, right: PackedColumns) -> Tensor:
    """Multiply int64 [n, L, words] by n packed factors of M columns: float32 [n, L, M]."""
    count, rows, words = left.shape
    out = torch.empty(count, rows, right.padded)
    tables = row_tables(rows, words)
    compute = pairs(right.rule is not None)
    numbers = right.numbers, kernel_numbers(right.rule), tables.addresses
    arguments = left.data_ptr(), rows, *numbers, out.data_ptr()
    work = count * rows * right.padded * right.length
    in_parts(lambda first, last: compute(*arguments, first, last), count, work)
    return out[..., : right.outputs]


@timed("binary products")
def weigh_signs(
    queries: Tensor,  # int64 [N, heads, L, words]
    keys: PackedColumns,  # of N * heads
    scale: float,  # of scores, 1 / sqrt(width of a head)
    threshold: Tensor,  # float32 [heads], of probabilities
) -> tuple[Tensor, Tensor]:
    """Return the signs of softmax(scale * scores) - threshold, int64 [N * heads, L, words], and their doubts.

    The doubts, bool [N * heads, L], are the rows in which a probability is so near to the threshold that
    another order of operations might give it another sign.
    """
    batch, heads, length, words = queries.shape
    queries = queries.contiguous()
    signs = torch.empty(batch * heads, length, words_of(keys.outputs), dtype=torch.int64)
    doubts = torch.zeros(batch * heads, length, dtype=torch.bool)
    tables = row_tables(length, words)
    arguments = (
        (queries.data_ptr(), heads, length, keys.outputs),
        keys.numbers,
        kernel_numbers(keys.rule),
        tables.addresses,
        np.float32(scale),
        threshold.data_ptr(),
        (signs.data_ptr(), doubts.data_ptr(), signs.shape[2]),
    )
    compute = weights_of_attention(keys.rule is not None)
    work = batch * heads * length * keys.padded * keys.length
    columns = keys.outputs

    def some(first: int, last: int) -> None:
        scores, limit = np.empty((length, keys.padded), np.float32), np.empty(columns, np.float32)
        compute(*arguments, scores, limit, np.full(columns, np.nan, np.float32), first, last)

    in_parts(some, batch, work)
    return signs, doubts


@timed("binary products")
def mix_values(signs: Tensor, values: PackedColumns, heads: int, addend: Tensor) -> Tensor:
    """Mix n packed factors by signs, int64 [n, L, words]; add float32 [heads, width]: [N, L, heads * width].

    `values` are those of n = N * heads, with as many columns as a head is wide, each of L bits.
    """
    count, length, words = signs.shape
    out = torch.empty(count // heads, length, heads * values.outputs + values.padded - values.outputs)
    past = torch.zeros(heads, values.padded)
    past[:, : values.outputs] = addend
    tables = row_tables(length, words)
    arguments = (
        (signs.data_ptr(), heads, length),
        values.numbers,
        kernel_numbers(values.rule),
        tables.addresses,
        (out.data_ptr(), out.shape[2], values.outputs, past.data_ptr()),
    )
    compute = mixture_of_attention(values.rule is not None)
    work = count * length * values.padded * length
    in_parts(lambda first, last: compute(*arguments, first, last), count // heads, work)
    return out[..., : heads * values.outputs]


@timed("binary products")
def sign_sums(bits: Tensor, factors: Tensor) -> Tensor:
    """Sum +-factor over the signs of rows: int64 [n, heads, L, words] by [heads, K] -> [n, heads, L]."""
    count, heads, rows, _ = bits.shape
    sums = torch.empty(count, heads, rows)
    weighted_signs(bits.contiguous().numpy(), factors.contiguous().numpy(), sums.numpy())
    return sums


@timed("packing")
def transposed_bits(bits: Tensor, columns: int) -> Tensor:
    """Transpose matrices of bits: int64 [n, L, words of `columns` bits] -> [n, columns, words of L bits]."""
    count, rows, _ = bits.shape
    turned = torch.zeros(count, columns, words_of(rows), dtype=torch.int64)
    transpose(bits.contiguous().numpy(), turned.numpy(), np.empty(columns, np.int64))
    return turned


@kernel(reorder=True)
def weighted_signs(bits, factors, sums):
    """Fill sums [n, heads, L] with the sums of `sign_sums`."""
    count, heads, rows, _ = bits.shape
    for i in range(count * heads * rows):
        n, head, row = i // (heads * rows), i // rows % heads, i % rows
        total = np.float32(0)
        for k in range(factors.shape[1]):
            sign = (bits[n, head, row, k // 64] >> (k % 64)) & 1
            total += factors[head, k] if sign else -factors[head, k]
        sums[n, head, row] = total


@kernel
def transpose(bits, turned, line):
    """Fill turned [n, columns, words], which is 0, with the bits [n, rows, words]; line: [columns], any."""
    count, rows, _ = bits.shape
    columns = turned.shape[1]
    for n in range(count):
        for begin in range(0, rows, 64):
            line[:] = 0
            for row in range(begin, min(begin + 64, rows)):
                for first in range(0, columns, 64):
                    word = bits[n, row, first // 64]
                    for k in range(first, min(first + 64, columns)):
                        line[k] |= ((word >> (k - first)) & 1) << (row - begin)
            for k in range(columns):
                turned[n, k, begin // 64] = line[k]


@kernel
def to_blocks(bits, blocks):
    """Lay rows of bits [n, rows, words] out in blocks of 32, 16 or 8, word by word; fill up with zeros."""
    count, rows, words = bits.shape
    filled = blocks.shape[1] // words
    for i in range(count):
        at, to = 0, 0
        while at < filled:
            left = filled - at
            width = 32 if left >= 32 else (16 if left >= 16 else 8)
            for word in range(words):
                for row in range(at, at + width):
                    blocks[i, to] = bits[i, row, word] if row < rows else 0
                    to += 1
            at += width


rows_by_columns = None  # each kernel that is `specialised` has its own


@cache
def pairs(tiled: bool) -> Callable:
    """Return the kernel behind `popcount_pairs`."""
    rows_by_columns = products(masked=False, tiled=tiled, ending="plain")
    return specialised(_pairs, f"pairs{'_tiled' * tiled}", rows_by_columns=rows_by_columns)


@cache
def weights_of_attention(tiled: bool) -> Callable:
    """Return the kernel behind `weigh_signs`."""
    rows_by_columns = products(masked=False, tiled=tiled, ending="plain")
    return specialised(_weigh, f"weigh{'_tiled' * tiled}", rows_by_columns=rows_by_columns)


@cache
def mixture_of_attention(tiled: bool) -> Callable:
    """Return the kernel behind `mix_values`."""
    rows_by_columns = products(masked=False, tiled=tiled, ending="add")
    return specialised(_mix, f"mix{'_tiled' * tiled}", rows_by_columns=rows_by_columns)


def _pairs(left, rows, columns, accumulator, tables, out, first, last):
    """Products first ... last - 1; columns: (blocks, channels, counts, words, outputs)."""
    blocks, channels, counts, words, outputs = columns
    starts, places, steps = tables
    for i in range(first, last):
        rows_by_columns(
            (left + 8 * i * rows * words, starts, steps),
            (blocks + 8 * i * outputs * words, words, outputs),
            (0, counts, 0),
            accumulator,
            (out + 4 * i * rows * outputs, places, outputs, channels + 8 * i * outputs, 0, 0, 0, 0),
            0,
            rows,
        )


def _weigh(
    queries, keys, accumulator, tables, scale, thresholds, results, scores, limit, nothing, first, last
):
    """Images first ... last - 1.

    queries: (words, heads, rows, keys of a head); keys: as in `pairs`; tables: those of the rows of queries;
    thresholds [heads]; results: (signs, doubts, words of a row of signs). scores [rows, keys and padding] and
    limit [keys] are overwritten; nothing [keys] is NaN.
    """
    left, heads, rows, columns = queries
    scores_at = np.int64(scores.ctypes.data)
    for i in range(first * heads, last * heads):
        rows_by_columns(
            (left + 8 * i * rows * keys[3], tables[0], tables[2]),
            (keys[0] + 8 * i * keys[4] * keys[3], keys[3], keys[4]),
            (0, keys[2], 0),
            accumulator,
            (scores_at, tables[1], keys[4], keys[1] + 8 * i * keys[4], 0, 0, 0, 0),
            0,
            rows,
        )
        threshold = load_float32(thresholds + 4 * (i % heads))
        signs_at, doubts_at = results[0] + 8 * i * rows * results[2], results[1] + i * rows
        softmax_signs(scores, columns, scale, threshold, limit, nothing, signs_at, doubts_at)


def _mix(signs, values, accumulator, tables, results, first, last):
    """Images first ... last - 1.

    signs: (words, heads, rows); values: as in `pairs`; tables: those of the rows of signs; results: (out,
    its width, a head's, what is added).
    """
    words_at, heads, rows = signs
    out, width, depth, past = results
    for i in range(first * heads, last * heads):
        rows_by_columns(
            (words_at + 8 * i * rows * values[3], tables[0], tables[2]),
            (values[0] + 8 * i * values[4] * values[3], values[3], values[4]),
            (0, values[2], 0),
            accumulator,
            (
                out + 4 * (i // heads * rows * width + i % heads * depth),
                tables[1],
                width,
                values[1] + 8 * i * values[4],
                past + 4 * (i % heads) * values[4],
                0,
                0,
                0,
            ),
            0,
            rows,
        )
