"""Binary inputs of binary layers: thresholds and a scale, learned in training, fixed afterwards."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from binarize_cli.binarize.quantizer import ActivationQuantizer
from binarize_cli.quantizers.autograd import ForwardBackward
from binarize_cli.quantizers.functions import sign

SMALLEST_SCALE = 1e-6
Axes = tuple[int, ...]


class InputQuantizer(Protocol):
    """What makes the inputs of a binary layer, or the factors of a matmul, binary."""

    @property
    def axes(self) -> Axes:
        """The axes of the channels: 1 of images, -1 of tokens, 1 and -1 of attention's heads."""

    @property
    def threshold(self) -> Tensor | None:
        """What is taken off the inputs: t [channels]."""

    @property
    def pending_shift(self) -> Tensor | None:
        """The part of t that the layer has still to add again after its sums, through its bias."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x in units of the scale, +-1 where F is sign, and the scale []."""


class LatentInput(nn.Module):
    """x -> (F((x - t) / n), beta), with latent t, one a channel, and beta, one a layer; F in units of sign.

    ReActNet's RSign (Liu et al. 2020) with the learned scale of BiT (Liu et al. 2022), for any pair (F, B).
    """

    one: Tensor

    def __init__(
        self, quantizer: ActivationQuantizer, axes: Axes, threshold: Tensor | None, scale: Tensor | None
    ):
        super().__init__()
        self.quantizer, self.axes = quantizer, axes
        self.threshold = None if threshold is None else nn.Parameter(threshold.clone())  # [channels]
        self.scale = None if scale is None else nn.Parameter(scale.clone())  # []
        self.register_buffer("one", torch.ones(()), persistent=False)

    @property
    def pending_shift(self) -> Tensor | None:
        """Everything: nothing of t is in the layer's bias yet."""
        return self.threshold

    def beta(self) -> Tensor:
        """Return the scale [], kept above zero; 1 where none is learned."""
        return self.one if self.scale is None else self.scale.clamp_min(SMALLEST_SCALE)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x [N, C, H, W] or [..., C] in units of beta, +-1 where F is sign, and beta []."""
        q, beta = self.quantizer, self.beta()
        n = q.normaliser(beta)
        per_sign = torch.ones_like(n) if self.scale is None else 1 / q.spread(beta, n)
        return ForwardBackward.apply(above(x, self.threshold, self.axes), n, per_sign, q.F, q.B), beta


class SignInput(nn.Module):
    """x -> (sign(x - t), beta) with fixed t [channels] or none, and beta []."""

    threshold: Tensor | None
    scale: Tensor
    pending_shift = None  # the layer's bias holds it

    def __init__(self, axes: Axes, threshold: Tensor | None, scale: Tensor):
        super().__init__()
        self.axes = axes
        # Not in the state dict: the file holds them under names of its own.
        self.register_buffer("threshold", threshold, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return sign(above(x, self.threshold, self.axes)), self.scale


def above(x: Tensor, threshold: Tensor | None, axes: Axes) -> Tensor:
    """Return x - t, with t [channels] along those axes of x; x if there is no t."""
    return x if threshold is None else x - aligned(threshold, x, axes)


def aligned(threshold: Tensor, x: Tensor, axes: Axes) -> Tensor:
    """Return t [channels] shaped so that it broadcasts against x along those axes."""
    own = {axis % x.dim() for axis in axes}
    return threshold.view([size if at in own else 1 for at, size in enumerate(x.shape)])
