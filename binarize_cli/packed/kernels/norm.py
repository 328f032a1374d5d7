"""LayerNorm whose sign alone is needed: normalise, compare and pack a row while it is in the cache."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from binarize_cli.packed.kernels.clock import timed
from binarize_cli.packed.kernels.compiled import kernel
from binarize_cli.packed.kernels.matrix import words_of
from binarize_cli.packed.kernels.pack import WORK, Limits, pack_run
from binarize_cli.packed.kernels.threads import in_parts


@timed("packing")
def pack_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, limits: Limits) -> Tensor:
    """Pack the signs of LayerNorm(x) - t: float32 [..., K] by [K] -> int64 [rows, words]."""
    rows = x.flatten(0, -2).contiguous()
    bits = torch.empty(len(rows), words_of(rows.shape[1]), dtype=torch.int64)
    arrays = rows.numpy(), weight.detach().numpy(), bias.detach().numpy()
    addresses = limits.high.data_ptr(), limits.low.data_ptr(), bits.data_ptr()
    work = 4 * WORK * rows.numel()
    in_parts(
        lambda first, last: normalise_and_pack(*arrays, np.float32(eps), *addresses, first, last),
        len(rows),
        work,
    )
    return bits


@kernel(reorder=True)
def moments(row):
    """Return mean and variance of a row; the sums may be taken in any order, so that they are vectors."""
    count = np.float32(row.size)
    total = np.float32(0)
    for k in range(row.size):
        total += row[k]
    mean = total / count
    spread = np.float32(0)
    for k in range(row.size):
        spread += (row[k] - mean) * (row[k] - mean)
    return mean, spread / count


@kernel
def normalise_and_pack(x, weight, bias, eps, high, low, bits, first, last):
    """Pack rows first ... last - 1 of x [rows, K]; in the order of torch's float32 operations."""
    depth = x.shape[1]
    words = (depth + 63) // 64
    normal = np.empty(depth, np.float32)
    for r in range(first, last):
        mean, variance = moments(x[r])
        scale = np.float32(1) / np.sqrt(variance + eps)
        shift = -mean * scale
        for k in range(depth):
            normal[k] = (x[r, k] * scale + shift) * weight[k] + bias[k]
        pack_run(np.int64(normal.ctypes.data), high, low, bits + 8 * words * r, depth)
