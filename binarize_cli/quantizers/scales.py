"""Scales: how alpha, the magnitude of the weights that a network uses, follows from its latent weights.

The forward weight is alpha F(w* / n). A scale is one entry of SCALES; recipes name it (`quantizer.scale`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-12  # a channel of zeros has no magnitude to divide by


def channel_magnitude(weight: Tensor) -> Tensor:
    """Return mean |w| of each output channel: [out, ...] -> [out, 1, ...], without gradient."""
    return weight.detach().abs().mean(dim=tuple(range(1, weight.dim())), keepdim=True)


def layer_magnitude(weight: Tensor) -> Tensor:
    """Return mean |w| of the whole layer: [out, ...] -> [], without gradient."""
    return weight.detach().abs().mean()


@dataclass(frozen=True)
class Scale:
    """alpha = size / mean |F(w* / n)|, where size is mean |w*|, or a parameter that starts there.

    Thus the magnitude of the float weights is kept at every progress. `magnitude` takes the mean, over an
    output channel or the layer. With `unit`, alpha is 1: the literal form of the papers.
    """

    name: str
    magnitude: Callable[[Tensor], Tensor] = channel_magnitude
    learned: bool = False
    unit: bool = False

    def alpha(self, latent: Tensor, value: Tensor, learned: Tensor | None) -> Tensor:
        """Return alpha, broadcastable against `latent`, for value = F(latent / n)."""
        if self.unit:
            return latent.new_ones(())
        size = self.magnitude(latent) if learned is None else learned
        return size / self.magnitude(value).clamp_min(TINY)

    def per_unit(self, value: Tensor) -> Tensor:
        """Return alpha for weights of magnitude 1, with value = F(w* / n)."""
        return value.new_ones(()) if self.unit else 1 / self.magnitude(value).clamp_min(TINY)

    def hard_alpha(self, latent: Tensor, learned: Tensor | None) -> Tensor:
        """Return alpha of the network of signs, one number an output channel: [out]."""
        out = latent.shape[0]
        if self.unit:
            return latent.new_ones(out)
        size = self.magnitude(latent) if learned is None else learned
        return size.reshape(-1).expand(out).clone()


SCALES: Mapping[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale("channel"),
        Scale("layer", layer_magnitude),
        Scale("learned", learned=True),
        Scale("none", unit=True),
    )
}
