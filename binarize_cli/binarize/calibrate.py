"""A look at the inputs of the layers that will have binary ones, over some training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from binarize_cli.binarize.accumulator import Rule
from binarize_cli.binarize.activations import SignInput, above
from binarize_cli.binarize.layers import BINARY_FORM, PAD_VALUES
from binarize_cli.binarize.sums import FloatSums
from binarize_cli.binarize.watch import watch
from binarize_cli.binarize.weights import SignWeight
from binarize_cli.quantizers.functions import sign
from binarize_cli.recipe import Recipe

IMAGES = 256
ONE_SIDED = 0.25  # GELU's outputs have at most that share of their magnitude below zero, a LayerNorm's half
RARE = 1e-3  # the share of sums that may overflow before a bit is dropped
MOST_SHIFT = 4


@dataclass
class InputStats:
    """What the inputs of a layer looked like."""

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
) -> dict[str, InputStats]:
    """Layer name -> what its inputs are, for the float network in eval mode, over batches of images."""
    learned = recipe.activation.threshold == "learned"
    axes = {name: BINARY_FORM[type(net.get_submodule(name))].axis for name in names}
    sums: dict[str, list[Tensor]] = {name: [] for name in names}
    watch(net, names, images, lambda name, x, _: sums[name].append(_moments(x, axes[name])))
    mean = {name: torch.stack(each).mean(0) for name, each in sums.items()}  # [3, channels]
    sizes: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}

    def size(name: str, x: Tensor, _: Tensor) -> None:
        off = above(x, mean[name][0] if learned else None, axes[name])
        sizes[name].append((off.abs().mean(), (off >= 0).float().mean()))

    watch(net, names, images, size)
    stats = {}
    for name in names:
        magnitude, plus = (torch.stack(each).mean() for each in zip(*sizes[name], strict=True))
        over, under = mean[name][1].mean(), mean[name][2].mean()
        lighter = float(torch.minimum(over, under) / (over + under).clamp_min(1e-12))
        stats[name] = InputStats(mean[name][0], magnitude, lighter, float(plus))
    if recipe.task == "bwaa":
        _choose_shifts(net, stats, images[0], recipe)
    return stats


def _moments(x: Tensor, axis: int) -> Tensor:
    """[3, channels]: the mean input, the mean of its positive part, of its negative part."""
    x = x.transpose(1, -1) if axis == 1 else x
    x = x.flatten(0, -2)  # [values, channels]
    return torch.stack([x.mean(0), x.clamp_min(0).mean(0), (-x).clamp_min(0).mean(0)])


def _choose_shifts(net: nn.Module, stats: Mapping[str, InputStats], images: Tensor, recipe: Recipe) -> None:
    """The fewest bits to drop so that sums rarely overflow, by the signs of float weights and inputs."""
    rule = recipe.accumulator

    def choose(name: str, x: Tensor, _: Tensor) -> None:
        layer, found = net.get_submodule(name), stats[name]
        if rule.shift != "auto":
            found.shift = rule.shift
            return
        scale = torch.ones(len(layer.weight), device=x.device)
        binary = BINARY_FORM[type(layer)](layer, SignWeight(sign(layer.weight), scale))
        threshold = found.mean if recipe.activation.threshold == "learned" else None
        binary.input = SignInput(binary.axis, threshold, torch.ones((), device=x.device))
        binary.pad_value = PAD_VALUES[recipe.activation.padding]
        for shift in range(MOST_SHIFT + 1):
            binary.sums = FloatSums(Rule(rule.overflow, shift))
            binary(x)
            found.shift = shift
            if binary.sums.overflowed <= RARE:
                return

    watch(net, stats, [images], choose)
