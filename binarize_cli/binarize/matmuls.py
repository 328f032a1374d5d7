"""The two matmuls of attention, q k^T and p v, each a module; and their forms with binary factors.

A factor is t + beta sign(x - t), as the inputs of binary layers are, and as in BiT (Liu et al. 2022), where
probabilities become one of two values. Thresholds are learned: one a channel of queries, keys and values,
one a head of probabilities, which a bare sign would make constant.
"""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn

from binarize_cli.binarize.accumulator import Accumulator
from binarize_cli.binarize.activations import InputQuantizer, aligned


class QKMatmul(nn.Module):
    """q [N, heads, L, d] by k [N, heads, L, d] -> [N, heads, L, L]."""

    kind = "matmul q k^T"
    axes = ((1, -1), (1, -1))  # of the channels of the left and of the right factor: heads and their width

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.mT


class AVMatmul(nn.Module):
    """p [N, heads, L, L], whose rows sum to 1, by v [N, heads, L, d] -> [N, heads, L, d]."""

    kind = "matmul p v"
    axes = ((1,), (1, -1))

    def forward(self, p: Tensor, v: Tensor) -> Tensor:
        return p @ v


class BinaryMatmul(nn.Module):
    """What both binary matmuls have: `left` and `right` make signs of the factors, `accumulator` sums."""

    def __init__(self, left: InputQuantizer, right: InputQuantizer, accumulator: Accumulator):
        super().__init__()
        self.left, self.right, self.accumulator = left, right, accumulator


class BinaryQKMatmul(BinaryMatmul):
    """`QKMatmul` of signs, with what the threshold of the queries took off.

    What that of the keys took off is the same for all keys of a query, and softmax does not see it.
    """

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        (q, beta_q), (k, beta_k) = self.left(q), self.right(k)
        y = self.accumulator.matmul(q, k) * (beta_q * beta_k)
        t = self.left.threshold
        return y if t is None else y + beta_k * (k * aligned(t, k, self.left.axes)).sum(-1).unsqueeze(-2)


class BinaryAVMatmul(BinaryMatmul):
    """`AVMatmul` of signs, with what the thresholds took off.

    What that of the values took off comes back once, since a row of p sums to 1.
    """

    def forward(self, p: Tensor, v: Tensor) -> Tensor:
        (p, beta_p), (v, beta_v) = self.left(p), self.right(v)
        y = self.accumulator.matmul(p, v.mT) * (beta_p * beta_v)
        t_p, t_v = self.left.threshold, self.right.threshold
        if t_p is not None:
            y = y + aligned(t_p, p, self.left.axes) * beta_v * v.sum(-2, keepdim=True)
        return y if t_v is None else y + aligned(t_v, v, self.right.axes)


BINARY_MATMULS: dict[type[nn.Module], type[BinaryMatmul]] = {
    QKMatmul: BinaryQKMatmul,
    AVMatmul: BinaryAVMatmul,
}


def is_matmul(module: nn.Module) -> TypeGuard[QKMatmul | AVMatmul]:
    """Return whether a module is a matmul of attention that is to be binary."""
    return type(module) in BINARY_MATMULS


class DotProductAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v for q, k and v [N, heads, L, d]."""

    def __init__(self):
        super().__init__()
        self.qk, self.av = QKMatmul(), AVMatmul()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.qk(q, k) * q.shape[-1] ** -0.5
        return self.av(scores.softmax(-1), v)
