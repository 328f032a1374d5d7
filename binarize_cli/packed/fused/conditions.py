"""When a block may run fused: nobody would notice but by the clock."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def unobserved(x: Tensor, parts: Iterable[nn.Module]) -> bool:
    """Return whether nothing asks for gradients, for other numbers, or for what single layers compute."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not any(map(_observed, parts))


def _observed(module: nn.Module | None) -> bool:
    """Return whether a module, or one inside it, has hooks or trains."""
    if module is None:
        return False
    if module._forward_hooks or module._forward_pre_hooks or module.training:
        return True
    return any(map(_observed, module._modules.values()))
