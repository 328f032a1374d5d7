"""The training loop. It knows neither methods nor models: those lie in the quantizer and the network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from binarize_cli.binarize.convert import binary_weights
from binarize_cli.binarize.quantizer import WeightQuantizer
from binarize_cli.errors import Interrupted
from binarize_cli.recipe import Train
from binarize_cli.training import state
from binarize_cli.training.display import Display
from binarize_cli.training.divergence import diverged
from binarize_cli.training.flips import FlipCounter
from binarize_cli.training.log import EpochRow
from binarize_cli.training.objective import Objective
from binarize_cli.training.optimizer import make_optimizer, make_scheduler
from binarize_cli.training.precision import autocast_type
from binarize_cli.training.score import Score
from binarize_cli.training.stop import StopRequest
from binarize_cli.training.updates import update_rule


class TrainingBatches(Protocol):
    """Batches of an epoch, from the k-th on: the same ones for the same epoch, however often asked."""

    batch_size: int

    def __len__(self) -> int: ...
    def epoch(self, number: int, start: int = 0) -> Iterable[tuple[Tensor, Tensor]]: ...


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
    holds the state, from which `resume` continues. Every step draws its random numbers from generators
    seeded by (seed, step), so that a resumed run repeats an uninterrupted one without their state.
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
    ):
        self.net, self.stage, self.quantizer = net, stage, quantizer
        self.batches, self.objective, self.train = batches, objective, train
        self.device, self.score, self.folder = device, score, folder
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
        self.at = Position()
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
        """Train to the end. Raises Diverged, and Interrupted after saving when Ctrl-C came."""
        if resume and (self.folder / state.LAST).exists():
            self._restore()
        with StopRequest() as stop, Display(self.stage, self.steps, self.done) as display:
            if not self.rows:
                self._finish_epoch(0, display)
                on_epoch(self.rows)
            while self.at.epoch < self.train.epochs:
                self._epoch(stop, display)
                self._finish_epoch(self.at.epoch + 1, display)
                self.at = Position(epoch=self.at.epoch + 1, best=self.at.best)
                on_epoch(self.rows)
                self._save()
                self._leave_if(stop)
        self._load_best()
        return self.rows

    def _epoch(self, stop: StopRequest, display: Display) -> None:
        """The rest of the present epoch, step by step."""
        self.net.train()
        started = time.perf_counter()
        for inputs, targets in self.batches.epoch(self.at.epoch, start=self.at.step):
            number = self.done
            loss = self._step(inputs.to(self.device), targets.to(self.device), number)
            now = time.perf_counter()
            speed = len(inputs) / (now - started)
            self.at = replace(
                self.at,
                step=self.at.step + 1,
                loss=self.at.loss + loss,
                seconds=self.at.seconds + now - started,
            )
            started = now
            display.step(number + 1, loss, speed, self.parameters())
            if stop.requested:
                self._save()
                self._leave_if(stop)

    def _leave_if(self, stop: StopRequest) -> None:
        """Raises Interrupted when Ctrl-C came; the state is saved by then."""
        if stop.requested:
            what = f"stopped after step {self.done}; the state is in {self.folder}"
            raise Interrupted(what, hint="Run the same command with --resume to continue.")

    def _step(self, inputs: Tensor, targets: Tensor, number: int) -> float:
        """One update of the latents; returns the loss. Raises Diverged on an infinite loss or gradient."""
        self._seed(number)
        was_hard = self.quantizer is not None and self.quantizer.hard
        self._advance(number)
        if self.quantizer and self.quantizer.hard and self.quantizer.hardens and not was_hard:
            self._forget_latents()
        if self.mixup:
            inputs, targets = self.mixup(inputs, targets)
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
            logits = self.net(inputs)
            loss = self.objective(inputs, logits, targets, number)
        value = loss.item()
        if not np.isfinite(value):
            raise diverged(self.net, inputs, number + 1, self._kept())
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.net.parameters() if p.grad is not None])
        if not self.scaler.is_enabled() and not torch.isfinite(norm):  # the scaler skips such steps itself
            raise diverged(self.net, inputs, number + 1, self._kept())
        if self.train.clip_grad:
            clip_grads_with_norm_(self.net.parameters(), self.train.clip_grad, norm)
        with update_rule(self.net, self.quantizer):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update(self.net)
        return value

    def _seed(self, number: int) -> None:
        seed = self.train.seed * 1_000_003 + number
        torch.manual_seed(seed)  # dropout, stochastic depth
        if self.mixup:
            np.random.seed(seed % 2**32)  # timm's Mixup draws from NumPy's global generator

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
            state.save(self.folder / state.BEST, {"net": self.scored.state_dict()})

    def _kept(self) -> str:
        kept = self.folder / state.LAST
        return f"The last good state is kept in {kept}." if kept.exists() else "No epoch had ended yet."

    def _save(self) -> None:
        state.save(
            self.folder / state.LAST,
            {
                "position": vars(self.at),
                "rows": [vars(row) for row in self.rows],
                "net": self.net.state_dict(),
                "ema": self.ema.state_dict() if self.ema else None,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "signs": self.flips.before,
            },
        )

    def _restore(self) -> None:
        saved = state.load(self.folder / state.LAST, self.device)
        self.at = Position(**saved["position"])
        self.rows = [EpochRow(**row) for row in saved["rows"]]
        self.net.load_state_dict(saved["net"])
        if self.ema:
            self.ema.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.flips.before = saved["signs"]
        if self.done:
            self._advance(self.done - 1)  # the last step may have been the last of an epoch, to be scored yet

    def _load_best(self) -> None:
        self.net.load_state_dict(state.load(self.folder / state.BEST, self.device)["net"])
        if self.quantizer:
            self.quantizer.move_to(1.0)
