"""Sums in an int8 accumulator on a CPU: products, tiles and what happens at the ends of int8 in one pass.

As `accumulate` defines them. The sums of four rows by one or two vectors of outputs stay in registers from
the first product to the last, which numba's own loops do not do: hence LLVM's instructions, one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from binarize_cli.binarize.accumulator import HIGH, LOW, TILE, AccumulatorRule
from binarize_cli.binarize.fused.numba_math import f32
from binarize_cli.compiled import specialised
from binarize_cli.threads import in_parts

LANES = 16  # float32 numbers in a vector
ROWS = 4  # under way at a time

_INT, _FLOAT = ir.IntType(64), ir.FloatType()
_FLOATS, _FLAGS = ir.VectorType(_FLOAT, LANES), ir.VectorType(ir.IntType(8), LANES)


def sums_in_tiles(
    x: Tensor, starts: Tensor, steps: Tensor, weights: Tensor, rule: AccumulatorRule
) -> tuple[Tensor, Tensor]:
    """Return the sums [R, out] of x[starts[r] + steps[k]] weights[k, o], and where they overflowed (bool).

    x: float32, dense in the order of those numbers; starts int64 [R]; steps int64 [K]; weights [K, out].
    """
    length, outputs = weights.shape
    vectors = 1 if outputs <= LANES else 2
    blocks = -(-outputs // (LANES * vectors))
    width = blocks * LANES * vectors
    padded = torch.nn.functional.pad(weights, (0, width - outputs))
    padded = padded.view(length, blocks, -1).transpose(0, 1).contiguous()  # [blocks, K, LANES vectors]
    sums = torch.empty(len(starts), width)
    overflowed = torch.empty(len(starts), width, dtype=torch.bool)
    places = starts.numpy(), (steps * 4).numpy()
    addresses = x.data_ptr(), padded.data_ptr(), sums.data_ptr(), overflowed.data_ptr()
    scale = f32(2.0**rule.shift), f32(2.0**rule.shift / 2)
    loop = _LOOPS[vectors, bool(rule.shift), rule.overflow == "wrap"]
    in_parts(
        lambda first, last: loop(*addresses, *places, blocks, scale, first, last),
        len(starts),
        work=16 * length * sums.numel(),
        step=ROWS,
    )
    return sums[:, :outputs].contiguous(), overflowed[:, :outputs].contiguous()


def _rows_of_sums(x, weights, sums, overflowed, starts, steps, blocks, scale, first, last):
    length = len(steps)
    for block in range(blocks):
        for start in range(first, last, ROWS):
            a, b = start, min(start + 1, last - 1)
            c, d = min(start + 2, last - 1), min(start + 3, last - 1)
            rows = x + 4 * starts[a], x + 4 * starts[b], x + 4 * starts[c], x + 4 * starts[d]
            at = a * blocks + block, b * blocks + block, c * blocks + block, d * blocks + block
            TILES(rows, at, steps.ctypes.data, length, weights, block, sums, overflowed, scale)  # noqa: F821


def _tiles(vectors: int, shifted: bool, wrap: bool) -> Any:
    """Make the intrinsic that adds up ROWS rows by `vectors` vectors of outputs, tile after tile."""

    @intrinsic
    def tiles(typing, rows, at, steps, length, weights, block, sums, overflowed, scale):
        def generate(context, builder, signature, arguments):
            rows, at, steps, length, weights, block, sums, overflowed, scale = arguments
            emit = _Emitter(builder, vectors, cgutils.unpack_tuple(builder, rows), steps)
            size = ir.Constant(_INT, 4 * LANES * vectors)
            weights = builder.add(weights, builder.mul(block, builder.mul(length, size)))
            step, half = cgutils.unpack_tuple(builder, scale)
            inverse = builder.fdiv(ir.Constant(_FLOAT, 1.0), step)
            tile = ir.Constant(_INT, TILE)
            count = builder.sdiv(builder.add(length, ir.Constant(_INT, TILE - 1)), tile)
            with cgutils.for_range(builder, count) as outer:
                first = builder.mul(outer.index, tile)
                left = builder.sub(length, first)
                stop = builder.select(builder.icmp_signed("<", left, tile), left, tile)
                emit.products(weights, first, stop, size)
                emit.add_tile((inverse, half) if shifted else None, wrap)
            emit.write(cgutils.unpack_tuple(builder, at), size, sums, overflowed, step if shifted else None)
            return context.get_dummy_value()

        whole, numbers = types.int64, types.UniTuple(types.float32, 2)
        four = types.UniTuple(whole, ROWS)
        arguments = (four, four, whole, whole, whole, whole, whole, whole, numbers)
        return types.void(*arguments), generate

    return tiles


class _Emitter:
    """Emits the parts of the loop; the sums lie in variables that LLVM keeps in registers."""

    def __init__(self, builder, vectors: int, rows, steps):
        self.builder, self.rows, self.steps = builder, rows, steps
        self.cells = [(r, v) for r in range(ROWS) for v in range(vectors)]
        zero, none = ir.Constant(_FLOATS, [0.0] * LANES), ir.Constant(_FLAGS, [0] * LANES)
        self.zero = zero
        self.part = {cell: cgutils.alloca_once(builder, _FLOATS) for cell in self.cells}
        self.total = {cell: cgutils.alloca_once(builder, _FLOATS) for cell in self.cells}
        self.beyond = {cell: cgutils.alloca_once(builder, _FLAGS) for cell in self.cells}
        for cell in self.cells:
            builder.store(zero, self.total[cell])
            builder.store(none, self.beyond[cell])

    def products(self, weights, first, count, size) -> None:
        """Add up `count` products from the `first` on."""
        builder = self.builder
        for cell in self.cells:
            builder.store(self.zero, self.part[cell])
        with cgutils.for_range(builder, count) as loop:
            k = builder.add(first, loop.index)
            step = self._load(builder.add(self.steps, builder.mul(k, ir.Constant(_INT, 8))), _INT, 8)
            own = builder.add(weights, builder.mul(k, size))
            factors = [self._broadcast(self._load(builder.add(row, step), _FLOAT, 4)) for row in self.rows]
            for r, v in self.cells:
                w = self._load(builder.add(own, ir.Constant(_INT, 4 * LANES * v)), _FLOATS, 4)
                total = self._call("fmuladd", factors[r], w, builder.load(self.part[r, v]))
                builder.store(total, self.part[r, v])

    def add_tile(self, rounding, wrap: bool) -> None:
        """Add a tile's sums, shifted with rounding, and bring the totals back to int8."""
        builder = self.builder
        low, high = (ir.Constant(_FLOATS, [float(end)] * LANES) for end in (LOW, HIGH))
        for cell in self.cells:
            part = builder.load(self.part[cell])
            if rounding:
                inverse, half = map(self._broadcast, rounding)
                part = self._call("floor", builder.fmul(builder.fadd(part, half), inverse))
            total = builder.fadd(builder.load(self.total[cell]), part)
            beyond = builder.or_(
                builder.fcmp_ordered("<", total, low), builder.fcmp_ordered(">", total, high)
            )
            flags = builder.or_(builder.load(self.beyond[cell]), builder.zext(beyond, _FLAGS))
            builder.store(flags, self.beyond[cell])
            if wrap:
                turn = ir.Constant(_FLOATS, [float(HIGH - LOW + 1)] * LANES)
                turns = self._call("floor", builder.fdiv(builder.fsub(total, low), turn))
                total = builder.select(beyond, builder.fsub(total, builder.fmul(turns, turn)), total)
            else:
                above = builder.select(builder.fcmp_ordered(">", total, high), high, total)
                total = builder.select(builder.fcmp_ordered("<", total, low), low, above)
            builder.store(total, self.total[cell])

    def write(self, places, size, sums, overflowed, step) -> None:
        """Write the totals, times the step if there is one, and where they overflowed."""
        builder = self.builder
        for r, v in self.cells:
            total = builder.load(self.total[r, v])
            total = total if step is None else builder.fmul(total, self._broadcast(step))
            at = builder.add(builder.mul(places[r], size), ir.Constant(_INT, 4 * LANES * v))
            self._store(total, builder.add(sums, at))
            flags = builder.add(overflowed, builder.sdiv(at, ir.Constant(_INT, 4)))
            self._store(builder.load(self.beyond[r, v]), flags)

    def _load(self, address, kind, align: int):
        return self.builder.load(self.builder.inttoptr(address, ir.PointerType(kind)), align=align)

    def _store(self, value, address) -> None:
        self.builder.store(value, self.builder.inttoptr(address, ir.PointerType(value.type)), align=1)

    def _broadcast(self, value):
        nothing, index = ir.Constant(_FLOATS, ir.Undefined), ir.IntType(32)
        vector = self.builder.insert_element(nothing, value, ir.Constant(index, 0))
        return self.builder.shuffle_vector(
            vector, nothing, ir.Constant(ir.VectorType(index, LANES), [0] * LANES)
        )

    def _call(self, name: str, *vectors):
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * len(vectors))
        module = self.builder.module
        return self.builder.call(cgutils.get_or_insert_function(module, kind, f"llvm.{name}.v16f32"), vectors)


_LOOPS = {
    (vectors, shifted, wrap): specialised(
        _rows_of_sums, f"sums_{vectors}_{shifted:d}_{wrap:d}", TILES=_tiles(vectors, shifted, wrap)
    )
    for vectors in (1, 2)
    for shifted in (False, True)
    for wrap in (False, True)
}
