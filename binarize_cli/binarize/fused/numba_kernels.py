"""The kernels of `triton_kernels` for a CPU, by numba: one pass over the numbers each way.

They take the same arguments and write the same. A program is a run of rows, of a number that does not depend
on the threads, so that sums come out the same with one thread and with many. A loop writes to one or two
arrays: with more, the compiler does not check whether they overlap, and makes no vectors.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from binarize_cli.binarize.fused.formulas import NUMBERS, Formula
from binarize_cli.binarize.fused.numba_math import at_most, compiled_formula, f32, where
from binarize_cli.compiled import kernel, specialised
from binarize_cli.threads import in_parts

WIDTH = 256  # numbers of a row, at least: channels are repeated to so many, to be vectors
WORK = 64  # what a number costs, in products of bits


def run(name: str, args: tuple, constants: dict[str, Any]) -> None:
    """Run the kernel of that name."""
    KERNELS[name](*args, **constants)


# --- tensors as the loops see them -------------------------------------------------------------------------


def numbers_of(x: Tensor) -> np.ndarray:
    """Return a dense tensor as it lies in memory: float32, or of bfloat16 the bits as int16."""
    flat = x.detach().as_strided((x.numel(),), (1,))
    return (flat.view(torch.int16) if x.dtype == torch.bfloat16 else flat).numpy()


def read(number):
    """Return a number in float32."""


@overload(read)
def _read(number):
    if number == types.float32:
        return lambda number: number
    return lambda number: np.int32(np.int32(number) << 16).view(np.float32)


def written(number, like):
    """Return a float32 as an array like that one holds it: bfloat16 is rounded, halves to even."""


@overload(written)
def _written(number, like):
    if like.dtype == types.float32:
        return lambda number, like: number

    def rounded(number, like):
        bits = np.float32(number).view(np.int32)
        return np.int16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)

    return rounded


class Rows:
    """A tensor as rows of channels, repeated: [rows, width], the last row perhaps not full."""

    def __init__(self, total: int, channels: int):
        self.total, self.channels = total, channels
        self.repeats = min(-(-WIDTH // channels), -(-total // channels))
        self.width = channels * self.repeats
        self.rows = -(-total // self.width)

    def wide(self, numbers: Tensor) -> np.ndarray:
        """Return numbers [channels], repeated: [width]."""
        return numbers.detach().float().repeat(self.repeats).numpy()

    def each(self, task: Any, *args: Any) -> None:
        """Call task(*args, first, last) for all rows, on torch's threads."""
        in_parts(lambda first, last: task(*args, first, last), self.rows, WORK * self.total)

    def summed(self, task: Any, partial: Tensor, *args: Any) -> None:
        """Call task(*args, sums, rows each, first, last) for all programs.

        partial: [programs, ..., channels], written: what the task adds to sums [programs, ..., width].
        """
        programs = len(partial)
        sums = np.zeros((programs, partial[0].numel() // self.channels, self.width), np.float32)
        each = -(-self.rows // programs)
        in_parts(lambda first, last: task(*args, sums, each, first, last), programs, WORK * self.total)
        found = torch.from_numpy(sums).unflatten(-1, (self.repeats, self.channels)).sum(-2)
        partial.copy_(found.view(partial.shape))


# --- binary inputs -----------------------------------------------------------------------------------------


def input_forward(
    x, threshold, scale, typical, constants, out, p0, p1, p2, p3, total, channels, *geometry,
    F: Formula, PAD, PADDED, SHIFTED, MULTIPLE, LEARNED, TINY, GRID, BLOCK,
):  # fmt: skip
    """Write F((x - t) / n) / spread, and n and 1 / spread; without a border, which is another's work."""
    assert not PADDED, "on a CPU convolutions add their zeros themselves"
    beta = scale.float() if LEARNED else torch.ones(())
    n = beta * MULTIPLE if MULTIPLE else torch.ones(())
    per_sign = torch.ones(())
    if LEARNED:
        per_sign = 1 / F(typical * (beta / n), p0, p1, p2, p3).abs().mean().clamp_min(TINY)
    torch.stack([n, per_sign], out=constants)
    rows = Rows(total, channels)
    t = rows.wide(threshold if SHIFTED else torch.zeros(channels))
    numbers = n, per_sign, p0, p1, p2, p3
    loop = _loop(_input_forward, F)
    rows.each(loop, numbers_of(x), t, numbers_of(out), *(f32(number) for number in numbers))


def _input_forward(x, t, out, n, per_sign, p0, p1, p2, p3, first, last):
    width = len(t)
    for row in range(first, last):
        x_row, out_row = x[row * width : (row + 1) * width], out[row * width : (row + 1) * width]
        for j in range(len(x_row)):
            value = per_sign * FORMULA((read(x_row[j]) - t[j]) / n, p0, p1, p2, p3)  # noqa: F821
            out_row[j] = written(value, out)


def input_backward(
    grad, x, threshold, constants, to_x, partial, p0, p1, p2, p3, rows, channels, *geometry,
    B: Formula, PADDED, SHIFTED, ROWS, COLUMNS,
):  # fmt: skip
    """Write grad (1 / spread) / n B((x - t) / n), and minus its sums over the rows of each program."""
    assert not PADDED, "on a CPU convolutions add their zeros themselves"
    n, per_sign = constants
    over = Rows(x.numel(), channels)
    t = over.wide(threshold if SHIFTED else torch.zeros(channels))
    numbers = n, per_sign / n, p0, p1, p2, p3
    loop, arrays = _loop(_input_backward, B), (numbers_of(grad), numbers_of(x), t, numbers_of(to_x))
    over.summed(loop, partial, *arrays, *(f32(number) for number in numbers))


def _input_backward(grad, x, t, to_x, n, factor, p0, p1, p2, p3, sums, each, first, last):
    width = len(t)
    for program in range(first, last):
        total = sums[program, 0]
        for row in range(program * each, (program + 1) * each):
            here = slice(row * width, (row + 1) * width)
            g, x_row, to_row = grad[here], x[here], to_x[here]
            for j in range(len(x_row)):
                d = read(g[j]) * factor * FORMULA((read(x_row[j]) - t[j]) / n, p0, p1, p2, p3)  # noqa: F821
                to_row[j] = written(d, to_x)
                total[j] -= d


_loops: dict[tuple[Any, str], Any] = {}


def _loop(function: Any, formula: Formula) -> Any:
    """Return a loop with a formula in it, compiled."""
    key = function, formula.text
    if key not in _loops:
        name = f"{function.__name__}_{hashlib.sha256(formula.text.encode()).hexdigest()[:16]}"
        _loops[key] = specialised(function, name, FORMULA=compiled_formula(formula.text))
    return _loops[key]


# --- F and B of weights ------------------------------------------------------------------------------------


def elementwise(formula: Formula, x: Tensor, numbers: list[Tensor]) -> Tensor:
    """Return a formula, with these parameters, of every number of x, float32."""
    out = torch.empty_like(x)
    x = x if x.stride() == out.stride() else x.contiguous()
    given = [f32(number) for number in numbers] + [f32(0)] * (len(NUMBERS) - len(numbers))
    loop, source, target = _loop(_elementwise, formula), numbers_of(x), numbers_of(out)
    in_parts(
        lambda first, last: loop(source, target, *given, first, last), x.numel(), WORK * x.numel(), WIDTH
    )
    return out


def _elementwise(x, out, p0, p1, p2, p3, first, last):
    for j in range(first, last):
        out[j] = FORMULA(x[j], p0, p1, p2, p3)  # noqa: F821


# --- what a binary layer makes of its sums -----------------------------------------------------------------


def sums_forward(y, alpha, scale, bias, out, total, channels, BIASED, BLOCK):
    """Write y alpha beta + bias."""
    rows = Rows(total, channels)
    factor = rows.wide(alpha * scale)
    rows.each(_sums_forward, numbers_of(y), factor, rows.wide(bias * float(BIASED)), numbers_of(out))


@kernel
def _sums_forward(y, factor, bias, out, first, last):
    width = len(factor)
    for row in range(first, last):
        here = slice(row * width, (row + 1) * width)
        y_row, out_row = y[here], out[here]
        for j in range(len(y_row)):
            out_row[j] = written(read(y_row[j]) * factor[j] + bias[j], out)


def sums_backward(grad, y, alpha, scale, to_y, partial, rows, channels, rows_each, ROWS, COLUMNS):
    """Write grad alpha beta, and the sums over the rows of each program of grad, and of grad y."""
    over = Rows(y.numel(), channels)
    factor = over.wide(alpha * scale)
    over.summed(_sums_backward, partial, numbers_of(grad), numbers_of(y), factor, numbers_of(to_y))


@kernel
def _sums_backward(grad, y, factor, to_y, sums, each, first, last):
    width = len(factor)
    for program in range(first, last):
        to_bias, to_alpha = sums[program, 0], sums[program, 1]
        for row in range(program * each, (program + 1) * each):
            here = slice(row * width, (row + 1) * width)
            g, y_row, to_row = grad[here], y[here], to_y[here]
            for j in range(len(g)):
                to_row[j] = written(read(g[j]) * factor[j], to_y)
            for j in range(len(g)):
                to_bias[j] += read(g[j])
            for j in range(len(g)):
                to_alpha[j] += read(g[j]) * read(y_row[j])


def sums_finish(partial, alpha, scale, to_bias, to_alpha, to_scale, programs, channels, ROWS, COLUMNS):
    """Write the gradients of bias and alpha [channels] and of beta []."""
    of_grad, of_product = partial.sum(0)
    to_bias.copy_(of_grad)
    to_alpha.copy_(of_product * scale)
    to_scale.copy_((of_product * alpha).sum())


# --- RPReLU of a sum of branches ---------------------------------------------------------------------------


def rprelu_forward(x, gain, past, more, move_in, slope, move_out, out, total, channels, MORE, BLOCK):
    """Write RPReLU(x + gain past + more)."""
    rows = Rows(total, channels)
    images = (numbers_of(each) for each in (x, past, more, out))
    rows.each(_rprelu_forward, *images, *(rows.wide(c) for c in (gain, move_in, slope, move_out)), MORE)


@kernel
def _rprelu_forward(x, past, more, out, gain, move_in, slope, move_out, has_more, first, last):
    width = len(gain)
    for row in range(first, last):
        here = slice(row * width, (row + 1) * width)
        x_row, past_row, more_row, out_row = x[here], past[here], more[here], out[here]
        for j in range(len(x_row)):
            z = read(x_row[j]) + gain[j] * read(past_row[j])
            z = (z + read(more_row[j]) if has_more else z) - move_in[j]
            out_row[j] = written(z * where(z > f32(0), f32(1), slope[j]) + move_out[j], out)


def rprelu_backward(
    grad, x, gain, past, more, move_in, slope, to_x, to_past, partial, rows, channels, rows_each,
    MORE, ROWS, COLUMNS,
):  # fmt: skip
    """Write the gradients of x (and of `more`) and of past, and their sums for the parameters."""
    over = Rows(x.numel(), channels)
    images = [numbers_of(each) for each in (grad, x, past, more, to_x, to_past)]
    constants = [over.wide(each) for each in (gain, move_in, slope)]
    over.summed(_rprelu_backward, partial, *images, *constants, MORE)


@kernel
def _rprelu_backward(
    grad, x, past, more, to_x, to_past, gain, move_in, slope, has_more, sums, each, first, last
):
    z, d = np.empty_like(gain), np.empty_like(gain)
    for program in range(first, last):
        to_gain, to_in = sums[program, 0], sums[program, 1]
        to_slope, to_out = sums[program, 2], sums[program, 3]
        for row in range(program * each, (program + 1) * each):
            here = slice(row * len(gain), (row + 1) * len(gain))
            g, x_row, past_row, more_row = grad[here], x[here], past[here], more[here]
            to_x_row, to_past_row = to_x[here], to_past[here]
            for j in range(len(g)):
                z[j] = read(x_row[j]) + gain[j] * read(past_row[j])
            if has_more:
                for j in range(len(g)):
                    z[j] += read(more_row[j])
            for j in range(len(g)):
                z[j] -= move_in[j]
            for j in range(len(g)):
                d[j] = read(g[j]) * where(z[j] > f32(0), f32(1), slope[j])
            for j in range(len(g)):
                to_x_row[j] = written(d[j], to_x)
            for j in range(len(g)):
                to_past_row[j] = written(gain[j] * d[j], to_past)
            for j in range(len(g)):
                to_gain[j] += d[j] * read(past_row[j])
            for j in range(len(g)):
                to_in[j] -= d[j]
            for j in range(len(g)):
                to_slope[j] += read(g[j]) * at_most(z[j], f32(0))
            for j in range(len(g)):
                to_out[j] += read(g[j])


KERNELS = {
    function.__name__: function
    for function in (
        *(input_forward, input_backward, sums_forward, sums_backward, sums_finish),
        *(rprelu_forward, rprelu_backward),
    )
}
