"""The training loop: epochs of steps, scoring, the best epoch, and the state to resume from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from binarize_cli import ranks
from binarize_cli.binarize.prepare import BinaryNetwork
from binarize_cli.errors import InputError, Interrupted
from binarize_cli.evaluation import Measurement
from binarize_cli.recipe import Train
from binarize_cli.training import state
from binarize_cli.training.display import Display
from binarize_cli.training.flips import FlipCounter
from binarize_cli.training.log import EpochRow
from binarize_cli.training.objective import Objective
from binarize_cli.training.parallel import mean_over_ranks, whole
from binarize_cli.training.phases import PhasePlan, Stage
from binarize_cli.training.reading import Batch, Outcome
from binarize_cli.training.step import Step
from binarize_cli.training.stop import EXIT_CODES, StopRequest


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
    packed_epoch: int = 0
    """The epoch that is kept so far."""


@dataclass
class Saving:
    """Where and when the state is saved: after every epoch, every `minutes`, and when `stop` asks for it."""

    folder: Path
    stop: StopRequest = field(default_factory=StopRequest)
    minutes: float = 10.0


class Trainer:
    """Fine-tunes `net` in place for `train.epochs` epochs and leaves it at the one that `train.select` says.

    `binary` is what the network belongs to, None for a float one. `score(net)` measures a network on the
    validation images, `score_held_out(net)` on training images that were set aside.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        stage: Stage,
        binary: BinaryNetwork | None,
        inputs_frozen: bool = False,
        batches: TrainingBatches,
        objective: Objective,
        train: Train,
        classes: int,
        device: torch.device,
        score: Callable[[nn.Module], Measurement],
        score_held_out: Callable[[nn.Module], Measurement] | None = None,
        saving: Saving,
        compile: str | None = None,
        parallel: str = "ddp",
    ):
        self.net, self.stage, self.binary = net, stage, binary
        self.batches, self.train, self.device = batches, train, device
        self.score, self.saving = score, saving
        self.score_held_out = score_held_out or score
        self.steps = train.epochs * len(batches)
        self.step = Step(
            net,
            binary=binary,
            phases=PhasePlan(stage, self.steps, train.harden, train.inputs_hardened, inputs_frozen),
            objective=objective,
            train=train,
            classes=classes,
            device=device,
            compile=compile,
            parallel=parallel,
        )
        self.flips = FlipCounter(self.step.net)
        self.position = Position()
        self.best: dict[str, Tensor] = {}  # the state dict of the best epoch, on the CPU; empty for the last
        self.saved = time.monotonic()
        self.rows: list[EpochRow] = []

    @property
    def global_step(self) -> int:
        """Steps taken, over all epochs."""
        return self.position.epoch * len(self.batches) + self.position.step

    def run(
        self, resume: bool = False, on_epoch: Callable[[list[EpochRow]], None] = lambda rows: None
    ) -> list[EpochRow]:
        """Train to the end. Raises Diverged, and Interrupted after saving when a signal came."""
        if resume:
            self._restore()
        with self.saving.stop.in_training(), Display(self.stage, self.steps, self.global_step) as display:
            if not self.rows:
                self._finish_epoch(0, display)
                on_epoch(self.rows)
            while self.position.epoch < self.train.epochs:
                self._epoch(display)
                self._finish_epoch(self.position.epoch + 1, display)
                self.position = replace(
                    self.position, epoch=self.position.epoch + 1, step=0, loss=0.0, seconds=0.0
                )
                on_epoch(self.rows)
                self._save()
                self._leave_if(self._stop_code())
        self._settle()
        return self.rows

    def _epoch(self, display: Display) -> None:
        """Take the rest of the present epoch's steps."""
        self.step.net.train()
        started = time.perf_counter()
        micro_batches = iter(self.batches.epoch(self.position.epoch, start=self.position.step))
        for batches in zip(*[micro_batches] * self.batches.accumulate, strict=True):
            number = self.global_step
            outcome = self.take_step(batches, number)
            stop, save = self._wanted(outcome)
            now = time.perf_counter()
            speed = self.batches.batch_size / (now - started)
            self.position = replace(
                self.position,
                step=self.position.step + 1,
                loss=self.position.loss + (outcome.loss if outcome else 0.0),
                seconds=self.position.seconds + now - started,
            )
            started = now
            loss = outcome.loss if outcome else None
            display.step(number + 1, loss, speed, self._parameters(), self._hard())
            if stop or save:
                self._catch_up()
                self._save()
            self._leave_if(stop)
        self._catch_up()
        self.position.seconds += time.perf_counter() - started

    def take_step(self, batches: Sequence[Batch], number: int) -> Outcome | None:
        """Take step `number`; return what is known of it, or of the step before. Raises Diverged."""
        return self.step.take(batches, number, list if ranks.world() == 1 else self._wishes, self._kept)

    def _catch_up(self) -> None:
        """Learn the outcome of the last step, should it still be on its way. Raises Diverged."""
        if outcome := self.step.catch_up(self._kept):
            self.position.loss += outcome.loss

    def _wanted(self, outcome: Outcome | None) -> tuple[int, bool]:
        """Return the exit code that a signal asks for, and whether to save; the same on all ranks."""
        if ranks.world() == 1:
            return self.saving.stop.code, self._save_is_due()
        *codes, save = outcome.means if outcome else [0.0] * (len(EXIT_CODES) + 1)
        return _first_code(codes), save > 0

    def _wishes(self) -> list[Tensor]:
        """Return what this rank wants: an exit code, as `_codes` has it, and to save."""
        return [*self._codes(), self._flag(self._save_is_due())]

    def _save_is_due(self) -> bool:
        return time.monotonic() - self.saved >= 60 * self.saving.minutes

    def _stop_code(self) -> int:
        """Return the exit code that a signal to any rank asks for; 0 if none came."""
        return _first_code(mean_over_ranks(self._codes()).tolist())

    def _codes(self) -> list[Tensor]:
        """Return, for each exit code, whether a signal to this rank asks for it."""
        return [self._flag(self.saving.stop.code == code) for code in EXIT_CODES]

    def _flag(self, value: bool) -> Tensor:
        """Return 1.0 or 0.0 on the device: [], made there, since a copy from the CPU would be waited for."""
        return torch.full((), float(value), device=self.device)

    def _leave_if(self, code: int) -> None:
        """Raise Interrupted if a signal came; the state is saved by then."""
        if code:
            what = f"stopped after step {self.global_step}; the state is in {self.saving.folder}"
            hint = "Run the same command with --resume to continue."
            raise Interrupted(what, exit_code=code, hint=hint)

    def _parameters(self) -> dict[str, float]:
        """Return the method's parameters now, such as {"mu": 30.0}."""
        return self.binary.quantizer.parameter_values() if self.binary else {}

    def _hard(self) -> bool:
        """Return whether F is sign now, of the weights or, while these are float, of the inputs."""
        return self.binary is not None and self.binary.phase.is_hard

    def _finish_epoch(self, number: int, display: Display) -> None:
        """Score what was learned, note the row, and keep the network if it is the best and that counts."""
        ranks.broadcast(self.step.learned.buffers())  # BatchNorm's may differ: every rank saw its own images
        net = self.step.whole_net()
        self._note_row(number, net, display)
        self.step.parallel.rest()

    def _note_row(self, number: int, net: nn.Module, display: Display) -> None:
        """Score the network, note what came of the epoch, and keep the network if it is to be packed."""
        hard = self._hard_score(net, self.score)
        one = self.binary is None or self._hard() or self.binary.is_sign
        soft = hard if one else self.score(net)
        steps = self.position.step
        flips = self.flips.count() if steps else None
        row = EpochRow(
            stage=self.stage,
            epoch=number,
            loss=round(self.position.loss / steps, 6) if steps else None,
            soft_top1=soft.top1,
            soft_loss=soft.loss,
            hard_top1=hard.top1,
            hard_loss=hard.loss,
            lr=self.step.optimizer.param_groups[0]["lr"],
            hard=self._hard(),
            flip_ratio=flips.ratio if flips else None,
            seconds=round(self.position.seconds, 2),
            images_per_second=(
                round(steps * self.batches.batch_size / self.position.seconds, 1) if steps else 0.0
            ),
            parameters=self._parameters(),
            layer_flips=flips.layers if flips else (),
        )
        self.rows.append(row)
        display.epoch(row, self.train.epochs)
        if self.train.select == "last":
            self.position.packed_epoch = number
            return
        if self.train.select == "held-out":
            hard = self._hard_score(net, self.score_held_out)
        if hard.top1 >= self.position.best:  # of equals the later one, which is the harder
            self.position.best, self.position.packed_epoch = hard.top1, number
            self.best = net.state_dict()  # with the versions of its modules, which some need to load it again
            self.best.update({k: v.detach().cpu().clone() for k, v in self.best.items()})

    def _hard_score(self, net: nn.Module, score: Callable[[nn.Module], Measurement]) -> Measurement:
        """Score the network of signs of `net`, whatever the present phase, rounded as it would be packed.

        While weights are still float, in the first of two stages, nothing could be packed yet.
        """
        binary = self.binary
        if binary is None:
            return score(net)
        if binary.phase.weights.mode != "float":
            return score(binary.frozen_copy(net))
        present = binary.phase
        self.step.enter(present.hardened())
        try:
            return score(net)
        finally:
            self.step.enter(present)

    def _kept(self) -> str:
        """Say which state a person can go back to."""
        saved = state.saved_states(self.saving.folder)
        return f"The last good state is kept in {saved[0]}." if saved else "No epoch had ended yet."

    def _save(self) -> None:
        self.saved = time.monotonic()
        parallel, ema = self.step.parallel, self.step.ema
        found = {  # on all ranks: each may have a part
            "position": vars(self.position),
            "rows": [row.to_json() for row in self.rows],
            "net": parallel.state_of(self.step.net),
            "best": self.best,
            "ema": parallel.state_of(ema) if ema else None,
            "optimizer": parallel.state_of_optimizer(self.step.optimizer),
            "scaler": self.step.scaler.state_dict(),
            "signs": [whole(signs) for signs in self.flips.before],
        }
        if ranks.is_rank0():
            state.save_newest(self.saving.folder, self.global_step, found)

    def _restore(self) -> None:
        """Raise InputError if no state is whole, or if this rank does not see that of the first."""
        saved = state.load_newest(self.saving.folder)
        there = saved["position"] if saved else None
        if ranks.broadcast_from_rank0(lambda: there) != there:
            hint = "All nodes must see the run folder: put --output on a shared file system."
            raise InputError(
                "not the state that the first rank sees", where=str(self.saving.folder), hint=hint
            )
        if saved is None:
            return
        self.position = Position(**saved["position"])
        self.rows = [EpochRow(**row) for row in saved["rows"]]
        parallel = self.step.parallel
        parallel.load(self.step.net, saved["net"])
        if self.step.ema:
            parallel.load(self.step.ema, saved["ema"])
        parallel.load_optimizer(self.step.optimizer, saved["optimizer"])
        self.step.scaler.load_state_dict(saved["scaler"])
        self.flips.load(saved["signs"])
        self.best = saved["best"]
        if self.global_step:  # the last step may have been the last of an epoch, to be scored yet
            self.step.advance(self.global_step - 1)

    def _settle(self) -> None:
        """Leave the network at the selected epoch, and in its phase."""
        chosen = self.step.whole_net().state_dict()
        chosen.update(self.best)  # in place: a state dict holds its modules' versions too
        self.net.load_state_dict(chosen)
        if self.binary:
            self.step.enter(self.step.phases.after(self.position.packed_epoch * len(self.batches)))


def _first_code(asked: Sequence[float]) -> int:
    """Return the first of EXIT_CODES that any rank asks for, by the shares of ranks that do; 0 if none."""
    return next((code for code, share in zip(EXIT_CODES, asked, strict=True) if share), 0)
