"""The formulas of F and B (README, "Methods"), elementwise on NumPy arrays and torch tensors alike.

x is a normalised latent weight (or activation), of any shape; the parameter (mu, rho ...) is a float or
a 0-d tensor. The same text serves `bnnpp methods`, which must answer without importing torch, and training.
`sign(0) = +1` everywhere: a zero cannot be packed into a bit.
"""

from __future__ import annotations

import numpy as np


def library(x):
    """NumPy for arrays, torch for tensors: whoever made the tensor has imported torch already."""
    if isinstance(x, np.ndarray):
        return np
    import torch

    return torch


def sign(x):
    """sign(x), with sign(0) = +1."""
    xp = library(x)
    one = xp.ones_like(x)
    return xp.where(x >= 0, one, -one)


def identity(x):
    """x: the quantizer of the float network."""
    return x


def one(x):
    """1: the straight-through estimator (Bengio et al. 2013)."""
    return library(x).ones_like(x)


def box(x):
    """1 where |x| <= 1, else 0: the clipped straight-through estimator of BNN (Hubara et al. 2016)."""
    xp = library(x)
    return xp.where(xp.abs(x) <= 1, xp.ones_like(x), xp.zeros_like(x))


def _half_tanh(x, mu):
    """z = mu x and h = tanh(z / 2), in which 2 s(z) - 1 = h and 2 s(z) s(-z) = (1 - h^2) / 2.

    Beyond |z| = 50 h is +-1 in every float type; clipping there keeps float16 from inf * 0.
    """
    xp = library(x)
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
    xp = library(x)
    return sign(x) * xp.clip(xp.abs(x) + rho, None, 1)
