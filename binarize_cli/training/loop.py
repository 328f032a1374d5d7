"""The training loop. It knows neither methods nor models: those lie in the quantizer and the network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from binarize_cli import ranks
from binarize_cli.binarize.convert import binary_weights
from binarize_cli.binarize.quantizer import WeightQuantizer
from binarize_cli.errors import InputError, Interrupted
from binarize_cli.recipe import Train
from binarize_cli.training import state
from binarize_cli.training.display import Display
from binarize_cli.training.divergence import diverged
from binarize_cli.training.flips import FlipCounter
from binarize_cli.training.log import EpochRow
from binarize_cli.training.objective import Objective
from binarize_cli.training.optimizer import make_optimizer, make_scheduler
from binarize_cli.training.precision import autocast_type, compiled
from binarize_cli.training.score import Score
from binarize_cli.training.stop import EXIT_CODES, StopRequest
from binarize_cli.training.updates import update_rule

Batch = tuple[Tensor, Tensor]  # images [M, C, H, W] and targets [M] of a micro-batch


class TrainingBatches(Protocol):
    """This rank's micro-batches of an epoch, from a step on: the same ones for the same epoch, always.

    `batch_size` is that of a step, over all ranks and micro-batches; the length is that of an epoch in steps.
    """

    batch_size: int
    accumulate: int

    def __len__(self) -> int: ...
    def epoch(self, number: int, start: int = 0) -> Iterable[Batch]: ...


@dataclass
class Position:
    """Where training stands, and what it has seen so far."""

    epoch: int = 0
    step: int = 0  # within the epoch
    loss: float = 0.0  # summed over the epoch's steps
    seconds: float = 0.0
    best: float = -1.0


class Trainer:
    """Fine-tunes `net` in place for `train.epochs` epochs and leaves it at its best epoch.

    `score(net)` measures a network on the validation images; `stage` is `float` or `binary`; `folder`
    holds the state, from which `resume` continues, saved after every epoch and `save_minutes`. Every step
    draws its random numbers from generators seeded by (seed, step, rank), so that a resumed run repeats an
    uninterrupted one without their state.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        stage: str,
        quantizer: WeightQuantizer | None,
        batches: TrainingBatches,
        objective: Objective,
        train: Train,
        classes: int,
        device: torch.device,
        score: Callable[[nn.Module], Score],
        folder: Path,
        stop: StopRequest | None = None,
        save_minutes: float = 10.0,
        compile: bool = False,
    ):
        self.net, self.stage, self.quantizer = net, stage, quantizer
        self.batches, self.objective, self.train = batches, objective, train
        self.device, self.score, self.folder = device, score, folder
        self.stop, self.save_minutes = stop or StopRequest(), save_minutes
        self.steps = train.epochs * len(batches)
        self.optimizer = make_optimizer(net, train)
        self.scheduler = make_scheduler(self.optimizer, train, self.steps)
        self.amp = autocast_type(train.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp is torch.float16)
        self.ema = ModelEmaV3(net, decay=train.ema) if train.ema else None
        self.mixup = None
        if train.mixup or train.cutmix:
            self.mixup = Mixup(train.mixup, train.cutmix, label_smoothing=0.0, num_classes=classes)
        self.flips = FlipCounter(net)
        self.shared = ranks.wrap_ddp(net)
        self.forward = compiled(self.shared) if compile else self.shared
        self.at = Position()
        self.best: dict[str, Tensor] = {}  # the state dict of the best epoch, on the CPU
        self.saved = time.monotonic()
        self.rows: list[EpochRow] = []

    @property
    def scored(self) -> nn.Module:
        """The network that is scored and kept: the averaged one where there is one."""
        return self.ema.module if self.ema else self.net

    @property
    def done(self) -> int:
        """Steps taken, over all epochs."""
        return self.at.epoch * len(self.batches) + self.at.step

    def run(
        self, resume: bool = False, on_epoch: Callable[[list[EpochRow]], None] = lambda rows: None
    ) -> list[EpochRow]:
        """Train to the end. Raises Diverged, and Interrupted after saving when a signal came."""
        if resume:
            self._restore()
        with self.stop.in_training(), Display(self.stage, self.steps, self.done) as display:
            if not self.rows:
                self._finish_epoch(0, display)
                on_epoch(self.rows)
            while self.at.epoch < self.train.epochs:
                self._epoch(display)
                self._finish_epoch(self.at.epoch + 1, display)
                self.at = Position(epoch=self.at.epoch + 1, best=self.at.best)
                on_epoch(self.rows)
                self._save()
                self._leave_if(self._stop_code())
        self._load_best()
        return self.rows

    def _epoch(self, display: Display) -> None:
        """The rest of the present epoch, step by step."""
        self.net.train()
        started = time.perf_counter()
        micro_batches = iter(self.batches.epoch(self.at.epoch, start=self.at.step))
        for batches in zip(*[micro_batches] * self.batches.accumulate, strict=True):
            number = self.done
            loss, stop = self.take_step(batches, number)
            now = time.perf_counter()
            speed = self.batches.batch_size / (now - started)
            self.at = replace(
                self.at,
                step=self.at.step + 1,
                loss=self.at.loss + loss,
                seconds=self.at.seconds + now - started,
            )
            started = now
            display.step(number + 1, loss, speed, self.parameters())
            if stop or time.monotonic() - self.saved >= 60 * self.save_minutes:
                self._save()
            self._leave_if(stop)

    def _stop_code(self) -> int:
        """The exit code that a signal to any rank asks for; 0 where none came."""
        return _first_code(ranks.reduce_sum(torch.stack(self._codes())).tolist())

    def _codes(self) -> list[Tensor]:
        """For each exit code, whether a signal to this rank asks for it."""
        return [torch.tensor(float(self.stop.code == code), device=self.device) for code in EXIT_CODES]

    def _leave_if(self, code: int) -> None:
        """Raises Interrupted when a signal came; the state is saved by then."""
        if code:
            what = f"stopped after step {self.done}; the state is in {self.folder}"
            hint = "Run the same command with --resume to continue."
            raise Interrupted(what, exit_code=code, hint=hint)

    def take_step(self, batches: Sequence[Batch], number: int) -> tuple[float, int]:
        """One update of the latents; returns the loss, and the exit code where a signal came.

        Raises Diverged on an infinite loss or gradient; no step is taken with it.
        """
        self._seed(number)
        was_hard = self.quantizer is not None and self.quantizer.hard
        self._advance(number)
        if self.quantizer and self.quantizer.hard and self.quantizer.has_soft_phase and not was_hard:
            self._forget_latents()
        self.optimizer.zero_grad(set_to_none=True)
        loss, inputs = self._gradient(batches, number)
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.net.parameters() if p.grad is not None])
        value, size, stop = self._over_ranks(loss, norm)
        if not np.isfinite(value):
            self.optimizer.zero_grad(set_to_none=True)  # whatever is in there came from the loss
            raise diverged(self.net, inputs, number + 1, self._kept())
        if not self.scaler.is_enabled() and not np.isfinite(size):  # the scaler skips such steps itself
            raise diverged(self.net, inputs, number + 1, self._kept())
        if self.train.clip_grad:
            clip_grads_with_norm_(self.net.parameters(), self.train.clip_grad, norm)
        with update_rule(self.net, self.quantizer):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update(self.net)
        return value, stop

    def _gradient(self, batches: Sequence[Batch], number: int) -> tuple[Tensor, Tensor]:
        """Adds up the gradient of the micro-batches' mean loss; returns that loss, and the last images.

        Ranks exchange gradients once, with the last micro-batch.
        """
        total = torch.zeros((), device=self.device)
        for left, (inputs, targets) in zip(range(len(batches))[::-1], batches, strict=True):
            inputs = inputs.to(self.device, non_blocking=True)
            targets = targets.to(self.device, non_blocking=True)
            if self.mixup:
                inputs, targets = self.mixup(inputs, targets)
            alone = left and self.shared is not self.net
            with self.shared.no_sync() if alone else nullcontext():
                with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
                    logits = self.forward(inputs)
                    loss = self.objective(inputs, logits, targets, number) / len(batches)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total, inputs

    def _over_ranks(self, loss: Tensor, norm: Tensor) -> tuple[float, float, int]:
        """The mean loss, the norm and the exit code asked for: one exchange, one wait for the device."""
        if ranks.world() == 1:
            return *torch.stack([loss, norm]).tolist(), self.stop.code
        facts = ranks.reduce_mean(torch.stack([loss, norm, *self._codes()]))
        value, size, *asked = facts.tolist()
        return value, size, _first_code(asked)

    def _seed(self, number: int) -> None:
        seed = self.train.seed * 1_000_003 + number
        torch.manual_seed(seed + 7_919_000_017 * ranks.rank())  # dropout, stochastic depth
        if self.mixup:  # timm's draws from NumPy's global generator; it mixes alike on every rank
            np.random.seed(seed % 2**32)

    def _advance(self, number: int) -> None:
        """Learning rate, method parameters and hardness for a step. F is sign in the last `harden` steps."""
        self.scheduler.step_update(number)
        if self.quantizer:
            soft = self.steps * (1 - self.train.harden)
            self.quantizer.hard = self.train.harden > 0 and number >= soft
            self.quantizer.move_to(number / max(soft - 1, 1))

    def _forget_latents(self) -> None:
        """Drop the optimizer's moments of the latents: gradients of the soft pair are of another size."""
        for _, weight in binary_weights(self.net):
            self.optimizer.state.pop(weight.latent, None)

    def parameters(self) -> str:
        """The method's parameters now, such as `mu=30`."""
        if not self.quantizer:
            return ""
        shown = [f"{name}={float(value):.4g}" for name, value in self.quantizer.values.items()]
        return " ".join(shown + ["F=sign"] * self.quantizer.hard)

    def _finish_epoch(self, number: int, display: Display) -> None:
        """Score, keep the network if its signs are the best so far, and note the row."""
        ranks.broadcast(self.scored.buffers())  # BatchNorm's may differ: every rank has seen its own images
        soft = hard = self.score(self.scored)
        if self.quantizer and not self.quantizer.hard:
            with self.quantizer.hardened():
                hard = self.score(self.scored)
        steps = self.at.step
        row = EpochRow(
            stage=self.stage,
            epoch=number,
            loss=round(self.at.loss / steps, 6) if steps else None,
            soft_top1=soft.top1,
            soft_loss=soft.loss,
            hard_top1=hard.top1,
            hard_loss=hard.loss,
            lr=self.optimizer.param_groups[0]["lr"],
            parameters=self.parameters(),
            flip_ratio=self.flips.ratio() if steps else None,
            seconds=round(self.at.seconds, 2),
            images_per_second=round(steps * self.batches.batch_size / self.at.seconds, 1) if steps else 0.0,
        )
        self.rows.append(row)
        display.epoch(row, self.train.epochs)
        if hard.top1 >= self.at.best:  # of equals the later one, which is the harder
            self.at.best = hard.top1
            self.best = {k: v.detach().cpu().clone() for k, v in self.scored.state_dict().items()}

    def _kept(self) -> str:
        kept = state.kept(self.folder)
        return f"The last good state is kept in {kept[0]}." if kept else "No epoch had ended yet."

    def _save(self) -> None:
        self.saved = time.monotonic()
        if not ranks.is_rank0():
            return
        state.save_newest(
            self.folder,
            self.done,
            {
                "position": vars(self.at),
                "rows": [vars(row) for row in self.rows],
                "net": self.net.state_dict(),
                "best": self.best,
                "ema": self.ema.state_dict() if self.ema else None,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "signs": self.flips.before,
            },
        )

    def _restore(self) -> None:
        """Raises InputError where no state is whole, or where this rank does not see that of the first."""
        saved = state.load_newest(self.folder)
        there = saved["position"] if saved else None
        if ranks.broadcast_from_rank0(lambda: there) != there:
            hint = "All nodes must see the run folder: put --output on a shared file system."
            raise InputError("not the state that the first rank sees", where=str(self.folder), hint=hint)
        if saved is None:
            return
        self.at = Position(**there)
        self.rows = [EpochRow(**row) for row in saved["rows"]]
        self.net.load_state_dict(saved["net"])
        if self.ema:
            self.ema.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.flips.before = [signs.to(self.device) for signs in saved["signs"]]
        self.best = saved["best"]
        if self.done:
            self._advance(self.done - 1)  # the last step may have been the last of an epoch, to be scored yet

    def _load_best(self) -> None:
        self.net.load_state_dict(self.best)
        if self.quantizer:
            self.quantizer.move_to(1.0)


def _first_code(asked: Sequence[float]) -> int:
    """Of the shares of ranks that ask for each of EXIT_CODES, the first that is not zero."""
    return next((code for code, share in zip(EXIT_CODES, asked, strict=True) if share), 0)
