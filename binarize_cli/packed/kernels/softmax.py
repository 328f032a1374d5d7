"""Softmax whose sign alone is needed: p >= t where its exponential is at least t times the sum of all."""

from __future__ import annotations

import numpy as np

from binarize_cli.machine_code import part
from binarize_cli.packed.kernels.pack import pack_run
from binarize_cli.packed.kernels.vectors import as_float32, as_int32, store_byte

DOUBT = np.float32(1e-5)  # relative: ten times what rounding does to exponentials and their sum


@part
def softmax_signs(scores, columns, scale, threshold, limit, nothing, bits, doubts):
    """Pack softmax(scale * row) >= threshold of rows of scores [rows, columns and padding], at `bits`.

    A byte at `doubts` becomes 1 for each row with a probability that is all but on the threshold. Of `limit`
    and `nothing`, [columns], the first is overwritten; the second is NaN, no limit.
    """
    words = (columns + 63) // 64
    for r in range(len(scores)):
        row = scores[r, :columns]
        edge = threshold * exponentials(row, scale)
        limit[:] = edge
        at = np.int64(row.ctypes.data)
        pack_run(
            at, np.int64(limit.ctypes.data), np.int64(nothing.ctypes.data), bits + 8 * words * r, columns
        )
        if nearest(row, edge) <= DOUBT * edge:
            store_byte(doubts + r, np.uint8(1))


@part(reorder=True)
def nearest(row, edge):
    """Return how near a row comes to `edge`, by the bits of floats, which sort as integers do."""
    least = np.int32(0x7F800000)
    for j in range(row.size):
        least = min(least, as_int32(abs(row[j] - edge)))
    return as_float32(least)


@part(reorder=True)
def exponentials(row, scale):
    """Replace a row by exp(scale * row - its maximum); return their sum."""
    for j in range(row.size):
        row[j] *= scale
    top = maximum(row)
    total = np.float32(0)
    for j in range(row.size):
        row[j] = exp(row[j] - top)
        total += row[j]
    return total


@part(reorder=True)
def maximum(row):
    """Return the largest number of a row, as integers: LLVM makes vectors of those, but not of floats."""
    top, bits = np.int32(-(2**31)), row.view(np.int32)
    for j in range(bits.size):
        top = max(top, sortable(bits[j]))
    return as_float32(sortable(top))


@part
def sortable(bits):
    """Turn the bits of a float into an integer that sorts as the float does, or back."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@part
def exp(x):
    """Compute e^x for x <= 0 to a unit in the last place: 2^n by its bits, the rest by Cephes' polynomial."""
    x = max(x, np.float32(-87.0))
    n = np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5))
    x = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * x + np.float32(1.3981999507e-3)
    y = y * x + np.float32(8.3334519073e-3)
    y = y * x + np.float32(4.1665795894e-2)
    y = y * x + np.float32(1.6666665459e-1)
    y = y * x + np.float32(5.0000001201e-1)
    y = y * x * x + x + np.float32(1)
    return y * as_float32((np.int32(n) + np.int32(127)) << np.int32(23))
