"""nn.MultiheadAttention reads its weights directly, past any layer; here it has two linear layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SplitAttention(nn.Module):
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

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False):
        if key is not query or value is not query or need_weights:
            raise NotImplementedError("SplitAttention does self-attention without returning its weights")
        n, length, width = query.shape
        qkv = self.in_proj(query).view(n, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [N, heads, L, width of a head] each
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).reshape(n, length, width)), None


def _convertible(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.MultiheadAttention)
        and module.batch_first
        and module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
    )


def split_attention(net: nn.Module) -> nn.Module:
    """Replace, in place, every nn.MultiheadAttention of the usual form; others are refused later."""
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if _convertible(child):
                setattr(parent, name, SplitAttention(child))
    return net
