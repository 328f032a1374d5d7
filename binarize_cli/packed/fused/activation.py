"""Between two sums of signs an activation needs no numbers of its own: which sums give +1 is a table.

A sum of K signs is one of K + 1 integers, so an output channel knows at most that many numbers. Each of them
is put through the activation and the next threshold once; the kernel compares with where the sign changes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import GELU as TimmGELU
from torch import Tensor, nn

from binarize_cli.packed.kernels import Int8, Limits

ELEMENTWISE = (nn.GELU, TimmGELU, nn.ReLU, nn.SiLU, nn.Hardswish)


def limits_after(
    length: int, scale: Tensor, bias: Tensor | None, rule: Int8 | None, act: Any, threshold: Tensor
) -> Limits | None:
    """Return which y = sum * scale + bias make act(y) - threshold >= 0; all by channel, [out].

    The sums are of `length` signs. None if that is not y >= high or y <= low, as it is for functions that
    fall once and rise once.
    """
    if rule is None:
        sums, per_sum = torch.arange(-length, length + 1, 2), scale
    else:
        sums, per_sum = torch.arange(-128, 128), scale * 2**rule.shift
    y = sums[:, None].float() * per_sum + (0 if bias is None else bias)
    y = y.sort(0).values
    plus = act(y) - threshold >= 0  # [sums, out]
    falls = plus.long().cumprod(0).sum(0)  # how many of the lowest are +1
    rises = plus.flip(0).long().cumprod(0).sum(0)  # and of the highest
    high = torch.where(rises > 0, _at(y, len(y) - rises), math.inf)
    low = torch.where((falls > 0) & (falls < len(y)), _at(y, falls - 1), math.nan)
    high = torch.where(falls == len(y), -math.inf, high)
    return Limits(high.contiguous(), low.contiguous()) if ((y >= high) | (y <= low)).equal(plus) else None


def _at(y: Tensor, rows: Tensor) -> Tensor:
    """Return the entry of each column in the row given for it."""
    return y.gather(0, rows.clamp(0, len(y) - 1).unsqueeze(0)).squeeze(0)
