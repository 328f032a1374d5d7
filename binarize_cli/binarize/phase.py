"""Where binarization stands: the one state that is handed to the quantizers of a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

Mode = Literal["float", "soft", "hard"]
"""What F is: the identity, the method's own function, or sign."""


@dataclass(frozen=True)
class Moment:
    """How far a schedule has come, in [0, 1], and what F is."""

    progress: float = 0.0
    mode: Mode = "soft"

    def hardened(self) -> Moment:
        """Return this moment with sign for F. What is float stays float."""
        return self if self.mode == "float" else replace(self, mode="hard")


@dataclass(frozen=True)
class Phase:
    """The moments of the weights and of the binary layers' inputs.

    >>> Phase.at(0.5).hardened().weights
    Moment(progress=0.5, mode='hard')
    """

    weights: Moment = Moment()
    inputs: Moment = Moment()

    @classmethod
    def at(cls, progress: float, mode: Mode = "soft") -> Phase:
        """Return the phase in which weights and inputs are at the same moment."""
        return cls(Moment(progress, mode), Moment(progress, mode))

    @property
    def is_hard(self) -> bool:
        """Whether F is sign: of the weights or, while these are float, of the inputs."""
        return (self.inputs if self.weights.mode == "float" else self.weights).mode == "hard"

    def hardened(self) -> Phase:
        """Return the phase of the network of signs, as it would ship now."""
        return Phase(self.weights.hardened(), self.inputs.hardened())


class PhasedModule(nn.Module):
    """A part of a network that follows the phase: it takes its own moment out of it."""

    def enter(self, phase: Phase) -> None:
        """Take over the phase."""
        raise NotImplementedError


def set_phase(net: nn.Module, phase: Phase) -> None:
    """Hand the phase to every quantizer of a network."""
    for module in net.modules():
        if isinstance(module, PhasedModule):
            module.enter(phase)
