"""The two layers of a transformer block's perceptron: between them there are bits alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torchvision.models.vision_transformer import MLPBlock

from binarize_cli.packed import kernels
from binarize_cli.packed.fused.activation import ELEMENTWISE, limits_after
from binarize_cli.packed.popcount_layers import Made, PopcountLinear, scale_limits_rule, suits, tensors_of


def layers_of(mlp: Any) -> Sequence[Any] | None:
    """Return (first layer, activation, second layer) of a perceptron that has nothing else in it."""
    if type(mlp) is Mlp and isinstance(mlp.norm, nn.Identity):
        first, act, second = mlp.fc1, mlp.act, mlp.fc2
    elif type(mlp) is MLPBlock and len(mlp) == 5:
        first, act, second = mlp[0], mlp[1], mlp[3]
    else:
        return None
    on_bits = all(isinstance(layer, PopcountLinear) for layer in (first, second))
    return (first, act, second) if on_bits and type(act) in ELEMENTWISE else None


def perceptron(made: Made, layers: Sequence[Any], x: Tensor, past: Tensor) -> Tensor | None:
    """Return second(act(first(x))) + past, [..., C] each; None if the kernels cannot."""
    first, act, second = layers
    if not (suits(first, x) and suits(second, x)):
        return None
    tensors = [*tensors_of(first), *tensors_of(second)]
    found = made.of(tensors, (), lambda: _make(first, act, second))
    if found is None:
        return None
    limits, signed, product = found
    return product.added_to(past, signed(kernels.pack_signs(x, limits)))


def _make(
    first: Any, act: Any, second: Any
) -> tuple[kernels.Limits, kernels.PopcountLinear, kernels.PopcountLinear] | None:
    scale, limits, rule = scale_limits_rule(first, first.in_features)
    threshold = second.input.threshold
    threshold = torch.zeros(second.in_features) if threshold is None else threshold
    after = limits_after(first.in_features, scale, first.bias, rule, act, threshold)
    if after is None:
        return None
    signed = kernels.PopcountLinear(first.source.matrix, scale, first.bias, rule, after)
    return limits, signed, second.kernel(second.bias)[1]
