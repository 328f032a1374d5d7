"""What binary training costs beside float training of the same model: step by step in turn."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import torch

from binarize_cli.binarize.attention import use_linear_projections
from binarize_cli.binarize.bank import LatentBank
from binarize_cli.binarize.convert import latent_weights
from binarize_cli.binarize.fused.numba_math import f32, tanh
from binarize_cli.binarize.prepare import BinaryNetwork, make_binary, rewrite_and_choose
from binarize_cli.data.batches import choose_workers
from binarize_cli.data.datasets import open_dataset
from binarize_cli.data.decode import decode
from binarize_cli.data.images import ImageDataset, Split
from binarize_cli.data.loaders import Batches
from binarize_cli.data.transforms import train_transform
from binarize_cli.device import allow_tf32, check_compile, find_device, keep_freed_memory, place
from binarize_cli.evaluation import Measurement
from binarize_cli.job import Job
from binarize_cli.models.classes import adapt_head
from binarize_cli.models.heads import head_names
from binarize_cli.models.load import FloatModel, load
from binarize_cli.recipe import Distill, Task
from binarize_cli.training.loop import Saving, Trainer
from binarize_cli.training.objective import Objective
from binarize_cli.training.step import Batch

PARTS = ("data", "forward", "backward", "optimizer", "quantizers")
WARM_UP = 2  # steps of each that do not count: kernels are chosen, memory is found
MIDDLE = 0.4  # of the schedule: what the quantizers cost while F is not yet sign
RESET = Path("/proc/self/clear_refs")
FLOAT = "float"  # what stands beside the tasks


@dataclass(frozen=True)
class Cost:
    """Of a training step: medians in milliseconds, and the peak memory in MiB, None where it is not known."""

    step: float
    parts: dict[str, float | None]
    """`quantizers`, those of the weights, is contained in forward and backward; None with binary inputs."""
    memory: float | None


@dataclass
class Setting:
    """What all trainings of a job have in common: from random weights, without a teacher."""

    job: Job

    @cached_property
    def device(self) -> torch.device:
        """The job's device, with its precision of float32 products set."""
        device = find_device(self.job.device)
        check_compile(self.job.compile, self.job.recipe.train.accumulate, device)
        allow_tf32(self.job.recipe.train.amp, device)
        return device

    @cached_property
    def model(self) -> FloatModel:
        """The float model, with random weights: the speed does not depend on them."""
        model = load(self.job.model, pretrained=False, img_size=self.job.img_size)
        adapt_head(model, self.dataset.classes)
        return model

    @cached_property
    def dataset(self) -> ImageDataset:
        """The dataset that the job names."""
        return open_dataset(self.job.dataset, self.job.data_dir)

    @cached_property
    def images(self) -> Split:
        """The images to train on; repeated if there are fewer than a batch."""
        split = decode(self.dataset.train, skip_unreadable=False, limit_gb=self.job.cache_gb)
        wanted = max(len(split), self.job.recipe.train.batch_size)
        return split.subset(i % len(split) for i in range(wanted))

    def trainer(self, kind: str) -> Trainer:
        """Return a training of the float model, or of the model binarized for a task."""
        model, batches, train = copy.deepcopy(self.model), self._batches(), self.job.recipe.train
        net = place(use_linear_projections(model.net), self.device)
        binary = None if kind == FLOAT else self._binary(model, kind, batches)
        return Trainer(
            binary.net if binary else net,
            stage="binary" if binary else "float",
            binary=binary,
            batches=batches,
            objective=Objective(Distill(weight=0.0), None, train.smoothing),
            train=train,
            classes=len(self.dataset.classes),
            device=self.device,
            score=_never_scored,
            saving=Saving(Path(tempfile.gettempdir())),  # nothing is saved: no epoch ends
            compile=self.job.compile,
        )

    def _binary(self, model: FloatModel, task: str, batches: Batches) -> BinaryNetwork:
        """Return the network as `bnnpp binarize --task` trains it, calibrated on one batch."""
        recipe = self.job.recipe.model_copy(update={"task": cast(Task, task)})
        example = torch.zeros(2, *model.preprocessing.input_size)
        net, table = rewrite_and_choose(model.net.cpu(), example, recipe, head_names(model.net))
        images = [next(iter(batches.epoch(0)))[0].to(self.device)] if task != "bw" else []
        return make_binary(place(net, self.device), table, recipe, images)

    def _batches(self) -> Batches:
        train, preprocessing = self.job.recipe.train, self.model.preprocessing
        return Batches(
            self.images,
            train_transform(preprocessing, self.job.recipe.augment, self.dataset),
            batch_size=train.batch_size,
            seed=train.seed,
            accumulate=train.accumulate,
            workers=choose_workers(self.job.workers, self.dataset, len(self.dataset.train)),
            device=self.device,
        )


@dataclass(frozen=True)
class Loading:
    """What the loader gives when nothing else is done."""

    images_per_second: float
    workers: int


def measure_loading(job: Job, seconds: float = 2.0) -> Loading:
    """Return the speed at which batches come, decoded and augmented, on the job's device."""
    batches = Setting(job)._batches()
    stream = chain.from_iterable(batches.epoch(number) for number in count())
    next(stream)  # waits for the workers to start
    started, seen = time.perf_counter(), 0
    for images, _ in stream:
        seen += len(images)
        if time.perf_counter() - started >= seconds:
            break
    return Loading(seen / (time.perf_counter() - started), batches.workers)


def _never_scored(net: torch.nn.Module) -> Measurement:
    raise NotImplementedError("a benchmark takes steps, and scores nothing")


def measure_training(job: Job, tasks: Sequence[str], steps: int) -> dict[str, Cost]:
    """Return the costs of `float` and the tasks, measured in turn, so that all meet the same load."""
    keep_freed_memory()  # as `bnnpp binarize` does
    kinds, setting = (FLOAT, *tasks), Setting(job)
    memory = {kind: _memory_in_a_process(job, kind, setting.device) for kind in kinds}
    walks = {kind: Walk(setting.trainer(kind)) for kind in kinds}
    for walk in walks.values():
        for _ in range(WARM_UP):
            walk.step()
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    parts: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(steps):
        for kind, walk in walks.items():
            times[kind].append(walk.step())
    for _ in range(max(3, steps // 4)):  # apart: on CUDA every part waits for the device
        for kind, walk in walks.items():
            parts[kind].append(walk.step_in_parts())
    if setting.device.type == "cuda":
        memory = {kind: walk.peak_memory() for kind, walk in walks.items()}
    return {
        kind: Cost(
            step=statistics.median(times[kind]),
            parts={name: statistics.median(each[name] for each in parts[kind]) for name in PARTS}
            | ({} if kind in (FLOAT, "bw") else {"quantizers": None}),  # asked for signs, they are not seen
            memory=memory[kind],
        )
        for kind in kinds
    }


class Walk:
    """A training that takes one step when asked, always at the same place of the schedule."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.batches = trainer, _endless(trainer)
        self.number = int(MIDDLE * (1 - trainer.train.harden) * trainer.steps)
        trainer.net.train()

    def step(self) -> float:
        """Take one step, its batch already at hand, and return its milliseconds."""
        batches = next(self.batches)
        started = self._now()
        self.trainer.take_step(batches, self.number)
        return self._now() - started

    def step_in_parts(self) -> dict[str, float]:
        """Take one step, and return the milliseconds of each of PARTS."""
        started = self._now()
        batches = next(self.batches)
        spent = dict.fromkeys(PARTS, 0.0) | {"data": self._now() - started}
        handles = self._watched(spent)
        started = self._now()
        self.trainer.take_step(batches, self.number)
        whole = self._now() - started
        for handle in handles:
            handle.remove()
        spent["backward"] = whole - spent["forward"] - spent["optimizer"]
        return spent

    def peak_memory(self) -> float:
        """MiB of CUDA memory at the peak of a step, beside what all trainings hold."""
        device = self.trainer.device
        batches = next(self.batches)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        self.trainer.take_step(batches, self.number)
        return (torch.cuda.max_memory_allocated(device) - held) / 2**20

    def _now(self) -> float:
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)
        return 1000 * time.perf_counter()

    def _watched(self, spent: dict[str, float]) -> list:
        """Hooks that add to `spent`. A quantizer's backward is seen at its node of the graph."""
        start, stop = self._timer(spent)
        net, optimizer = self.trainer.net, self.trainer.step.optimizer

        def after_weights(module: object, args: object, weights: torch.Tensor) -> None:
            stop("quantizers")
            if weights.grad_fn is not None:
                weights.grad_fn.register_prehook(lambda *_: start("quantizers"))
                weights.grad_fn.register_hook(lambda *_: stop("quantizers"))

        handles: list[Any] = [
            net.register_forward_pre_hook(lambda *_: start("forward")),
            net.register_forward_hook(lambda *_: stop("forward")),
            optimizer.register_step_pre_hook(lambda *_: start("optimizer")),
            optimizer.register_step_post_hook(lambda *_: stop("optimizer")),
        ]
        banks = {id(weight.bank): weight.bank for _, weight in latent_weights(net) if weight.bank}
        for bank in banks.values():
            handles.append(_WatchedBank(bank, start, after_weights))
        for _, weight in latent_weights(net):
            if weight.bank:
                continue
            handles.append(weight.register_forward_pre_hook(lambda *_: start("quantizers")))
            handles.append(weight.register_forward_hook(after_weights))
        return handles

    def _timer(self, spent: dict[str, float]) -> tuple[Callable[[str], None], Callable[[str], None]]:
        begun: dict[str, float] = {}

        def start(name: str) -> None:
            begun[name] = self._now()

        def stop(name: str) -> None:
            spent[name] += self._now() - begun[name]

        return start, stop


class _WatchedBank:
    """Looks on while a bank computes the weights of many layers, until `remove`."""

    def __init__(self, bank: LatentBank, start: Callable[[str], None], after: Callable[..., None]):
        self.bank = bank

        def compute() -> None:
            start("quantizers")
            LatentBank.compute(bank)
            after(None, None, bank.weights[0]())

        if not bank.signs:  # asked for signs, weights are not seen
            vars(bank)["compute"] = compute

    def remove(self) -> None:
        """Look on no more."""
        vars(self.bank).pop("compute", None)


def _endless(trainer: Trainer) -> Iterator[Sequence[Batch]]:
    epoch = 0
    while True:
        micro_batches = iter(trainer.batches.epoch(epoch))
        yield from zip(*[micro_batches] * trainer.batches.accumulate, strict=True)
        epoch += 1


def _memory_in_a_process(job: Job, kind: str, device: torch.device) -> float | None:
    """Return the MiB that a training adds at its peak to what is loaded; on a CPU under Linux.

    In a process of its own: what one training leaves to the allocator would hide what the next one takes.
    """
    if device.type != "cpu" or not RESET.exists():
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_of_training, job, kind).result()


def _peak_of_training(job: Job, kind: str) -> float:
    keep_freed_memory()
    setting = Setting(job)
    _ = setting.images, setting.model  # loaded before, so that they do not count
    tanh(f32(0))  # nor does what numba is made of, 100 MiB whatever the batch
    RESET.write_text("5")  # forget the peak so far
    before = _resident("VmRSS")
    walk = Walk(setting.trainer(kind))
    for _ in range(WARM_UP):
        walk.step()
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    """VmRSS or VmHWM (its peak) of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024
