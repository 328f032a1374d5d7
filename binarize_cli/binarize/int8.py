"""Floats as int8 with a scale a row, for what stays float and is large: embeddings, first layer, head.

Never what a row of numbers shares a meaning with: norms, scales, thresholds and biases are vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127


def has_rows(tensor: Tensor) -> bool:
    """Return whether a float tensor becomes int8: at least two of its axes are longer than 1."""
    return tensor.is_floating_point() and sum(size > 1 for size in tensor.shape) >= 2


def rows_of(shape: tuple[int, ...] | torch.Size) -> int:
    """Return how many rows a shape has: the size of its first axis that is longer than 1."""
    return next((size for size in shape if size > 1), 1)


def to_int8(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return (codes int8 of the tensor's shape, scale [rows]) with codes * scale near the tensor.

    The largest of a row becomes +-127. A scale has 11 bits of mantissa, so that codes * scale is exact in
    float32 and gives the same codes and scale again.
    """
    rows = tensor.float().reshape(rows_of(tensor.shape), -1)
    fraction, exponent = torch.frexp(rows.abs().amax(1) / LARGEST)
    scale = torch.ldexp((fraction * 2**11).round() / 2**11, exponent)
    codes = (rows / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round()
    return codes.clamp(-LARGEST, LARGEST).to(torch.int8).view(tensor.shape), scale


def from_int8(codes: Tensor, scale: Tensor) -> Tensor:
    """Return codes * scale in float32, of the shape of the codes."""
    return (codes.float().reshape(len(scale), -1) * scale.float()[:, None]).view(codes.shape)
