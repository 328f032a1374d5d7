"""F and B of any method as functions that a kernel can call: their own text, traced and written in Triton.

So a method is added in one place here too. A formula with an operation that is not in the table below has no
such function; its layers are computed operator by operator.
"""

from __future__ import annotations

import copy
import hashlib
import linecache
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from binarize_cli.binarize.quantizer import Quantizer
from binarize_cli.console import warn

NUMBERS = ("p0", "p1", "p2", "p3")  # a formula's parameters (mu, rho ...), at most
FOLDER = "<bnnpp formulas>"

INFIX = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "rsub": "{1} - {0}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "ge": "{0} >= {1}",
    "gt": "{0} > {1}",
    "le": "{0} <= {1}",
    "lt": "{0} < {1}",
    "abs": "tl.abs({0})",
    "exp": "tl.exp({0})",
    "erf": "tl.erf({0})",
    "sqrt": "tl.sqrt({0})",
    "sigmoid": "tl.sigmoid({0})",
    "tanh": "tanh({0})",
    "copysign": "copysign({0}, {1})",
    "where": "tl.where({0}, {1}, {2})",
    "minimum": "at_most({0}, {1})",
    "maximum": "at_least({0}, {1})",
    "ones": "tl.zeros_like(x) + 1.0",
    "zeros": "tl.zeros_like(x)",
    "ones_like": "tl.zeros_like(x) + 1.0",
    "zeros_like": "tl.zeros_like(x)",
    "detach": "{0}",
}
"""Operators of PyTorch, whose arguments are numbers or go over an input one by one."""


class Unknown(Exception):
    """A formula has an operation that is not in the table."""


class Formula:
    """F or B of a quantizer in a mode: called, it computes with tensors; `text` is the same for a kernel."""

    def __init__(self, quantizer: Quantizer, which: str):
        own = copy.copy(quantizer)  # whose mode stays
        self.names = tuple(own.schedules)
        self._formula: Callable[..., Tensor] = getattr(own, which)

    def __call__(self, x: Tensor, *numbers: Tensor) -> Tensor:
        """Return the formula at x, given its parameters in the order of `names`."""
        return self._formula(x, dict(zip(self.names, numbers, strict=False)))

    @cached_property
    def text(self) -> str:
        """The formula as a function of a kernel. Raises Unknown."""
        if len(self.names) > len(NUMBERS):
            raise Unknown(f"{len(self.names)} parameters")
        lines = "\n".join(f"    {line}" for line in _lines(self))
        return f"def formula(x, {', '.join(NUMBERS)}):\n{lines}\n"

    @cached_property
    def in_triton(self) -> Any:
        """The formula as Triton's own kind of function. Raises Unknown."""
        import triton

        from binarize_cli.binarize.fused import triton_math

        file = f"{FOLDER}/{hashlib.sha256(self.text.encode()).hexdigest()[:16]}.py"
        # Triton reads the text of a function again, by the name of its file.
        linecache.cache[file] = (len(self.text), None, self.text.splitlines(keepends=True), file)
        space: dict[str, Any] = {**vars(triton_math)}
        exec(compile(self.text, file, "exec"), space)
        return triton.jit(space["formula"])


_known: dict[tuple, Formula | None] = {}


def formula_of(quantizer: Quantizer, which: str) -> Formula | None:
    """Return F or B of a quantizer in its present mode, by name; None if no kernel can call it."""
    method = quantizer.method
    key = (
        *(type(quantizer), method.forward, method.backward, method.update, tuple(quantizer.schedules)),
        *(quantizer.mode, quantizer.normalize, getattr(quantizer, "window", None), which),
    )
    if key not in _known:
        formula: Formula | None = Formula(quantizer, which)
        try:
            assert formula and formula.text
        except Unknown as unknown:
            formula = None
            warn(f"{which} of {method.name} is computed operator by operator: no kernel knows {unknown}")
        _known[key] = formula
    return _known[key]


def plain_on_cpu(x: Tensor) -> bool:
    """Return whether x is a plain tensor of float32 on a CPU, as its kernels read it."""
    return type(x) is Tensor and x.device.type == "cpu" and x.dtype == torch.float32


def computed(quantizer: Quantizer, which: str, x: Tensor) -> Tensor:
    """Return F or B of a soft quantizer at x, by name; on a CPU in one pass, where a kernel can call it.

    A formula in PyTorch goes over its numbers once an operator.
    """
    soft = quantizer.mode == "soft" and not quantizer.method.applies_map
    if (
        soft
        and plain_on_cpu(x)
        and not torch.compiler.is_compiling()
        and (formula := formula_of(quantizer, which))
    ):
        from binarize_cli.binarize.fused.numba_kernels import elementwise

        return elementwise(formula, x, list(quantizer.values.values()))
    return quantizer.F(x) if which == "F" else quantizer.B(x)


def _lines(formula: Formula) -> list[str]:
    """Return the statements of a formula: one an operator."""
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch.no_grad():
        numbers = [torch.ones(()) for _ in formula.names]
        graph = make_fx(lambda x, *given: formula(x, *given))(torch.ones(4), *numbers).graph
    places = iter(("x", *NUMBERS))
    names: dict[Any, str] = {}
    lines = []
    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = next(places)
        elif node.op == "output":
            lines.append(f"return {names[node.args[0]]}")
        else:
            names[node] = f"v{len(names)}"
            lines.append(f"{names[node]} = {_written(node, names)}")
    return lines


def _written(node: Any, names: dict[Any, str]) -> str:
    """Return one operator in Triton."""
    if node.op != "call_function":
        raise Unknown(f"{node.op} {node.target}")
    name = node.target._schema.name.removeprefix("aten::")
    given = [names.get(arg, _number(arg)) for arg in node.args]
    if name == "clamp":
        return _clamped(*given, **{key: _number(value) for key, value in node.kwargs.items()})
    if name == "_to_copy":
        return f"tl.where({given[0]}, 1.0, 0.0)" if _was_bool(node) else given[0]
    if name == "pow" and given[1] == "2.0":
        return f"{given[0]} * {given[0]}"
    if (name in ("add", "sub") and node.kwargs.get("alpha", 1) != 1) or name not in INFIX:
        raise Unknown(str(node.target))
    return INFIX[name].format(*given)


def _number(value: Any) -> str:
    return repr(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else "None"


def _clamped(x: str, low: str = "None", high: str = "None", **bounds: str) -> str:
    low, high = bounds.get("min", low), bounds.get("max", high)
    text = x if low == "None" else f"at_least({x}, {low})"
    return text if high == "None" else f"at_most({text}, {high})"


def _was_bool(node: Any) -> bool:
    return node.args[0].meta["val"].dtype == torch.bool
