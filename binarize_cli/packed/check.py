"""Whether the tensors of a packed file are those that its table of layers claims; from the file alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from binarize_cli.packed.schema import Document, Row

BITS, SCALE = ".weight_bits", ".weight_scale"
SIDES = ("input", "left", "right")
"""What may be binary beside the weights: the input of a layer, the two factors of a matmul."""
OWN = (BITS, SCALE, *(f".{side}_{part}" for side in SIDES for part in ("threshold", "scale")))
ROW_SCALE = "_row_scale"
"""Behind the name of an int8 tensor: the scales of its rows."""
COUNTER = ".num_batches_tracked"
"""BatchNorm's count of training steps: not in a file, since no score depends on it."""
FLOATS = (np.dtype(np.float16), np.dtype(np.float32))
Shape = tuple[int | None, ...]  # None: any size


def faults_of_tensors(document: Document, tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Return what is wrong: tensors that a row claims and that are not so, and binary ones no row claims."""
    claimed = {name: spec for row in document.layers for name, spec in claims(row, document)}
    faults = [
        f"{name}: {fault}" for name, spec in claimed.items() if (fault := _fault(tensors.get(name), *spec))
    ]
    faults += [
        f"{name}: no row of the table claims it"
        for name in tensors
        if name.endswith(OWN) and name not in claimed
    ]
    faults += [
        f"{name}: a binary layer has bits in its place"
        for row in document.layers
        if row.shape and (name := f"{row.name}.weight") in tensors
    ]
    faults += [
        f"{row.name}: has no weights"
        for row in document.layers
        if not row.binary and f"{row.name}.weight" not in tensors
    ]
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            faults.append(f"{name}: holds numbers that are not finite")
        elif tensor.dtype.kind == "f" and tensor.dtype not in FLOATS:
            faults.append(f"{name}: {tensor.dtype}, but floats are float16 or float32")
    faults += _faults_of_int8(tensors)
    for row in document.layers:
        bits = tensors.get(row.name + BITS)
        if row.shape and bits is not None and not faults and _stray_bits(bits, math.prod(row.shape[1:])):
            faults.append(f"{row.name}{BITS}: bits behind the last weight of a channel are not 0")
    return faults


def claims(row: Row, document: Document) -> Iterator[tuple[str, tuple[str, Shape]]]:
    """Yield (tensor name, (kind of type, shape)) for all that a row says the file holds, but for biases."""
    if row.shape:
        out, *rest = row.shape
        yield row.name + BITS, ("u", (out, math.ceil(math.prod(rest) / 8)))
        yield row.name + SCALE, ("f", (out,))
    if row.input is None:
        return
    channels = row.shape[1] if row.shape and len(row.shape) == 2 else None  # groups are the model's to say
    for side in SIDES[1:] if row.is_matmul else SIDES[:1]:
        yield f"{row.name}.{side}_scale", ("f", ())
        if document.inputs and document.inputs.threshold == "learned":
            yield f"{row.name}.{side}_threshold", ("f", (channels,))


def _faults_of_int8(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Check int8 tensors: they have a scale a row, and only they; -128 is no code."""
    faults = []
    for name, tensor in tensors.items():
        if tensor.dtype == np.int8:
            rows = next((size for size in tensor.shape if size > 1), 1)
            if fault := _fault(tensors.get(name + ROW_SCALE), "f", (rows,)):
                faults.append(f"{name}{ROW_SCALE}: {fault}")
            if (tensor == -128).any():
                faults.append(f"{name}: holds -128")
        elif name.endswith(ROW_SCALE):
            of = tensors.get(name.removesuffix(ROW_SCALE))
            if of is None or of.dtype != np.int8:
                faults.append(f"{name}: the scale of no int8 tensor")
    return faults


def _fault(tensor: np.ndarray | None, kind: str, shape: Shape) -> str | None:
    if tensor is None:
        return "is missing"
    wrong_type = tensor.dtype.kind != kind or (kind == "u" and tensor.dtype != np.uint8)
    same = len(tensor.shape) == len(shape) and all(
        b in (None, a) for a, b in zip(tensor.shape, shape, strict=True)
    )
    if wrong_type or not same:
        expected = "uint8" if kind == "u" else "float"
        sizes = ", ".join("*" if size is None else str(size) for size in shape)
        return f"{tensor.dtype} {list(tensor.shape)}, not {expected} [{sizes}]"
    return None


def _stray_bits(bits: np.ndarray, weights: int) -> bool:
    """Return whether a bit behind the `weights` of a channel is set."""
    return bool(weights % 8) and bool((bits[:, -1] >> (weights % 8)).any())
