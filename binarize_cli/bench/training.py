"""What binary training costs beside float training of the same model: step by step in turn."""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from binarize_cli.binarize.attention import use_linear_projections
from binarize_cli.binarize.blocks import rewrite_architecture
from binarize_cli.binarize.calibrate import calibrate
from binarize_cli.binarize.convert import binarize, binarize_inputs, binary_weights
from binarize_cli.binarize.quantizer import WeightQuantizer
from binarize_cli.data.datasets import ImageDataset
from binarize_cli.data.decode import decode
from binarize_cli.data.images import Split
from binarize_cli.data.loaders import Batches, train_transform
from binarize_cli.models.classes import adapt_head
from binarize_cli.models.load import FloatModel
from binarize_cli.plan import choose_layers, choose_workers
from binarize_cli.recipe import Distill, Recipe
from binarize_cli.training.loop import Batch, Trainer
from binarize_cli.training.objective import Objective
from binarize_cli.training.precision import place

PARTS = ("data", "forward", "backward", "optimizer", "quantizers")
WARM_UP = 2  # steps of each that do not count: kernels are chosen, memory is found
MIDDLE = 0.4  # of the schedule: what the quantizers cost while F is not yet sign
FLOAT = "float"  # what stands beside the tasks


@dataclass(frozen=True)
class Cost:
    """Of a training step: medians in milliseconds, and the peak memory in MiB, None where it is not known."""

    step: float
    parts: dict[str, float | None]
    """`quantizers`, those of the weights, is contained in forward and backward; None with binary inputs."""
    memory: float | None


@dataclass(frozen=True)
class Setting:
    """What all trainings have in common."""

    model: FloatModel
    dataset: ImageDataset
    recipe: Recipe
    device: torch.device
    workers: int | None = None
    cache_gb: float = 4.0
    compile: bool = False

    def trainer(self, kind: str) -> Trainer:
        """Of the float model, or of the model binarized for a task; no teacher, whose cost is not theirs."""
        model = copy.deepcopy(self.model)
        adapt_head(model, self.dataset.classes)
        batches = self._batches()
        if kind == FLOAT:
            net, quantizer = use_linear_projections(model.net), None
        else:
            net, quantizer = self._binarized(model, kind, batches)
        rule = self.recipe.train
        return Trainer(
            place(net, self.device),
            stage="float" if kind == FLOAT else "binary",
            quantizer=quantizer,
            batches=batches,
            objective=Objective(Distill(weight=0.0), None, rule.smoothing),
            train=rule,
            classes=len(self.dataset.classes),
            device=self.device,
            score=lambda net: None,
            folder=Path(tempfile.gettempdir()),  # nothing is saved: no epoch ends
            compile=self.compile,
        )

    def _binarized(
        self, model: FloatModel, task: str, batches: Batches
    ) -> tuple[torch.nn.Module, WeightQuantizer]:
        """The network as `bnnpp binarize --task` trains it, calibrated on one batch."""
        recipe = self.recipe.model_copy(update={"task": task})
        net = rewrite_architecture(model.net, task, recipe.activation.blocks, recipe.activation.attention)
        table, quantizer, stats = choose_layers(net, model, recipe), WeightQuantizer(recipe), {}
        if task != "bw":
            images, _ = next(iter(batches.epoch(0)))
            stats = calibrate(net, [row.name for row in table if row.binary], [images.cpu()], recipe)
        return binarize_inputs(binarize(net, table, quantizer), stats, quantizer, recipe), quantizer

    @cached_property
    def images(self) -> Split:
        """To train on; repeated where there are fewer than a batch."""
        split = decode(self.dataset.train, skip_unreadable=False, limit_gb=self.cache_gb)
        return split.subset(i % len(split) for i in range(max(len(split), self.recipe.train.batch_size)))

    def _batches(self) -> Batches:
        rule, preprocessing = self.recipe.train, self.model.preprocessing
        return Batches(
            self.images,
            train_transform(preprocessing, self.recipe.augment, self.dataset),
            batch_size=rule.batch_size,
            seed=rule.seed,
            accumulate=rule.accumulate,
            workers=choose_workers(self.workers, self.dataset),
            device=self.device,
        )


def compare(setting: Setting, tasks: Sequence[str], steps: int) -> dict[str, Cost]:
    """`float` and the tasks, measured in turn, so that whatever else the machine does meets all alike."""
    kinds = (FLOAT, *tasks)
    _ = setting.images  # decoded before the forks, which shall not count them
    memory = {kind: _memory_of_a_fork(setting, kind) for kind in kinds}
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
            | ({} if kind in (FLOAT, "bw") else {"quantizers": None}),  # their layers ask for units, unseen
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
        """One step, its batch already at hand; milliseconds."""
        batches = next(self.batches)
        started = self._now()
        self.trainer.take_step(batches, self.number)
        return self._now() - started

    def step_in_parts(self) -> dict[str, float]:
        """One step; the milliseconds of each of PARTS."""
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
        self.trainer.take_step(batches, self.number)
        return torch.cuda.max_memory_allocated(device) / 2**20

    def _now(self) -> float:
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)
        return 1000 * time.perf_counter()

    def _watched(self, spent: dict[str, float]) -> list:
        """Hooks that add to `spent`. A quantizer's backward is seen at its node of the graph."""
        start, stop = self._timer(spent)
        net, optimizer = self.trainer.net, self.trainer.optimizer

        def after_weights(module, args, weights: torch.Tensor) -> None:
            stop("quantizers")
            if weights.grad_fn is not None:
                weights.grad_fn.register_prehook(lambda *_: start("quantizers"))
                weights.grad_fn.register_hook(lambda *_: stop("quantizers"))

        handles = [
            net.register_forward_pre_hook(lambda *_: start("forward")),
            net.register_forward_hook(lambda *_: stop("forward")),
            optimizer.register_step_pre_hook(lambda *_: start("optimizer")),
            optimizer.register_step_post_hook(lambda *_: stop("optimizer")),
        ]
        for _, weight in binary_weights(net):
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


def _endless(trainer: Trainer) -> Iterator[Sequence[Batch]]:
    epoch = 0
    while True:
        micro_batches = iter(trainer.batches.epoch(epoch))
        yield from zip(*[micro_batches] * trainer.batches.accumulate, strict=True)
        epoch += 1


def _memory_of_a_fork(setting: Setting, kind: str) -> float | None:
    """MiB that a training adds at its peak to a process that has only imported; on a CPU under Linux.

    A process of its own: what one training leaves to the allocator would hide what the next one takes.
    """
    reset = Path("/proc/self/clear_refs")
    if setting.device.type != "cpu" or not reset.exists():
        return None
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)  # those of the process that was forked are not here
            reset.write_text("5")  # forget the peak so far
            before = _resident("VmRSS")
            walk = Walk(setting.trainer(kind))
            for _ in range(WARM_UP):
                walk.step()
            os.write(theirs, str(_resident("VmHWM") - before).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return float(text) if text else None


def _resident(name: str) -> float:
    """VmRSS or VmHWM (its peak) of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024
