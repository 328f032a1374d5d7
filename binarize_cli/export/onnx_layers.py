"""The binary layers as the ONNX exporter should see them: bits, a table, sums that onnxruntime is fast at.

Convolutions of signs are Conv of floats: exact, and with onnxruntime 1.32 on one core 3.5 to 5.5 times as
fast as ConvInteger (16 to 256 channels). Linear layers are MatMulInteger.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx.ops import symbolic, symbolic_multi_out

from binarize_cli.binarize.accumulator import HIGH, LOW, TILE, AccumulatorRule, Window
from binarize_cli.binarize.activations import Border, SignInput, above, bordered
from binarize_cli.binarize.layers import BinaryConv2d, BinaryLinear
from binarize_cli.binarize.matmuls import BinaryMatmul
from binarize_cli.binarize.tiles import tiles_of_conv
from binarize_cli.packed.runtime import PackedWeight

BIPOLAR = "qonnx.custom_op.general::BipolarQuant"


def table_of_bytes() -> Tensor:
    """Return the signs of every byte: float32 [256, 8], bit 0 first."""
    return ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).float() * 2 - 1


class BitsWeight(nn.Module):
    """Weights that the file holds as bits; a session expands them once, when it starts."""

    bits: Tensor
    scale: Tensor
    table: Tensor

    def __init__(self, packed: PackedWeight, table: Tensor):
        super().__init__()
        self.register_buffer("bits", packed.bits)  # uint8 [out, ceil(K / 8)]
        self.register_buffer("scale", packed.scale)  # [out]
        self.register_buffer("table", table)  # [256, 8]
        self.shape = packed.shape

    def signs(self) -> Tensor:
        """Return the signs in float32, shaped as the weights."""
        length = math.prod(self.shape[1:])
        signs = F.embedding(self.bits.int(), self.table).flatten(1)
        return (signs if signs.shape[1] == length else signs[:, :length]).reshape(self.shape)

    def signs_and_scale(self) -> tuple[Tensor, Tensor]:
        """Return the signs and the scale [out]."""
        return self.signs(), self.scale

    def forward(self) -> Tensor:  # [out, ...]
        return self.signs() * self.scale.view(-1, *[1] * (len(self.shape) - 1))


class BipolarWeight(nn.Module):
    """Weights as Brevitas writes them: floats through BipolarQuant, with a scale a channel."""

    scale: Tensor
    latent: Tensor
    one: Tensor

    def __init__(self, packed: PackedWeight):
        super().__init__()
        self.register_buffer("latent", packed.signs_and_scale()[0].contiguous().clone())  # [out, ...]
        self.register_buffer("scale", packed.scale)  # [out]
        self.register_buffer("one", torch.ones(()))
        self.shape = packed.shape

    def signs_and_scale(self) -> tuple[Tensor, Tensor]:
        """Return the signs, of the type BIPOLAR for FINN, whose scale is 1; and the scale [out]."""
        return bipolar(self.latent, self.one), self.scale

    def forward(self) -> Tensor:  # [out, ...]
        return bipolar(self.latent, self.scale.view(-1, *[1] * (len(self.shape) - 1)))


class ExportedInput(nn.Module):
    """x -> (the signs of x - t, beta), in the operators of a target."""

    pending_shift = None
    threshold: Tensor | None
    scale: Tensor

    def __init__(self, input: SignInput):
        super().__init__()
        self.axes = input.axes
        self.register_buffer("threshold", input.threshold)
        self.register_buffer("scale", input.scale)

    def forward(self, x: Tensor, border: Border | None = None) -> tuple[Tensor, Tensor]:
        return bordered(self.signs(above(x, self.threshold, self.axes)), border), self.scale

    def signs(self, x: Tensor) -> Tensor:
        """Return +1 where x >= 0, else -1."""
        raise NotImplementedError


class StepInput(ExportedInput):
    """The signs as a comparison: ONNX has no signbit."""

    def signs(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0)


class BipolarInput(ExportedInput):
    """The signs as BipolarQuant, which FINN and hls4ml read."""

    one: Tensor

    def __init__(self, input: SignInput):
        super().__init__(input)
        self.register_buffer("one", torch.ones(()))

    def signs(self, x: Tensor) -> Tensor:
        return bipolar(x, self.one)


def bipolar(x: Tensor, scale: Tensor) -> Tensor:
    """Return the node BipolarQuant: scale where x >= 0, else -scale."""
    return symbolic(BIPOLAR, (x, scale), dtype=torch.float32, shape=x.shape, version=1)


class FloatSums(nn.Module):
    """The accumulator in floats, without branches on data: sums of signs are exact below 2^24."""

    def __init__(self, rule: AccumulatorRule | None):
        super().__init__()
        self.rule = rule

    def linear(self, values: Tensor, weights: Tensor) -> Tensor:
        """Return the sums of [..., K] by [out, K]: [..., out]."""
        return self._sums(lambda a, b: F.linear(values[..., a:b], weights[:, a:b]), weights.shape[1])

    def conv(self, images: Tensor, weights: Tensor, window: Window) -> Tensor:
        """Return the sums of [N, C, H, W] by [out, C / groups, kh, kw]: [N, out, H', W']."""

        def conv(x: Tensor, w: Tensor) -> Tensor:
            return F.conv2d(x, w, None, window.stride, 0, window.dilation, window.groups)

        if self.rule is None:
            return conv(images, weights)
        assert self.rule.tiles != "channel", "refused before: the order of format 1"
        length = weights[0].numel()
        return self._sums(tiles_of_conv(images, weights, window.dilation, window.groups, conv), length)

    def matmul(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the sums of [..., L, K] by [..., M, K], row by row: [..., L, M]."""
        return self._sums(lambda a, b: left[..., a:b] @ right[..., a:b].mT, left.shape[-1])

    def _sums(self, tile: Callable[[int, int], Tensor], length: int) -> Tensor:
        if self.rule is None:
            return tile(0, length)
        step = 2**self.rule.shift
        total: Tensor | None = None
        for start in range(0, length, TILE):
            part = tile(start, min(start + TILE, length))
            if step > 1:
                part = ((part + step // 2) / step).floor()
            total = part if total is None else total + part
            if self.rule.overflow == "saturate":
                total = total.clamp(LOW, HIGH)
            else:
                total = total - 256 * ((total - LOW) / 256).floor()
        assert total is not None, "a sum has at least one product"
        return total * step


class IntegerLinear(BinaryLinear):
    """BinaryLinear by MatMulInteger: its inputs are signs, or are quantized to 8 bits tensor by tensor."""

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        signs, alpha = self.source.signs_and_scale()
        matrix = signs.to(torch.int8).T  # [in, out]
        shape = (*x.shape[:-1], self.out_features)
        if isinstance(self.input, StepInput):
            t = self.input.threshold
            ones = (x >= (0.0 if t is None else t)).to(torch.uint8)  # 1 for +1, 0 for -1
            sums = symbolic("MatMulInteger", (ones, matrix), dtype=torch.int32, shape=shape)
            scale = alpha * self.input.scale
            shift = -scale * signs.sum(1)
            y = sums.float() * (2 * scale)
            return y + (shift if self.bias is None else self.bias + shift)
        types, shapes = (torch.uint8, torch.float32, torch.uint8), (x.shape, (), ())
        codes, step, zero = symbolic_multi_out("DynamicQuantizeLinear", (x,), dtypes=types, shapes=shapes)
        sums = symbolic("MatMulInteger", (codes, matrix, zero), dtype=torch.int32, shape=shape)
        y = sums.float() * (step * alpha)
        return y if self.bias is None else y + self.bias


def dress(net: Any, kind: str) -> nn.Module:
    """Replace, in place, the binary layers of a rebuilt network by those for `float`, `int8` or `qonnx`."""
    table = table_of_bytes()
    inputs: Any = BipolarInput if kind == "qonnx" else StepInput
    layer: Any
    for name, layer in list(net.named_modules()):
        if isinstance(layer, BinaryMatmul):
            layer.accumulator = FloatSums(getattr(layer.accumulator, "rule", None))
            layer.left, layer.right = inputs(layer.left), inputs(layer.right)
        elif isinstance(layer, BinaryLinear | BinaryConv2d):
            net.set_submodule(name, _dressed(layer, kind, inputs, table))
    return net.eval()


def _dressed(layer: Any, kind: str, inputs: Callable[[Any], nn.Module], table: Tensor) -> nn.Module:
    """Return the layer, as `kind` has it, on the same bits."""
    packed, rule = layer.source, getattr(layer.accumulator, "rule", None)
    assert isinstance(packed, PackedWeight), "a rebuilt network holds bits"
    source = BipolarWeight(packed) if kind == "qonnx" else BitsWeight(packed, table)
    input: Any = None if layer.input is None else inputs(layer.input)
    sums = None if layer.input is None else FloatSums(rule)
    if isinstance(layer, BinaryConv2d):
        like: Any = layer
        conv = BinaryConv2d(like, source, input, sums, layer.pad_value)
        conv.pads_same = layer.pads_same
        return conv
    integers = kind != "qonnx" and (rule is None if layer.input is not None else kind == "int8")
    return (IntegerLinear if integers else BinaryLinear)(layer, source, input, sums)
