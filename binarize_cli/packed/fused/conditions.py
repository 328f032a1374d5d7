"""When a block may run fused: nobody would notice but by the clock."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def unobserved(x: Tensor, parts: Iterable[nn.Module]) -> bool:
    """Return whether nothing asks for gradients, for other numbers, or for the outputs of single layers."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not any(each._forward_hooks or each._forward_pre_hooks or each.training for each in parts)
