"""Hardening: latents keep their signs, and get magnitudes from which signs can change."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize_cli.binarize.convert import latent_weights
from binarize_cli.quantizers.functions import sign
from binarize_cli.quantizers.scales import channel_magnitude


def respread(net: nn.Module) -> None:
    """Give the latents of every output channel, in place, the magnitudes of normally distributed weights.

    Signs, the order of the magnitudes, and the mean |w*| of a channel (so alpha too) stay. A soft F drives
    latents away from zero: at mu = 60, 7% of a ResNet-20's lay below 0.3 mean |w*|, where normally
    distributed weights have 19%, and in the next epoch a quarter as many signs changed as with BinaryConnect.
    Equal magnitudes, which a proximal map leaves, are ranked by position.
    """
    for _, weight in latent_weights(net):
        latent = weight.latent
        _respread(latent.to_local() if hasattr(latent, "to_local") else latent)


@torch.no_grad()
def _respread(latent: Tensor) -> None:
    """Do that to one tensor, [channels, ...] of any layout."""
    if not latent.numel():  # a rank that has no channel of it
        return
    rows = latent.flatten(1)
    shares = (torch.arange(rows.shape[1], device=latent.device) + 0.5) / rows.shape[1]
    levels = torch.special.ndtri((1 + shares) / 2)  # quantiles of |normal|, in rising order
    ranked = (levels / levels.mean())[rows.abs().argsort(dim=1, stable=True).argsort(dim=1)]
    latent.copy_((sign(rows) * ranked * channel_magnitude(rows)).view(latent.shape))
