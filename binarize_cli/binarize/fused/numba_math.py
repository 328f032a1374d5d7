"""What formulas are made of, number by number, for numba: without branches, so that loops become vectors."""

from __future__ import annotations

import math
import re
from types import CodeType
from typing import Any

import numpy as np

from binarize_cli.compiled import kernel, when_compiling
from binarize_cli.console import say

f32 = np.float32
when_compiling(lambda: say("compiling the kernels of training, once"))


def compiled_formula(text: str) -> Any:
    """Return a formula of `formulas.Formula.text` as a function of a kernel: all in float32."""
    text = re.sub(r"\b(\d+\.?\d*(e[+-]?\d+)?)\b", r"f32(\1)", text.replace("tl.", ""))
    space: dict[str, Any] = {**globals(), "sqrt": math.sqrt, "erf": math.erf}
    code: CodeType = compile(text, "<bnnpp formula>", "exec")
    exec(code, space)
    return kernel(space["formula"], keep=False)


@kernel
def where(condition, x, y):
    return x if condition else y


@kernel
def at_least(x, low):
    return low if x < low else x  # NaN stays


@kernel
def at_most(x, high):
    return high if x > high else x


@kernel
def copysign(magnitude, x):
    """Return |magnitude| with the sign of x; the formulas add 0 to x, so that there is no -0."""
    return -abs(magnitude) if x < f32(0) else abs(magnitude)


@kernel
def zeros_like(x):
    return f32(0)


@kernel
def tanh(x):
    """By the rational function of Eigen and XLA: a few units in the last place off; NaN stays."""
    x = at_most(at_least(x, f32(-7.99881172180175781)), f32(7.99881172180175781))
    z = x * x
    over = f32(-2.76076847742355e-16)
    over = over * z + f32(2.00018790482477e-13)
    over = over * z + f32(-8.60467152213735e-11)
    over = over * z + f32(5.12229709037114e-08)
    over = over * z + f32(1.48572235717979e-05)
    over = over * z + f32(6.37261928875436e-04)
    over = over * z + f32(4.89352455891786e-03)
    under = f32(1.19825839466702e-06)
    under = under * z + f32(1.18534705686654e-04)
    under = under * z + f32(2.26843463243900e-03)
    under = under * z + f32(4.89352518554385e-03)
    return x * over / under


@kernel
def sigmoid(x):
    return f32(0.5) + f32(0.5) * tanh(f32(0.5) * x)


@kernel
def exp(x):
    """Compute 2^k e^r, |r| <= ln 2 / 2, e^r by its polynomial of Cephes: two units in the last place off."""
    x = at_most(at_least(x, f32(-87.0)), f32(88.0))
    k = np.floor(x * f32(1.44269504088896341) + f32(0.5))
    r = x - k * f32(0.693359375) - k * f32(-2.12194440e-4)
    y = f32(1.9875691500e-4)
    y = y * r + f32(1.3981999507e-3)
    y = y * r + f32(8.3334519073e-3)
    y = y * r + f32(4.1665795894e-2)
    y = y * r + f32(1.6666665459e-1)
    y = y * r + f32(5.0000001201e-1)
    y = y * r * r + r + f32(1)
    return y * np.int32((np.int32(k) + 127) << 23).view(np.float32)
