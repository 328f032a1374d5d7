"""Signs to bits and back: 8 weights a byte, least significant bit first, a row of bytes an output channel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def pack(signs: np.ndarray) -> np.ndarray:
    """Return the bits of signs: +-1 [out, ...] -> uint8 [out, ceil(K / 8)], K the weights of a channel.

    Weights are taken row-major. Bit 1 is +1, bit 0 is -1; the padding bits of the last byte are 0.

    >>> pack(np.array([[1, -1, 1], [-1, -1, -1]]))
    array([[5],
           [0]], dtype=uint8)
    """
    rows = signs.reshape(signs.shape[0], -1)
    return np.packbits(rows > 0, axis=1, bitorder="little")


def unpack(bits: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the signs of bits: uint8 [out, ceil(K / 8)] -> int8 +-1 of `shape` [out, ...]; inverts `pack`.

    >>> unpack(np.array([[5], [0]], dtype=np.uint8), (2, 3))
    array([[ 1, -1,  1],
           [-1, -1, -1]], dtype=int8)
    """
    count = math.prod(shape[1:])
    ones = np.unpackbits(bits, axis=1, count=count, bitorder="little").astype(np.int8)
    return (2 * ones - 1).reshape(shape)
