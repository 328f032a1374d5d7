"""Hardening: latents keep their signs, and get magnitudes from which signs can change."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize_cli.binarize.convert import latent_weights
from binarize_cli.quantizers.functions import sign


def respread(net: nn.Module) -> None:
    """Give the latents of every output channel, in place, the magnitudes of normally distributed weights.

    Signs, the order of the magnitudes, and the mean |w*| of a channel (so alpha too) stay. A soft F drives
    latents away from zero: with BNN++ 8% of a ResNet-20's ended below 0.3 mean |w*|, where float weights have
    19%, and in the hardened epochs a quarter as many signs changed as with BinaryConnect. Equal magnitudes,
    which a proximal map leaves, are ranked by position.
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
    magnitudes = rows.abs().float()
    shares = (torch.arange(rows.shape[1], device=latent.device) + 0.5) / rows.shape[1]
    levels = torch.special.ndtri((1 + shares) / 2)  # quantiles of |normal|, in rising order
    ranked = (levels / levels.mean())[magnitudes.argsort(dim=1, stable=True).argsort(dim=1)]
    spread = sign(rows) * (ranked * magnitudes.mean(1, keepdim=True)).to(rows.dtype)
    latent.copy_(spread.view(latent.shape))
