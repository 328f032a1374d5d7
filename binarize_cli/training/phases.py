"""The phase of each step: schedules, then hardening. Functions of the step alone: no state to save."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from binarize_cli.binarize.phase import Moment, Phase

Stage = Literal["float", "activations", "binary"]


@dataclass(frozen=True)
class PhasePlan:
    """The phases of one stage of training.

    F is the method's own while its schedule runs, and sign in the last `harden` of the steps; of inputs in
    the last `harden_inputs`, with a schedule that is faster or slower by as much. In the stage
    `activations` the weights stay float; with `inputs_frozen` the inputs stay at the end of their schedule.
    """

    stage: Stage
    steps: int
    harden: float
    """The share of the steps in which F is sign, in [0, 1)."""
    harden_inputs: float
    """That of the inputs, in [0, 1]."""
    inputs_frozen: bool = False

    def at(self, step: int) -> Phase:
        """Return the phase of a step, counted from 0."""
        return self._phase(self._moment(step, self.harden), self._moment(step, self.harden_inputs))

    def after(self, steps: int) -> Phase:
        """Return the phase in which so many steps leave the network."""
        return self.at(max(steps - 1, 0))

    def start(self) -> Phase:
        """Return the phase before the first step."""
        return self.at(0)

    def hardens_at(self, step: int) -> bool:
        """Return whether the weights' F becomes sign with this step."""
        return self.at(step).weights.mode == "hard" and self.after(step).weights.mode != "hard"

    def _moment(self, step: int, harden: float) -> Moment:
        soft_steps = self.steps * (1 - harden)
        if harden == 1 or (harden > 0 and 0 < soft_steps <= step):
            return Moment(1.0, "hard")
        return Moment(min(step / max(soft_steps - 1, 1), 1.0))

    def _phase(self, weights: Moment, inputs: Moment) -> Phase:
        if self.stage == "activations":
            weights = replace(weights, mode="float")
        return Phase(weights, replace(inputs, progress=1.0) if self.inputs_frozen else inputs)
