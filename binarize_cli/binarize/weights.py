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
        self.computed: Tensor | None = None  # by `computed_once`

    def forward(self) -> Tensor:
        if self.computed is not None:
            return self.computed
        q = self.quantizer
        n = q.normaliser(self.latent)
        with torch.no_grad():
            value = q.F(self.latent / n)  # once: alpha is taken from it too
        alpha = q.scale(self.latent, value, self.learned_scale)
        return ForwardBackward.apply(self.latent, n, alpha, lambda _: value, q.B)

    @torch.no_grad()
    def signs(self) -> Tensor:
        """sign(w*), shaped as the latents."""
        return sign(self.latent)

    @torch.no_grad()
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


@contextmanager
def computed_once(net: nn.Module) -> Iterator[None]:
    """Inside the block the weights stand still, as in scoring: F is taken once, not for each batch."""
    layers = [module for module in net.modules() if isinstance(module, LatentWeight)]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.computed = layer()
        yield
    finally:
        for layer in layers:
            layer.computed = None
