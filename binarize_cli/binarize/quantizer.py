"""What all binary layers of a network share: a method at a moment of its schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from binarize_cli.binarize.phase import Mode, Moment, Phase, PhasedModule
from binarize_cli.quantizers.functions import sign, sign_swish_slope, ste
from binarize_cli.quantizers.method import Method
from binarize_cli.quantizers.scales import TINY, Scale
from binarize_cli.quantizers.schedules import Schedule

Values = Mapping[str, Tensor]
GRID = 256
EDGE = 2.3994  # SS_mu' is negative beyond EDGE / mu


class Quantizer(PhasedModule):
    """F and B of a method at a moment. Its parameters (mu, rho ...) lie in 0-d tensors.

    So a compiled model does not recompile when they move. A network's layers share one quantizer; a copy of
    the network has a copy of it.
    """

    mode: Mode

    def __init__(self, method: Method, schedules: Mapping[str, Schedule], normalize: float | None):
        super().__init__()
        self.method, self.schedules, self.normalize = method, dict(schedules), normalize
        for name in self.schedules:
            self.register_buffer(_slot(name), torch.zeros(()), persistent=False)
        self.move_to(Moment())

    def move_to(self, moment: Moment) -> None:
        """Set the parameters and F to what they are at a moment."""
        self.moment = moment
        self.mode = moment.mode  # read in forward passes: torch.compile would guard all of the moment
        for name, value in self.parameter_values().items():
            getattr(self, _slot(name)).fill_(value)

    def parameter_values(self) -> dict[str, float]:
        """Return the method's parameters now, by name."""
        return self.method.values(self.moment.progress, self.schedules)

    @property
    def values(self) -> dict[str, Tensor]:
        """The parameters as the formulas take them, 0-d tensors by name."""
        return {name: getattr(self, _slot(name)) for name in self.schedules}

    @property
    def has_soft_phase(self) -> bool:
        """Whether hardening changes the pair: where F is sign all along there is nothing to harden."""
        return not self.method.is_sign

    @property
    def is_sign(self) -> bool:
        """Whether F is sign now."""
        return self.mode == "hard" or (self.mode == "soft" and not self.has_soft_phase)

    def F(self, x: Tensor, values: Values | None = None) -> Tensor:
        """Return the forward quantizer at x, as the network uses it now, or with other parameters."""
        if self.mode == "float":
            return x
        return sign(x) if self.mode == "hard" else self.method.F(x, values or self.values)

    def B(self, x: Tensor, values: Values | None = None) -> Tensor:
        """Return the backward quantizer at x; 1 for a map rule, whose F is a proximal map."""
        if self.mode == "float" or self.method.applies_map:
            return ste(x)
        return self.method.B(x, values or self.values)


def _slot(name: str) -> str:
    return f"value_{name}"


class WeightQuantizer(Quantizer):
    """alpha F(w* / n) for every latent weight tensor of a network.

    Under a map rule the soft network uses the latents themselves: the map is applied to them at each step.
    """

    def __init__(
        self,
        method: Method,
        schedules: Mapping[str, Schedule],
        normalize: float | None,
        scale: Scale,
    ):
        super().__init__(method, schedules, normalize)
        self.scale = scale

    def enter(self, phase: Phase) -> None:
        """Take over the moment of the weights."""
        self.move_to(phase.weights)

    def F(self, x: Tensor, values: Values | None = None) -> Tensor:
        """Return the forward quantizer at x: x itself under a map rule, until hardening."""
        return x if self.method.applies_map and self.mode == "soft" else super().F(x, values)

    def B(self, x: Tensor, values: Values | None = None) -> Tensor:
        """Return the backward quantizer at x. Hardening a soft F makes the pair BinaryConnect's: (sign, 1).

        (sign, F') would be a heuristic pair, and its narrow window would freeze the signs.
        """
        if self.mode == "hard" and self.has_soft_phase:
            return ste(x) * (self.normalize or 1.0)  # alpha / n times this is 1
        return super().B(x, values)

    @torch.no_grad()
    def map_(self, latent: Tensor) -> None:
        """Replace w by alpha P(w / n), in place, whatever the tensor's layout."""
        mapped = self.method.F(latent / self.normaliser(latent), self.values)
        if not self.scale.unit:
            mapped *= self.scale.magnitude(latent) / self.scale.magnitude(mapped).clamp_min(TINY)
        latent.copy_(mapped)

    def normaliser(self, latent: Tensor) -> Tensor:
        """Return n, broadcastable against the latent weights; a constant of the backward pass."""
        if self.normalize is None:
            return latent.new_ones(())
        return (self.normalize * self.scale.magnitude(latent)).clamp_min(TINY)


class ActivationQuantizer(Quantizer):
    """beta F((x - t) / n) for the inputs of the binary layers."""

    typical: Tensor

    def __init__(
        self,
        method: Method,
        schedules: Mapping[str, Schedule],
        normalize: float | None,
        window: float,
    ):
        super().__init__(method, schedules, normalize)
        self.window = window
        levels = torch.special.ndtri((torch.arange(GRID) + 0.5) / GRID)
        typical = levels / levels.abs().mean()
        self.register_buffer("typical", typical, persistent=False)  # [GRID], Gaussian inputs of magnitude 1

    def enter(self, phase: Phase) -> None:
        """Take over the moment of the inputs."""
        self.move_to(phase.inputs)

    def B(self, x: Tensor, values: Values | None = None) -> Tensor:
        """Return the backward quantizer at x. While a soft F is hardened, it is SS' within a window, else 0.

        F' at the end of its schedule is so narrow that hardly an input would pass a gradient on. Beyond the
        window SS' is negative, and would turn the gradients of far inputs round.
        """
        if self.mode == "hard" and self.has_soft_phase:
            multiple = self.normalize or 1.0
            slope = sign_swish_slope(x * multiple, EDGE / self.window)  # in units of beta
            return slope.clamp(min=0) * multiple
        return super().B(x, values)

    def normaliser(self, scale: Tensor) -> Tensor:
        """Return n, a 0-d tensor, for inputs of mean magnitude `scale`."""
        return torch.ones_like(scale) if self.normalize is None else self.normalize * scale.detach()

    def spread(self, scale: Tensor, normaliser: Tensor) -> Tensor:
        """Return mean |F| of Gaussian inputs of that magnitude: dividing by it keeps the magnitude."""
        return self.F(self.typical * (scale.detach() / normaliser)).abs().mean().clamp_min(TINY)


class ActivationQuantizers(NamedTuple):
    """The quantizers of a network's inputs: what convolutions get, and what all other layers get."""

    images: ActivationQuantizer
    tokens: ActivationQuantizer
