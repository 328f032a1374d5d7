"""Rounding: the numbers that stay float, of a hard network, as its packed file holds them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize_cli.binarize.activations import SignInput
from binarize_cli.binarize.int8 import from_int8, has_rows, to_int8

LARGE = 2**14  # numbers; ResNet's first layer (9,408) is smaller, the embeddings of transformers are larger


@torch.no_grad()
def round_floats(net: nn.Module, float_dtype: str) -> nn.Module:
    """Round, in place, what stays float in a network that went through `harden`; the numbers stay float32.

    `float_dtype` is float16, float32 (nothing is rounded) or int8: then tensors with rows are codes and
    scales (`int8`), all else is float16. If inputs are binary, float16 is for large tensors alone: whatever
    lies before a sign may turn it, and turned signs turn others. With all of digits_resnet in float16 the
    logits moved by 19% of their norm, and still by 17% with float16 in the first layer and the head alone.
    """
    if float_dtype == "float32":
        return net
    inputs_are_signs = any(isinstance(module, SignInput) for module in net.modules())
    for tensor in (*net.parameters(), *net.buffers()):
        if not tensor.is_floating_point():  # signs
            continue
        if float_dtype == "int8" and has_rows(tensor):
            tensor.copy_(from_int8(*to_int8(tensor)))
        elif float_dtype == "int8" or not inputs_are_signs or tensor.numel() >= LARGE:
            tensor.copy_(rounded(tensor))
    return net


def rounded(tensor: Tensor) -> Tensor:
    """Return the tensor rounded to float16, in float32; unchanged if float16 cannot hold it.

    float16 ends at 65504 and thins out below 6e-5: a tensor that would change by more than a
    thousandth (in norm) stays float32.
    """
    there = tensor.half().float()
    lost = (there - tensor).norm()
    return there if torch.isfinite(lost) and lost <= 1e-3 * tensor.norm() else tensor.float()
