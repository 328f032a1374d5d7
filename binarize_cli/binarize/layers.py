"""The binary layers. Each does its float twin's operation with weights it asks its `weight` module for."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from timm.layers import Linear as TimmLinear
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear


class BinaryLinear(nn.Module):
    """nn.Linear whose weights [out, in] come from `weight()`."""

    def __init__(self, linear: nn.Linear, weight: nn.Module):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = weight
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        return F.linear(x, self.weight(), self.bias)


class BinaryConv2d(nn.Module):
    """nn.Conv2d (grouped, strided, dilated; TensorFlow's "same" padding too) with weights from `weight()`."""

    def __init__(self, conv: nn.Conv2d, weight: nn.Module):
        super().__init__()
        self.in_channels, self.kernel_size, self.groups = conv.in_channels, conv.kernel_size, conv.groups
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.pads_same = isinstance(conv, Conv2dSame)
        self.weight = weight
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:  # [N, in, H, W] -> [N, out, H', W']
        padding = self.padding
        if self.pads_same:
            x, padding = pad_same(x, self.kernel_size, self.stride, self.dilation), 0
        return F.conv2d(x, self.weight(), self.bias, self.stride, padding, self.dilation, self.groups)


# The layers whose whole operation is known here. Other subclasses of nn.Linear and nn.Conv2d change it
# (weight standardisation, mixtures of experts ...) and are refused by name.
BINARY_FORM = {
    nn.Linear: BinaryLinear,
    NonDynamicallyQuantizableLinear: BinaryLinear,  # the out_proj of nn.MultiheadAttention
    TimmLinear: BinaryLinear,  # nn.Linear that casts under TorchScript; MobileNet's head
    nn.Conv2d: BinaryConv2d,
    Conv2dSame: BinaryConv2d,
}


def is_candidate(module: nn.Module) -> bool:
    """Whether a module is of the kind this tool binarizes."""
    return isinstance(module, nn.Linear | nn.Conv2d)


def kind(module: nn.Module) -> str:
    """What a module is, for tables: linear, conv 3x3, depthwise conv 7x7, or its class in lower case."""
    if isinstance(module, nn.Linear | BinaryLinear):
        return "linear"
    if isinstance(module, nn.Conv2d | BinaryConv2d):
        height, width = module.kernel_size
        sort = "" if module.groups == 1 else "grouped "
        if module.groups > 1 and module.groups == module.in_channels:
            sort = "depthwise "
        return f"{sort}conv {height}x{width}"
    return type(module).__name__.lower()
