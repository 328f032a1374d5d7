"""The front door: everything that makes a float network binary, in its order, once.

Rewrite the architecture, choose the layers, calibrate the inputs, replace the layers. What comes out trains
like any network; `move_to` and `harden` take it from float-like to signs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from binarize_cli.binarize.batchnorm import has_batchnorm, reestimate
from binarize_cli.binarize.blocks import rewrite_architecture
from binarize_cli.binarize.calibrate import BinaryInputs, Calibration, Overflow, calibrate
from binarize_cli.binarize.convert import harden, latent_weights, to_latents
from binarize_cli.binarize.layers import PAD_VALUES
from binarize_cli.binarize.observe import read_past_the_layer
from binarize_cli.binarize.phase import Phase, set_phase
from binarize_cli.binarize.quantizer import (
    ActivationQuantizer,
    ActivationQuantizers,
    WeightQuantizer,
)
from binarize_cli.binarize.respread import respread
from binarize_cli.binarize.rounding import round_floats
from binarize_cli.binarize.select import Layer, count_macs, select
from binarize_cli.binarize.updates import update_rule
from binarize_cli.errors import InputError
from binarize_cli.quantizers.scales import SCALES
from binarize_cli.recipe import (
    Recipe,
    activation_method,
    activation_normalize,
    activation_schedules,
    activation_windows,
    effective_method,
    effective_normalize,
    effective_schedules,
)


@dataclass
class BinaryNetwork:
    """A network of binary layers over latents, and what belongs to it."""

    net: nn.Module
    table: list[Layer]
    recipe: Recipe
    quantizer: WeightQuantizer
    activations: ActivationQuantizers | None
    """None in task bw."""
    constant_inputs: list[str] = field(default_factory=list)
    """Layers that saw inputs of one sign alone in calibration."""
    phase: Phase = field(default_factory=Phase)

    @property
    def is_sign(self) -> bool:
        """Whether F is sign now, of weights and of inputs: what is trained is what would ship."""
        return all(each.is_sign for each in (self.quantizer, *(self.activations or ())))

    def enter(self, phase: Phase) -> None:
        """Hand a phase to all quantizers of the network."""
        self.phase = phase
        set_phase(self.net, phase)

    def move_to(self, progress: float) -> None:
        """Move the schedules of weights and inputs to a progress in [0, 1]; F is the method's own.

        Raises InputError for a progress outside.
        """
        if not 0 <= progress <= 1:
            hint = "It is the share of the steps that are done."
            raise InputError(f"a progress of {progress:g} is not in [0, 1]", where="move_to", hint=hint)
        self.enter(Phase.at(progress))

    def harden(self) -> None:
        """Make F sign from now on, and respread latents whose F was soft. Training may go on."""
        if self.phase.weights.mode == "soft" and self.quantizer.has_soft_phase:
            respread(self.net)
        self.enter(self.phase.hardened())

    def step(self, optimizer: Optimizer) -> None:
        """Take the optimizer's step, with the proximal maps that the methods `pq` and `rpc` put around it."""
        with update_rule(self.net):
            optimizer.step()

    def frozen(self) -> nn.Module:
        """Return a copy of signs and scales, rounded to what a packed file holds: the network that ships."""
        return self.frozen_copy(self.net)

    def frozen_copy(self, net: nn.Module) -> nn.Module:
        """Return that copy of `net`, which is this network or its average; the latents are not copied."""
        shared = {id(weight.latent): weight.latent for _, weight in latent_weights(net)}
        net = copy.deepcopy(net, shared).eval()
        set_phase(net, self.phase.hardened())
        hard = round_floats(harden(net), self.recipe.pack.float_dtype)
        return hard.to(memory_format=torch.channels_last)  # as a packed file is loaded: the same to the bit


def rewrite_and_choose(
    net: nn.Module, example: Tensor, recipe: Recipe, heads: Sequence[str]
) -> tuple[nn.Module, list[Layer]]:
    """Return the network, rewritten for binary layers with its function unchanged, and the table of layers.

    `example` are blank images [N, C, H, W] for one forward pass; `heads` are the names of the classifier
    layers. Raises InputError for what cannot be binarized as the recipe says.
    """
    activation = recipe.activation
    net = rewrite_architecture(net, recipe.task, activation.blocks, activation.attention)
    macs = count_macs(net, example)
    read = partial(read_past_the_layer, net, example=example) if recipe.task == "bw" else _none_read
    table = select(net, recipe.layers, list(macs), heads, read)
    return net, [replace(row, macs=macs.get(row.name, 0)) for row in table]


def _none_read(silent: Sequence[str]) -> Sequence[str]:
    """Return no layer: with binary inputs one must be called, or else there are no inputs."""
    return ()


def make_binary(
    net: nn.Module, table: Sequence[Layer], recipe: Recipe, images: Sequence[Tensor] = ()
) -> BinaryNetwork:
    """Replace, in place, the binary layers of the table by layers over latents, and return what came of it.

    In tasks bwa and bwaa their inputs become binary as well, calibrated on batches of images (of training,
    on the network's device). BatchNorm is re-estimated on them then: thresholds are taken off the inputs of
    convolutions, which changes their means.
    """
    names = [row.name for row in table if row.binary]
    binary, found = binary_inputs(recipe), {}
    if binary:
        found = calibrate(net, names, images, binary)
    weights, activations = quantizers(recipe)
    device = next(net.parameters()).device
    net = to_latents(net, names, weights, activations, binary, found).to(device)
    if binary and recipe.train.reestimate_batchnorm and has_batchnorm(net):
        reestimate(net, [(batch, None) for batch in images], device)
    rows = [_described(row, found.get(row.name)) for row in table]
    constant = [name for name, each in found.items() if any(stats.constant for stats in each.inputs)]
    return BinaryNetwork(net, rows, recipe, weights, activations, constant)


def quantizers(recipe: Recipe) -> tuple[WeightQuantizer, ActivationQuantizers | None]:
    """Return the quantizers of weights and, in tasks bwa and bwaa, of inputs that a recipe asks for."""
    weights = WeightQuantizer(
        effective_method(recipe),
        effective_schedules(recipe),
        effective_normalize(recipe),
        SCALES[recipe.quantizer.scale],
    )
    if recipe.task == "bw":
        return weights, None
    inputs = activation_method(recipe), activation_schedules(recipe), activation_normalize(recipe)
    made = (ActivationQuantizer(*inputs, window) for window in activation_windows(recipe))
    return weights, ActivationQuantizers(*made)


def binary_inputs(recipe: Recipe) -> BinaryInputs | None:
    """Return how the recipe makes inputs binary; None in task bw."""
    if recipe.task == "bw":
        return None
    activation, accumulator = recipe.activation, recipe.accumulator
    return BinaryInputs(
        learned_threshold=activation.threshold == "learned",
        learned_scale=activation.scale == "learned",
        pad_value=PAD_VALUES[activation.padding],
        accumulator=Overflow(accumulator.overflow, accumulator.shift) if recipe.task == "bwaa" else None,
    )


def _described(row: Layer, found: Calibration | None) -> Layer:
    """Return the row of a layer or matmul with what its binary inputs and its accumulator are."""
    if found is None:
        return row
    text = "1 bit, one-sided" if any(stats.one_sided for stats in found.inputs) else "1 bit"
    rule = {"overflow": found.rule.overflow, "shift": found.rule.shift} if found.rule else None
    return replace(row, input=text, accumulator=rule)
