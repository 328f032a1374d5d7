"""The formulas of F and B (docs/methods.md), elementwise on NumPy arrays and torch tensors alike.

x is a normalised latent weight (or activation), of any shape; the parameter (mu, rho ...) is a float or
a 0-d tensor. The same text serves `bnnpp methods`, which must answer without importing torch, and training.
`sign(0) = +1` everywhere: a zero cannot be packed into a bit.
"""

from __future__ import annotations

import math

import numpy as np


def array_namespace(x):
    """NumPy for arrays, torch for tensors: whoever made the tensor has imported torch already."""
    if isinstance(x, np.ndarray):
        return np
    import torch

    return torch


def sign(x):
    """sign(x), with sign(0) = +1."""
    xp = array_namespace(x)
    return xp.copysign(xp.ones((), dtype=x.dtype), x + 0.0)  # -0 + 0 is 0; four times as fast as `where`


def identity(x):
    """x: the quantizer of the float network."""
    return x


def ste(x):
    """1: the straight-through estimator (Bengio et al. 2013)."""
    return array_namespace(x).ones_like(x)


def clipped_ste(x):
    """1 where |x| <= 1, else 0: the clipped straight-through estimator of BNN (Hubara et al. 2016)."""
    inside = array_namespace(x).abs(x) <= 1
    return inside.astype(x.dtype) if isinstance(x, np.ndarray) else inside.to(x.dtype)


def _half_tanh(x, mu):
    """z = mu x and h = tanh(z / 2), in which 2 s(z) - 1 = h and 2 s(z) s(-z) = (1 - h^2) / 2.

    Beyond |z| = 50 h is +-1 in every float type; clipping there keeps float16 from inf * 0.
    """
    xp = array_namespace(x)
    z = xp.clip(mu * x, -50, 50)
    return z, xp.tanh(z / 2)


def sign_swish(x, mu):
    """SS_mu(x) = 2 s(z) (1 + z (1 - s(z))) - 1, z = mu x, s logistic (Darabi et al. 2018).

    SS overshoots: its maximum is 1.1997, at z = 2.3994, and it tends to 1 from above.
    """
    z, h = _half_tanh(x, mu)
    return h + z * (1 - h * h) / 2


def sign_swish_slope(x, mu):
    """d SS_mu / dx = 2 mu s(z) s(-z) (2 - z tanh(z/2)); negative for |z| > 2.3994."""
    z, h = _half_tanh(x, mu)
    return mu * (1 - h * h) / 2 * (2 - z * h)


def linear_quantizer(x, rho):
    """L_rho(x) = sign(x) min(1, rho + |x|) for rho < 1, else sign(x) (Dockhorn et al. 2021, with rho' = rho).

    The general LQ map has slope (1 - rho') / (1 - rho), which is 1 for rho' = rho. At rho = 0 it clips to
    [-1, 1]; from rho = 1 on the minimum is 1 everywhere, which is sign: no branch is needed.
    """
    xp = array_namespace(x)
    return sign(x) * xp.clip(xp.abs(x) + rho, None, 1)


def general_linear_quantizer(x, rho, rho_prime):
    """L_rho^rho'(x) = sign(x) min(1, rho' + (1 - rho') |x| / (1 - rho)) for rho, rho' < 1, else sign(x).

    rho' is the jump at zero and 1 - rho the magnitude from which on the map is +-1 (Dockhorn et al. 2021).
    """
    xp = array_namespace(x)
    ones = xp.ones_like(x)
    jump = xp.clip(rho_prime * ones, None, 1)
    slope = (1 - jump) / xp.clip((1 - rho) * ones, 1e-4, None)
    magnitude = xp.clip(jump + xp.clip(slope * xp.clip(xp.abs(x), None, 1), None, 1), None, 1)
    return sign(x) * xp.where(rho * ones >= 1, ones, magnitude)


def polynomial(x, mu=1.0):
    """p(mu x), p(z) = sign(z) (2 |z| - z^2) for |z| <= 1, else sign(z): Bi-Real (Liu et al. 2018)."""
    xp = array_namespace(x)
    inside = xp.clip(xp.abs(mu * x), None, 1)
    return sign(x) * inside * (2 - inside)


def polynomial_slope(x, mu=1.0):
    """d p(mu x) / dx = mu (2 - 2 |z|) for |z| <= 1, else 0."""
    xp = array_namespace(x)
    return 2 * mu * (1 - xp.clip(xp.abs(mu * x), None, 1))


def tanh(x, t):
    """tanh(t x)."""
    return array_namespace(x).tanh(t * x)


def tanh_slope(x, t):
    """d tanh(t x) / dx = t (1 - tanh^2(t x))."""
    h = array_namespace(x).tanh(t * x)
    return t * (1 - h * h)


def ede_slope(x, t):
    """g'(x), g(x) = k tanh(t x), k = max(1 / t, 1): IR-Net's error decay estimator (Qin et al. 2020)."""
    xp = array_namespace(x)
    h = xp.tanh(t * x)
    return xp.clip(t + xp.zeros_like(x), 1, None) * (1 - h * h)  # k t = max(1, t)


def softsign(x, k):
    """k x / (1 + |k x|)."""
    return x / (array_namespace(x).ones_like(x) / k + array_namespace(x).abs(x))  # k x might overflow float16


def softsign_slope(x, k):
    """d softsign / dx = k / (1 + |k x|)^2."""
    inverse = array_namespace(x).ones_like(x) / k
    return inverse / (inverse + array_namespace(x).abs(x)) ** 2


def erf(x, k):
    """erf(k x), the error function."""
    if array_namespace(x) is np:
        return np.vectorize(math.erf, otypes=[x.dtype])(k * x)
    return array_namespace(x).erf(k * x)


def erf_slope(x, k):
    """d erf(k x) / dx = 2 k / sqrt(pi) exp(-(k x)^2)."""
    return array_namespace(x).exp(-((k * x) ** 2)) * (2 / math.sqrt(math.pi)) * k


def parq(x, s):
    """clip(x / s, -1, 1), and sign(x) at s = 0: PARQ's proximal map (Jin et al. 2025)."""
    xp = array_namespace(x)
    outside, ones = xp.abs(x) >= s, xp.ones_like(x)
    return xp.where(outside, sign(x), x / xp.where(outside, ones, s * ones))


def binary_relax(x, theta):
    """(1 - theta) x + theta sign(x): BinaryRelax (Yin et al. 2018)."""
    return (1 - theta) * x + theta * sign(x)


def soft_threshold(x, lam):
    """The prox of lam | |x| - 1 |: moves |x| toward 1 by lam, and no farther (ProxQuant, Bai et al. 2019)."""
    xp = array_namespace(x)
    off = xp.abs(x) - 1  # how far the magnitude is from 1
    left = xp.clip(xp.abs(off) - lam, 0, None)
    return sign(x) * (1 + xp.where(off >= 0, left, -left))
