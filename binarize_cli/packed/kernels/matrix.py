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
    """Bits of weights [outputs, length], a row padded to whole words and the rows to a multiple of 8.

    blocks: int64 [groups, ...], of one matrix or of one for each group of a convolution; `outputs` and
    `length` are those of a group. For each block of 32, 16 or 8 outputs: [words of a row, outputs].
    """

    blocks: Tensor
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
    """Return the number of outputs, rounded up to whole vectors."""
    return -(-outputs // VECTOR) * VECTOR


def pack_matrix(signs: np.ndarray, groups: int = 1) -> PackedMatrix:
    """Pack +-1 [outputs of all groups, length] in the order of the columns."""
    bits = np.packbits(signs > 0, axis=1, bitorder="little")
    return matrix_of_bytes(bits, signs.shape[1], groups)


def matrix_of_bytes(bits: np.ndarray, length: int, groups: int = 1) -> PackedMatrix:
    """Take bits as files hold them, uint8 [outputs, ceil(length / 8)] with the first product in bit 0."""
    each = len(bits) // groups
    rows = np.zeros((groups, padded(each), 8 * words_of(length)), np.uint8)
    rows[:, :each, : bits.shape[1]] = bits.reshape(groups, each, -1)
    blocks = np.stack([_in_blocks(group) for group in rows.view(np.int64)])
    return PackedMatrix(torch.from_numpy(blocks), each, length)


def signs_of(matrix: PackedMatrix) -> np.ndarray:
    """Return +-1, int8 [outputs of all groups, length]: `pack_matrix` undone."""
    rows = np.stack([_from_blocks(group, matrix.words) for group in matrix.blocks.cpu().numpy()])
    rows = np.ascontiguousarray(rows[:, : matrix.outputs]).view(np.uint8)
    bits = np.unpackbits(rows, axis=2, count=matrix.length, bitorder="little").astype(np.int8)
    return (2 * bits - 1).reshape(-1, matrix.length)


def _in_blocks(rows: np.ndarray) -> np.ndarray:
    """Flatten [outputs, words]: block after block, word after word, output after output."""
    return np.concatenate([rows[at : at + width].T.ravel() for at, width in _block_sizes(len(rows))])


def _from_blocks(blocks: np.ndarray, words: int) -> np.ndarray:
    """Undo `_in_blocks`: flat -> [outputs, words]."""
    sizes = _block_sizes(len(blocks) // words)
    return np.concatenate(
        [blocks[at * words : (at + width) * words].reshape(words, width).T for at, width in sizes]
    )


def _block_sizes(outputs: int) -> list[tuple[int, int]]:
    """Return (first output, outputs) of each block."""
    sizes, at = [], 0
    while at < outputs:
        width = next(size for size in (32, 16, 8) if size <= outputs - at)
        sizes.append((at, width))
        at += width
    return sizes


@dataclass(frozen=True)
class Norm:
    """What follows a convolution: y * scale + shift, plus gain * past, plus more, then RPReLU; by channel.

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
    """Return float32 [2 or 8, outputs, padded]: scale, bias and, if there is one, the six of `after`."""
    rows = [scale, bias]
    if after:
        rows += [after.scale, after.shift, after.gain, after.move_in, after.slope, after.move_out]
    table = torch.zeros(len(rows), padded(outputs))
    for row, given, neutral in zip(table, rows, (1, 0, 1, 0, 0, 0, 1, 0), strict=False):
        row[:outputs] = neutral if given is None else given.detach().float()
    return table


def fill_outputs(x: Tensor, width: int) -> Tensor:
    """Return float32 [..., width] whose first columns are x [..., outputs], contiguous."""
    if x.shape[-1] == width:
        return x.float().contiguous()
    filled = torch.zeros(*x.shape[:-1], width)
    filled[..., : x.shape[-1]] = x
    return filled
