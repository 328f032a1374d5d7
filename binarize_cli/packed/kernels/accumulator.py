"""How sums are kept: exactly, or in an int8 accumulator as `binarize/accumulator.py` defines it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 64  # products, and the bits of a word
LOW, HIGH = -128, 127
WIDE = 2**40  # beyond every sum


@dataclass(frozen=True)
class Int8:
    """An int8 accumulator that saturates, or wraps, after each tile of 64; tiles lose `shift` bits."""

    overflow: str  # saturate or wrap
    shift: int = 0


def kernel_numbers(rule: Int8 | None) -> tuple[int, int, int, int]:
    """Return (shift, low, high, bits that the last sum loses at its top), as the kernels take them.

    Wrapping once after the last tile is wrapping after each: both keep the sum modulo 256.
    """
    if rule is None:
        return 0, 0, 0, 0
    return (rule.shift, LOW, HIGH, 0) if rule.overflow == "saturate" else (rule.shift, -WIDE, WIDE, 64 - 8)


def factor(rule: Int8 | None) -> int:
    """Return what a sum is multiplied with in the end, to make up for the shift."""
    return 1 if rule is None else 2**rule.shift


def count_table(valid: Tensor, rule: Int8 | None) -> Tensor:
    """Turn the numbers of products, int64 [kinds of rows, tiles], into what the kernels take for counts.

    Without a rule that is the whole number in the first column; with one, half a unit is added, so that the
    shift rounds halves upwards.
    """
    if rule is None:
        return torch.cat([valid.sum(1, keepdim=True), valid[:, 1:]], 1)
    return valid + (2 ** (rule.shift - 1) if rule.shift else 0)


def tile_sizes(length: int) -> Tensor:
    """Return how many products each tile has, int64 [1, tiles]; the last may have fewer than 64."""
    starts = torch.arange(0, length, TILE)
    return (length - starts).clamp_max(TILE).unsqueeze(0)
