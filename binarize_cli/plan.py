"""What a run is made of: the user's input, checked, loaded and prepared before anything is written."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from binarize_cli import ranks
from binarize_cli.binarize.blocks import rewrite_architecture
from binarize_cli.binarize.quantizer import WeightQuantizer
from binarize_cli.binarize.select import Layer, all_float, count_macs, select
from binarize_cli.binarize.weights import computed_once
from binarize_cli.data.datasets import ImageDataset, open_dataset
from binarize_cli.data.decode import decode
from binarize_cli.data.device import fits_on_device
from binarize_cli.data.loaders import (
    Batches,
    ScoreBatches,
    cache_on_device,
    hold_out,
    resolve_augment,
    train_transform,
)
from binarize_cli.errors import InputError
from binarize_cli.evaluation import Measurement, measure
from binarize_cli.files import Choice, Resume, RunFolder, check_space
from binarize_cli.models.classes import adapt_head
from binarize_cli.models.heads import head_names
from binarize_cli.models.load import FloatModel, load
from binarize_cli.models.names import ModelName
from binarize_cli.quantizers.method import Method
from binarize_cli.recipe import Recipe, effective_method
from binarize_cli.training.batchnorm import Reestimation, has_batchnorm, synchronise
from binarize_cli.training.log import EpochRow
from binarize_cli.training.optimizer import check_optimizer
from binarize_cli.training.precision import allow_tf32, find_device, place
from binarize_cli.training.stop import StopRequest
from binarize_cli.training.teacher import Teacher, block_names


@dataclass(frozen=True)
class Job:
    """What the command line asks for."""

    command: str
    model: ModelName
    recipe: Recipe
    dataset: str | None = None
    data_dir: Path | None = None
    weights: Path | None = None
    pretrained: bool = True
    num_classes: int | None = None
    img_size: int | None = None
    output: Path | None = None
    device: str = "auto"
    workers: int | None = None
    cache_gb: float = 4.0
    teacher_logits: Path | None = None
    resume: Resume = "never"
    save_minutes: float = 10.0
    compile: bool = False
    overwrite: bool = False
    skip_unreadable: bool = False


@dataclass
class Run:
    """A run under way. `net` is the model's network in its present form: float, then latent, then hard."""

    job: Job
    recipe: Recipe
    method: Method
    folder: RunFolder
    resumed: bool
    dataset: ImageDataset
    model: FloatModel
    head: str
    """What became of the classifier head: kept, subset or replaced."""
    table: list[Layer]
    device: torch.device
    train: Batches
    val: ScoreBatches
    held_out: ScoreBatches | None
    """Training images that training does not see, to judge re-estimated BatchNorm statistics by."""
    net: nn.Module
    stop: StopRequest
    quantizer: WeightQuantizer | None = None
    teacher: Teacher | None = None
    rows: list[EpochRow] = field(default_factory=list)
    accuracy: dict[str, Measurement | None] = field(default_factory=dict)
    batchnorm: Reestimation | None = None
    started: float = field(default_factory=time.perf_counter)

    def score(self, net: nn.Module) -> Measurement:
        """On the validation images."""
        with computed_once(net):
            return measure(net, self.val, self.device)

    def steps(self) -> int:
        """Optimizer steps, over all stages."""
        return len(self.train) * sum(row.epoch > 0 for row in self.rows)

    def score_held_out(self, net: nn.Module) -> Measurement:
        with computed_once(net):
            return measure(net, self.held_out, self.device)


def plan(job: Job, choice: Choice, stop: StopRequest) -> Run:
    """Everything that the user's input can get wrong happens here; nothing is written yet."""
    device = find_device(job.device)
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
        )
    head = adapt_head(model, dataset.classes)
    method = effective_method(job.recipe)
    made = job.recipe.activation
    net = rewrite_architecture(
        model.net, job.recipe.task if method.binary else "bw", made.blocks, made.attention
    )
    table = choose_layers(net, model, job.recipe) if method.binary else all_float(net)
    if method.binary and job.recipe.distill.blocks and not block_names(net):
        what = f"{job.model.short} has no row of blocks whose outputs could be compared"
        raise InputError(what, where="distill.blocks", hint="Set it to 0.")
    augment = resolve_augment(job.recipe.augment, model.preprocessing, dataset)
    recipe = job.recipe.model_copy(update={"augment": augment})
    train, val, held_out = prepare(job, recipe, model, dataset, device)
    if (recipe.train.mixup or recipe.train.cutmix) and train.micro_batch % 2:
        what = f"mixup and cutmix take images in pairs, and a batch has {train.micro_batch}: it must be even"
        raise InputError(what, where="train.mixup", hint="Choose an even --batch-size.")
    check_space(choice.folder.path, needed=8 * sum(p.nbytes for p in net.parameters()))
    return Run(
        job,
        recipe,
        method,
        choice.folder,
        choice.resumed,
        dataset,
        model,
        head,
        table,
        device,
        train,
        val,
        held_out,
        place(synchronise(net, device) if recipe.train.sync_batchnorm else net, device),
        stop,
    )


def choose_layers(net: nn.Module, model: FloatModel, recipe: Recipe) -> list[Layer]:
    """The table of layers, from one forward pass of two blank images."""
    example = torch.zeros(2, *model.preprocessing.input_size)
    macs = count_macs(net, example)
    table = select(net, recipe.layers, list(macs), head_names(net))
    return [replace(row, macs=macs.get(row.name, 0)) for row in table]


def prepare(
    job: Job, recipe: Recipe, model: FloatModel, dataset: ImageDataset, device: torch.device
) -> tuple[Batches, ScoreBatches, ScoreBatches | None]:
    """Batches to train on, to validate on, and to judge BatchNorm on."""
    options = {"workers": choose_workers(job.workers, dataset), "device": device}
    size = recipe.train.batch_size
    train = decode(dataset.train, skip_unreadable=job.skip_unreadable, limit_gb=job.cache_gb)
    val = decode(dataset.val, skip_unreadable=job.skip_unreadable, limit_gb=job.cache_gb)
    held_out = None
    if recipe.train.reestimate_batchnorm and recipe.train.hold_out and has_batchnorm(model.net):
        train, aside = hold_out(train, recipe.train.hold_out, recipe.train.seed)
        if not len(train):
            raise InputError("leaves no image to train on", where="train.hold_out", hint="Lower it.")
        held_out = ScoreBatches(aside, model.preprocessing, size, **options)
    transform = train_transform(model.preprocessing, recipe.augment, dataset)
    on_device = device.type == "cuda" and fits_on_device(
        dataset, train, model.preprocessing, recipe.augment, job.cache_gb
    )
    cache = cache_on_device(train, model.preprocessing, recipe.augment.hflip, device) if on_device else None
    rule = {"batch_size": size, "seed": recipe.train.seed, "accumulate": recipe.train.accumulate}
    batches = Batches(train, transform, cache=cache, **rule, **options)
    return batches, ScoreBatches(val, model.preprocessing, size, keep=on_device, **options), held_out


def choose_workers(wanted: int | None, dataset: ImageDataset) -> int:
    """Loader processes. A few small images load faster than processes start, twice an epoch."""
    if wanted is not None:
        return wanted
    small = dataset.native_size is not None and len(dataset.train) < 10_000
    return 0 if small else min(4, os.cpu_count() or 1)
