"""The bytes that a packed network's weights take in memory, beside those of its file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from binarize_cli.binarize.layers import BinaryConv2d, BinaryLinear
from binarize_cli.packed.check import BITS
from binarize_cli.packed.format import PackedFile
from binarize_cli.packed.kernels.geometry import Plan


def footprint(net: nn.Module, file: PackedFile) -> dict[str, int]:
    """Return the bytes of the signs in the file and in memory, of all else in memory, and of the file.

    Signs in memory are bits, or dense copies where a layer keeps those.
    """
    layers = (module for module in net.modules() if isinstance(module, BinaryLinear | BinaryConv2d))
    weights: list[Any] = [layer.source for layer in layers]
    dense = [tensor for weight in weights for tensor in weight._kept.values()]
    bits = [weight.blocks if hasattr(weight, "blocks") else weight.bits for weight in weights]
    signs = _bytes([*bits, *dense])
    return {
        "signs_in_file": sum(array.nbytes for name, array in file.tensors.items() if name.endswith(BITS)),
        "signs_in_memory": signs,
        "rest_in_memory": _bytes(_tensors(net, set())) - signs,
        "file": file.total_bytes,
    }


def _bytes(tensors: Iterator[Tensor] | list[Tensor]) -> int:
    """Return the bytes of the memory behind tensors, each piece once."""
    pieces = (each.untyped_storage() for each in tensors)
    return sum({piece.data_ptr(): piece.nbytes() for piece in pieces}.values())


def _tensors(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """Return every tensor that an object holds: parameters, buffers, and what kernels were made of them."""
    if id(thing) in seen or isinstance(thing, Plan):  # where pixels lie is nothing of the weights
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict | list | tuple):
        for each in thing.values() if isinstance(thing, dict) else thing:
            yield from _tensors(each, seen)
    elif isinstance(thing, nn.Module) or type(thing).__module__.startswith("binarize_cli"):
        yield from _tensors(vars(thing), seen) if hasattr(thing, "__dict__") else ()
