"""What all binary layers of a network share: the method, its parameters now, soft or hard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from binarize_cli.quantizers.functions import one, sign
from binarize_cli.recipe import Recipe, effective_method, effective_normalize, effective_schedules

TINY = 1e-12  # a channel of zeros has no magnitude to divide by


class WeightQuantizer:
    """alpha F(w* / n) for every latent weight tensor of a network.

    `hard` switches F to sign. The parameters (mu, rho ...) lie in 0-d tensors, so that a compiled model
    does not recompile when they move.
    """

    def __init__(self, recipe: Recipe):
        self.method = effective_method(recipe)
        self.schedules = effective_schedules(recipe)
        self.normalize = effective_normalize(recipe)
        self.scale_rule = recipe.quantizer.scale
        self.hard = False
        self.values = {name: torch.zeros(()) for name in self.schedules}
        self.move_to(0.0)

    def __deepcopy__(self, memo) -> WeightQuantizer:
        # An averaged copy of the network (EMA) is at the same progress, soft or hard with it.
        return self

    def move_to(self, progress: float) -> None:
        """Set the parameters to their values at a progress in [0, 1]."""
        for name, value in self.method.values(progress, self.schedules).items():
            self.values[name].fill_(value)

    def F(self, x: Tensor) -> Tensor:
        """The forward quantizer as the network uses it: the weights themselves under a map rule."""
        if self.hard:
            return sign(x)
        return x if self.method.maps else self.method.F(x, self.values)

    def B(self, x: Tensor) -> Tensor:
        return one(x) if self.method.maps else self.method.B(x, self.values)

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

    @contextmanager
    def hardened(self, hard: bool = True) -> Iterator[None]:
        """The network as it will ship (signs), or, with `hard=False`, as F has it now, inside the block."""
        before, self.hard = self.hard, hard
        try:
            yield
        finally:
            self.hard = before
