"""Sensitivity: what each binary layer costs in accuracy.

Of a trained file: all layers are set free from their signs and fine-tuned together for a few steps, all else
as it is in the file. Then one layer (or block) at a time gets its signs back, and what is lost is what they
cost. To set free and fine-tune one at a time would not tell layers apart: a network that was trained briefly
gains by any fine-tuning, whichever layer it is. The old latents would not do either: the rest of the network
was trained beside signs, and scores less beside them. With binary inputs, whose network does not bear floats
everywhere, one layer at a time is set free. Of a float model, as a forecast: one layer at a time becomes
binary, untrained.

The images are training images, some to fine-tune on and others to measure: layers are chosen by the result,
and what is reported later (the validation images) is not chosen on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize_cli.analysis.choice import FLOAT_BYTES, Gain, Score, Unit
from binarize_cli.binarize.activations import InputQuantizer
from binarize_cli.binarize.convert import binary_layers
from binarize_cli.binarize.layers import BinaryConv2d, BinaryLinear, is_candidate
from binarize_cli.binarize.prepare import make_binary
from binarize_cli.binarize.select import Layer
from binarize_cli.binarize.weights import WeightSource
from binarize_cli.evaluation import measure
from binarize_cli.recipe import Recipe
from binarize_cli.training.teacher import block_names

Batch = tuple[Tensor, Tensor]
Binary = BinaryLinear | BinaryConv2d
RATE = 0.002  # of a layer's mean |w|: Adam's step. Of 0.001, 0.003, 0.008 and 0.02 on ResNet-20, the two
# larger ones made half of the layers worse on images that they were not tuned on.


class FreeWeight(nn.Module):
    """Weights [out, ...] of a layer that was set free from its signs: a source that any step may move."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self) -> Tensor:
        return self.weight

    def signs_and_scale(self) -> tuple[Tensor, Tensor]:
        """Never asked for: a free layer has float inputs. Raises RuntimeError."""
        raise RuntimeError("a layer that was set free has no signs")


def units_of(net: nn.Module, names: Sequence[str], by_block: bool) -> list[Unit]:
    """Return the units of the named binary layers (or those to become binary), in the network's order."""
    groups: dict[str, list[str]] = {}
    blocks = block_names(net) if by_block else []
    for name in names:
        block = next((block for block in blocks if name.startswith(f"{block}.")), name)
        groups.setdefault(block, []).append(name)
    return [Unit(group, layers, sum(_growth(net, n) for n in layers)) for group, layers in groups.items()]


def _growth(net: nn.Module, name: str) -> int:
    """Return the bytes that a layer takes more as float16 than as bits and scales."""
    shape = cast(Tensor, net.get_submodule(name).weight).shape
    bits = shape[0] * math.ceil(math.prod(shape[1:]) / 8) + FLOAT_BYTES * shape[0]
    return FLOAT_BYTES * math.prod(shape) - bits


# --- a trained file ---


State = tuple[WeightSource, InputQuantizer | None, nn.Parameter | None]


def _state(layer: Binary) -> State:
    """Return what differs between a layer of signs and a free one: its weights, inputs and bias."""
    return layer.source, layer.input, cast(nn.Parameter | None, layer.bias)


def _restore(layer: Binary, state: State) -> None:
    layer.source, layer.input, layer.bias = state


@contextmanager
def set_free(net: nn.Module, names: Sequence[str], batches: Sequence[Batch]) -> Iterator[dict[str, State]]:
    """Make the named layers float inside the block, fine-tuned by a step a batch; then all is as before.

    What they were is handed out by their names.
    """
    layers = dict(binary_layers(net))
    before = {name: _state(layers[name]) for name in names}
    for name in names:
        layer = layers[name]
        layer.bias = _float_bias(layer)
        layer.source, layer.input = FreeWeight(_weights(layer.source)), None
    try:
        _fine_tune(net, [layers[name] for name in names], batches)
        yield before
    finally:
        for name in names:
            _restore(layers[name], before[name])


@contextmanager
def signs_again(net: nn.Module, names: Sequence[str], signs: Mapping[str, State]) -> Iterator[None]:
    """Give the named layers, which are free, their signs back inside the block."""
    layers = dict(binary_layers(net))
    free = {name: _state(layers[name]) for name in names}
    try:
        for name in names:
            _restore(layers[name], signs[name])
        yield
    finally:
        for name in names:
            _restore(layers[name], free[name])


def _weights(source: WeightSource) -> Tensor:
    signs, scale = source.signs_and_scale()
    return signs * scale.view(-1, *[1] * (signs.dim() - 1))


def _float_bias(layer: Binary) -> nn.Parameter | None:
    """Return the bias without what thresholds took off: a float layer gets its inputs whole."""
    threshold = None if layer.input is None else layer.input.threshold
    if layer.bias is None or threshold is None:
        return cast(nn.Parameter | None, layer.bias)
    shift = SimpleNamespace(pending_shift=-threshold)
    stand_in = SimpleNamespace(bias=layer.bias, groups=getattr(layer, "groups", 1), input=shift)
    shifted = type(layer).shifted_bias(cast(Any, stand_in), *layer.source.signs_and_scale())
    return nn.Parameter(cast(Tensor, shifted).detach())


def _fine_tune(net: nn.Module, layers: Sequence[Binary], batches: Sequence[Batch]) -> None:
    """Move the weights of those layers alone, down the cross-entropy, at a rate that falls to zero."""
    moved = [cast(FreeWeight, layer.source).weight for layer in layers]
    if not (moved and batches):
        return
    needed = [parameter.requires_grad for parameter in net.parameters()]
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    for weight in moved:
        weight.requires_grad_(True)
    groups = [{"params": [w], "lr": RATE * float(w.detach().abs().mean())} for w in moved]
    optimizer = torch.optim.Adam(groups)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max(1, len(batches)))
    net.eval()
    with torch.enable_grad():
        for images, targets in batches:
            loss = F.cross_entropy(net(images).float(), targets)
            if not loss.requires_grad:  # signs behind it, and no shortcut around them
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    for weight in moved:
        weight.requires_grad_(False)
    for parameter, before in zip(net.parameters(), needed, strict=False):
        parameter.requires_grad_(before)


@dataclass(frozen=True)
class Trained:
    """The analysis of a trained, packed network."""

    net: nn.Module  # hard, in eval mode
    fit: Sequence[Batch]
    """Batches to fine-tune on, one step each, on the network's device."""
    judge: Sequence[Batch]
    device: torch.device

    def base(self) -> Score:
        """Return what the network scores as it is."""
        return score(self.net, self.judge, self.device)

    def with_float(self, names: Sequence[str]) -> Score:
        """Return what it scores with the named layers set free."""
        with set_free(self.net, names, self.fit):
            return score(self.net, self.judge, self.device)

    def gains(self, units: Sequence[Unit], first: int) -> Iterator[Gain]:
        """Yield what each unit from number `first` on gains by being float."""
        if any(layer.input is not None for _, layer in binary_layers(self.net)):
            return self._gains_alone(units[first:])
        return self._gains_beside_others(units, first)

    def _gains_alone(self, units: Sequence[Unit]) -> Iterator[Gain]:
        if not units:
            return
        base = self.base()
        for unit in units:
            yield _gain(unit, self.with_float(unit.layers), base)

    def _gains_beside_others(self, units: Sequence[Unit], first: int) -> Iterator[Gain]:
        if first == len(units):
            return
        names = [name for unit in units for name in unit.layers]
        with set_free(self.net, names, self.fit) as signs:
            free = score(self.net, self.judge, self.device)
            for unit in units[first:]:
                with signs_again(self.net, unit.layers, signs):
                    found = score(self.net, self.judge, self.device)
                yield _gain(unit, free, found)


# --- a float model ---


@dataclass(frozen=True)
class Forecast:
    """The analysis of a float model: what each layer loses when it alone becomes binary, untrained."""

    net: nn.Module  # rewritten for the task, float, in eval mode
    table: Sequence[Layer]
    recipe: Recipe
    judge: Sequence[Batch]
    device: torch.device

    def base(self) -> Score:
        """Return what the network of signs scores, untrained."""
        return self._with_binary([row.name for row in self.table if row.binary])

    def float_score(self) -> Score:
        """Return what the float network scores."""
        return score(self.net, self.judge, self.device)

    def with_float(self, names: Sequence[str]) -> Score:
        """Return what the network of signs scores with the named layers float."""
        return self._with_binary([r.name for r in self.table if r.binary and r.name not in set(names)])

    def gains(self, units: Sequence[Unit], first: int) -> Iterator[Gain]:
        """Yield what each unit from number `first` on loses by becoming binary, alone."""
        if first == len(units):
            return
        better = self.float_score()
        for unit in units[first:]:
            yield _gain(unit, better, self._with_binary(unit.layers))

    def _with_binary(self, names: Sequence[str]) -> Score:
        chosen = set(names)
        table = [replace(row, binary=row.binary and row.name in chosen) for row in self.table]
        net = copy.deepcopy(self.net)
        if chosen:
            images = [images for images, _ in self.judge[:4]] if self.recipe.task != "bw" else []
            net = make_binary(net, table, self.recipe, images).frozen()
        return score(net, self.judge, self.device)


def _gain(unit: Unit, better: Score, worse: Score) -> Gain:
    points, loss = round(better.top1 - worse.top1, 4), round(worse.loss - better.loss, 6)
    return Gain(unit.name, unit.layers, unit.bytes, points, loss)


def score(net: nn.Module, batches: Sequence[Batch], device: torch.device) -> Score:
    """Return what a network scores on those batches."""
    found = measure(net, batches, device)
    return Score(found.top1, found.loss)


def candidates(net: nn.Module, table: Sequence[Layer]) -> list[str]:
    """Return the layers with weights that the table makes binary; products of attention have no bytes."""
    return [row.name for row in table if row.binary and is_candidate(net.get_submodule(row.name))]
