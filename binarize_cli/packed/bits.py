"""Signs to bits and back: 8 weights a byte, least significant bit first, a row of bytes an output channel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def pack(signs: np.ndarray) -> np.ndarray:
    """+-1 of shape [out, ...] -> uint8 [out, ceil(K / 8)], K the weights of a channel, row-major.

    Bit 1 is +1, bit 0 is -1; the padding bits of the last byte are 0.
    """
    rows = signs.reshape(signs.shape[0], -1)
    return np.packbits(rows > 0, axis=1, bitorder="little")


def unpack(bits: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """uint8 [out, ceil(K / 8)] -> int8 +-1 of `shape` [out, ...]. The inverse of `pack`."""
    count = math.prod(shape[1:])
    ones = np.unpackbits(bits, axis=1, count=count, bitorder="little").astype(np.int8)
    return (2 * ones - 1).reshape(shape)
