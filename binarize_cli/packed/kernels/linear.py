"""Linear layers of packed rows."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from binarize_cli.machine_code import Ready
from binarize_cli.packed.kernels.accumulator import Int8, count_table, factor, kernel_numbers, tile_sizes
from binarize_cli.packed.kernels.clock import timed
from binarize_cli.packed.kernels.matrix import PackedMatrix, channel_table, fill_outputs, words_of
from binarize_cli.packed.kernels.pack import Limits, sign_table
from binarize_cli.packed.kernels.products import products
from binarize_cli.packed.kernels.vectors import ROWS
from binarize_cli.threads import in_parts


class PopcountLinear:
    """Sums of packed rows times scale, plus bias; exact or in an int8 accumulator."""

    def __init__(
        self,
        matrix: PackedMatrix,
        scale: Tensor,  # [out]: alpha * beta
        bias: Tensor | None = None,  # [out]
        rule: Int8 | None = None,
        limits: Limits | None = None,  # [out]; then the signs of the result are packed
    ):
        self.matrix, self.rule, self.packs = matrix, rule, limits is not None
        scale = scale.float() * factor(rule)
        if limits is None:
            self.channels = channel_table(matrix.outputs, scale, bias)
        else:
            self.channels = sign_table(matrix.outputs, scale, bias, limits)
        self.counts = count_table(tile_sizes(matrix.length), rule)
        self.ready = Ready(
            (matrix.blocks.data_ptr(), matrix.words, matrix.padded),
            (0, self.counts.data_ptr(), 0),
            kernel_numbers(rule),
        )

    @timed("binary products")
    def __call__(self, bits: Tensor, past: Tensor | None = None) -> Tensor:
        """Multiply int64 [rows, words]: float32 [rows, out], plus `past`; or their signs, as int64."""
        m, rows = self.matrix, len(bits)
        ending = "signs" if self.packs else ("plain" if past is None else "add")
        if self.packs:
            out = torch.zeros(rows, words_of(m.outputs), dtype=torch.int64)
            width = out.shape[1] * 8
        else:
            out = torch.empty(rows, m.padded)
            width = m.padded
        past = out if past is None else fill_outputs(past, m.padded)
        starts, places, steps = row_tables(rows, m.words).addresses
        addends = past.data_ptr(), m.padded, 0, 0
        compute = products(masked=False, tiled=self.rule is not None, ending=ending)
        arguments = (
            (bits.data_ptr(), starts, steps),
            self.ready,
            (out.data_ptr(), places, width, self.channels.data_ptr(), *addends),
        )
        work = rows * m.padded * m.length
        in_parts(lambda first, last: compute(*arguments, first, last), rows, work, ROWS)
        return out if self.packs else out[:, : m.outputs]

    def added_to(self, past: Tensor, bits: Tensor) -> Tensor:
        """Return past + the sums, in one pass over them: float32 [..., out] and int64 [rows, words]."""
        if not past.is_contiguous():  # torch's sum lies as the first one does; a mean over it rounds so
            return past + self(bits).view(past.shape)
        return self(bits, past.view(-1, self.matrix.outputs)).contiguous().view(past.shape)


class RowTables:
    """Where rows begin, which row of the output they fill (both to a multiple of 4), and offsets of words.

    Kernels take four rows at a time; what fills up the last four is the last row again.
    """

    def __init__(self, rows: int, words: int):
        places = torch.arange(rows + ROWS).clamp_max(rows - 1)
        self.tables = places * words, places, torch.arange(words)
        self.addresses = tuple(table.data_ptr() for table in self.tables)


row_tables = lru_cache(maxsize=64)(RowTables)
