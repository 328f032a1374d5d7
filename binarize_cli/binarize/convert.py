"""Float network -> network of binary layers over latents -> network of signs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from binarize_cli.binarize.layers import BINARY_FORM
from binarize_cli.binarize.quantizer import WeightQuantizer
from binarize_cli.binarize.select import Layer
from binarize_cli.binarize.weights import LatentWeight, SignWeight


def replace_layers(net: nn.Module, names: Sequence[str], weight_for) -> nn.Module:
    """Replace, in place, the named layers by their binary form, with weights from `weight_for`."""
    for name in names:
        layer = net.get_submodule(name)
        net.set_submodule(name, BINARY_FORM[type(layer)](layer, weight_for(name, layer)))
    return net


def binarize(net: nn.Module, table: Sequence[Layer], quantizer: WeightQuantizer) -> nn.Module:
    """Replace, in place, the binary layers of the table; the float weights become their latents."""
    names = [row.name for row in table if row.binary]
    return replace_layers(net, names, lambda _, layer: LatentWeight(layer.weight, quantizer))


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
    for name, weight in list(binary_weights(net)):
        fixed = SignWeight(weight.signs(), rounded(weight.hard_scale(), dtype))
        net.get_submodule(name).weight = fixed
    signs = {id(w.signs) for _, w in binary_weights(net)}
    for tensor in (*net.parameters(), *net.buffers()):
        if id(tensor) not in signs and tensor.is_floating_point():
            tensor.copy_(rounded(tensor, dtype))
    return net


def rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor with the values `dtype` has for it, in float32; as it was where `dtype` cannot hold it.

    float16 ends at 65504 and thins out below 6e-5: a tensor that would change by more than a
    thousandth (in norm) stays float32.
    """
    there = tensor.to(dtype).float()
    lost = (there - tensor).norm()
    return there if torch.isfinite(lost) and lost <= 1e-3 * tensor.norm() else tensor.float()
