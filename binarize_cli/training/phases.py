"""The phase of each step: schedules, then hardening. Functions of the step alone: no state to save."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from binarize_cli.binarize.phase import Mode, Moment, Phase

Stage = Literal["float", "activations", "binary"]


@dataclass(frozen=True)
class PhasePlan:
    """The phases of one stage of training.

    F is the method's own while its schedule runs, and sign in the last `harden` of the steps. In the stage
    `activations` the weights stay float; with `inputs_frozen` the inputs stay at the end of their schedule.
    """

    stage: Stage
    steps: int
    harden: float
    """The share of the steps in which F is sign, in [0, 1)."""
    inputs_frozen: bool = False

    def at(self, step: int) -> Phase:
        """Return the phase of a step, counted from 0."""
        soft_steps = self.steps * (1 - self.harden)
        mode: Mode = "hard" if self.harden > 0 and step >= soft_steps else "soft"
        return self._phase(min(step / max(soft_steps - 1, 1), 1.0), mode)

    def after(self, steps: int) -> Phase:
        """Return the phase in which so many steps leave the network."""
        return self.at(steps - 1) if steps else self.start()

    def start(self) -> Phase:
        """Return the phase before the first step."""
        return self._phase(0.0, "soft")

    def hardens_at(self, step: int) -> bool:
        """Return whether the weights' F becomes sign with this step."""
        return self.at(step).weights.mode == "hard" and self.after(step).weights.mode != "hard"

    def _phase(self, progress: float, mode: Mode) -> Phase:
        weights = Moment(progress, "float" if self.stage == "activations" else mode)
        return Phase(weights, Moment(1.0 if self.inputs_frozen else progress, mode))
