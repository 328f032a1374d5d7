"""What a method is: a pair (F, B), an update rule, schedules, and the words that describe it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from binarize_cli.quantizers.functions import sign
from binarize_cli.quantizers.schedules import Schedule

Update = Literal["none", "plain", "forward-backward", "map-after-step", "map-before-step"]

UPDATES: Mapping[Update, str] = {
    "none": "no training",
    "plain": "w <- w - eta grad l(w)",
    "forward-backward": "w* <- w* - eta B(w*) grad l(F(w*))",
    "map-after-step": "w <- P(w - eta grad l(w))",
    "map-before-step": "w* <- P(w*) - eta grad l(w*)",
}


@cache
def _parameters(function: Callable) -> tuple[str, ...]:
    """Return the names of the parameters after x."""
    try:
        return tuple(inspect.signature(function).parameters)[1:]
    except ValueError:  # a ufunc has no signature before NumPy 2.4
        return ()


def _call(function: Callable, x: Any, values: Mapping[str, Any]) -> Any:
    """Return the function at x, with those parameters out of `values` that it names."""
    if isinstance(function, Composed):
        return function(x, values)
    return function(x, **{name: values[name] for name in _parameters(function) if name in values})


@dataclass(frozen=True)
class Composed:
    """The function outer(inner(x)); each of the two takes the parameters that it names."""

    outer: Callable
    inner: Callable

    def __call__(self, x: Any, values: Mapping[str, Any]) -> Any:
        return _call(self.outer, _call(self.inner, x, values), values)


@dataclass(frozen=True)
class Method:
    """A forward quantizer F and a backward quantizer B, elementwise, with the schedules of their parameters.

    `forward` and `backward` take x and, by name, the parameters that they depend on; `schedules` has those.
    If the update rule applies a map, `forward` is that proximal map P, there is no B, and the network uses
    the weights themselves. `normalize` is the suggested n of F(w* / n), in multiples of the mean |w*| of an
    output channel. `parts` are what a recipe may replace: the `map` P, or `map` and `transform`.
    """

    name: str
    title: str
    forward: Callable
    backward: Callable | None
    forward_formula: str
    backward_formula: str
    update: Update
    source: str
    when: str
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    normalize: float = 10.0
    parts: tuple[str, ...] = ()

    @property
    def applies_map(self) -> bool:
        """Whether a proximal map is applied to the weights beside the optimizer's step."""
        return self.update in ("map-after-step", "map-before-step")

    @property
    def is_sign(self) -> bool:
        """Whether F is sign from the first step, so that there is nothing to harden."""
        return self.forward is sign

    @property
    def binary(self) -> bool:
        """Whether the method makes any layer binary (`float` does not)."""
        return self.update != "plain"

    @property
    def trains(self) -> bool:
        """Whether the method fine-tunes after binarizing (`ptq` does not)."""
        return self.update != "none"

    def F(self, x: Any, values: Mapping[str, Any]) -> Any:
        """Return the forward quantizer at x; `values` has the parameters, by name."""
        return _call(self.forward, x, values)

    def B(self, x: Any, values: Mapping[str, Any]) -> Any:
        """Return the backward quantizer at x; `values` has the parameters, by name. Needs a `backward`."""
        assert self.backward, f"{self.name} has no backward quantizer"
        return _call(self.backward, x, values)

    def values(self, progress: float, schedules: Mapping[str, Schedule] | None = None) -> dict[str, float]:
        """Return the parameters at a progress in [0, 1]; `schedules` replace the method's own, name by name.

        >>> from binarize_cli.quantizers.methods import METHODS
        >>> METHODS["bnn++"].values(0.5, {"mu": Schedule(1.0, 3.0)})
        {'mu': 2.0}
        """
        return {name: s(progress) for name, s in {**self.schedules, **(schedules or {})}.items()}
