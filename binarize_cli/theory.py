"""Binary least squares: a problem small enough to know the best binary solution, to hold each method against.

min |A w - b|^2 / (2 m) over w in {-1, 1}^d: convex in w, so ProxConnect's guarantee is about it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from binarize_cli.binarize.phase import Phase
from binarize_cli.binarize.quantizer import WeightQuantizer
from binarize_cli.binarize.updates import update_rule
from binarize_cli.binarize.weights import LatentWeight
from binarize_cli.quantizers.functions import sign
from binarize_cli.quantizers.methods import find_method
from binarize_cli.quantizers.scales import SCALES


@dataclass(frozen=True)
class Problems:
    """n problems of m equations in d unknowns, in float64."""

    A: Tensor  # [n, m, d]
    b: Tensor  # [n, m]

    def loss(self, w: Tensor) -> Tensor:
        """Return the loss of w [n, d], of each problem by itself: [n]."""
        residual = torch.einsum("nmd,nd->nm", self.A, w) - self.b
        return residual.square().mean(1) / 2

    def best(self) -> Tensor:
        """Return the least loss over all 2^d binary w, by enumeration: [n]."""
        d = self.A.shape[2]
        corners = 2.0 * ((torch.arange(2**d)[:, None] >> torch.arange(d)) & 1).double() - 1  # [2^d, d]
        losses = [self.loss(w.expand(len(self.A), d)) for w in corners]
        return torch.stack(losses).amin(0)


def make_problems(count: int, equations: int = 20, unknowns: int = 10) -> Problems:
    """Return random problems, the i-th drawn with seed i: A and b are normal, so that no binary w fits well.

    >>> make_problems(3).best().shape
    torch.Size([3])
    """
    drawn = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        A = torch.randn(equations, unknowns, generator=generator, dtype=torch.float64)
        drawn.append((A, torch.randn(equations, generator=generator, dtype=torch.float64) * unknowns**0.5))
    return Problems(torch.stack([A for A, _ in drawn]), torch.stack([b for _, b in drawn]))


def solve(method: str, problems: Problems, steps: int, rate: float) -> Tensor:
    """Return the binary w [n, d] that a method ends with: SGD on bare weights (alpha = 1, n = 1).

    The rate falls to 0, in a straight line.
    """
    chosen = find_method(method)
    quantizer = WeightQuantizer(chosen, chosen.schedules, normalize=None, scale=SCALES["none"])
    start = torch.linalg.lstsq(problems.A, problems.b[..., None]).solution[..., 0]  # the float solution
    weight = LatentWeight(start, quantizer)
    weight.latent.data = start.clone()  # float64
    net = nn.ModuleList([weight])
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    for step in range(steps if chosen.trains else 0):
        quantizer.enter(Phase.at(step / max(steps - 1, 1)))
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        problems.loss(weight()).sum().backward()
        with update_rule(net):
            optimizer.step()
    return sign(weight.latent.detach())
