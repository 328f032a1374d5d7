"""What formulas and kernels are made of in Triton: functions of numbers, and which numbers a program has."""

from __future__ import annotations

import triton
import triton.language as tl

ALL = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def at_least(x, low):
    return tl.maximum(x, low, propagate_nan=ALL)


@triton.jit
def at_most(x, high):
    return tl.minimum(x, high, propagate_nan=ALL)


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def copysign(magnitude, x):
    """Return |magnitude| with the sign of x; the formulas add 0 to x, so that there is no -0."""
    return tl.where(x < 0, -tl.abs(magnitude), tl.abs(magnitude))


@triton.jit
def block_of(total, BLOCK: tl.constexpr):
    """Return where this program's numbers are [BLOCK], and which of them exist."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return at, at < total


@triton.jit
def columns_of(channels, COLUMNS: tl.constexpr):
    """Return this program's channels [1, COLUMNS], and which of them exist; see `launch.by_rows`."""
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return channel, channel < channels


@triton.jit
def rows_of(start, rows, rows_each, ROWS: tl.constexpr):
    """Return this program's rows from its `start` on [ROWS, 1], and which of them are its own."""
    first = tl.program_id(0).to(tl.int64) * rows_each
    row = first + start + tl.arange(0, ROWS)[:, None]
    return row, (row < rows) & (row < first + rows_each)
