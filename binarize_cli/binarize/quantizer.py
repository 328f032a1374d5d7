"""What all binary layers of a network share: the method, its parameters now, soft or hard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from binarize_cli.quantizers.functions import clipped_ste, sign, ste
from binarize_cli.quantizers.method import Method
from binarize_cli.quantizers.schedules import Schedule
from binarize_cli.recipe import (
    Recipe,
    activation_method,
    activation_normalize,
    activation_schedules,
    effective_method,
    effective_normalize,
    effective_schedules,
)

TINY = 1e-12  # a channel of zeros has no magnitude to divide by
GRID = 256
WINDOW = 1.5  # of hardened inputs, in multiples of beta: measured on digits_resnet, 1 and 2 were worse


class Quantizer:
    """F and B at a point of their schedule.

    `hard` switches F to sign. The parameters (mu, rho ...) lie in 0-d tensors, so that a compiled model
    does not recompile when they move.
    """

    def __init__(self, method: Method, schedules: Mapping[str, Schedule]):
        self.method, self.schedules = method, schedules
        self.hard = False
        self.values = {name: torch.zeros(()) for name in schedules}
        self.move_to(0.0)

    def __deepcopy__(self, memo) -> Quantizer:
        # An averaged copy of the network (EMA) is at the same progress, soft or hard with it.
        return self

    def move_to(self, progress: float) -> None:
        """Set the parameters to their values at a progress in [0, 1]."""
        for name, value in self.method.values(progress, self.schedules).items():
            self.values[name].fill_(value)

    def F(self, x: Tensor) -> Tensor:
        """The forward quantizer as the network uses it."""
        return sign(x) if self.hard else self.method.F(x, self.values)

    @property
    def has_soft_phase(self) -> bool:
        """Whether hardening changes the pair: where F is sign all along there is nothing to harden."""
        return self.method.forward is not sign

    def B(self, x: Tensor) -> Tensor:
        """The backward quantizer; 1 for a map rule, whose F is a proximal map."""
        return ste(x) if self.method.maps else self.method.B(x, self.values)

    @contextmanager
    def hardened(self, hard: bool = True) -> Iterator[None]:
        """The network as it will ship (signs), or, with `hard=False`, as F has it now, inside the block."""
        before, self.hard = self.hard, hard
        try:
            yield
        finally:
            self.hard = before


class WeightQuantizer(Quantizer):
    """alpha F(w* / n) for every latent weight tensor of a network.

    Under a map rule the network uses the weights themselves, and so it does while `idle` (activations
    first). `activation` is what quantizes the layers' inputs, and follows; None in task bw.
    """

    def __init__(self, recipe: Recipe):
        self.activation: ActivationQuantizer | None = None  # before super(), which moves it
        self.idle = False
        super().__init__(effective_method(recipe), effective_schedules(recipe))
        self.normalize = effective_normalize(recipe)
        self.scale_rule = recipe.quantizer.scale
        if recipe.task != "bw":
            self.activation = ActivationQuantizer(recipe, self)

    def move_to(self, progress: float) -> None:
        """Set the parameters, those of the activations too, to their values at a progress in [0, 1]."""
        super().move_to(progress)
        if self.activation:
            self.activation.move_to(1.0 if self.activation.settled else progress)

    def F(self, x: Tensor) -> Tensor:
        """The forward quantizer as the network uses it: the weights themselves under a map rule."""
        if self.idle or (self.method.maps and not self.hard):
            return x
        return super().F(x)

    def B(self, x: Tensor) -> Tensor:
        """The backward quantizer. While a soft F is hardened, the pair is BinaryConnect's: (sign, 1).

        (sign, F') would be a heuristic pair, and its narrow window would freeze the signs.
        """
        if self.idle:
            return ste(x)
        if self.hard and self.has_soft_phase:
            return ste(x) * (self.normalize or 1.0)  # alpha / n times this is 1
        return super().B(x)

    @torch.no_grad()
    def map_(self, latent: Tensor) -> None:
        """w <- alpha P(w / n), in place, whatever the tensor's layout."""
        mapped = self.method.F(latent / self.normaliser(latent), self.values)
        if self.scale_rule != "none":
            mapped *= self.magnitude(latent) / self.magnitude(mapped).clamp_min(TINY)
        latent.copy_(mapped)

    def normaliser(self, latent: Tensor) -> Tensor:
        """n, broadcastable against the latent weights; constant in the backward pass."""
        if self.normalize is None:
            return torch.ones((), device=latent.device)
        return (self.normalize * self.magnitude(latent)).clamp_min(TINY)

    def magnitude(self, weight: Tensor) -> Tensor:
        """mean |w|, over an output channel ([out, 1, ...]) or, for `scale: layer`, over the layer ([])."""
        if self.scale_rule == "layer":
            return weight.detach().abs().mean()
        return weight.detach().abs().mean(dim=tuple(range(1, weight.dim())), keepdim=True)

    def scale(self, latent: Tensor, value: Tensor, learned: Tensor | None = None) -> Tensor:
        """alpha = mean |w*| / mean |F(w* / n)|, with value = F(w* / n), at every progress.

        That is the magnitude of the float weights, or a learned one. `scale: none` has alpha = 1, the
        literal form of the paper.
        """
        if self.scale_rule == "none":
            return torch.ones((), device=latent.device)
        size = self.magnitude(latent) if learned is None else learned
        return size / self.magnitude(value).clamp_min(TINY)

    def unit(self, value: Tensor) -> Tensor:
        """alpha for weights of magnitude 1, with value = F(w* / n)."""
        if self.scale_rule == "none":
            return torch.ones((), device=value.device)
        return 1 / self.magnitude(value).clamp_min(TINY)


class ActivationQuantizer(Quantizer):
    """beta F((x - t) / n) for the inputs of the binary layers; hard with the weights."""

    def __init__(self, recipe: Recipe, weights: WeightQuantizer):
        self.weights = weights
        self.settled = False  # at the end of the schedule for good, after a stage of its own
        super().__init__(activation_method(recipe), activation_schedules(recipe))
        self.normalize = activation_normalize(recipe)
        levels = torch.special.ndtri((torch.arange(GRID) + 0.5) / GRID)
        self.typical = levels / levels.abs().mean()  # inputs of mean magnitude 1, as a Gaussian has them

    @property
    def hard(self) -> bool:
        return self.weights.hard

    @hard.setter
    def hard(self, _: bool) -> None:
        """The weights' `hard` is in force."""

    def B(self, x: Tensor) -> Tensor:
        """The backward quantizer. While a soft F is hardened it is BNN's: 1 where |x| is at most WINDOW beta.

        F' at the end of its schedule is so narrow that hardly an input would pass a gradient on.
        """
        if self.hard and self.has_soft_phase:
            multiple = self.normalize or 1.0
            return clipped_ste(x * (multiple / WINDOW)) * multiple  # the slope is 1 in units of beta
        return super().B(x)

    def normaliser(self, scale: Tensor) -> Tensor:
        """n, a 0-d tensor, for inputs of mean magnitude `scale`."""
        return torch.ones_like(scale) if self.normalize is None else self.normalize * scale.detach()

    def spread(self, scale: Tensor, normaliser: Tensor) -> Tensor:
        """mean |F| of Gaussian inputs of that magnitude, so that the magnitude is kept at every progress."""
        if self.typical.device != scale.device:
            self.typical = self.typical.to(scale.device)
        return self.F(self.typical * (scale.detach() / normaliser)).abs().mean().clamp_min(TINY)
