"""The registry of methods: a method is added here, by one entry, and nowhere else.

The command line, recipe validation, did-you-mean, cards, reports and the contract test all read it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from binarize_cli.errors import InputError, closest
from binarize_cli.quantizers import functions as q
from binarize_cli.quantizers.schedules import Schedule, constant

UPDATES = {
    "none": "no training",
    "plain": "w <- w - eta grad l(w)",
    "forward-backward": "w* <- w* - eta B(w*) grad l(F(w*))",
}


@cache
def _parameters(function: Callable) -> tuple[str, ...]:
    """The names of the parameters after x."""
    return tuple(inspect.signature(function).parameters)[1:]


def _named(function: Callable, values: Mapping) -> dict:
    return {name: values[name] for name in _parameters(function)}


@dataclass(frozen=True)
class Method:
    """A forward quantizer F and a backward quantizer B, elementwise, with the schedules of their parameters.

    `forward` and `backward` take x and, by name, those parameters out of `schedules` that they depend on.
    `normalize` is the suggested n of F(w* / n), in multiples of the mean |w*| of an output channel.
    """

    name: str
    title: str
    forward: Callable
    backward: Callable | None
    forward_formula: str
    backward_formula: str
    update: Literal["none", "plain", "forward-backward"]
    source: str
    when: str
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    normalize: float = 10.0

    @property
    def binary(self) -> bool:
        """Whether the method makes any layer binary (`float` does not)."""
        return self.update != "plain"

    @property
    def trains(self) -> bool:
        """Whether the method fine-tunes after binarizing (`ptq` does not)."""
        return self.update != "none"

    def F(self, x, values: Mapping):
        """The forward quantizer at x, with the parameters it names out of `values`."""
        return self.forward(x, **_named(self.forward, values))

    def B(self, x, values: Mapping):
        """The backward quantizer at x, with the parameters it names out of `values`."""
        return self.backward(x, **_named(self.backward, values))

    def values(self, progress: float, schedules: Mapping[str, Schedule] | None = None) -> dict[str, float]:
        """The parameters at a progress in [0, 1]; `schedules` replace the method's own, name by name."""
        return {name: s(progress) for name, s in {**self.schedules, **(schedules or {})}.items()}


_ENTRIES = (
    Method(
        name="float",
        title="Float reference",
        forward=q.identity,
        backward=q.one,
        forward_formula="x",
        backward_formula="1",
        update="plain",
        source="-",
        when="the reference run: same data, same recipe, no binary layer",
    ),
    Method(
        name="ptq",
        title="Post-training signs",
        forward=q.sign,
        backward=None,
        forward_formula="sign(x)",
        backward_formula="-",
        update="none",
        source="Rastegari et al. 2016 (arXiv 1603.05279), the scale alone",
        when="the baseline: what signs and scales cost before any training",
    ),
    Method(
        name="bc",
        title="BinaryConnect",
        forward=q.sign,
        backward=q.one,
        forward_formula="sign(x)",
        backward_formula="1",
        update="forward-backward",
        source="Courbariaux et al. 2015 (arXiv 1511.00363)",
        when="the plain baseline; nothing to tune",
        normalize=1.0,  # sign does not see n; with 1 the gradient reaches the latents as it is
    ),
    Method(
        name="bnn",
        title="Binarized neural networks",
        forward=q.sign,
        backward=q.box,
        forward_formula="sign(x)",
        backward_formula="1 if |x| <= 1, else 0",
        update="forward-backward",
        source="Hubara et al. 2016 (arXiv 1602.02830)",
        when="the classical clipped estimator; weights that run away from zero stop moving",
        normalize=3.0,  # the window holds 98% of normally distributed weights
    ),
    Method(
        name="bnn+",
        title="BNN+ (SignSwish backward)",
        forward=q.sign,
        backward=q.sign_swish_slope,
        forward_formula="sign(x)",
        backward_formula="SS_mu'(x) = 2 mu s(z) s(-z) (2 - z tanh(z/2)), z = mu x",
        update="forward-backward",
        source="Darabi et al. 2018 (arXiv 1812.11800)",
        when="a smooth window around zero; compare with bnn++, its principled form",
        schedules={"mu": constant(5.0)},
    ),
    Method(
        name="bnn++",
        title="BNN++ (SignSwish forward and backward)",
        forward=q.sign_swish,
        backward=q.sign_swish_slope,
        forward_formula="SS_mu(x) = 2 s(z) (1 + z (1 - s(z))) - 1, z = mu x",
        backward_formula="SS_mu'(x) = 2 mu s(z) s(-z) (2 - z tanh(z/2))",
        update="forward-backward",
        source="Lu et al. 2023 (arXiv 2402.17710), BNN++; the end of the schedule is ours",
        when="the default: starts as the float network and hardens into the binary one",
        schedules={"mu": Schedule(5.0, 150.0)},
    ),
    Method(
        name="pc",
        title="ProxConnect",
        forward=q.linear_quantizer,
        backward=q.one,
        forward_formula="L_rho(x) = sign(x) min(1, rho + |x|); sign(x) from rho = 1 on",
        backward_formula="1",
        update="forward-backward",
        source="Dockhorn et al. 2021 (arXiv 2110.13220)",
        when="BinaryConnect with a soft start: it is sign from a tenth of the schedule on",
        schedules={"rho": Schedule(0.01, 10.0)},
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ENTRIES}


def find_method(name: str, where: str | None = None) -> Method:
    """The method of that name. Raises InputError with near misses if there is none."""
    if name not in METHODS:
        hint = closest(name, METHODS, "Run 'bnnpp methods' to see them all.")
        raise InputError(f"no method is named '{name}'", where=where, hint=hint)
    return METHODS[name]
