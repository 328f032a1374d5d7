"""Sensitivity: what each binary layer costs in accuracy.

Of a trained file: how far its answers move (their Kullback-Leibler divergence) if a twentieth of the signs of
one layer, or block, change places. Signs are float weights with an error of about the same size in every
layer; what an error in this layer costs is what float weights would spare. Signs stay within their filter, so
that its sum is what it was: another sum moves the mean of the outputs, which training makes up for, and tells
how large the inputs are. Labels would blur it, for wrong signs also mend an answer now and then. (To set
layers free and fine-tune them a little tells less: it changes the whole network, whichever layer it is.)
Of a float model, as a forecast: one layer at a time becomes binary, untrained.

The images are training images, if possible such as the run had set aside: layers are chosen by the result,
and what is reported later (the validation images) is not chosen on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from binarize_cli.analysis.choice import FLOAT_BYTES, Gain, Score, Unit
from binarize_cli.binarize.layers import is_candidate
from binarize_cli.binarize.prepare import make_binary
from binarize_cli.binarize.select import Layer
from binarize_cli.device import full_float32, place
from binarize_cli.evaluation import measure
from binarize_cli.packed.bits import pack, unpack
from binarize_cli.packed.check import BITS
from binarize_cli.packed.format import PackedFile
from binarize_cli.packed.runtime import rebuild
from binarize_cli.recipe import Recipe
from binarize_cli.training.objective import distillation
from binarize_cli.training.teacher import block_names

Batch = tuple[Tensor, Tensor]
MOVED = 0.05  # of a layer's signs


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


@dataclass(frozen=True)
class Trained:
    """The analysis of a trained, packed network."""

    file: PackedFile
    judge: Sequence[Batch]
    """Batches to score, on the device."""
    device: torch.device

    def base(self) -> Score:
        """Return what the network scores as it is."""
        return score(place(rebuild(self.file), self.device), self.judge, self.device)

    def gains(self, units: Sequence[Unit], base: Score) -> Iterator[Gain]:
        """Yield what signs at wrong places cost in each unit; every batch sees others of them."""
        own = torch.cat([self._logits(self.file, images) for images, _ in self.judge])
        targets = torch.cat([targets for _, targets in self.judge])
        for unit in units:
            answers = torch.cat(
                [
                    self._logits(with_moved_signs(self.file, unit.layers, draw), images)
                    for draw, (images, _) in enumerate(self.judge)
                ]
            )
            right = (answers.argmax(1) == targets).float()
            moved = round(float(distillation(answers, own, temperature=1.0)), 6)
            yield Gain(
                unit.name, unit.layers, unit.bytes, round(base.top1 - 100 * float(right.mean()), 4), moved
            )

    @torch.inference_mode()
    def _logits(self, file: PackedFile, images: Tensor) -> Tensor:
        """Return what a file answers, (images, classes), in float32 as it is scored."""
        with full_float32(self.device):
            return place(rebuild(file), self.device)(images).float()


def with_moved_signs(file: PackedFile, names: Sequence[str], seed: int) -> PackedFile:
    """Return the file, in memory, with a twentieth of the signs of every filter of those layers exchanged."""
    shapes = {row.name: tuple(row.shape or ()) for row in file.document.layers}
    draw = np.random.default_rng(seed)
    tensors = dict(file.tensors)
    for name in names:
        signs = unpack(tensors[name + BITS], shapes[name])
        tensors[name + BITS] = pack(exchanged(signs.reshape(len(signs), -1), draw).reshape(signs.shape))
    return replace(file, tensors=tensors)


def exchanged(signs: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return rows of signs, (filters, weights), in which pairs of a plus and a minus have changed places."""
    plus = signs > 0
    pairs = np.floor(MOVED / 2 * signs.shape[1] + draw.random(len(signs)))  # a twentieth, on average
    pairs = np.minimum(pairs, np.minimum(plus.sum(1), (~plus).sum(1)))[:, None]
    order = draw.random(signs.shape)
    moved = [np.where(kind, order, 2).argsort(1).argsort(1) < pairs for kind in (plus, ~plus)]
    return np.where(moved[0] | moved[1], -signs, signs)


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

    def gains(self, units: Sequence[Unit], base: Score) -> Iterator[Gain]:
        """Yield what each unit of a float network that scores `base` loses by becoming binary, alone."""
        for unit in units:
            yield _gain(unit, base, self._with_binary(unit.layers))

    def _with_binary(self, names: Sequence[str]) -> Score:
        chosen = set(names)
        table = [replace(row, binary=row.binary and row.name in chosen) for row in self.table]
        net = copy.deepcopy(self.net)
        if chosen:
            images = [images for images, _ in self.judge[:8]] if self.recipe.task != "bw" else []
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
