"""Attention whose two matmuls are of signs: queries, keys, values and probabilities are bits all the way.

Where a probability is so near its threshold that rounding decides its sign, its row is computed anew as the
modules compute it, so that every sign is theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from binarize_cli.binarize.activations import SignInput
from binarize_cli.binarize.matmuls import BinaryAVMatmul, BinaryQKMatmul, DotProductAttention
from binarize_cli.packed import kernels
from binarize_cli.packed.integer_accumulator import IntegerAccumulator
from binarize_cli.quantizers.functions import sign

ROWS_AT_A_TIME = 256  # in doubt


def binary_attention(matmuls: DotProductAttention, qkv: Tensor, heads: int) -> Tensor | None:
    """Return [N, L, C] of qkv [N, L, 3 C]; None if the matmuls are not what the kernels compute."""
    qk: Any = matmuls.qk
    av: Any = matmuls.av
    if not (_are_signs(qk, av) and _takes(qkv)):
        return None
    n, length, width = qkv.shape
    depth = width // (3 * heads)
    x = qkv.view(n, length, 3 * heads, depth).transpose(1, 2)
    thresholds = [_threshold(each, heads, depth) for each in (qk.left, qk.right, av.right)]
    bits = kernels.pack_heads(x, kernels.Limits.of_threshold(torch.cat(thresholds)))
    queries, keys, values = (bits[:, at * heads : (at + 1) * heads] for at in range(3))
    bias = (qk.right.scale * kernels.sign_sums(keys, thresholds[0])).flatten(0, 1)
    beta = float(qk.left.scale * qk.right.scale)
    columns = kernels.PackedColumns(keys.flatten(0, 1), depth, beta, bias, _rule(qk))
    limit = av.left.threshold.contiguous()
    signs, doubts = kernels.weigh_signs(queries, columns, depth**-0.5, limit)
    _decide(signs, doubts, qk, limit, x, queries, keys)

    turned = kernels.transposed_bits(values.flatten(0, 1), depth)
    ones = kernels.sign_sums(turned.view(n, heads, depth, -1), torch.ones(heads, length))
    shift = ((limit * av.right.scale).view(1, -1, 1) * ones).flatten(0, 1)
    beta = float(av.left.scale * av.right.scale)
    mixed = kernels.PackedColumns(turned, length, beta, shift, _rule(av))
    return kernels.mix_values(signs, mixed, heads, thresholds[2]).contiguous()


def _are_signs(qk: Any, av: Any) -> bool:
    """Return whether both matmuls are binary and finished, and probabilities have thresholds."""
    if type(qk) is not BinaryQKMatmul or type(av) is not BinaryAVMatmul or av.left.threshold is None:
        return False
    inputs = (qk.left, qk.right, av.left, av.right)
    sums = (qk.accumulator, av.accumulator)
    return all(type(each) is SignInput for each in inputs) and all(
        type(a) is IntegerAccumulator for a in sums
    )


def _takes(qkv: Tensor) -> bool:
    known = qkv.device.type == "cpu" and qkv.dtype == torch.float32 and qkv.is_contiguous()
    return known and not torch.compiler.is_compiling()


def _threshold(signs: SignInput, heads: int, depth: int) -> Tensor:
    """Return the thresholds: [heads, depth]."""
    return torch.zeros(heads, depth) if signs.threshold is None else signs.threshold.view(heads, depth)


def _rule(matmul: Any) -> kernels.Int8 | None:
    rule = matmul.accumulator.rule
    return rule and kernels.Int8(rule.overflow, rule.shift)


def _decide(
    signs: Tensor, doubts: Tensor, qk: Any, limit: Tensor, x: Tensor, queries: Tensor, keys: Tensor
) -> None:
    """Put the signs of the rows in doubt right, in place: int64 [N heads, L, words], bool [N heads, L].

    Sums are exact in any case; torch adds what the threshold of the queries took off, and does the softmax.
    """
    heads, depth = queries.shape[1], x.shape[3]
    for some in doubts.nonzero().split(ROWS_AT_A_TIME):
        pair, row = some.unbind(1)
        n, head = pair // heads, pair % heads
        beta, bias = float(qk.left.scale * qk.right.scale), None
        if qk.left.threshold is not None:
            k = sign(x[n, heads + head] - _threshold(qk.right, heads, depth)[head].unsqueeze(1))
            taken = k * qk.left.threshold.view(heads, depth)[head].unsqueeze(1)
            bias = qk.right.scale * taken.sum(-1)  # [rows, L]
        columns = kernels.PackedColumns(keys[n, head], depth, beta, bias, _rule(qk))
        scores = kernels.popcount_pairs(queries[n, head, row].unsqueeze(1), columns).squeeze(1)
        p = (scores * depth**-0.5).softmax(-1)
        decided = sign(p - limit[head].unsqueeze(1))
        signs[pair, row] = kernels.pack_signs(decided, kernels.Limits.of_threshold(torch.zeros(p.shape[1])))
