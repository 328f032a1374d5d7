"""Inputs of 8 bits by weights of one: inputs are quantized at run time, products are int8 by +-1.

A row of numbers, a token or an image, becomes round(x / s) with s = max|x| / 127. Weights stay bits in
memory; they become int8 for the product alone, which costs a hundredth of it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from binarize_cli.machine_code import kernel, part
from binarize_cli.packed.kernels.clock import timed
from binarize_cli.packed.kernels.pack import WORK
from binarize_cli.packed.kernels.vectors import as_float32
from binarize_cli.threads import in_parts

LARGEST = 127


class Int8Linear:
    """A linear layer of binary weights, [out, in] as bits, for float inputs that it quantizes by row."""

    def __init__(self, bits: Tensor, inputs: int, scale: Tensor, bias: Tensor | None = None):
        self.bits, self.inputs = bits, inputs  # uint8 [out, ceil(in / 8)], first weight in bit 0
        self.scale = scale.detach().float().contiguous()
        self.bias = torch.zeros(len(bits)) if bias is None else bias.detach().float().contiguous()

    @timed("binary products")
    def __call__(self, x: Tensor) -> Tensor:
        """Multiply float32 [..., in] with the weights: [..., out]."""
        rows, steps = quantize(x.flatten(0, -2))
        sums = torch._int_mm(rows, expand_signs(self.bits, self.inputs).T)
        out = torch.empty(sums.shape)
        arguments = tuple(each.numpy() for each in (sums, steps, self.scale, self.bias, out))
        in_parts(lambda first, last: rescale(*arguments, first, last), len(sums), WORK * sums.numel())
        return out.view(*x.shape[:-1], -1)


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round float32 [rows, K] to (int8 [rows, K], step [rows]): a row is about int8 * step."""
    rows = rows.contiguous()
    numbers, steps = torch.empty(rows.shape, dtype=torch.int8), torch.empty(len(rows))
    arguments = rows.numpy(), numbers.numpy(), steps.numpy()
    in_parts(lambda first, last: round_rows(*arguments, first, last), len(rows), WORK * rows.numel())
    return numbers, steps


def expand_signs(bits: Tensor, length: int) -> Tensor:
    """Expand uint8 [rows, ceil(length / 8)] to +-1, int8 [rows, length]."""
    signs = torch.empty(len(bits), length, dtype=torch.int8)
    arguments = bits.numpy(), signs.numpy()
    in_parts(lambda first, last: bits_to_signs(*arguments, first, last), len(bits), signs.numel())
    return signs


@part(reorder=True)
def largest(row):
    """Return the largest magnitude of a row, by the bits of floats, which sort as integers do."""
    top = np.int32(0)
    bits = row.view(np.int32)
    for k in range(bits.size):
        top = max(top, bits[k] & np.int32(0x7FFFFFFF))
    return top


@kernel
def round_rows(x, numbers, steps, first, last):
    """Quantize rows first ... last - 1; halves are rounded to even, as torch.round does."""
    for r in range(first, last):
        step = as_float32(largest(x[r])) / np.float32(LARGEST)
        steps[r] = step
        per_step = np.float32(1) / step if step > 0 else np.float32(0)
        for k in range(x.shape[1]):
            numbers[r, k] = np.int8(np.rint(x[r, k] * per_step))


@kernel
def bits_to_signs(bits, signs, first, last):
    """Expand rows first ... last - 1 of bits into +-1."""
    whole = signs.shape[1] // 8
    for r in range(first, last):
        for byte in range(whole):
            for k in range(8):
                signs[r, 8 * byte + k] = np.int8(2 * ((bits[r, byte] >> k) & 1)) - np.int8(1)
        for k in range(8 * whole, signs.shape[1]):
            signs[r, k] = np.int8(2 * ((bits[r, k // 8] >> (k % 8)) & 1)) - np.int8(1)


@kernel
def rescale(sums, steps, scale, bias, out, first, last):
    """Compute out = sums * (step of the row) * (scale of the output) + bias, of rows first ... last - 1."""
    for r in range(first, last):
        step = steps[r]
        for n in range(out.shape[1]):
            out[r, n] = np.float32(sums[r, n]) * step * scale[n] + bias[n]
