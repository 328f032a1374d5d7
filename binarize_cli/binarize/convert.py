"""Float network -> network of binary layers over latents -> network of signs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from binarize_cli.binarize.accumulator import Rule
from binarize_cli.binarize.activations import LatentInput, SignInput
from binarize_cli.binarize.calibrate import InputStats
from binarize_cli.binarize.float_accumulator import FloatAccumulator
from binarize_cli.binarize.layers import (
    BINARY_LAYERS,
    PAD_VALUES,
    BinaryConv2d,
    BinaryLinear,
    is_candidate,
)
from binarize_cli.binarize.matmuls import BINARY_MATMULS, BinaryMatmul, is_matmul
from binarize_cli.binarize.quantizer import WeightQuantizer
from binarize_cli.binarize.select import Layer
from binarize_cli.binarize.weights import LatentWeight, SignWeight
from binarize_cli.recipe import Recipe


def replace_layers(net: nn.Module, names: Sequence[str], weight_for) -> nn.Module:
    """Replace, in place, the named layers by their binary form, with weights from `weight_for`."""
    for name in names:
        layer = net.get_submodule(name)
        net.set_submodule(name, BINARY_LAYERS[type(layer)](layer, weight_for(name, layer)))
    return net


def binarize(net: nn.Module, table: Sequence[Layer], quantizer: WeightQuantizer) -> nn.Module:
    """Replace, in place, the binary layers of the table; the float weights become their latents."""
    names = [row.name for row in table if row.binary and is_candidate(net.get_submodule(row.name))]
    return replace_layers(net, names, lambda _, layer: LatentWeight(layer.weight, quantizer))


def binarize_inputs(
    net: nn.Module, stats: Mapping[str, Sequence[InputStats]], quantizer: WeightQuantizer, recipe: Recipe
) -> nn.Module:
    """Give, in place, layers binary inputs and matmuls binary factors, as the calibration found them."""
    rule, made = recipe.accumulator, recipe.activation

    def latent(found: InputStats) -> LatentInput:
        threshold = found.mean if made.threshold == "learned" else None
        scale = found.magnitude if made.scale == "learned" else None
        return LatentInput(quantizer.activation, found.axes, threshold, scale)

    def sums(found: InputStats) -> FloatAccumulator:
        return FloatAccumulator(Rule(rule.overflow, found.shift) if recipe.task == "bwaa" else None)

    for name, inputs in stats.items():
        module = net.get_submodule(name)
        if is_matmul(module):
            matmul = BINARY_MATMULS[type(module)](*map(latent, inputs), sums(inputs[0]))
            net.set_submodule(name, matmul)
        else:
            module.input, module.accumulator = latent(inputs[0]), sums(inputs[0])
            module.pad_value = PAD_VALUES[made.padding]
    return net


def binary_layers(net: nn.Module) -> Iterator[tuple[str, BinaryLinear | BinaryConv2d]]:
    """(name, layer), for every binary layer."""
    for name, module in net.named_modules():
        if isinstance(module, BinaryLinear | BinaryConv2d):
            yield name, module


def binary_matmuls(net: nn.Module) -> Iterator[tuple[str, BinaryMatmul]]:
    """(name, matmul), for every binary matmul of attention."""
    for name, module in net.named_modules():
        if isinstance(module, BinaryMatmul):
            yield name, module


def binary_weights(net: nn.Module) -> Iterator[tuple[str, LatentWeight | SignWeight]]:
    """(layer name, its weight module), for every binary layer."""
    for name, module in net.named_modules():
        if isinstance(module, LatentWeight | SignWeight):
            yield name.removesuffix(".weight"), module


@torch.no_grad()
def harden(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Replace, in place, latents by their signs and scales, and round all else to what the file will hold.

    Afterwards the network computes exactly what the packed file will: rounding happens here, once, and
    not on the way to the disk.
    """
    for _, layer in binary_layers(net):
        layer.weight = SignWeight(layer.weight.signs(), rounded(layer.weight.hard_scale(), dtype))
        if layer.input is not None:
            _harden_input(layer, dtype)
    for _, matmul in binary_matmuls(net):
        matmul.left, matmul.right = _fixed(matmul.left, dtype), _fixed(matmul.right, dtype)
    signs = {id(w.signs) for _, w in binary_weights(net)}
    for tensor in (*net.parameters(), *net.buffers()):
        if id(tensor) not in signs and tensor.is_floating_point():
            tensor.copy_(rounded(tensor, dtype))
    return net


def _harden_input(layer: BinaryLinear | BinaryConv2d, dtype: torch.dtype) -> None:
    """Fix a layer's threshold and scale; what the layer adds for its thresholds goes into its bias."""
    learned, fixed = layer.input, _fixed(layer.input, dtype)
    if learned.threshold is not None:
        learned.threshold.copy_(fixed.threshold)
        bias = layer.shifted_bias(*layer.weight.signs_and_scale())
        layer.bias = None if bias is None else nn.Parameter(bias.detach())
    layer.input = fixed


def _fixed(learned: LatentInput, dtype: torch.dtype) -> SignInput:
    """The same threshold and scale, as the file will hold them."""
    threshold = None if learned.threshold is None else rounded(learned.threshold.detach(), dtype)
    return SignInput(learned.axes, threshold, rounded(learned.beta().detach(), dtype))


def rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor with the values `dtype` has for it, in float32; as it was where `dtype` cannot hold it.

    float16 ends at 65504 and thins out below 6e-5: a tensor that would change by more than a
    thousandth (in norm) stays float32.
    """
    there = tensor.to(dtype).float()
    lost = (there - tensor).norm()
    return there if torch.isfinite(lost) and lost <= 1e-3 * tensor.norm() else tensor.float()
