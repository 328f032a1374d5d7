"""Proximal maps P and smooth transforms T, by name: what `pc++` composes F = T o P and B = T' o P from.

A part is added by one entry here, or by another package through an entry point of the group `bnnpp.maps`
or `bnnpp.transforms` (docs/methods.md, "From another package").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from binarize_cli.errors import InputError, closest
from binarize_cli.quantizers import functions as q
from binarize_cli.quantizers.schedules import Schedule


@dataclass(frozen=True)
class ProximalMap:
    """A non-decreasing function P(x, **parameters); `certify` checks it numerically."""

    name: str
    apply: Callable
    formula: str
    schedules: Mapping[str, Schedule] = field(default_factory=dict)


@dataclass(frozen=True)
class Transform:
    """A smooth function T(x, **parameters) and its derivative, by autograd if none is given."""

    name: str
    value: Callable
    formula: str
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    slope: Callable | None = None
    slope_formula: str = "T' by autograd"

    def derivative(self) -> Callable:
        return self.slope or autograd_slope(self.value)


def autograd_slope(function: Callable) -> Callable:
    """Return the elementwise derivative of `function` in x, by torch; NumPy arrays go there and back."""

    @wraps(function)  # a derivative names the parameters that its function names
    def slope(x: Any, **values: Any) -> Any:
        import numpy as np
        import torch

        with torch.enable_grad():
            point = torch.as_tensor(x).detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(function(point, **values).sum(), point)
        return gradient.numpy() if isinstance(x, np.ndarray) else gradient

    return slope


MAPS = {
    part.name: part
    for part in (
        ProximalMap("identity", q.identity, "x"),
        ProximalMap("sign", q.sign, "sign(x)"),
        ProximalMap("lq", q.linear_quantizer, "sign(x) min(1, rho + |x|)", {"rho": Schedule(0.01, 10.0)}),
        ProximalMap(
            "lq-general",
            q.general_linear_quantizer,
            "sign(x) min(1, rho' + (1 - rho') |x| / (1 - rho))",
            {"rho": Schedule(0.01, 10.0), "rho_prime": Schedule(0.0, 1.0)},
        ),
        ProximalMap("parq", q.parq, "clip(x / s, -1, 1)", {"s": Schedule(1.0, 0.0, "sigmoid")}),
        ProximalMap(
            "binary-relax", q.binary_relax, "(1 - theta) x + theta sign(x)", {"theta": Schedule(0.0, 1.0)}
        ),
        ProximalMap(
            "soft-threshold",
            q.soft_threshold,
            "sign(x) (1 + S_lam(|x| - 1)), S the soft threshold",
            {"lam": Schedule(0.0, 3.0)},
        ),
    )
}

TRANSFORMS = {
    part.name: part
    for part in (
        Transform("identity", q.identity, "p", slope=q.ste, slope_formula="1"),
        Transform(
            "sign-swish",
            q.sign_swish,
            "SS_mu(p) = 2 s(z) (1 + z (1 - s(z))) - 1, z = mu p",
            {"mu": Schedule(5.0, 150.0)},
            q.sign_swish_slope,
            "SS_mu'(p) = 2 mu s(z) s(-z) (2 - z tanh(z/2))",
        ),
        Transform(
            "tanh", q.tanh, "tanh(t p)", {"t": Schedule(2.0, 75.0)}, q.tanh_slope, "t (1 - tanh^2(t p))"
        ),
        Transform(
            "polynomial",
            q.polynomial,
            "sign(z) (2|z| - z^2) for |z| <= 1, else sign(z); z = mu p",
            {"mu": Schedule(1.0, 50.0)},
            q.polynomial_slope,
            "mu (2 - 2|z|) for |z| <= 1, else 0",
        ),
        Transform(
            "softsign",
            q.softsign,
            "k p / (1 + |k p|)",
            {"k": Schedule(2.0, 300.0)},
            q.softsign_slope,
            "k / (1 + |k p|)^2",
        ),
        Transform(
            "erf", q.erf, "erf(k p)", {"k": Schedule(2.0, 75.0)}, q.erf_slope, "2 k / sqrt(pi) exp(-(k p)^2)"
        ),
    )
}

Part = TypeVar("Part", ProximalMap, Transform)


def find_map(name: str) -> ProximalMap:
    """Return the proximal map of that name. Raises InputError, with near misses, if there is none.

    >>> find_map("parq").formula
    'clip(x / s, -1, 1)'
    """
    return _find(name, MAPS, "bnnpp.maps", "proximal map")


def find_transform(name: str) -> Transform:
    """Return the transform of that name. Raises InputError, with near misses, if there is none.

    >>> find_transform("tanh").slope_formula
    't (1 - tanh^2(t p))'
    """
    return _find(name, TRANSFORMS, "bnnpp.transforms", "transform")


def _find(name: str, own: Mapping[str, Part], group: str, kind: str) -> Part:
    if name in own:
        return own[name]
    foreign: dict[str, EntryPoint] = {entry.name: entry for entry in entry_points(group=group)}
    if name in foreign:
        return foreign[name].load()
    known = [*own, *foreign]
    raise InputError(
        f"no {kind} is named '{name}'", hint=closest(name, known, f"There are {', '.join(known)}.")
    )
