"""The three update rules: where a proximal map meets the optimizer's step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from binarize_cli.binarize.convert import binary_weights
from binarize_cli.binarize.quantizer import WeightQuantizer


@contextmanager
def update_rule(net: nn.Module, quantizer: WeightQuantizer | None) -> Iterator[None]:
    """Around an optimizer's step, whichever optimizer it is.

    forward-backward: nothing; F and B have done it all. map-before-step (reverse ProxConnect): the gradient
    was taken at the latent weights, the step starts from the mapped ones. map-after-step (ProxQuant): the
    weights that the step arrived at are mapped.
    """
    update = quantizer.method.update if quantizer else "plain"
    if update == "map-before-step":
        _map_all(net, quantizer)
    yield
    if update == "map-after-step":
        _map_all(net, quantizer)


def _map_all(net: nn.Module, quantizer: WeightQuantizer) -> None:
    for _, weight in binary_weights(net):
        quantizer.map_(weight.latent)
