"""A look at the inputs of the layers and matmuls that will have binary ones, over some training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from binarize_cli.binarize.accumulator import Rule
from binarize_cli.binarize.activations import Axes, SignInput, above
from binarize_cli.binarize.float_accumulator import FloatAccumulator
from binarize_cli.binarize.layers import BINARY_LAYERS, PAD_VALUES
from binarize_cli.binarize.matmuls import BINARY_MATMULS, is_matmul
from binarize_cli.binarize.observe import watch
from binarize_cli.binarize.weights import SignWeight
from binarize_cli.quantizers.functions import sign
from binarize_cli.recipe import Recipe

IMAGES = 256
ONE_SIDED = 0.25  # GELU's outputs have at most that share of their magnitude below zero, a LayerNorm's half
RARE = 1e-3  # the share of sums that may overflow before a bit is dropped
MOST_SHIFT = 4


@dataclass
class InputStats:
    """What the inputs of a layer looked like, or one factor of a matmul."""

    axes: Axes  # of the channels
    mean: Tensor  # [channels]
    magnitude: Tensor  # [], mean |x - t| with t the mean, or 0 without thresholds
    lighter: float
    """The share of the inputs' magnitude that the lighter of the two sides of zero has."""
    plus: float
    """The share of inputs that become +1."""
    shift: int = 0
    """Bits that the int8 accumulator drops from a tile's sum."""

    @property
    def one_sided(self) -> bool:
        return self.lighter < ONE_SIDED

    @property
    def constant(self) -> bool:
        return self.plus in (0.0, 1.0)


def calibrate(
    net: nn.Module, names: Sequence[str], images: Sequence[Tensor], recipe: Recipe
) -> dict[str, list[InputStats]]:
    """Name -> what its inputs are: one of a layer, two of a matmul.

    Of the float network in eval mode, over batches of images.
    """
    learned = recipe.activation.threshold == "learned"
    axes = {name: axes_of(net.get_submodule(name)) for name in names}
    moments: dict[str, list[list[Tensor]]] = {name: [[] for _ in axes[name]] for name in names}

    def add(name: str, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        for seen, x, own in zip(moments[name], inputs, axes[name], strict=True):
            seen.append(_moments(x, own))

    watch(net, names, images, add)
    mean = {name: [torch.stack(each).mean(0) for each in moments[name]] for name in names}  # [3, channels]
    sizes: dict[str, list[list[tuple[Tensor, Tensor]]]] = {name: [[] for _ in axes[name]] for name in names}

    def size(name: str, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        for seen, x, own, found in zip(sizes[name], inputs, axes[name], mean[name], strict=True):
            off = above(x, found[0] if learned else None, own)
            seen.append((off.abs().mean(), (off >= 0).float().mean()))

    watch(net, names, images, size)
    stats = {
        name: [_stats(*found) for found in zip(axes[name], mean[name], sizes[name], strict=True)]
        for name in names
    }
    if recipe.task == "bwaa":
        _choose_shifts(net, stats, images[0], recipe)
    return stats


def axes_of(module: nn.Module) -> tuple[Axes, ...]:
    """The axes of the channels of each input of a float layer or matmul that is to be binary."""
    return module.axes if is_matmul(module) else (BINARY_LAYERS[type(module)].axes,)


def _moments(x: Tensor, axes: Axes) -> Tensor:
    """[3, channels]: the mean input, the mean of its positive part, of its negative part."""
    x = x.movedim(axes, tuple(range(-len(axes), 0))).flatten(-len(axes)).flatten(0, -2)  # [values, channels]
    return torch.stack([x.mean(0), x.clamp_min(0).mean(0), (-x).clamp_min(0).mean(0)])


def _stats(axes: Axes, moments: Tensor, sizes: Sequence[tuple[Tensor, Tensor]]) -> InputStats:
    magnitude, plus = (torch.stack(each).mean() for each in zip(*sizes, strict=True))
    over, under = moments[1].mean(), moments[2].mean()
    lighter = float(torch.minimum(over, under) / (over + under).clamp_min(1e-12))
    return InputStats(axes, moments[0], magnitude, lighter, float(plus))


def _choose_shifts(
    net: nn.Module, stats: Mapping[str, Sequence[InputStats]], images: Tensor, recipe: Recipe
) -> None:
    """The fewest bits to drop so that sums rarely overflow, by the signs of float weights and inputs."""
    rule = recipe.accumulator

    def choose(name: str, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        found = stats[name][0]
        if rule.shift != "auto":
            found.shift = rule.shift
            return
        binary = _signs(net.get_submodule(name), stats[name], recipe)
        for shift in range(MOST_SHIFT + 1):
            binary.accumulator = FloatAccumulator(Rule(rule.overflow, shift))
            binary(*inputs)
            found.shift = shift
            if binary.accumulator.overflowed <= RARE:
                return

    watch(net, stats, [images], choose)


def _signs(module: nn.Module, stats: Sequence[InputStats], recipe: Recipe) -> nn.Module:
    """A layer of signs for a float layer, a matmul of signs for a float matmul; without accumulator."""
    learned, one = recipe.activation.threshold == "learned", torch.ones_like(stats[0].magnitude)
    inputs = [SignInput(found.axes, found.mean if learned else None, one) for found in stats]
    if is_matmul(module):
        return BINARY_MATMULS[type(module)](*inputs)
    layer = BINARY_LAYERS[type(module)](
        module, SignWeight(sign(module.weight), one.expand(len(module.weight)))
    )
    layer.input, layer.pad_value = inputs[0], PAD_VALUES[recipe.activation.padding]
    return layer
