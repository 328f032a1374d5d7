"""The three update rules: where a proximal map meets the optimizer's step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from binarize_cli.binarize.convert import latent_weights


@contextmanager
def update_rule(net: nn.Module) -> Iterator[None]:
    """Wrap an optimizer's step, whichever optimizer it is, in the proximal maps that the method asks for.

    forward-backward: none; F and B have done it all. map-before-step (reverse ProxConnect): the gradient
    was taken at the latent weights, the step starts from the mapped ones. map-after-step (ProxQuant): the
    weights that the step arrived at are mapped. From hardening on no map is applied: a map that has ended in
    signs puts back, step by step, every weight that is on its way through zero.
    """
    _map(net, "map-before-step")
    yield
    _map(net, "map-after-step")


def _map(net: nn.Module, rule: str) -> None:
    """Map, in place, the latents whose method has this rule, until they are hardened."""
    for _, weight in latent_weights(net):
        quantizer = weight.quantizer
        if quantizer.method.update == rule and quantizer.mode == "soft":
            quantizer.map_(weight.latent)
