"""Weights as the kernels read them: blocks of outputs, and a table of what follows the sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WORD = 64
VECTOR = 8  # outputs a vector holds: their number is rounded up to it


@dataclass(frozen=True)
class PackedMatrix:
    """Bits of weights [outputs, length], a row padded to whole words and the rows to a multiple of 8."""

    blocks: Tensor  # int64: for each block of 32, 16 or 8 outputs, [words of a row, outputs of the block]
    outputs: int
    length: int  # products in a sum

    @property
    def words(self) -> int:
        """Words of a row."""
        return words_of(self.length)

    @property
    def padded(self) -> int:
        """Outputs with those that fill the last vector."""
        return padded(self.outputs)


def words_of(length: int) -> int:
    """Words that hold that many bits."""
    return -(-length // WORD)


def padded(outputs: int) -> int:
    """The number of outputs, rounded up to whole vectors."""
    return -(-outputs // VECTOR) * VECTOR


def pack_matrix(signs: np.ndarray) -> PackedMatrix:
    """Pack +-1 [outputs, length] in the order of the columns."""
    bits = np.packbits(signs > 0, axis=1, bitorder="little")
    return matrix_of_bytes(bits, signs.shape[1])


def matrix_of_bytes(bits: np.ndarray, length: int) -> PackedMatrix:
    """Take bits as files hold them, uint8 [outputs, ceil(length / 8)] with the first product in bit 0."""
    words = words_of(length)
    rows = np.zeros((padded(len(bits)), 8 * words), np.uint8)
    rows[: len(bits), : bits.shape[1]] = bits
    return PackedMatrix(torch.from_numpy(_in_blocks(rows.view(np.int64))), len(bits), length)


def _in_blocks(rows: np.ndarray) -> np.ndarray:
    """[outputs, words] -> flat, block after block, word after word, output after output."""
    blocks, at = [], 0
    while at < len(rows):
        left = len(rows) - at
        width = next(size for size in (32, 16, 8) if size <= left)
        blocks.append(rows[at : at + width].T.ravel())
        at += width
    return np.concatenate(blocks)


@dataclass(frozen=True)
class Norm:
    """What follows a convolution: y * scale + shift, plus gain * past, then RPReLU, all by channel.

    RPReLU is y - move_in where that is positive, slope * (y - move_in) elsewhere, plus move_out: slope 0
    makes it ReLU, slope 1 nothing. None stands for what changes nothing.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    gain: Tensor | None = None
    move_in: Tensor | None = None
    slope: Tensor | None = None
    move_out: Tensor | None = None


def channel_table(outputs: int, scale: Tensor, bias: Tensor | None, after: Norm | None = None) -> Tensor:
    """Return float32 [8, outputs, padded]: scale, bias and the six of `after`, as the kernels read them."""
    after = after or Norm()
    rows = (scale, bias, after.scale, after.shift, after.gain, after.move_in, after.slope, after.move_out)
    table = torch.zeros(len(rows), padded(outputs))
    for row, given, neutral in zip(table, rows, (1, 0, 1, 0, 0, 0, 1, 0), strict=True):
        row[:outputs] = neutral if given is None else given.detach().float()
    return table


def fill_outputs(x: Tensor, width: int) -> Tensor:
    """Return float32 [..., width] whose first columns are x [..., outputs], contiguous."""
    if x.shape[-1] == width:
        return x.float().contiguous()
    filled = torch.zeros(*x.shape[:-1], width)
    filled[..., : x.shape[-1]] = x
    return filled
