"""The network of a packed file, rebuilt from the file alone: no model flag, no network access, no recipe.

The architecture is built twice: first without memory, to hold every name and shape against the file, then
with it. So a file of 60 KB that names a network of gigabytes is refused before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from binarize_cli.binarize.accumulator import AccumulatorRule
from binarize_cli.binarize.activations import Axes, SignInput
from binarize_cli.binarize.blocks import rewrite_architecture
from binarize_cli.binarize.convert import replace_layers
from binarize_cli.binarize.int8 import from_int8
from binarize_cli.binarize.layers import BINARY_LAYERS, PAD_VALUES, is_candidate
from binarize_cli.binarize.matmuls import BINARY_MATMULS, is_matmul
from binarize_cli.errors import InputError, printable
from binarize_cli.models.build import build, build_skeleton
from binarize_cli.packed.check import BITS, COUNTER, OWN, ROW_SCALE, SCALE, SIDES, faults_of_tensors
from binarize_cli.packed.format import PackedFile
from binarize_cli.packed.integer_accumulator import IntegerAccumulator
from binarize_cli.packed.packed_weight import PackedWeight
from binarize_cli.packed.schema import Document, Row

FLOATS = ("float16", "float32", "int8")  # int8 with a scale a row


def rebuild(file: PackedFile) -> nn.Module:
    """Return the network, in eval mode, float32 on the CPU. Raises InputError where file and model disagree.

    Every tensor of the file is used, once; every row of its table is a layer of the model, and every layer
    has its row.
    """
    document = file.document
    if document.model.source == "caller":
        what = f"holds a network of the caller's own, {document.model.name}, which bnnpp cannot build"
        hint = "Load it in Python: bnnpp.load_into(YOUR_MODULE, FILE)."
        raise InputError(what, where=printable(str(file.path)), hint=hint)
    with _fitting(file):
        faults = faults_of_tensors(document, file.tensors)
        _refuse(faults or list(_faults(_architecture(document, build_skeleton), document, file.tensors)))
        net = _architecture(document, build)
    return rebuild_into(net, file)


def rebuild_into(net: nn.Module, file: PackedFile) -> nn.Module:
    """Return a network, already rewritten as the run rewrote it, with the layers and tensors of the file.

    In place, in eval mode. Raises InputError where file and network disagree.
    """
    document = file.document
    with _fitting(file):
        _refuse(list(_faults(net, document, file.tensors)))
        tensors = {name: torch.from_numpy(array) for name, array in file.tensors.items()}
        rows = {row.name: row for row in document.layers if row.binary}
        replace_layers(net, rows, lambda name, module: _binary(module, rows[name], tensors, document))
        rest = {name: _floats(name, tensors) for name in tensors if not name.endswith((*OWN, ROW_SCALE))}
        state = net.state_dict()  # with the versions of its modules, which some need to load anything
        state.update(rest)
        net.load_state_dict(state, strict=False)  # `_faults` was strict; copies float16 into float32
    net.eval()
    if not document.inputs:
        return net
    from binarize_cli.packed.fused import fuse  # llvmlite

    return fuse(net)


def load_packed_into(net: nn.Module, file: PackedFile) -> nn.Module:
    """Return a float network of the caller's, in place, with the binary layers and all tensors of the file.

    Raises InputError where file and network disagree; the network may have been rewritten by then.
    """
    return rebuild_into(_rewritten(net, file.document), file)


def _refuse(faults: list[str]) -> None:
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError("; ".join(faults[:3]) + more)


@contextmanager
def _fitting(file: PackedFile) -> Iterator[None]:
    """Whatever the libraries raise on a file that does not fit its model becomes one message."""
    try:
        yield
    except (AttributeError, KeyError, ValueError, RuntimeError, TypeError) as error:
        hint = "The file is damaged, or the model has changed in this version of its library."
        what = f"does not fit the model {file.document.model.name}: {printable(str(error))[:1000]}"
        raise InputError(what, where=printable(str(file.path)), hint=hint) from None


def _floats(name: str, tensors: dict[str, Tensor]) -> Tensor:
    """Return the tensor of that name, as floats where it is int8 codes."""
    scale = tensors.get(name + ROW_SCALE)
    return tensors[name] if scale is None else from_int8(tensors[name], scale)


def _architecture(document: Document, how: Callable[..., nn.Module]) -> nn.Module:
    """Return the network with its layers still float, built by `build` or `build_skeleton`."""
    model = document.model
    return _rewritten(how(model.source, model.name, model.num_classes, **model.builder_kwargs), document)


def _rewritten(net: nn.Module, document: Document) -> nn.Module:
    """Return the network rewritten as the run rewrote it, its layers still float."""
    made = document.inputs
    if made is None:
        return rewrite_architecture(net, "bw", "keep", "float")
    return rewrite_architecture(net, document.task, made.blocks, made.attention)


def _faults(net: nn.Module, document: Document, tensors: dict[str, np.ndarray]) -> Iterator[str]:
    """Return what of the file is not so in the model, or the other way round; `net` has no memory."""
    modules = dict(net.named_modules())
    names: dict[nn.Module, list[str]] = {}  # a layer that the model holds twice has two names in a state dict
    for name, module in net.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    layers = {name for name, module in modules.items() if is_candidate(module) or is_matmul(module)}
    rows = {row.name: row for row in document.layers}
    yield from (f"{name}: the model has no such layer" for name in rows if name not in layers)
    yield from (f"{name}: the table has no row for it" for name in sorted(layers - rows.keys()))
    expected = {n: t for n, t in net.state_dict().items() if not n.endswith(COUNTER)}
    for name in layers & rows.keys():
        row, module = rows[name], modules[name]
        yield from _faults_of_row(net, module, row, tensors)
        if row.shape and is_candidate(module):
            for alias in names[module]:
                expected.pop(f"{alias}.weight", None)
            bias = f"{name}.bias"
            if f"{name}.input_threshold" in tensors and isinstance(module, nn.Linear):
                expected.setdefault(bias, torch.empty(row.shape[0], device="meta"))
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith((*OWN, ROW_SCALE))}
    yield from (f"{name}: is missing" for name in sorted(expected.keys() - found.keys()))
    yield from (f"{name}: the model has no such tensor" for name in sorted(found.keys() - expected.keys()))
    for name in sorted(expected.keys() & found.keys()):
        want, have = expected[name], found[name]
        types = FLOATS if want.is_floating_point() else (str(want.dtype).removeprefix("torch."),)
        if tuple(want.shape) != have.shape or have.dtype.name not in types:
            yield f"{name}: {have.dtype} {list(have.shape)}, not {types[0]} {list(want.shape)}"


def _faults_of_row(net: nn.Module, module: Any, row: Row, tensors: dict[str, np.ndarray]) -> Iterator[str]:
    if is_matmul(module):
        if not row.is_matmul:
            yield f"{row.name}: the row is not one of a matmul"
        for side, channels in zip(SIDES[1:], _channels(net, module, row.name), strict=True):
            yield from _faults_of_threshold(f"{row.name}.{side}_threshold", channels, tensors)
        return
    if row.is_matmul:
        yield f"{row.name}: the row is one of a matmul, but this is a layer"
    elif row.shape and type(module) not in BINARY_LAYERS:
        yield f"{row.name}: a {type(module).__name__} cannot be binary"
    elif row.shape and row.shape != list(module.weight.shape):
        yield f"{row.name}: weights {row.shape}, not {list(module.weight.shape)}"
    channels = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    yield from _faults_of_threshold(f"{row.name}.input_threshold", channels, tensors)


def _faults_of_threshold(name: str, channels: int, tensors: dict[str, np.ndarray]) -> Iterator[str]:
    found = tensors.get(name)
    if found is not None and found.shape != (channels,):
        yield f"{name}: {list(found.shape)}, not [{channels}]"


def _channels(net: nn.Module, matmul: Any, name: str) -> list[int]:
    """Return the thresholds that each factor of an attention matmul has: one a head, or one a channel."""
    attention: Any = net.get_submodule(name.rsplit(".", 2)[0])
    heads = attention.num_heads
    width = attention.proj.in_features if hasattr(attention, "proj") else attention.out_proj.in_features
    return [heads if len(axes) == 1 else width for axes in matmul.axes]


def _binary(module: Any, row: Row, tensors: dict[str, Tensor], document: Document) -> nn.Module:
    """Return the binary form of a layer, or of a matmul of attention; sums of signs are integers."""
    name, made = row.name, document.inputs
    rule = None
    if made and made.overflow and row.shift is not None:
        rule = AccumulatorRule(made.overflow, row.shift, made.tiles)
    if row.is_matmul:
        sides = zip(SIDES[1:], module.axes, strict=True)
        left, right = (_input(name, side, axes, tensors) for side, axes in sides)
        return BINARY_MATMULS[type(module)](left, right, IntegerAccumulator(rule))
    source = PackedWeight(tensors[name + BITS], tensors[name + SCALE].float(), tuple(row.shape or ()))
    binary = BINARY_LAYERS[type(module)]
    if row.input is None:
        return binary(module, source)
    from binarize_cli.packed.popcount_layers import layer_class  # llvmlite, which other files do without

    signs = _input(name, "input", binary.axes, tensors)
    layer = layer_class(binary, module)(
        module, source, signs, IntegerAccumulator(rule), PAD_VALUES[made.padding if made else "zero"]
    )
    if layer.bias is None and (bias := tensors.get(name + ".bias")) is not None:
        layer.bias = nn.Parameter(torch.zeros_like(bias, dtype=torch.float32))  # what thresholds took off
    return layer


def _input(name: str, side: str, axes: Axes, tensors: dict[str, Tensor]) -> SignInput:
    threshold = tensors.get(f"{name}.{side}_threshold")
    scale = tensors[f"{name}.{side}_scale"].float()
    return SignInput(axes, None if threshold is None else threshold.float(), scale)
