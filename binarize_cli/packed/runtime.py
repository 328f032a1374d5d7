"""The network of a packed file, rebuilt from the file alone: no model flag, no network access, no recipe."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from binarize_cli.binarize.accumulator import AccumulatorRule
from binarize_cli.binarize.activations import Axes, SignInput
from binarize_cli.binarize.blocks import rewrite_architecture
from binarize_cli.binarize.convert import replace_layers
from binarize_cli.binarize.layers import BINARY_LAYERS, PAD_VALUES
from binarize_cli.binarize.matmuls import BINARY_MATMULS
from binarize_cli.errors import InputError
from binarize_cli.models.build import build
from binarize_cli.packed.bits import unpack
from binarize_cli.packed.format import BITS, OWN, SCALE, PackedFile
from binarize_cli.packed.integer_accumulator import IntegerAccumulator


class PackedWeight(nn.Module):
    """Holds the bits; unpacks them to float32 when first asked, and keeps that for later."""

    def __init__(self, bits: Tensor, scale: Tensor, shape: tuple[int, ...]):
        super().__init__()
        # Not in the state dict: that holds what the file stores under the library's own names.
        self.register_buffer("bits", bits, persistent=False)  # uint8 [out, ceil(K / 8)]
        self.register_buffer("scale", scale, persistent=False)  # [out]
        self.shape = shape
        self._kept: dict[str, Tensor] = {}

    def signs_and_scale(self) -> tuple[Tensor, Tensor]:
        """The signs in float32, shaped as the weights, and the scale [out]."""
        return self._keep("signs", self._signs), self.scale

    def forward(self) -> Tensor:  # [out, ...]
        return self._keep("weights", self._weights)

    def _keep(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        if name not in self._kept or self._kept[name].device != self.scale.device:
            self._kept[name] = compute()
        return self._kept[name]

    def _signs(self) -> Tensor:
        return torch.from_numpy(unpack(self.bits.cpu().numpy(), self.shape)).to(self.scale)

    def _weights(self) -> Tensor:
        dense = self._signs() * self.scale.view(-1, *[1] * (len(self.shape) - 1))
        # The layout of all other convolutions: with another one the last bit of a sum may differ.
        # (`contiguous` leaves the strides of a single input channel as they are; `to` does not.)
        return dense.to(memory_format=torch.channels_last) if dense.dim() == 4 else dense


def rebuild(file: PackedFile) -> nn.Module:
    """The network, in eval mode, float32 on the CPU. Raises InputError where file and model disagree."""
    model = file.document["model"]
    net = build(model["source"], model["name"], model["num_classes"], **model["kwargs"])
    made = file.document["recipe"].get("activation", {})  # a file of weights alone may not have it
    net = rewrite_architecture(
        net, file.document["task"], made.get("blocks", "keep"), made.get("attention", "float")
    )
    tensors = {name: torch.from_numpy(array) for name, array in file.tensors.items()}
    names = [name.removesuffix(BITS) for name in tensors if name.endswith(BITS)]
    rest = {name: tensor for name, tensor in tensors.items() if not name.endswith(OWN)}
    rows = {row["name"]: row for row in file.document["layers"]}
    try:
        replace_layers(net, names, lambda name, layer: _layer(name, layer, rows[name], tensors, made))
        for name in rows:
            if name + ".left_scale" in tensors:
                net.set_submodule(name, _matmul(net.get_submodule(name), rows[name], tensors))
        net.load_state_dict(rest)  # copies float16 into float32
    except (AttributeError, KeyError, ValueError, RuntimeError) as error:
        hint = "The file is damaged, or the model has changed in this version of its library."
        what = f"does not fit the model {model['name']}: {error}"
        raise InputError(what, where=str(file.path), hint=hint) from None
    return net.eval()


def _layer(name: str, layer: nn.Module, row: dict, tensors: dict[str, Tensor], made: dict) -> nn.Module:
    """Return the binary form of a layer; with an input scale, its inputs become signs, summed in integers."""
    source, binary = _packed_weight(name, layer, tensors), BINARY_LAYERS[type(layer)]
    if name + ".input_scale" not in tensors:
        return binary(layer, source)
    signs = _input(name, "input", binary.axes, tensors)
    made_of = binary(layer, source, signs, _accumulator(row), PAD_VALUES[made["padding"]])
    if layer.bias is None and (bias := tensors.get(name + ".bias")) is not None:
        made_of.bias = nn.Parameter(
            torch.zeros_like(bias, dtype=torch.float32)
        )  # it holds what thresholds took
    return made_of


def _matmul(module: nn.Module, row: dict, tensors: dict[str, Tensor]) -> nn.Module:
    """Return the binary form of a matmul of attention."""
    sides = zip(("left", "right"), module.axes, strict=True)
    inputs = [_input(row["name"], side, axes, tensors) for side, axes in sides]
    return BINARY_MATMULS[type(module)](*inputs, _accumulator(row))


def _input(name: str, side: str, axes: Axes, tensors: dict[str, Tensor]) -> SignInput:
    threshold = tensors.get(f"{name}.{side}_threshold")
    scale = tensors[f"{name}.{side}_scale"].float()
    return SignInput(axes, None if threshold is None else threshold.float(), scale)


def _accumulator(row: dict) -> IntegerAccumulator:
    rule = row["accumulator"]
    return IntegerAccumulator(AccumulatorRule(rule["overflow"], rule["shift"]) if rule else None)


def _packed_weight(name: str, layer: nn.Module, tensors: dict[str, Tensor]) -> PackedWeight:
    shape = tuple(layer.weight.shape)
    bits, scale = tensors[name + BITS], tensors[name + SCALE]
    expected = (shape[0], math.ceil(math.prod(shape[1:]) / 8))
    if bits.dtype != torch.uint8 or bits.shape != expected:
        raise ValueError(f"{name} has bits {bits.dtype} {tuple(bits.shape)}, not uint8 {expected}")
    if not scale.is_floating_point() or scale.shape != shape[:1]:
        raise ValueError(f"{name} has a scale {scale.dtype} {tuple(scale.shape)}, not float {shape[:1]}")
    return PackedWeight(bits, scale.float(), shape)
