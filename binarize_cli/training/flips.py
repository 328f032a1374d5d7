"""Flips: the share of the signs of each binary layer, and of all, that changed since the last look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from binarize_cli.binarize.convert import latent_weights
from binarize_cli.training.parallel import shared_out, whole


@dataclass(frozen=True)
class Flips:
    """Shares of signs that changed: of all, and of each layer in the network's order."""

    ratio: float
    layers: list[float]


class FlipCounter:
    """Remembers the signs of every binary layer, as booleans on the layer's device."""

    def __init__(self, net: nn.Module):
        self.net = net
        self.before = self._signs()

    def _signs(self) -> list[Tensor]:
        return [weight.latent.detach() >= 0 for _, weight in latent_weights(self.net)]

    def load(self, signs: Sequence[Tensor]) -> None:
        """Take over the signs of all layers, whole, from a state."""
        self.before = [
            shared_out(new.to(old.device), old) for new, old in zip(signs, self.before, strict=True)
        ]

    def count(self) -> Flips | None:
        """Return what flipped since the last call; None for a network without binary layers."""
        if not self.before:
            return None
        now = self._signs()
        counts = torch.stack([whole((a ^ b).sum()) for a, b in zip(self.before, now, strict=True)])
        self.before = now
        flipped, sizes = counts.tolist(), [signs.numel() for signs in now]
        layers = [round(count / size, 6) for count, size in zip(flipped, sizes, strict=True)]
        return Flips(sum(flipped) / sum(sizes), layers)
