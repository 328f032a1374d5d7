"""Binary inputs of binary layers: thresholds and a scale, learned in training, fixed afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize_cli.binarize.quantizer import ActivationQuantizer
from binarize_cli.quantizers.autograd import ForwardBackward
from binarize_cli.quantizers.functions import sign

SMALLEST_SCALE = 1e-6


class LatentInput(nn.Module):
    """x -> (F((x - t) / n), beta), F in units of sign; t one a channel, beta one a layer.

    ReActNet's RSign (Liu et al. 2020) with the learned scale of BiT (Liu et al. 2022), for any pair (F, B).
    `axis` is the axis of the channels: 1 of images, -1 of tokens.
    """

    def __init__(
        self, quantizer: ActivationQuantizer, axis: int, threshold: Tensor | None, scale: Tensor | None
    ):
        super().__init__()
        self.quantizer, self.axis = quantizer, axis
        self.threshold = None if threshold is None else nn.Parameter(threshold.clone())  # [channels]
        self.scale = None if scale is None else nn.Parameter(scale.clone())  # []

    @property
    def restored(self) -> Tensor | None:
        """What a linear layer adds again after its sums, as a bias. After a convolution BatchNorm does it."""
        return self.threshold if self.axis == -1 else None

    def beta(self, device: torch.device) -> Tensor:
        """[]: the scale, kept above zero; 1 where none is learned."""
        return torch.ones((), device=device) if self.scale is None else self.scale.clamp_min(SMALLEST_SCALE)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] or [..., C] -> the same shape, +-1 where F is sign, and beta []."""
        q, beta = self.quantizer, self.beta(x.device)
        n = q.normaliser(beta)
        per_sign = torch.ones_like(n) if self.scale is None else 1 / q.spread(beta, n)
        return ForwardBackward.apply(above(x, self.threshold, self.axis), n, per_sign, q.F, q.B), beta


class SignInput(nn.Module):
    """x -> (sign(x - t), beta) with fixed t [channels] or none, and beta []."""

    restored = None  # a layer's bias holds it

    def __init__(self, axis: int, threshold: Tensor | None, scale: Tensor):
        super().__init__()
        self.axis = axis
        # Not in the state dict: the file holds them under names of its own.
        self.register_buffer("threshold", threshold, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return sign(above(x, self.threshold, self.axis)), self.scale


def above(x: Tensor, threshold: Tensor | None, axis: int) -> Tensor:
    """x - t, with t [channels] along axis 1 of images or -1 of tokens; x where there is no t."""
    if threshold is None:
        return x
    return x - (threshold.view(-1, 1, 1) if axis == 1 else threshold)
