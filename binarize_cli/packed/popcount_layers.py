"""Binary layers that compute on bits: they pack the signs of their inputs and count, by `kernels`.

On another device than a CPU, for other numbers than float32 and under torch.compile they compute as the
layers they inherit from, on signs as numbers. Both ways lead to the same numbers, to the bit.

Importing this imports llvmlite; `runtime` does so where a file has binary inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from binarize_cli.binarize.activations import SignInput
from binarize_cli.binarize.layers import BinaryConv2d, BinaryLinear
from binarize_cli.console import say
from binarize_cli.packed import kernels
from binarize_cli.packed.packed_weight import PackedWeight
from binarize_cli.packed.popcount_weight import PopcountWeight

FEWEST_CHANNELS = 32  # of a group: with fewer, most of a 64-bit word is padding


def layer_class(binary: type[nn.Module], module: nn.Module) -> Any:
    """Return the class that computes on bits what `binary` does for a float layer; `binary` if none suits.

    None suits on a CPU that counts bits slowly, nor for convolutions of many small groups (depthwise ones).
    """
    if _in_small_groups(module) or kernels.arithmetic() != "popcount":
        return binary
    _announce_compilation()
    return POPCOUNT_LAYERS[binary]


def _in_small_groups(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return False
    return module.groups > 1 and module.in_channels // module.groups < FEWEST_CHANNELS


@cache
def _announce_compilation() -> None:
    kernels.when_compiling(lambda: say("compiling the popcount kernels, once"))


class Made:
    """What was made of some tensors: made again when one of them is another or has changed.

    A copy holds nothing: what kernels were made of tensors goes by the addresses of those.
    """

    def __init__(self) -> None:
        self.key: tuple | None = None
        self.value: Any = None

    def of(self, tensors: list[Tensor | None], more: tuple, make: Callable[[], Any]) -> Any:
        """Return make(), or what it returned before for the same tensors, as they are now, and `more`."""
        key = [_identity(tensor) for tensor in tensors], more
        if key != self.key:
            with torch.no_grad():
                self.value = make()
            self.key = key
        return self.value

    def __reduce__(self) -> tuple:
        return Made, ()


def _identity(tensor: Tensor | None) -> tuple | None:
    """Return the tensor's place, and how often it was written to; inference tensors do not count that."""
    if tensor is None:
        return None
    return tensor.data_ptr(), None if tensor.is_inference() else tensor._version


def suits(layer: Any, x: Tensor) -> bool:
    """Return whether the kernels can read the tensor and the layer has what they read.

    They know nothing but addresses of float32 numbers. A caller may have given the layer other weights.
    """
    parts = layer._modules  # `layer.source` takes longer
    known = type(parts["source"]) is PopcountWeight and type(parts["input"]) is SignInput
    return known and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


class PopcountLinear(BinaryLinear):
    """BinaryLinear on bits."""

    source: Any  # a PopcountWeight
    input: Any  # a SignInput
    accumulator: Any  # an IntegerAccumulator

    def __init__(self, module: nn.Linear, source: PackedWeight, *parts: Any) -> None:
        super().__init__(module, PopcountWeight(source, None), *parts)
        self._made = Made()

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        if not suits(self, x) or x.shape[-1] != self.in_features:
            return super().forward(x)
        bias = None if torch.is_grad_enabled() else self.bias  # the kernels know no gradients
        limits, product = self.kernel(bias)
        bits = kernels.pack_signs(x, limits)
        y = product(bits).contiguous().view(*x.shape[:-1], self.out_features)
        return y if self.bias is None or bias is not None else y + self.bias

    def added_to(self, past: Tensor, x: Tensor) -> Tensor:
        """Return past + the layer of x, in the pass over the sums: [..., out] and [..., in] -> [..., out]."""
        limits, product = self.kernel(self.bias)
        return product.added_to(past, kernels.pack_signs(x, limits))

    def kernel(self, bias: Tensor | None) -> tuple[kernels.Limits, kernels.PopcountLinear]:
        """Return the limits of the inputs' signs, and the product with what comes after it."""
        return self._made.of(tensors_of(self), (bias is None,), lambda: self._make(bias))

    def _make(self, bias: Tensor | None) -> tuple[kernels.Limits, kernels.PopcountLinear]:
        scale, limits, rule = scale_limits_rule(self, self.in_features)
        return limits, kernels.PopcountLinear(self.source.matrix, scale, bias, rule)


class PopcountConv2d(BinaryConv2d):
    """BinaryConv2d on bits."""

    source: Any  # a PopcountWeight
    input: Any  # a SignInput
    accumulator: Any  # an IntegerAccumulator

    def __init__(
        self, module: nn.Conv2d, source: PackedWeight, input: SignInput, accumulator: Any, pad_value: int = 0
    ) -> None:
        super().__init__(module, source, input, accumulator, pad_value)
        self.source = PopcountWeight(source, self._window((0, 0, 0, 0)))
        self._made = Made()

    def forward(self, x: Tensor) -> Tensor:  # [N, in, H, W] -> [N, out, H', W']
        if not self.takes(x):
            return super().forward(x)
        bias = None if torch.is_grad_enabled() else self.bias  # the kernels know no gradients
        margins = self.margins(x)
        tensors, more = tensors_of(self), (bias is None, margins)
        limits, conv = self._made.of(tensors, more, lambda: self.kernel(margins, bias))
        y = apply_conv(limits, conv, x).contiguous(memory_format=torch.channels_last)
        return y if self.bias is None or bias is not None else y + self.bias.view(-1, 1, 1)

    def takes(self, x: Tensor) -> bool:
        """Return whether the kernels compute the layer for these images; if not, torch says why not."""
        if not suits(self, x) or x.dim() != 4 or x.shape[1] != self.in_channels:
            return False
        return min(self._window(self.margins(x)).output_size(*x.shape[2:])) >= 1

    def kernel(
        self, margins: tuple[int, int, int, int], bias: Tensor | None, after: kernels.Norm | None = None
    ) -> tuple[kernels.Limits, kernels.PopcountConv]:
        """Return the limits of the inputs' signs, and the convolution with what comes after it."""
        scale, limits, rule = scale_limits_rule(self, self.in_channels)
        window = self._window(margins)
        return limits, kernels.PopcountConv(window, self.source.matrix, scale, bias, rule, after)

    def _window(self, margins: tuple[int, int, int, int]) -> kernels.Window:
        """Return the window, in whose order products are added: int8 sums depend on it, exact ones do not."""
        order = "pixel" if self.accumulator.rule is None else self.accumulator.rule.tiles
        kernel, stride, dilation = map(_pair, (self.kernel_size, self.stride, self.dilation))
        return kernels.Window(
            self.in_channels, kernel, stride, dilation, self.groups, margins, self.pad_value, order
        )


def apply_conv(
    limits: kernels.Limits,
    conv: kernels.PopcountConv,
    x: Tensor,
    past: Tensor | None = None,
    more: Tensor | None = None,
) -> Tensor:
    """Return the convolution of images [N, in, H, W], with what comes after it: [N, out, H', W']."""
    height, width = x.shape[2:]
    return conv(kernels.pack_image(x, limits, conv.window), (height, width), past, more)


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    high, wide = numbers
    return high, wide


POPCOUNT_LAYERS: dict[type[nn.Module], Any] = {BinaryLinear: PopcountLinear, BinaryConv2d: PopcountConv2d}


def tensors_of(layer: Any) -> list[Tensor | None]:
    """Return the tensors that a layer's kernels are made of."""
    parts = layer._modules  # each name of a module is looked up slowly, but not those of its dictionaries
    weights, signs = parts["source"]._buffers, parts["input"]._buffers
    scales = weights["scale"], signs["threshold"], signs["scale"]
    return [weights["blocks"], *scales, layer._parameters.get("bias")]


def scale_limits_rule(layer: Any, channels: int) -> tuple[Tensor, kernels.Limits, kernels.Int8 | None]:
    """Return (alpha beta [out], the limits of the input's signs [channels], the accumulator's rule)."""
    threshold = torch.zeros(channels) if layer.input.threshold is None else layer.input.threshold
    rule = layer.accumulator.rule
    rule = rule and kernels.Int8(rule.overflow, rule.shift)
    return layer.source.scale * layer.input.scale, kernels.Limits.of_threshold(threshold), rule
