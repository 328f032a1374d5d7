"""PC++ by synthesis: a pair (F, B) from a proximal map P and a smooth transform T (Lu et al. 2023)."""

from __future__ import annotations

from binarize_cli.quantizers.method import Composed, Method
from binarize_cli.quantizers.parts import find_map, find_transform

COMPOSED = ("lq", "sign-swish")  # the parts of pc++ until a recipe names others


def compose(map_name: str, transform_name: str) -> Method:
    """Return the method with F = T o P and B = T' o P. Raises InputError if a name is unknown.

    >>> compose("parq", "erf").title
    'ProxConnect++ with P = parq, T = erf'
    """
    p, t = find_map(map_name), find_transform(transform_name)
    return Method(
        name="pc++",
        title=f"ProxConnect++ with P = {p.name}, T = {t.name}",
        forward=Composed(t.value, p.apply),
        backward=Composed(t.derivative(), p.apply),
        forward_formula=f"T(P(x)): p = {p.formula}; {t.formula}",
        backward_formula=f"T'(P(x)): {t.slope_formula}",
        update="forward-backward",
        source="Lu et al. 2023 (arXiv 2402.17710)",
        when="a method of your own: choose quantizer.map and quantizer.transform in a recipe",
        schedules={**p.schedules, **t.schedules},
        parts=("map", "transform"),
    )
