"""One step: the gradient of a batch, and the update of the network's parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor, nn

from binarize_cli import ranks
from binarize_cli.binarize.convert import latent_weights
from binarize_cli.binarize.phase import Phase, set_phase
from binarize_cli.binarize.prepare import BinaryNetwork
from binarize_cli.binarize.respread import respread
from binarize_cli.binarize.updates import update_rule
from binarize_cli.device import autocast_type, compiled
from binarize_cli.recipe import Train
from binarize_cli.training.divergence import diverged
from binarize_cli.training.objective import Objective
from binarize_cli.training.optimizer import make_optimizer, make_scheduler, skips_by_itself
from binarize_cli.training.parallel import mean_over_ranks, spread
from binarize_cli.training.phases import PhasePlan
from binarize_cli.training.reading import Batch, Outcome, Reading, not_finite


class Step:
    """Takes steps numbered from 0. It knows neither methods nor models: the quantizers of the network do.

    Every step draws its random numbers from generators seeded by (seed, step, rank), so that a resumed run
    repeats an uninterrupted one without their state.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        binary: BinaryNetwork | None,
        phases: PhasePlan,
        objective: Objective,
        train: Train,
        classes: int,
        device: torch.device,
        compile: str | None = None,
        parallel: str = "ddp",
    ):
        self.parallel = spread(net, parallel, device)
        self.net, self.binary, self.phases = self.parallel.own, binary, phases
        self.objective, self.train, self.device = objective, train, device
        self.optimizer = make_optimizer(self.net, train)
        self.scheduler = make_scheduler(self.optimizer, train, phases.steps)
        self.amp = autocast_type(train.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp is torch.float16)
        self.ema = self.parallel.average(train.ema) if train.ema else None
        self.mixup = None
        if train.mixup or train.cutmix:
            self.mixup = Mixup(train.mixup, train.cutmix, label_smoothing=0.0, num_classes=classes)
        self.parallel.rest()
        self.forward = compiled(self.parallel.net, compile) if compile else self.parallel.net
        self.late = device.type == "cuda" and skips_by_itself(self.optimizer) and not self.scaler.is_enabled()
        """Whether the loss of a step is looked at after the next one has been asked for."""
        self.unread: Reading | None = None
        self.failed = torch.zeros((), device=device)
        """1 once a loss or gradient was not finite, if `late`: from then on the optimizer moves nothing."""
        if binary:
            self.enter(phases.start())

    @property
    def learned(self) -> nn.Module:
        """The network that is scored and kept: the averaged one, if there is one."""
        return self.ema.module if self.ema else self.net

    def whole_net(self) -> nn.Module:
        """Return that network as one that a rank can call by itself."""
        return self.parallel.whole_net(self.learned)

    def enter(self, phase: Phase) -> None:
        """Hand a phase to the network's quantizers, and to those of its average."""
        if self.binary:
            self.binary.enter(phase)
            if self.net is not self.binary.net:  # a copy that is shared out over the ranks
                set_phase(self.net, phase)
        if self.ema:
            set_phase(self.ema.module, phase)

    def take(
        self,
        batches: Sequence[Batch],
        number: int,
        asked: Callable[[], Sequence[Tensor]],
        kept: Callable[[], str],
    ) -> Outcome | None:
        """Update the parameters by the mean loss of the micro-batches; return what is known to come of it.

        If `late`, that is the outcome of the step before, or None after the first. `asked` gives numbers []
        of this rank, of which all ranks learn the means in the same exchange. Raises Diverged on a loss or
        gradient that is not finite, which moves no parameter; `kept` says what state is left.
        """
        numbers, norm, inputs = self._compute(batches, number, asked)
        if self.late:
            self.failed = torch.maximum(self.failed, not_finite(numbers[:2]))
            self.optimizer.found_inf = self.failed  # type: ignore[attr-defined]
            before, self.unread = self.unread, Reading(number, batches, numbers)
            self._update(norm)
            return self._outcome(before, kept) if before else None
        loss, size, *means = numbers.tolist()
        if not np.isfinite(loss) or not (self.scaler.is_enabled() or np.isfinite(size)):
            self._raise_diverged(loss, inputs, number, kept)
        self._update(norm, skipped=not np.isfinite(size))  # by the scaler
        return Outcome(loss, means)

    def catch_up(self, kept: Callable[[], str]) -> Outcome | None:
        """Return the outcome of the last step, if it is still unread. Raises Diverged."""
        last, self.unread = self.unread, None
        return self._outcome(last, kept) if last else None

    def _outcome(self, reading: Reading, kept: Callable[[], str]) -> Outcome:
        """Wait for a step's numbers. If they are not finite, compute it again to name the layer.

        Neither it nor the step after it has moved the parameters.
        """
        loss, size, *means = reading.wait()
        if not np.isfinite([loss, size]).all():
            _, _, inputs = self._compute(reading.batches, reading.number, list)
            self._raise_diverged(loss, inputs, reading.number, kept)
        return Outcome(loss, means)

    def _raise_diverged(self, loss: float, inputs: Tensor, number: int, kept: Callable[[], str]) -> None:
        if not np.isfinite(loss):
            self.optimizer.zero_grad(set_to_none=True)  # whatever is in there came from the loss
        raise diverged(self.net, inputs, number + 1, kept())

    def _compute(
        self, batches: Sequence[Batch], number: int, asked: Callable[[], Sequence[Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradient at a step.

        Returns the means over ranks of the loss, the gradient's norm and what is asked; the norm; the images.
        """
        self._seed(number)
        self.advance(number)
        if self.binary and self.binary.quantizer.has_soft_phase and self.phases.hardens_at(number):
            self._begin_anew()
        self.optimizer.zero_grad(set_to_none=True)
        loss, inputs = self._gradient(batches, number)
        self.scaler.unscale_(self.optimizer)
        norm = self.parallel.gradient_norm()
        return mean_over_ranks([loss, norm, *asked()]), norm, inputs

    def _update(self, norm: Tensor, skipped: bool = False) -> None:
        """Move the parameters along their gradient, of that norm; if skipped, no latent and no average."""
        if self.train.clip_grad:
            self.parallel.clip_gradient(self.train.clip_grad, norm)
        with nullcontext() if skipped else update_rule(self.net):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema and not skipped:
            self.ema.update(self.net)

    def _gradient(self, batches: Sequence[Batch], number: int) -> tuple[Tensor, Tensor]:
        """Add up the gradient of the micro-batches' mean loss; return that loss, and the last images.

        Ranks exchange gradients once, with the last micro-batch.
        """
        total = torch.zeros((), device=self.device)
        for count, (inputs, targets) in enumerate(batches, start=1):
            inputs = inputs.to(self.device, non_blocking=True)
            targets = targets.to(self.device, non_blocking=True)
            if self.mixup:
                inputs, targets = self.mixup(inputs, targets)
            with self.parallel.exchange(now=count == len(batches)):
                with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
                    logits = self.forward(inputs)
                    loss = self.objective(inputs, logits, targets, number) / len(batches)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total, inputs

    def _seed(self, number: int) -> None:
        seed = self.train.seed * 1_000_003 + number
        torch.manual_seed(seed + 7_919_000_017 * ranks.rank())  # dropout, stochastic depth
        if self.mixup:  # timm's draws from NumPy's global generator; it mixes alike on every rank
            np.random.seed(seed % 2**32)

    def advance(self, number: int) -> None:
        """Set the learning rate and the phase to those of a step."""
        self.scheduler.step_update(number)
        if self.binary:
            self.enter(self.phases.at(number))

    def _begin_anew(self) -> None:
        """Respread the latents, and drop their moments: gradients of the soft pair are of another size."""
        respread(self.net)
        for _, weight in latent_weights(self.net):
            self.optimizer.state.pop(weight.latent, None)
