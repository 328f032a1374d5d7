"""The formulas of F and B (docs/methods.md), elementwise on NumPy arrays and torch tensors alike.

x is a normalised latent weight (or activation), of any shape; the parameter (mu, rho ...) is a float or
a 0-d tensor. The same text serves `bnnpp methods`, which must answer without importing torch, and training.
`sign(0) = +1` everywhere: a zero cannot be packed into a bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")


def array_namespace(x: np.ndarray | Tensor) -> Any:
    """Return NumPy for arrays, torch for tensors: whoever made the tensor has imported torch already."""
    if isinstance(x, np.ndarray):
        return np
    import torch

    return torch


def sign(x: Array) -> Array:
    """Return sign(x), with sign(0) = +1.

    >>> sign(np.array([-0.5, -0.0, 0.0, 2.0]))
    array([-1.,  1.,  1.,  1.])
    """
    xp = array_namespace(x)
    return xp.copysign(xp.ones((), dtype=x.dtype), x + 0.0)  # -0 + 0 is 0; four times as fast as `where`


def identity(x: Array) -> Array:
    """Return x: the quantizer of the float network."""
    return x


def ste(x: Array) -> Array:
    """Return 1: the straight-through estimator (Bengio et al. 2013).

    >>> ste(np.array([-3.0, 0.2]))
    array([1., 1.])
    """
    return array_namespace(x).ones_like(x)


def clipped_ste(x: Array) -> Array:
    """Return 1 if |x| <= 1, else 0: the clipped straight-through estimator of BNN (Hubara et al. 2016).

    >>> clipped_ste(np.array([-3.0, 0.2, 1.0]))
    array([0., 1., 1.])
    """
    inside: Any = array_namespace(x).abs(x) <= 1
    return inside.astype(x.dtype) if isinstance(x, np.ndarray) else inside.to(x.dtype)


def _half_tanh(x: Array, mu: float | Tensor) -> tuple[Any, Any]:
    """Return z = mu x and h = tanh(z / 2), in which 2 s(z) - 1 = h and 2 s(z) s(-z) = (1 - h^2) / 2.

    Beyond |z| = 50 h is +-1 in every float type; clipping there keeps float16 from inf * 0.
    """
    xp = array_namespace(x)
    z = xp.clip(mu * x, -50, 50)
    return z, xp.tanh(z / 2)


def sign_swish(x: Array, mu: float | Tensor) -> Array:
    """Return SS_mu(x) = 2 s(z) (1 + z (1 - s(z))) - 1, z = mu x, s logistic (Darabi et al. 2018).

    SS overshoots: its maximum is 1.1997, at z = 2.3994, and it tends to 1 from above.

    >>> sign_swish(np.array([-1.0, 0.0, 0.1, 1.0]), mu=5.0).round(4)
    array([-1.0531,  0.    ,  0.4799,  1.0531])
    """
    z, h = _half_tanh(x, mu)
    return h + z * (1 - h * h) / 2


def sign_swish_slope(x: Array, mu: float | Tensor) -> Array:
    """Return d SS_mu / dx = 2 mu s(z) s(-z) (2 - z tanh(z/2)); it is negative for |z| > 2.3994.

    >>> sign_swish_slope(np.array([0.0, 0.1, 1.0]), mu=5.0).round(4)
    array([ 5.    ,  4.4123, -0.195 ])
    """
    z, h = _half_tanh(x, mu)
    return mu * (1 - h * h) / 2 * (2 - z * h)


def linear_quantizer(x: Array, rho: float | Tensor) -> Array:
    """Return L_rho(x) = sign(x) min(1, rho + |x|) if rho < 1, else sign(x): LQ (Dockhorn et al. 2021).

    This is the general LQ map with rho' = rho, so that its slope is 1. At rho = 0 it clips to [-1, 1]; from
    rho = 1 on the minimum is 1 everywhere, which is sign: no branch is needed.

    >>> linear_quantizer(np.array([-2.0, -0.5, 0.0, 0.5]), rho=0.2)
    array([-1. , -0.7,  0.2,  0.7])
    """
    xp = array_namespace(x)
    return sign(x) * xp.clip(xp.abs(x) + rho, None, 1)


def general_linear_quantizer(x: Array, rho: float | Tensor, rho_prime: float | Tensor) -> Array:
    """Return sign(x) min(1, rho' + (1 - rho') |x| / (1 - rho)) if rho, rho' < 1, else sign(x).

    rho' is the jump at zero, and from the magnitude 1 - rho on the map is +-1 (Dockhorn et al. 2021).

    >>> general_linear_quantizer(np.array([0.0, 0.25, 0.5, 2.0]), rho=0.5, rho_prime=0.0)
    array([0. , 0.5, 1. , 1. ])
    """
    xp = array_namespace(x)
    ones = xp.ones_like(x)
    jump = xp.clip(rho_prime * ones, None, 1)
    slope = (1 - jump) / xp.clip((1 - rho) * ones, 1e-4, None)
    magnitude = xp.clip(jump + xp.clip(slope * xp.clip(xp.abs(x), None, 1), None, 1), None, 1)
    return sign(x) * xp.where(rho * ones >= 1, ones, magnitude)


def polynomial(x: Array, mu: float | Tensor = 1.0) -> Array:
    """Return p(mu x), p(z) = sign(z) (2 |z| - z^2) if |z| <= 1, else sign(z): Bi-Real (Liu et al. 2018).

    >>> polynomial(np.array([-2.0, -0.5, 0.5]))
    array([-1.  , -0.75,  0.75])
    """
    xp = array_namespace(x)
    inside = xp.clip(xp.abs(mu * x), None, 1)
    return sign(x) * inside * (2 - inside)


def polynomial_slope(x: Array, mu: float | Tensor = 1.0) -> Array:
    """Return d p(mu x) / dx = mu (2 - 2 |z|) if |z| <= 1, else 0.

    >>> polynomial_slope(np.array([-2.0, 0.0, 0.5]))
    array([0., 2., 1.])
    """
    xp = array_namespace(x)
    return 2 * mu * (1 - xp.clip(xp.abs(mu * x), None, 1))


def tanh(x: Array, t: float | Tensor) -> Array:
    """Return tanh(t x)."""
    return array_namespace(x).tanh(t * x)


def tanh_slope(x: Array, t: float | Tensor) -> Array:
    """Return d tanh(t x) / dx = t (1 - tanh^2(t x))."""
    h = array_namespace(x).tanh(t * x)
    return t * (1 - h * h)


def ede_slope(x: Array, t: float | Tensor) -> Array:
    """Return g'(x), g(x) = k tanh(t x), k = max(1 / t, 1): IR-Net's error decay estimator (Qin et al. 2020).

    >>> ede_slope(np.array([0.0]), t=0.1), ede_slope(np.array([0.0]), t=10.0)
    (array([1.]), array([10.]))
    """
    xp = array_namespace(x)
    h = xp.tanh(t * x)
    return xp.clip(t + xp.zeros_like(x), 1, None) * (1 - h * h)  # k t = max(1, t)


def softsign(x: Array, k: float | Tensor) -> Array:
    """Return k x / (1 + |k x|)."""
    return x / (array_namespace(x).ones_like(x) / k + array_namespace(x).abs(x))  # k x might overflow float16


def softsign_slope(x: Array, k: float | Tensor) -> Array:
    """Return d softsign / dx = k / (1 + |k x|)^2."""
    inverse = array_namespace(x).ones_like(x) / k
    return inverse / (inverse + array_namespace(x).abs(x)) ** 2


def erf(x: Array, k: float | Tensor) -> Array:
    """Return erf(k x), the error function."""
    if isinstance(x, np.ndarray):
        return np.vectorize(math.erf, otypes=[x.dtype])(k * x)
    return array_namespace(x).erf(k * x)


def erf_slope(x: Array, k: float | Tensor) -> Array:
    """Return d erf(k x) / dx = 2 k / sqrt(pi) exp(-(k x)^2)."""
    return array_namespace(x).exp(-((k * x) ** 2)) * (2 / math.sqrt(math.pi)) * k


def parq(x: Array, s: float | Tensor) -> Array:
    """Return clip(x / s, -1, 1), and sign(x) at s = 0: PARQ's proximal map (Jin et al. 2025).

    >>> parq(np.array([-2.0, 0.25, 0.5]), s=0.5), parq(np.array([-2.0, 0.25]), s=0.0)
    (array([-1. ,  0.5,  1. ]), array([-1.,  1.]))
    """
    xp = array_namespace(x)
    outside, ones = xp.abs(x) >= s, xp.ones_like(x)
    return xp.where(outside, sign(x), x / xp.where(outside, ones, s * ones))


def binary_relax(x: Array, theta: float | Tensor) -> Array:
    """Return (1 - theta) x + theta sign(x): BinaryRelax (Yin et al. 2018).

    >>> binary_relax(np.array([-0.5, 0.5]), theta=0.5)
    array([-0.75,  0.75])
    """
    return (1 - theta) * x + theta * sign(x)


def soft_threshold(x: Array, lam: float | Tensor) -> Array:
    """Return the prox of lam | |x| - 1 |: |x| moves toward 1 by lam, and no farther (Bai et al. 2019).

    >>> soft_threshold(np.array([-2.0, 0.25, 0.9]), lam=0.5)
    array([-1.5 ,  0.75,  1.  ])
    """
    xp = array_namespace(x)
    off = xp.abs(x) - 1  # how far the magnitude is from 1
    left = xp.clip(xp.abs(off) - lam, 0, None)
    return sign(x) * (1 + xp.where(off >= 0, left, -left))
