"""Float network -> network of binary layers over latents -> network of signs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from binarize_cli.binarize.activations import InputQuantizer, LatentInput, SignInput
from binarize_cli.binarize.bank import add_banks, remove_banks
from binarize_cli.binarize.blocks import BiRealBlock, RPReLU
from binarize_cli.binarize.calibrate import BinaryInputs, Calibration, InputStats
from binarize_cli.binarize.float_accumulator import FloatAccumulator
from binarize_cli.binarize.layers import BINARY_LAYERS, BinaryConv2d, BinaryLinear, is_candidate
from binarize_cli.binarize.matmuls import BINARY_MATMULS, BinaryMatmul, is_matmul
from binarize_cli.binarize.quantizer import ActivationQuantizers, WeightQuantizer
from binarize_cli.binarize.weights import LatentWeight, SignWeight


def replace_layers(
    net: nn.Module, names: Iterable[str], make: Callable[[str, nn.Module], nn.Module]
) -> nn.Module:
    """Replace, in place, the named float layers, under all their names, by `make(name, layer)`."""
    aliases: dict[nn.Module, list[str]] = {}
    for name, module in net.named_modules(remove_duplicate=False):
        aliases.setdefault(module, []).append(name)
    for name in names:
        layer = net.get_submodule(name)
        new = make(name, layer)
        for alias in aliases[layer]:
            net.set_submodule(alias, new)
    return net


def to_latents(
    net: nn.Module,
    names: Sequence[str],
    weights: WeightQuantizer,
    activations: ActivationQuantizers | None = None,
    binary: BinaryInputs | None = None,
    found: Mapping[str, Calibration] | None = None,
) -> nn.Module:
    """Replace, in place, the named float layers and matmuls by binary ones; the float weights become latents.

    With `found`, what calibration found of their inputs, these become binary too, as `binary` says.
    """
    found = found or {}

    def make(name: str, module: nn.Module) -> nn.Module:
        if is_candidate(module) and name not in found:
            return BINARY_LAYERS[type(module)](module, LatentWeight(module.weight, weights))
        assert activations and binary, "binary inputs need a quantizer and a rule"
        rule = found[name].rule
        inputs = [_latent_input(stats, activations, binary, rule is not None) for stats in found[name].inputs]
        accumulator = FloatAccumulator(rule)
        if is_matmul(module):
            return BINARY_MATMULS[type(module)](inputs[0], inputs[1], accumulator)
        assert is_candidate(module)
        source = LatentWeight(module.weight, weights)
        return BINARY_LAYERS[type(module)](module, source, inputs[0], accumulator, binary.pad_value)

    net = replace_layers(net, names, make)
    in_float32 = any(calibration.rule for calibration in found.values())
    for signs in (False, True):  # with binary inputs layers ask for signs and scales
        chosen = [layer.source for _, layer in binary_layers(net) if (layer.input is not None) == signs]
        latents = [source for source in chosen if isinstance(source, LatentWeight)]
        add_banks(net, latents, signs, in_float32)
    return net


def _latent_input(
    found: InputStats, quantizers: ActivationQuantizers, binary: BinaryInputs, in_float32: bool
) -> LatentInput:
    quantizer = quantizers.images if found.axes == BinaryConv2d.axes else quantizers.tokens
    threshold = found.mean if binary.learned_threshold else None
    scale = found.magnitude if binary.learned_scale else None
    return LatentInput(quantizer, found.axes, threshold, scale, in_float32)


def binary_layers(net: nn.Module) -> Iterator[tuple[str, BinaryLinear | BinaryConv2d]]:
    """Yield (name, layer) for every binary layer."""
    for name, module in net.named_modules():
        if isinstance(module, BinaryLinear | BinaryConv2d):
            yield name, module


def binary_matmuls(net: nn.Module) -> Iterator[tuple[str, BinaryMatmul]]:
    """Yield (name, matmul) for every binary matmul of attention."""
    for name, module in net.named_modules():
        if isinstance(module, BinaryMatmul):
            yield name, module


def binary_weights(net: nn.Module) -> Iterator[tuple[str, LatentWeight | SignWeight]]:
    """Yield (layer name, its weight source) for every binary layer."""
    for name, module in net.named_modules():
        if isinstance(module, LatentWeight | SignWeight):
            yield name.removesuffix(".source"), module


def latent_weights(net: nn.Module) -> Iterator[tuple[str, LatentWeight]]:
    """Yield (layer name, its latent weights) for every binary layer that is trained."""
    for name, weight in binary_weights(net):
        if isinstance(weight, LatentWeight):
            yield name, weight


def added_parameters(net: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that the float network did not have.

    They are latents and learned scales, thresholds and scales of binary inputs, gains of shortcuts, and those
    of RPReLU.
    """
    for module in net.modules():
        if isinstance(module, LatentWeight | LatentInput | BiRealBlock | RPReLU):
            yield from module.parameters(recurse=False)


@torch.no_grad()
def harden(net: nn.Module) -> nn.Module:
    """Replace, in place, latents by their signs and scales, and learned thresholds by fixed ones.

    The network computes what it did with F = sign. `rounding` makes of it what the packed file will hold.
    """
    remove_banks(net)
    for _, layer in binary_layers(net):
        latent = layer.source
        assert isinstance(latent, LatentWeight), "a network is hardened once"
        layer.source = SignWeight(latent.signs(), latent.hard_scale().detach().float())
        if layer.input is not None:  # what the layer adds for its thresholds goes into its bias
            bias = layer.shifted_bias(*layer.source.signs_and_scale())
            layer.bias = None if bias is None else nn.Parameter(bias.detach())
            layer.input = _fixed(layer.input)
        if isinstance(layer.accumulator, FloatAccumulator):
            layer.accumulator.integers = True
    for _, matmul in binary_matmuls(net):
        matmul.left, matmul.right = _fixed(matmul.left), _fixed(matmul.right)
    return net


def _fixed(learned: InputQuantizer | None) -> SignInput:
    """Return the threshold and the scale of a latent input, fixed."""
    assert isinstance(learned, LatentInput), "a network is hardened once"
    threshold = None if learned.threshold is None else learned.threshold.detach().float()
    return SignInput(learned.axes, threshold, learned.beta().detach().float())
