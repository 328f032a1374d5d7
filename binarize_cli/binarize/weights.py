"""Where a binary layer gets its weights from: latents in training, fixed signs and scales afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from binarize_cli.binarize.quantizer import WeightQuantizer
from binarize_cli.quantizers.autograd import ForwardBackward
from binarize_cli.quantizers.functions import sign


class LatentWeight(nn.Module):
    """Float latents w* [out, ...], which the optimizer moves; called, alpha F(w* / n), for the network."""

    def __init__(self, weight: Tensor, quantizer: WeightQuantizer):
        super().__init__()
        self.quantizer = quantizer
        self.latent = nn.Parameter(weight.detach().clone().float())
        learned = quantizer.scale_rule == "learned"
        self.learned_scale = nn.Parameter(quantizer.magnitude(self.latent)) if learned else None
        self.kept: dict[str, object] | None = None  # by `computed_once`

    def forward(self) -> Tensor:
        return self._keep("weights", self._weights)

    def signs_and_scale(self) -> tuple[Tensor, Tensor]:
        """The weights in units of alpha, +-1 where F is sign, shaped as the latents, and alpha [out]."""
        return self._keep("units", self._units)

    def _keep(self, name: str, compute):
        if self.kept is None:
            return compute()
        if name not in self.kept:
            self.kept[name] = compute()
        return self.kept[name]

    def _weights(self) -> Tensor:
        n, value = self._value()
        alpha = self.quantizer.scale(self.latent, value, self.learned_scale)
        return ForwardBackward.apply(self.latent, n, alpha, lambda _: value, self.quantizer.B)

    def _units(self) -> tuple[Tensor, Tensor]:
        n, value = self._value()
        unit = self.quantizer.unit(value)
        return ForwardBackward.apply(
            self.latent, n, unit, lambda _: value, self.quantizer.B
        ), self.hard_scale()

    @torch.no_grad()
    def _value(self) -> tuple[Tensor, Tensor]:
        """n and F(w* / n), which is computed once: alpha is taken from it too."""
        n = self.quantizer.normaliser(self.latent)
        return n, self.quantizer.F(self.latent / n)

    @torch.no_grad()
    def signs(self) -> Tensor:
        """sign(w*), shaped as the latents."""
        return sign(self.latent)

    def hard_scale(self) -> Tensor:
        """alpha of the hard network, one number an output channel: [out]."""
        q, out = self.quantizer, self.latent.shape[0]
        if q.scale_rule == "none":
            return torch.ones(out, device=self.latent.device)
        alpha = q.magnitude(self.latent) if self.learned_scale is None else self.learned_scale
        return alpha.reshape(-1).expand(out).clone()


class SignWeight(nn.Module):
    """Fixed signs [out, ...] of +-1 (int8) and a scale [out]; called, their product in float32."""

    def __init__(self, signs: Tensor, scale: Tensor):
        super().__init__()
        # Not in the state dict: the file holds them as bits, under names of its own.
        self.register_buffer("signs", signs.to(torch.int8), persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self) -> Tensor:
        return self.signs * self.scale.view(-1, *[1] * (self.signs.dim() - 1))

    def signs_and_scale(self) -> tuple[Tensor, Tensor]:
        """The signs in float32, and the scale [out]."""
        return self.signs.float(), self.scale


@contextmanager
def computed_once(net: nn.Module) -> Iterator[None]:
    """Inside the block the weights stand still, as in scoring: F is taken once, not for each batch."""
    layers = [module for module in net.modules() if isinstance(module, LatentWeight)]
    try:
        for layer in layers:
            layer.kept = {}
        yield
    finally:
        for layer in layers:
            layer.kept = None
