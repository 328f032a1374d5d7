"""Attention whose layers, and whose two matmuls, are modules that can be made binary.

nn.MultiheadAttention reads its weights directly, past any layer; here it has two linear layers. timm's has
its layers, and computes q k^T and p v on the way.
"""

from __future__ import annotations

from typing import TypeGuard

import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from binarize_cli.binarize.matmuls import DotProductAttention
from binarize_cli.errors import InputError


class LinearProjAttention(nn.Module):
    """Self-attention of an nn.MultiheadAttention, as `in_proj` [3E, E], scaled product, `out_proj` [E, E].

    Takes and returns what torchvision's encoder blocks pass: (query, key, value) of one tensor [N, L, E],
    without masks; returns (output [N, L, E], None).
    """

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.num_heads, self.dropout = attention.num_heads, attention.dropout
        width = attention.embed_dim
        self.in_proj = nn.Linear(width, 3 * width, bias=attention.in_proj_bias is not None)
        self.in_proj.weight = attention.in_proj_weight
        self.in_proj.bias = attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.matmuls: DotProductAttention | None = None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, None]:
        if key is not query or value is not query or need_weights:
            raise NotImplementedError("LinearProjAttention does self-attention without returning its weights")
        n, length, width = query.shape
        qkv = self.in_proj(query).view(n, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [N, heads, L, width of a head] each
        mixed = self.matmuls(q, k, v) if self.matmuls else self._fused(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).reshape(n, length, width)), None

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)


class UnfusedAttention(nn.Module):
    """timm's Attention with its matmuls as modules: tokens [N, L, C] -> [N, L, C], without masks."""

    def __init__(self, attention: Attention):
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.qkv, self.q_norm, self.k_norm = attention.qkv, attention.q_norm, attention.k_norm
        self.matmuls = DotProductAttention()
        self.norm = attention.norm if hasattr(attention, "norm") else nn.Identity()
        self.proj, self.proj_drop = attention.proj, attention.proj_drop

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            raise NotImplementedError("binary matmuls take no mask")
        n, length, _ = x.shape
        qkv = self.qkv(x).view(n, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [N, heads, L, width of a head] each
        mixed = self.matmuls(self.q_norm(q), self.k_norm(k), v)
        return self.proj_drop(self.proj(self.norm(mixed.transpose(1, 2).reshape(n, length, -1))))


def _convertible(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    return (
        isinstance(module, nn.MultiheadAttention)
        and module.batch_first
        and module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
    )


def use_linear_projections(net: nn.Module) -> nn.Module:
    """Replace, in place, every nn.MultiheadAttention of the usual form; others are refused later."""
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if _convertible(child):
                setattr(parent, name, LinearProjAttention(child))
    return net


def unfuse_attention(net: nn.Module) -> nn.Module:
    """Make modules, in place, of the matmuls of every attention known here, after `use_linear_projections`.

    Raises InputError where there is none: of windows, with relative positions, gates or dropout.
    """
    opened = False
    for name, module in list(net.named_modules()):
        if isinstance(module, LinearProjAttention) and not module.dropout:
            module.matmuls = DotProductAttention()
        elif type(module) is Attention and not module.attn_drop.p and not getattr(module, "gate", None):
            net.set_submodule(name, UnfusedAttention(module).train(module.training))
        else:
            continue
        opened = True
    if not opened:
        what = "the model has no attention whose matmuls are known here"
        raise InputError(what, where="activation.attention", hint="Set it to float.")
    return net
