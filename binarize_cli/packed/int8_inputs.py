"""Task bw with inputs of 8 bits: layers of binary weights quantize their inputs at run time.

Each token of a linear layer and each image of a convolution becomes round(x / s) with s = max|x| / 127; the
products are int8 by +-1. What comes out differs from the file's own network by that rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from binarize_cli.binarize.accumulator import Window
from binarize_cli.binarize.layers import BinaryConv2d, BinaryLinear
from binarize_cli.errors import InputError
from binarize_cli.packed.integer_accumulator import IntegerAccumulator

LARGEST = 127


def use_int8_inputs(net: nn.Module) -> nn.Module:
    """Let layers of binary weights quantize their inputs, in place. Raises InputError if there are none."""
    found = False
    for module in net.modules():
        layer: Any = module
        if type(layer) in INT8_LAYERS and layer.input is None:
            layer.__class__ = INT8_LAYERS[type(layer)]
            found = True
    if not found:
        hint = "It is for files of task bw: the inputs of others are signs already."
        raise InputError("no layer has binary weights and float inputs", where="--activations", hint=hint)
    return net


class Int8InputLinear(BinaryLinear):
    """BinaryLinear whose inputs are quantized token by token."""

    source: Any  # a PackedWeight

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled():
            from binarize_cli.packed import kernels  # llvmlite, which other files of bw do without

            return kernels.Int8Linear(self.source.bits, self.in_features, self.source.scale, self.bias)(x)
        codes, steps = quantized(x.flatten(0, -2), (1,))
        signs, alpha = self.source.signs_and_scale()
        y = IntegerAccumulator().linear(codes, signs).to(x.dtype) * steps * alpha
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], self.out_features)


class Int8InputConv2d(BinaryConv2d):
    """BinaryConv2d whose inputs are quantized image by image."""

    source: Any  # a PackedWeight

    def forward(self, x: Tensor) -> Tensor:  # [N, in, H, W] -> [N, out, H', W']
        codes, steps = quantized(x, (1, 2, 3))
        window = Window(self.kernel_size, self.stride, self.dilation, self.groups)
        signs, alpha = self.source.signs_and_scale()
        padded = nn.functional.pad(codes, self.margins(x))
        y = IntegerAccumulator().conv(padded, signs, window).to(x.dtype) * steps * alpha.view(-1, 1, 1)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


INT8_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    BinaryLinear: Int8InputLinear,
    BinaryConv2d: Int8InputConv2d,
}


def quantized(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return (int8, step): x is about their product, with a step for what `axes` go over; halves to even."""
    steps = x.abs().amax(axes, keepdim=True) / LARGEST
    codes = (x * torch.where(steps > 0, 1 / steps, 0)).round().to(torch.int8)
    return codes, steps
