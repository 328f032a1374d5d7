"""Blocks in which what stands between two sums of signs is part of the passes that count and that pack."""

from __future__ import annotations

from typing import Any

from torch import nn

from binarize_cli.packed.fused.residual import FusedBiRealBlock
from binarize_cli.packed.fused.transformer import FusedBlock, FusedEncoderBlock

FUSED: tuple[type, ...] = (FusedBiRealBlock, FusedBlock, FusedEncoderBlock)
"""Each is a subclass of one class of block, without attributes of its own but for what `fuse` calls."""


def fuse(net: nn.Module) -> nn.Module:
    """Let the blocks known here run fused, in place: names, parameters and numbers stay what they are.

    Whether a block really does is decided at each call: see `conditions`.
    """
    classes = {fused.__bases__[-1]: fused for fused in FUSED}
    module: Any
    for module in net.modules():
        fused = classes.get(type(module))
        if fused is not None:
            module.__class__ = fused
            module._made = {}
    return net
