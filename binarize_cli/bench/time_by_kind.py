"""Where a packed network's time goes: binary products, packing, what stays float, and the rest."""

from __future__ import annotations

import time
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from binarize_cli.binarize.layers import BinaryConv2d, BinaryLinear
from binarize_cli.packed.kernels.clock import measured, timed

ROUNDS = 3
ATTENTION = "float attention"
PARTS = ("binary products", "packing", "float layers", ATTENTION, "the rest")


def time_by_kind(net: nn.Module, images: Tensor) -> dict[str, float]:
    """Return the share of each kind in the time of a batch, in per cent.

    Float attention is q k^T, softmax and p v in one call of torch; the rest is sums of branches, copies and
    Python.
    """
    changed = [module for module in net.modules() if _kind(module)]
    for module in changed:
        vars(module)["forward"] = timed(str(_kind(module)))(module.forward)
    attention = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = timed(ATTENTION)(attention)
    try:
        with measured() as spent:
            started = time.perf_counter()
            for _ in range(ROUNDS):
                net(images)
            total = time.perf_counter() - started
    finally:
        F.scaled_dot_product_attention = attention
        for module in changed:
            del vars(module)["forward"]
    known = {kind: 100 * spent[kind] / total for kind in PARTS[:-1]}
    return known | {PARTS[-1]: 100 - sum(known.values())}


def _kind(module: Any) -> str | None:
    """Return the kind of a layer that is timed as a whole; kernels of layers on bits count for themselves."""
    if isinstance(module, BinaryLinear | BinaryConv2d):
        return None if hasattr(module.source, "blocks") else PARTS[0]
    no_layer = any(True for _ in module.children()) or type(module).__module__.startswith("binarize_cli")
    return None if no_layer or isinstance(module, nn.Identity | nn.Dropout) else PARTS[2]
