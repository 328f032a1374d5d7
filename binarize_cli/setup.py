"""Setting up a run: the user's input, checked, loaded and prepared before anything is written."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from binarize_cli import ranks
from binarize_cli.binarize.batchnorm import Reestimation, has_batchnorm
from binarize_cli.binarize.prepare import BinaryNetwork, rewrite_and_choose
from binarize_cli.binarize.select import Layer, all_float
from binarize_cli.binarize.weights import computed_once
from binarize_cli.data.batches import RunBatches, open_batches
from binarize_cli.data.datasets import open_dataset
from binarize_cli.data.images import ImageDataset
from binarize_cli.data.loaders import ScoreBatches
from binarize_cli.data.transforms import resolve_augment
from binarize_cli.device import (
    allow_tf32,
    autocast_type,
    check_compile,
    find_device,
    make_deterministic,
    place,
)
from binarize_cli.errors import InputError
from binarize_cli.evaluation import Measurement, measure
from binarize_cli.files import check_space
from binarize_cli.job import Job
from binarize_cli.models.classes import adapt_head
from binarize_cli.models.heads import head_names
from binarize_cli.models.load import FloatModel, load
from binarize_cli.models.teacher import TEACHER, load_teacher
from binarize_cli.quantizers.method import Method
from binarize_cli.recipe import Recipe, effective_method
from binarize_cli.run_folder import Choice, RunFolder
from binarize_cli.training.log import EpochRow
from binarize_cli.training.optimizer import check_optimizer
from binarize_cli.training.parallel import check_parallel, synchronise
from binarize_cli.training.stop import StopRequest
from binarize_cli.training.teacher import Teacher, block_names


@dataclass
class Run:
    """A run under way. `net` is the model's network in its present form: float, then latent, then hard."""

    job: Job
    recipe: Recipe
    method: Method
    folder: RunFolder
    resumed: bool
    stop: StopRequest
    device: torch.device
    dataset: ImageDataset
    batches: RunBatches
    model: FloatModel
    head: str
    """What became of the classifier head: kept, subset or replaced."""
    table: list[Layer]
    net: nn.Module
    binary: BinaryNetwork | None = None
    teacher_model: FloatModel | None = None
    """The recipe's `distill.teacher`; None if the float network teaches."""
    teacher: Teacher | None = None
    rows: list[EpochRow] = field(default_factory=list)
    packed_epoch: int | None = None
    accuracy: dict[str, Measurement] = field(default_factory=dict)
    batchnorm: Reestimation | None = None
    latents: list[dict[str, Any]] = field(default_factory=list)
    """How the latent weights lay around 0 when training had ended, a row a layer."""
    inputs: list[dict[str, Any]] = field(default_factory=list)
    """How the inputs of binary layers lie around their thresholds."""
    float_net: nn.Module | None = None
    """A copy of the float network, if there is one and something is compared with it."""
    changed: list[dict[str, str]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def score(self, net: nn.Module) -> Measurement:
        """Score a network on the validation images."""
        return self._score(net, self.batches.val)

    def score_held_out(self, net: nn.Module) -> Measurement:
        """Score a network on the training images that were set aside."""
        assert self.batches.held_out is not None, "no images were set aside"
        return self._score(net, self.batches.held_out)

    def _score(self, net: nn.Module, batches: ScoreBatches) -> Measurement:
        with computed_once(net):
            return measure(net, batches, self.device)

    @property
    def reestimates(self) -> bool:
        """Whether BatchNorm is re-estimated after hardening, judged on the images that were set aside."""
        return self.batches.held_out is not None and reestimates(self.net, self.recipe)

    def steps(self) -> int:
        """Return the optimizer's steps, over all stages."""
        return len(self.batches.train) * sum(row.epoch > 0 for row in self.rows)


def set_up(job: Job, choice: Choice, stop: StopRequest) -> Run:
    """Return the run that a job asks for. Raises InputError for all that can be wrong with it."""
    if job.deterministic:
        make_deterministic()
    device = find_device(job.device)
    check_compile(job.compile, job.recipe.train.accumulate, device)
    check_parallel(job.parallel, job.compile, autocast_type(job.recipe.train.amp, device))
    allow_tf32(job.recipe.train.amp, device)
    torch.manual_seed(job.recipe.train.seed)  # of random weights and of a new head
    check_optimizer(job.recipe.train.opt)
    with ranks.rank0_first():  # what is downloaded, is downloaded once
        dataset = open_dataset(job.dataset, job.data_dir)
        model = load(
            job.model,
            weights=job.weights,
            pretrained=job.pretrained,
            num_classes=job.num_classes,
            img_size=job.img_size,
            new_head=job.head == "replace",
        )
    model.preprocessing = model.preprocessing.overridden(job.recipe.preprocess)
    head = adapt_head(model, dataset.classes, job.head)
    dataset = dataset.relabelled(
        model.classes or dataset.classes
    )  # --head keep: the model may know more classes
    teacher = teacher_of(job, model, dataset)
    method = effective_method(job.recipe)
    net, table = choose_layers(model, job.recipe, method)
    if method.binary and job.recipe.distill.blocks and not block_names(net):
        what = f"{job.model.short} has no row of blocks whose outputs could be compared"
        raise InputError(what, where="distill.blocks", hint="Set it to 0.")
    augment = resolve_augment(job.recipe.augment, model.preprocessing, dataset)
    recipe = job.recipe.model_copy(update={"augment": augment})
    batches = open_batches(
        dataset,
        model.preprocessing,
        recipe.train,
        augment,
        device,
        set_aside=reestimates(net, recipe) or recipe.train.select == "held-out",
        workers=job.workers,
        cache_gb=job.cache_gb,
        skip_unreadable=job.skip_unreadable,
    )
    check_space(choice.folder.path, needed=8 * sum(p.nbytes for p in net.parameters()))
    net = synchronise(net, device) if recipe.train.sync_batchnorm else net
    return Run(
        job=job,
        recipe=recipe,
        method=method,
        folder=choice.folder,
        resumed=choice.resumed,
        stop=stop,
        device=device,
        dataset=dataset,
        batches=batches,
        model=model,
        head=head,
        table=table,
        net=place(net, device),
        teacher_model=teacher,
    )


def teacher_of(job: Job, model: FloatModel, dataset: ImageDataset) -> FloatModel | None:
    """Return the model that the recipe names as the teacher. Raises InputError if it does not suit."""
    distill = job.recipe.distill
    if distill.teacher is None:
        return None
    if distill.blocks:
        what = "the blocks of another teacher cannot be compared with those of the network"
        raise InputError(what, where="distill.blocks", hint=f"Set it to 0, or unset {TEACHER}.")
    if not distill.weight:
        raise InputError("its share of the loss is 0", where=TEACHER, hint="Set distill.weight.")
    classes = model.classes or dataset.classes
    with ranks.rank0_first():
        return load_teacher(distill.teacher, job.teacher_weights, classes, model.preprocessing, job.img_size)


def reestimates(net: nn.Module, recipe: Recipe) -> bool:
    """Return whether the recipe asks for BatchNorm's statistics anew, and the network has any."""
    return recipe.train.reestimate_batchnorm and has_batchnorm(net)


def choose_layers(model: FloatModel, recipe: Recipe, method: Method) -> tuple[nn.Module, list[Layer]]:
    """Return the network, rewritten for the task, and the table of its layers."""
    if not method.binary:
        return model.net, all_float(model.net)
    example = torch.zeros(2, *model.preprocessing.input_size)
    return rewrite_and_choose(model.net, example, recipe, head_names(model.net))
