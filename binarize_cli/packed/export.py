"""Hard network -> tensors of the packed file."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from binarize_cli.binarize.convert import binary_layers, binary_matmuls, binary_weights
from binarize_cli.packed.bits import pack
from binarize_cli.packed.check import BITS, COUNTER, SCALE, SIDES


def packed_tensors(net: nn.Module) -> dict[str, np.ndarray]:
    """Return the tensors of a network that went through `harden`: bits, scales, all else by its own name."""
    tensors: dict[str, np.ndarray] = {}
    for name, weight in binary_weights(net):
        tensors[name + BITS] = pack(weight.signs.cpu().numpy())
        tensors[name + SCALE] = narrowest(weight.scale)
    for name, module in (*binary_layers(net), *binary_matmuls(net)):
        for side in SIDES:
            fixed = getattr(module, side, None)
            if fixed is None:
                continue
            tensors[f"{name}.{side}_scale"] = narrowest(fixed.scale)
            if fixed.threshold is not None:
                tensors[f"{name}.{side}_threshold"] = narrowest(fixed.threshold)
    state = {name: tensor for name, tensor in net.state_dict().items() if not name.endswith(COUNTER)}
    return tensors | {name: narrowest(tensor) for name, tensor in state.items()}


def narrowest(tensor: torch.Tensor) -> np.ndarray:
    """float16 where that is the same numbers (rounding was `harden`'s work), else as it is."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_floating_point() and torch.equal(tensor.half().float(), tensor.float()):
        tensor = tensor.half()
    return tensor.numpy()
