"""The binary layers. Each does its float twin's operation, with weights it asks its weight source for.

In tasks bwa and bwaa it asks its `input` for binary inputs too; then `accumulator` adds up products of +-1,
and one factor an output channel, alpha beta, scales them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard

import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers import Linear as TimmLinear
from timm.layers.padding import get_same_padding
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from binarize_cli.binarize.accumulator import Accumulator, Window
from binarize_cli.binarize.activations import InputQuantizer
from binarize_cli.binarize.float_accumulator import FloatAccumulator
from binarize_cli.binarize.fused.inputs import Border, made_again
from binarize_cli.binarize.fused.launch import fuses, fuses_on_cuda
from binarize_cli.binarize.fused.sums import fused_scaling, fused_shift
from binarize_cli.binarize.weights import WeightSource

PAD_VALUES = {"zero": 0, "plus": 1, "minus": -1}


class BinaryLinear(nn.Module):
    """nn.Linear with weights [out, in] of a weight source and, with `input`, binary inputs."""

    axes = (-1,)  # of the input's channels

    def __init__(
        self,
        linear: nn.Linear,
        source: WeightSource,
        input: InputQuantizer | None = None,
        accumulator: Accumulator | None = None,
        pad_value: int = 0,
    ):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.source, self.input, self.accumulator = source, input, accumulator
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The weights that the network uses now, for modules that read them past the layer: [out, in]."""
        return self.source()

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        if self.input is None:
            return F.linear(x, self.source(), self.bias)
        assert self.accumulator is not None, "binary inputs need an accumulator"
        values, beta = self.input(x, Border())
        weights, alpha = self.source.signs_and_scale()
        bias = self.shifted_bias(weights, alpha)
        with kept_little(values):
            if in_one_product(self.accumulator, values):
                return F.linear(values, weights * (alpha * beta).view(-1, 1), bias)
            y = self.accumulator.linear(values, weights)
        if fuses(y):
            return fused_scaling(y.flatten(0, -2), alpha, beta, bias).view(y.shape)
        y = y * (alpha * beta)
        return y if bias is None else y + bias

    def shifted_bias(self, weights: Tensor, alpha: Tensor) -> Tensor | None:
        """Return the bias [out] with what the thresholds took off, for x is beta sign(x - t) + t."""
        t = None if self.input is None else self.input.pending_shift
        if t is None:
            return self.bias
        if fuses_on_cuda(weights):
            return fused_shift(weights, t, alpha, self.bias)
        shift = alpha * (weights @ t)
        return shift if self.bias is None else self.bias + shift


class BinaryConv2d(nn.Module):
    """nn.Conv2d (grouped, strided, dilated; TensorFlow's "same" padding too) with weights of a weight source.

    With `input` its inputs are binary. They are padded after they became signs: with 0, which is a third
    value, or with a chosen sign (`pad_value`).
    """

    axes = (1,)

    def __init__(
        self,
        conv: nn.Conv2d,
        source: WeightSource,
        input: InputQuantizer | None = None,
        accumulator: Accumulator | None = None,
        pad_value: int = 0,
    ):
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.groups = conv.kernel_size, conv.groups
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.pads_same = isinstance(conv, Conv2dSame)
        self.source, self.input, self.accumulator = source, input, accumulator
        self.bias, self.pad_value = conv.bias, pad_value

    @property
    def weight(self) -> Tensor:
        """The weights that the network uses now, for modules that read them past the layer."""
        return self.source()

    def forward(self, x: Tensor) -> Tensor:  # [N, in, H, W] -> [N, out, H', W']
        if self.input is None:
            padding: str | tuple[int, ...] = self.padding
            if self.pads_same:
                x, padding = F.pad(x, self.margins(x)), (0, 0)
            return F.conv2d(x, self.source(), self.bias, self.stride, padding, self.dilation, self.groups)
        assert self.accumulator is not None, "binary inputs need an accumulator"
        border, zeros = self.surroundings(x)
        values, beta = self.input(x, border)
        weights, alpha = self.source.signs_and_scale()
        bias = self.shifted_bias(weights, alpha)
        window = Window(self.kernel_size, self.stride, self.dilation, self.groups, zeros)
        with kept_little(values):
            if in_one_product(self.accumulator, values):
                scaled = weights * (alpha * beta).view(-1, 1, 1, 1)
                return F.conv2d(values, scaled, bias, self.stride, zeros, self.dilation, self.groups)
            y = self.accumulator.conv(values, weights, window)
        if fuses(y):
            return fused_scaling(y, alpha, beta, bias)
        y = y * (alpha * beta).view(-1, 1, 1)
        return y if bias is None else y + bias.view(-1, 1, 1)

    def shifted_bias(self, weights: Tensor, alpha: Tensor) -> Tensor | None:
        """Return the bias [out], if any, with what the thresholds took off, as if images had no edges.

        A convolution without a bias has BatchNorm behind it, as a rule, which makes up for any constant.
        """
        t = None if self.input is None else self.input.pending_shift
        if self.bias is None or t is None:
            return self.bias
        taps = weights.sum((2, 3)).unflatten(0, (self.groups, -1))  # [groups, out / groups, in / groups]
        return self.bias + alpha * (taps @ t.view(self.groups, -1, 1)).flatten()

    def surroundings(self, x: Tensor) -> tuple[Border, tuple[int, int]]:
        """Return the border that the input puts around images, and the zeros that the product adds itself.

        With zeros of its own a convolution spares a copy forwards, and backwards the gradient of the border.
        """
        left, right, top, bottom = self.margins(x)
        even = (left, top) == (right, bottom) and self.pad_value == 0
        if even and isinstance(self.accumulator, FloatAccumulator) and not fuses_on_cuda(x):
            return Border(), (top, left)
        return Border(left, right, top, bottom, self.pad_value), (0, 0)

    def margins(self, x: Tensor) -> tuple[int, int, int, int]:
        """Return the pixels around the image: left, right, top, bottom."""
        if self.pads_same:
            rules = zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True)
            high, wide = (int(get_same_padding(*rule)) for rule in rules)
        elif self.padding == "same":
            high, wide = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        elif isinstance(self.padding, str):  # "valid"
            high = wide = 0
        else:
            high, wide = (2 * side for side in self.padding)
        return (wide // 2, wide - wide // 2, high // 2, high - high // 2)


def in_one_product(accumulator: Accumulator, values: Tensor) -> bool:
    """Return whether scale and bias can be part of the product: nothing is asked of the sums themselves."""
    return isinstance(accumulator, FloatAccumulator) and accumulator.plain and not fuses_on_cuda(values)


def kept_little(values: Tensor) -> AbstractContextManager[None]:
    """Return a context in which products keep no copy of the values for the backward pass, where they can."""
    return made_again(values) if fuses(values) and values.grad_fn is not None else nullcontext()


# The layers whose whole operation is known here. Other subclasses of nn.Linear and nn.Conv2d change it
# (weight standardisation, mixtures of experts ...) and are refused by name.
BINARY_LAYERS: Mapping[type[nn.Module], Any] = {  # each takes the float layer of its own type
    nn.Linear: BinaryLinear,
    NonDynamicallyQuantizableLinear: BinaryLinear,  # the out_proj of nn.MultiheadAttention
    TimmLinear: BinaryLinear,  # nn.Linear that casts under TorchScript; MobileNet's head
    nn.Conv2d: BinaryConv2d,
    Conv2dSame: BinaryConv2d,
}


def is_candidate(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Return whether a module is of the kind that this tool binarizes."""
    return isinstance(module, nn.Linear | nn.Conv2d)


def kind(module: nn.Module) -> str:
    """Return what a module is, for tables: linear, conv 3x3, depthwise conv 7x7, or its class's name."""
    if isinstance(module, nn.Linear | BinaryLinear):
        return "linear"
    if isinstance(module, nn.Conv2d | BinaryConv2d):
        height, width = module.kernel_size
        sort = "" if module.groups == 1 else "grouped "
        if module.groups > 1 and module.groups == module.in_channels:
            sort = "depthwise "
        return f"{sort}conv {height}x{width}"
    return type(module).__name__.lower()
