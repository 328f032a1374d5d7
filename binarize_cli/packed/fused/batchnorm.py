"""BatchNorm of an evaluated network as a factor and a shift a channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def factor_and_shift(norm: torch.nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return (factor, shift), both [channels]: torch computes fma(x, factor, shift), to the bit.

    They are asked of torch itself, which rounds on the way to them as it likes.
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None, "statistics of a batch are no constants"
    ones, zeros = torch.ones_like(variance), torch.zeros_like(variance)

    def normalised(x: Tensor, mean: Tensor, bias: Tensor | None) -> Tensor:
        image = x.view(1, -1, 1, 1)
        return F.batch_norm(image, mean, variance, norm.weight, bias, eps=norm.eps).flatten()

    return normalised(ones, zeros, zeros), normalised(zeros, mean, norm.bias)


def tensors_of_norm(norm: torch.nn.BatchNorm2d) -> list[Tensor | None]:
    """Return the tensors that the two are made of."""
    own, statistics = norm._parameters, norm._buffers  # faster than by the module's names
    return [own["weight"], own["bias"], statistics["running_mean"], statistics["running_var"]]
