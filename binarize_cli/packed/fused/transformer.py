"""Transformer blocks that normalise first: sums are added to the shortcut, perceptrons pass bits on."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock

from binarize_cli.binarize.attention import LinearProjAttention, UnfusedAttention
from binarize_cli.packed.fused.binary_attention import binary_attention
from binarize_cli.packed.fused.conditions import unobserved
from binarize_cli.packed.fused.perceptron import layers_of, perceptron
from binarize_cli.packed.popcount_layers import Made, PopcountLinear, suits


class FusedBlock(Block):
    """timm's Block without LayerScale."""

    _made: dict[str, Made]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        nothing = (self.ls1, self.ls2, self.drop_path1, self.drop_path2)
        plain = all(isinstance(each, nn.Identity | DropPath) for each in nothing)
        if not plain or attn_mask is not None or is_causal or not unobserved(x, (self,)):
            return super().forward(x, attn_mask, is_causal)
        x = _attended(self.attn, self.norm1(x), x)
        return _transformed(self._made, self.mlp, self.norm2(x), x)


class FusedEncoderBlock(EncoderBlock):
    """torchvision's block."""

    _made: dict[str, Made]

    def forward(self, x: Tensor) -> Tensor:
        if not unobserved(x, (self,)):
            return super().forward(x)
        x = _attended(self.self_attention, self.ln_1(x), x)
        return _transformed(self._made, self.mlp, self.ln_2(x), x)


def _attended(attention: Any, x: Tensor, past: Tensor) -> Tensor:
    """Compute attention(x) + past."""
    last: Any
    mixed: Tensor | None
    if type(attention) is LinearProjAttention:
        last, qkv = attention.out_proj, attention.in_proj(x)
        if attention.matmuls is None:
            mixed = _mixed(qkv, attention.num_heads)
        else:
            mixed = binary_attention(attention.matmuls, qkv, attention.num_heads)
    elif type(attention) is UnfusedAttention and _identity(attention.q_norm, attention.k_norm):
        last = attention.proj
        mixed = binary_attention(attention.matmuls, attention.qkv(x), attention.num_heads)
        mixed = None if mixed is None else attention.norm(mixed)
    elif type(attention) is Attention and attention.fused_attn and attention.gate is None:
        last, qkv = attention.proj, attention.qkv(x)
        mixed = _mixed(qkv, attention.num_heads, attention.q_norm, attention.k_norm)
        mixed = attention.norm(mixed)
    else:
        mixed = None
    if mixed is None:
        three = isinstance(attention, LinearProjAttention | nn.MultiheadAttention)
        y = attention(x, x, x, need_weights=False)[0] if three else attention(x)
        return past + y
    if type(last) is PopcountLinear and suits(last, mixed):
        return last.added_to(past, mixed)
    return past + last(mixed)


def _identity(*modules: nn.Module) -> bool:
    return all(isinstance(module, nn.Identity) for module in modules)


def _mixed(qkv: Tensor, heads: int, q_norm: Any = None, k_norm: Any = None) -> Tensor:
    """Mix [N, L, 3 C] to [N, L, C] by float attention, as both libraries compute it."""
    n, length, width = qkv.shape
    q, k, v = qkv.view(n, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = (norm(x) if norm else x for norm, x in ((q_norm, q), (k_norm, k)))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, -1)


def _transformed(made: dict[str, Made], mlp: nn.Module, x: Tensor, past: Tensor) -> Tensor:
    """Compute mlp(x) + past."""
    layers = layers_of(mlp)
    y = perceptron(made.setdefault("mlp", Made()), layers, x, past) if layers else None
    return past + mlp(x) if y is None else y
