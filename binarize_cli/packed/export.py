"""Hard network -> tensors of the packed file."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from binarize_cli.binarize.convert import binary_layers, binary_matmuls, binary_weights
from binarize_cli.binarize.int8 import has_rows, to_int8
from binarize_cli.binarize.weights import SignWeight
from binarize_cli.packed.bits import pack
from binarize_cli.packed.check import BITS, COUNTER, ROW_SCALE, SCALE, SIDES


def packed_tensors(net: nn.Module, float_dtype: str = "float16") -> dict[str, np.ndarray]:
    """Return the tensors of a hard network: bits, scales, all else by its own name; nothing is rounded here.

    With `float_dtype` int8, which `round_floats` was told too, tensors with rows are codes and scales.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, weight in binary_weights(net):
        assert isinstance(weight, SignWeight), "a network is hardened before it is packed"
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
    for name, tensor in state.items():
        if float_dtype == "int8" and has_rows(tensor):
            codes, scale = to_int8(tensor.detach().cpu())
            tensors[name], tensors[name + ROW_SCALE] = codes.numpy(), narrowest(scale)
        else:
            tensors[name] = narrowest(tensor)
    return tensors


def narrowest(tensor: torch.Tensor) -> np.ndarray:
    """Return float16 where that is the same numbers (`round_floats` rounded), else the tensor as it is."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_floating_point() and torch.equal(tensor.half().float(), tensor.float()):
        tensor = tensor.half()
    return tensor.numpy()
