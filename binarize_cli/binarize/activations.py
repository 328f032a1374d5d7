"""Binary inputs of binary layers: thresholds and a scale, learned in training, fixed afterwards."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize_cli.binarize.fused.inputs import Border, Making, Pair, fused_input, pair_of
from binarize_cli.binarize.fused.launch import cast_to, fuses, fuses_on_cuda
from binarize_cli.binarize.quantizer import ActivationQuantizer
from binarize_cli.quantizers.autograd import ForwardBackward
from binarize_cli.quantizers.functions import sign

Axes = tuple[int, ...]
SMALLEST_SCALE = 1e-6  # what training starts from where calibration found less


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

    def __call__(self, x: Tensor, border: Border | None = None) -> tuple[Tensor, Tensor]:
        """Return x in units of the scale, +-1 where F is sign, and the scale [].

        A layer asks with a border, which images [N, C, H, W] get; the factors of a matmul have none.
        """


class LatentInput(nn.Module):
    """x -> (F((x - t) / n), beta), with latent t, one a channel, and beta, one a layer; F in units of sign.

    ReActNet's RSign (Liu et al. 2020) with the learned scale of BiT (Liu et al. 2022), for any pair (F, B).
    Log beta is what is learned. Where a BatchNorm follows, the gradient of beta is noise, and Adam turns it
    into steps as large as the learning rate. Learned itself, beta reached 0 and closed the window of B, and
    whole layers of a ResNet-20 stopped learning.
    """

    one: Tensor

    def __init__(
        self,
        quantizer: ActivationQuantizer,
        axes: Axes,
        threshold: Tensor | None,
        scale: Tensor | None,
        in_float32: bool = False,
    ):
        super().__init__()
        self.quantizer, self.axes = quantizer, axes
        self.in_float32 = in_float32  # whatever autocast says
        self.threshold = None if threshold is None else nn.Parameter(threshold.clone())  # [channels]
        log_scale = None if scale is None else scale.clamp_min(SMALLEST_SCALE).log()
        self.log_scale = None if log_scale is None else nn.Parameter(log_scale)  # []
        self.register_buffer("one", torch.ones(()), persistent=False)

    @property
    def pending_shift(self) -> Tensor | None:
        """Everything: nothing of t is in the layer's bias yet."""
        return self.threshold

    def beta(self) -> Tensor:
        """Return the scale []; 1 where none is learned."""
        return self.one if self.log_scale is None else self.log_scale.exp()

    def forward(self, x: Tensor, border: Border | None = None) -> tuple[Tensor, Tensor]:
        """Return x [N, C, H, W] or [..., C] in units of beta, +-1 where F is sign, and beta []."""
        q, beta = self.quantizer, self.beta()
        if border is not None and fuses(x) and (pair := pair_of(q)):
            return self._fused(x, beta, pair, border), beta
        n = q.normaliser(beta)
        per_sign = torch.ones_like(n) if self.log_scale is None else 1 / q.spread(beta, n)
        values = ForwardBackward.apply(above(x, self.threshold, self.axes), n, per_sign, q.F, q.B)
        return bordered(values, border), beta

    def _fused(self, x: Tensor, beta: Tensor, pair: Pair, border: Border) -> Tensor:
        """Return the values of a layer's inputs in one kernel."""
        rows = x if self.axes == (1,) else x.flatten(0, -2)
        dtype = torch.float32 if self.in_float32 else cast_to(x)
        within = border if fuses_on_cuda(x) else Border()
        scale = None if self.log_scale is None else beta.detach()
        values = fused_input(rows, self.threshold, Making(scale, self.quantizer, pair, within, dtype))
        values = values if self.axes == (1,) else values.view(x.shape)
        return values if within is border else bordered(values, border)


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

    def forward(self, x: Tensor, border: Border | None = None) -> tuple[Tensor, Tensor]:
        return bordered(sign(above(x, self.threshold, self.axes)), border), self.scale


def bordered(values: Tensor, border: Border | None) -> Tensor:
    """Return images [N, C, H, W] with a border around them; anything else, or without one, as it is."""
    return values if border is None or not any(border[:4]) else F.pad(values, border[:4], value=border.value)


def above(x: Tensor, threshold: Tensor | None, axes: Axes) -> Tensor:
    """Return x - t, with t [channels] along those axes of x; x if there is no t."""
    return x if threshold is None else x - aligned(threshold, x, axes)


def aligned(threshold: Tensor, x: Tensor, axes: Axes) -> Tensor:
    """Return t [channels] shaped so that it broadcasts against x along those axes."""
    own = channel_axes(x, axes)
    return threshold.view([size if at in own else 1 for at, size in enumerate(x.shape)])


def channel_axes(x: Tensor, axes: Axes) -> set[int]:
    """Return those axes of x counted from its first, where they may be counted from its last."""
    return {axis % x.dim() for axis in axes}
