"""Where a binary layer gets its weights from: latents in training, fixed signs and scales afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from binarize_cli.binarize.fused.formulas import computed
from binarize_cli.binarize.quantizer import WeightQuantizer
from binarize_cli.quantizers.autograd import ForwardBackward
from binarize_cli.quantizers.functions import sign

T = TypeVar("T")


class WeightSource(Protocol):
    """What a binary layer asks for its weights [out, ...]."""

    def __call__(self) -> Tensor:
        """Return the weights, scaled."""

    def signs_and_scale(self) -> tuple[Tensor, Tensor]:
        """Return the weights in units of the scale, +-1 where F is sign, and the scale [out]."""


class LatentWeight(nn.Module):
    """Float latents w* [out, ...], which the optimizer moves; called, it returns alpha F(w* / n)."""

    def __init__(self, weight: Tensor, quantizer: WeightQuantizer):
        super().__init__()
        self.quantizer = quantizer
        self.latent = nn.Parameter(weight.detach().clone().float())
        scale = quantizer.scale
        self.learned_scale = nn.Parameter(scale.magnitude(self.latent)) if scale.learned else None
        self.cache: dict[str, Any] | None = None  # by `computed_once`, or by the bank
        self.bank: Any = None  # the LatentBank, if one computes these weights with all others

    def forward(self) -> Tensor:
        return _cached(self.cache, "weights", self._weights)

    def signs_and_scale(self) -> tuple[Tensor, Tensor]:
        """Return the weights in units of alpha, +-1 where F is sign, and alpha [out]."""
        return _cached(self.cache, "signs_and_scale", self._signs_and_scale)

    def _weights(self) -> Tensor:
        n, value = self._value()
        alpha = self.quantizer.scale.alpha(self.latent, value, self.learned_scale)
        return ForwardBackward.apply(self.latent, n, alpha, lambda _: value, self._B)

    def _signs_and_scale(self) -> tuple[Tensor, Tensor]:
        n, value = self._value()
        unit = self.quantizer.scale.per_unit(value)
        signs = ForwardBackward.apply(self.latent, n, unit, lambda _: value, self._B)
        return signs, self.hard_scale()

    @torch.no_grad()
    def _value(self) -> tuple[Tensor, Tensor]:
        """Return n and F(w* / n), which is computed once: alpha is taken from it too."""
        n = self.quantizer.normaliser(self.latent)
        return n, computed(self.quantizer, "F", self.latent / n)

    def _B(self, x: Tensor) -> Tensor:
        return computed(self.quantizer, "B", x)

    @torch.no_grad()
    def signs(self) -> Tensor:
        """Return sign(w*), shaped as the latents."""
        return sign(self.latent)

    def hard_scale(self) -> Tensor:
        """Return alpha of the hard network, one number an output channel: [out]."""
        return self.quantizer.scale.hard_alpha(self.latent, self.learned_scale)


class SignWeight(nn.Module):
    """Fixed signs [out, ...] of +-1 (int8) and a scale [out]; called, it returns their product in float32."""

    signs: Tensor
    scale: Tensor

    def __init__(self, signs: Tensor, scale: Tensor):
        super().__init__()
        # Not in the state dict: the file holds them as bits, under names of its own.
        self.register_buffer("signs", signs.to(torch.int8), persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.cache: dict[str, Any] | None = None  # by `computed_once`

    def forward(self) -> Tensor:
        return _cached(self.cache, "weights", self._weights)

    def _weights(self) -> Tensor:
        return self.signs * self.scale.view(-1, *[1] * (self.signs.dim() - 1))

    def signs_and_scale(self) -> tuple[Tensor, Tensor]:
        """Return the signs in float32, and the scale [out]."""
        return _cached(self.cache, "signs", self.signs.float), self.scale


def _cached(cache: dict[str, Any] | None, name: str, compute: Callable[[], T]) -> T:
    if cache is None:
        return compute()
    if name not in cache:
        cache[name] = compute()
    return cache[name]


@contextmanager
def computed_once(net: nn.Module) -> Iterator[None]:
    """Inside the block the weights stand still, as in scoring: they are computed once, not for each batch."""
    layers = [module for module in net.modules() if isinstance(module, LatentWeight | SignWeight)]
    banks = [layer.bank for layer in layers if isinstance(layer, LatentWeight) and layer.bank]
    try:
        for layer in layers:
            layer.cache = {}
        for bank in banks:
            bank.standing = True
        yield
    finally:
        for layer in layers:
            layer.cache = None
        for bank in banks:
            bank.standing = False
