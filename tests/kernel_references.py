"""What each kernel of `binarize/fused` writes, in plain PyTorch: with it a pretended device computes.

`test_fused.py` holds the kernels themselves, by Triton's interpreter, to the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from binarize_cli.binarize.accumulator import AccumulatorRule, accumulate


def run(kernel: str, grid: tuple[int, ...], args: list, constants: dict[str, Any]) -> None:
    """Write what the kernel of that name writes, given what it is given."""
    REFERENCES[kernel](*args, **constants)


def rows_of(x: Tensor) -> Tensor:
    """[N, C, H, W] or [..., C] -> [rows, C], a view."""
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).flatten(0, -2)


def _split(sums: Tensor, partial: Tensor) -> None:
    """All of a sum is in the first program's part."""
    partial.zero_()
    partial[0] = sums


def input_forward(
    x, threshold, scale, typical, constants, out, p0, p1, p2, p3, total, channels, *geometry,
    F: Any, PAD, PADDED, SHIFTED, MULTIPLE, LEARNED, TINY, GRID, BLOCK,
):  # fmt: skip
    beta = scale if LEARNED else torch.ones(())
    n = beta * MULTIPLE if MULTIPLE else torch.ones(())
    per_sign = torch.ones(())
    if LEARNED:
        per_sign = 1 / F(typical * (beta / n), p0, p1, p2, p3).abs().mean().clamp_min(TINY)
    constants.copy_(torch.stack([n, per_sign]))
    u = rows_of(x).float()
    values = per_sign * F((u - threshold if SHIFTED else u) / n, p0, p1, p2, p3)
    if PADDED:
        out.fill_(PAD)
    target = _inside(out, x, geometry) if PADDED else out
    target.copy_(_like(values, x))


def _inside(padded: Tensor, x: Tensor, geometry: tuple[int, ...]) -> Tensor:
    height, width, _, _, top, left = geometry
    return padded[:, :, top : top + height, left : left + width]


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """[rows, C] in the shape of x."""
    if x.dim() != 4:
        return rows.view(x.shape)
    n, channels, height, width = x.shape
    return rows.view(n, height, width, channels).permute(0, 3, 1, 2)


def input_backward(
    grad, x, threshold, constants, to_x, partial, p0, p1, p2, p3, rows, channels,
    height, width, out_height, out_width, top, left, rows_each, B, PADDED, SHIFTED, ROWS, COLUMNS,
):  # fmt: skip
    n, per_sign = constants
    if PADDED:
        grad = grad[:, :, top : top + height, left : left + width]
    g, u = rows_of(grad).float(), rows_of(x).float()
    d = g * (per_sign / n) * B((u - threshold if SHIFTED else u) / n, p0, p1, p2, p3)
    to_x.copy_(_like(d, x))
    _split(-d.sum(0), partial)


def sums_forward(y, alpha, scale, bias, out, total, channels, BIASED, BLOCK):
    value = rows_of(y).float() * (alpha * scale)
    out.copy_(_like(value + bias if BIASED else value, y))


def sums_backward(grad, y, alpha, scale, to_y, partial, rows, channels, rows_each, ROWS, COLUMNS):
    g, value = rows_of(grad).float(), rows_of(y).float()
    to_y.copy_(_like(g * (alpha * scale), y))
    _split(torch.stack([g.sum(0), (g * value).sum(0)]), partial)


def sums_finish(partial, alpha, scale, to_bias, to_alpha, to_scale, programs, channels, ROWS, COLUMNS):
    of_grad, of_product = partial.sum(0)
    to_bias.copy_(of_grad)
    to_alpha.copy_(of_product * scale)
    to_scale.copy_((of_product * alpha).sum())


def shift_forward(weights, threshold, alpha, bias, taken, out, outputs, inputs, BIASED, ROWS, COLUMNS):
    taken.copy_(weights.float() @ threshold)
    out.copy_(alpha * taken + (bias if BIASED else 0))


def shift_backward(grad, weights, threshold, alpha, to_weights, to_threshold, outputs, inputs, ROWS, COLUMNS):
    g = grad * alpha
    to_weights.copy_(torch.outer(g, threshold))
    to_threshold.copy_(g @ weights.float())


def _sum_of_branches(x, gain, past, more, move_in, MORE):
    z = rows_of(x).float() + gain * rows_of(past).float()
    return (z + rows_of(more).float() if MORE else z) - move_in


def rprelu_forward(x, gain, past, more, move_in, slope, move_out, out, total, channels, MORE, BLOCK):
    z = _sum_of_branches(x, gain, past, more, move_in, MORE)
    out.copy_(_like(torch.where(z > 0, z, z * slope) + move_out, x))


def rprelu_backward(
    grad, x, gain, past, more, move_in, slope, to_x, to_past, partial, rows, channels, rows_each,
    MORE, ROWS, COLUMNS,
):  # fmt: skip
    z, g = _sum_of_branches(x, gain, past, more, move_in, MORE), rows_of(grad).float()
    d = torch.where(z > 0, g, g * slope)
    to_x.copy_(_like(d, x))
    to_past.copy_(_like(gain * d, x))
    below = torch.where(z > 0, 0.0, g * z)
    sums = (d * rows_of(past).float(), -d, below, g)
    _split(torch.stack([each.sum(0) for each in sums]), partial)


def scan_tiles(parts, sums, overflowed, total, tiles, WRAP, SHIFT, BLOCK):
    flat = parts.reshape(tiles, -1)
    rule = AccumulatorRule("wrap" if WRAP else "saturate", SHIFT)
    done, out = accumulate(lambda start, stop: flat[start // 64].clone(), 64 * tiles, rule)
    sums.view(-1).copy_(done)
    overflowed.view(-1).copy_(out)


REFERENCES = {
    function.__name__: function
    for function in (
        *(input_forward, input_backward, sums_forward, sums_backward, sums_finish),
        *(shift_forward, shift_backward, rprelu_forward, rprelu_backward, scan_tiles),
    )
}
