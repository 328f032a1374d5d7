"""Flip ratio: the share of binary weights whose sign changed since the last look."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize_cli.binarize.convert import latent_weights


class FlipCounter:
    """Remembers the signs of every binary layer, as booleans on the layer's device."""

    def __init__(self, net: nn.Module):
        self.net = net
        self.before = self._signs()

    def _signs(self) -> list[Tensor]:
        return [weight.latent.detach() >= 0 for _, weight in latent_weights(self.net)]

    def ratio(self) -> float | None:
        """The share flipped since the last call; None for a network without binary layers."""
        if not self.before:
            return None
        now = self._signs()
        flipped = sum(torch.count_nonzero(a ^ b) for a, b in zip(self.before, now, strict=True))
        self.before = now
        return int(flipped) / sum(s.numel() for s in now)
