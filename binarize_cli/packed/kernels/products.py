"""Packed rows by packed weights: one loop serves linear layers, convolutions and attention's products.

Weights lie in blocks of outputs, 32, 16 or 8 wide, so that a block's sums stay in registers: see `matrix`.
Arguments are addresses and numbers: what an array is made of takes Python a microsecond to find out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from binarize_cli.machine_code import specialised
from binarize_cli.packed.kernels.vectors import ROWS, block_sums

# Each kernel that is `specialised` has its own of these.
block_of_32 = block_of_16 = block_of_8 = OUTPUT_BITS = None


@cache
def products(masked: bool, tiled: bool, ending: str) -> Callable:
    """Return the kernel with those properties, which `block_sums` explains."""
    name = f"products_{ending}{'_masked' * masked}{'_tiled' * tiled}"
    blocks = {f"block_of_{8 * n}": block_sums(n, masked, tiled, ending) for n in (4, 2, 1)}
    return specialised(_rows_by_weights, name, OUTPUT_BITS=1 if ending == "signs" else 32, **blocks)


def _rows_by_weights(rows, weights, kinds, accumulator, results, first, last):
    """Compute rows first ... last - 1, by all outputs.

    rows: (words, starts, steps); weights: (blocks, words of a row, outputs with padding);
    kinds: (masks, counts, classes); accumulator: (shift, low, high, lost); results: (out, places, width,
    channels, past, past_width, more, more_width), width in bytes for signs, else in numbers. `starts`,
    `places` and `classes` have an entry a row, and go on to a multiple of 4.
    """
    words, starts, steps = rows
    blocks, length, outputs = weights
    masks, counts, classes = kinds
    out, places, width, channels, past, past_width, more, more_width = results
    line = 4 * outputs  # bytes between the rows of the table of channels
    at = 0
    while at < outputs:
        w, c = blocks + 8 * length * at, channels + 4 * at
        tables = (c, c + line, c + 2 * line, c + 3 * line, c + 4 * line)
        activation = (c + 5 * line, c + 6 * line, c + 7 * line)
        addends = (past + 4 * at, past_width, more + 4 * at, more_width)
        left = outputs - at
        for r in range(first, last, ROWS):
            operands = (words, starts + 8 * r, steps, length, w, masks, counts, classes + 8 * r)
            to = (out + at * OUTPUT_BITS // 8, places + 8 * r, width, *tables, *activation, *addends)
            if left >= 32:
                block_of_32(operands, accumulator, to)
            elif left >= 16:
                block_of_16(operands, accumulator, to)
            else:
                block_of_8(operands, accumulator, to)
        at += 32 if left >= 32 else (16 if left >= 16 else 8)
