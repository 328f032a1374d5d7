"""Binary inputs of binary layers: thresholds and a scale, learned in training, fixed afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize_cli.binarize.quantizer import ActivationQuantizer
from binarize_cli.quantizers.autograd import ForwardBackward
from binarize_cli.quantizers.functions import sign


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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] or [..., C] -> the same shape, +-1 where F is sign, and beta []."""
        q = self.quantizer
        if self.threshold is not None:
            x = x - along(self.threshold, self.axis)
        if self.scale is None:
            beta = n = torch.ones((), device=x.device)
            if q.normalize is not None:
                n = q.normaliser(beta)
            return ForwardBackward.apply(x, n, torch.ones_like(n), q.F, q.B), beta
        beta = self.scale.clamp_min(1e-6)
        n = q.normaliser(beta)
        return ForwardBackward.apply(x, n, 1 / q.spread(beta, n), q.F, q.B), beta


class SignInput(nn.Module):
    """x -> (sign(x - t), beta) with fixed t [channels] or none, and beta []."""

    def __init__(self, axis: int, threshold: Tensor | None, scale: Tensor):
        super().__init__()
        self.axis = axis
        # Not in the state dict: the file holds them under names of its own.
        self.register_buffer("threshold", threshold, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.threshold is not None:
            x = x - along(self.threshold, self.axis)
        return sign(x), self.scale


def along(vector: Tensor, axis: int) -> Tensor:
    """[channels], shaped to broadcast over tokens (axis -1) or images (axis 1)."""
    return vector.view(-1, 1, 1) if axis == 1 else vector
