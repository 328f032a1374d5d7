"""Calibration: statistics of the inputs that will be binary, over some training images, without gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from binarize_cli.binarize.accumulator import AccumulatorRule
from binarize_cli.binarize.activations import Axes, SignInput, above
from binarize_cli.binarize.float_accumulator import FloatAccumulator
from binarize_cli.binarize.layers import BINARY_LAYERS, is_candidate
from binarize_cli.binarize.matmuls import BINARY_MATMULS, is_matmul
from binarize_cli.binarize.observe import observe_calls
from binarize_cli.binarize.weights import SignWeight
from binarize_cli.quantizers.functions import sign

IMAGES = 256
ONE_SIDED = 0.25  # GELU's outputs have at most that share of their magnitude below zero, a LayerNorm's half
RARE = 1e-3  # the share of sums that may overflow before a bit is dropped
MOST_SHIFT = 4


@dataclass(frozen=True)
class Overflow:
    """The int8 accumulator that was asked for: what happens at its ends, and the bits it drops of a tile."""

    overflow: str  # saturate or wrap
    shift: int | Literal["auto"] = "auto"


@dataclass(frozen=True)
class BinaryInputs:
    """How the inputs of binary layers become binary."""

    learned_threshold: bool = True
    learned_scale: bool = True
    pad_value: int = 0
    """What surrounds the signs of an image: 0, +1 or -1."""
    accumulator: Overflow | None = None
    """None: exact sums (task bwa)."""


@dataclass(frozen=True)
class InputStats:
    """What calibration found of the inputs of a layer, or of one factor of a matmul."""

    axes: Axes  # of the channels
    mean: Tensor  # [channels]
    magnitude: Tensor  # [], mean |x - t| with t the mean, or 0 without thresholds
    lighter: float
    """The share of the inputs' magnitude that the lighter of the two sides of zero has."""
    plus: float
    """The share of inputs that become +1."""

    @property
    def one_sided(self) -> bool:
        return self.lighter < ONE_SIDED

    @property
    def constant(self) -> bool:
        return self.plus in (0.0, 1.0)


@dataclass(frozen=True)
class Calibration:
    """What calibration found of a layer (one input) or a matmul (two factors)."""

    inputs: list[InputStats]
    rule: AccumulatorRule | None
    """Of its accumulator; None for exact sums."""


def calibrate(
    net: nn.Module, names: Sequence[str], images: Sequence[Tensor], binary: BinaryInputs
) -> dict[str, Calibration]:
    """Return what was found, by module name, of the float network in eval mode over batches of images."""
    observers = {name: [InputObserver(axes) for axes in _axes(net.get_submodule(name))] for name in names}

    def first_pass(name: str, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        for observer, x in zip(observers[name], inputs, strict=True):
            observer.add_moments(x)

    def second_pass(name: str, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        for observer, x in zip(observers[name], inputs, strict=True):
            observer.add_size(x, binary.learned_threshold)

    observe_calls(net, names, images, first_pass)
    observe_calls(net, names, images, second_pass)
    stats = {name: [observer.stats() for observer in observers[name]] for name in names}
    rules = _choose_rules(net, stats, images[0], binary, binary.accumulator) if binary.accumulator else {}
    return {name: Calibration(stats[name], rules.get(name)) for name in names}


class InputObserver:
    """Gathers statistics of one input over batches: its moments in a first pass, its size in a second."""

    def __init__(self, axes: Axes):
        self.axes = axes
        self.moments: list[Tensor] = []  # [3, channels] a batch
        self.sizes: list[tuple[Tensor, Tensor]] = []

    def add_moments(self, x: Tensor) -> None:
        """Add the mean of a batch, of its positive and of its negative part, by channel."""
        axes = self.axes
        x = x.movedim(axes, tuple(range(-len(axes), 0))).flatten(-len(axes)).flatten(0, -2)  # [n, channels]
        self.moments.append(torch.stack([x.mean(0), x.clamp_min(0).mean(0), (-x).clamp_min(0).mean(0)]))

    def add_size(self, x: Tensor, centred: bool) -> None:
        """Add the mean |x - t| of a batch, and the share with x >= t; t is the mean if `centred`, else 0."""
        off = above(x, self.mean_moments()[0] if centred else None, self.axes)
        self.sizes.append((off.abs().mean(), (off >= 0).float().mean()))

    def mean_moments(self) -> Tensor:
        """Return the moments over all batches: [3, channels]."""
        return torch.stack(self.moments).mean(0)

    def stats(self) -> InputStats:
        """Return what both passes found."""
        moments = self.mean_moments()
        magnitude, plus = (torch.stack(each).mean() for each in zip(*self.sizes, strict=True))
        over, under = moments[1].mean(), moments[2].mean()
        lighter = float(torch.minimum(over, under) / (over + under).clamp_min(1e-12))
        return InputStats(self.axes, moments[0], magnitude, lighter, float(plus))


def _axes(module: nn.Module) -> tuple[Axes, ...]:
    """Return the axes of the channels of each input of a float layer or matmul that is to be binary."""
    return module.axes if is_matmul(module) else (BINARY_LAYERS[type(module)].axes,)


def _choose_rules(
    net: nn.Module,
    stats: Mapping[str, list[InputStats]],
    images: Tensor,
    binary: BinaryInputs,
    asked: Overflow,
) -> dict[str, AccumulatorRule]:
    """Return the rule of each accumulator; `auto` drops the fewest bits with which sums rarely overflow.

    Judged by the signs of the float weights and inputs.
    """
    rules: dict[str, AccumulatorRule] = {}

    def choose(name: str, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        if asked.shift != "auto":
            rules[name] = AccumulatorRule(asked.overflow, asked.shift)
            return
        for shift in range(MOST_SHIFT + 1):
            rules[name] = AccumulatorRule(asked.overflow, shift)
            sums = FloatAccumulator(rules[name])
            sign_twin(net.get_submodule(name), stats[name], binary, sums)(*inputs)
            if sums.overflowed <= RARE:
                return

    observe_calls(net, stats, [images], choose)
    return rules


def sign_twin(
    module: nn.Module, stats: Sequence[InputStats], binary: BinaryInputs, accumulator: FloatAccumulator
) -> nn.Module:
    """Return the layer of signs for a float layer, or the matmul of signs for a float one; scales are 1."""
    one = torch.ones_like(stats[0].magnitude)
    inputs = [SignInput(found.axes, found.mean if binary.learned_threshold else None, one) for found in stats]
    if is_matmul(module):
        return BINARY_MATMULS[type(module)](inputs[0], inputs[1], accumulator)
    assert is_candidate(module)
    weight = SignWeight(sign(module.weight), one.expand(len(module.weight)))
    return BINARY_LAYERS[type(module)](module, weight, inputs[0], accumulator, binary.pad_value)
