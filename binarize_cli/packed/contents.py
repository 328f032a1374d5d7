"""What a packed file holds, layer by layer and byte by byte, from the file alone and without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from binarize_cli.packed.check import BITS, OWN, ROW_SCALE
from binarize_cli.packed.codes import OTHER, OTHERS, described
from binarize_cli.packed.format import PackedFile
from binarize_cli.packed.schema import Row


def contents(file: PackedFile) -> dict[str, Any]:
    """Return the account of a packed file: every tensor belongs to one row, every byte to one of four kinds.

    First come the layers that were decided on, then all else that has tensors. `ratio` is the size the same
    tensors take in float32 (integers as they are) over the file's size; `bound` is the least that a file of
    these tensors could take, without a header.
    """
    document = file.document
    rows = {row.name: row for row in document.layers}
    owned = _owned(file, rows)
    layers = [_layer(row, owned.pop(row.name, []), file) for row in document.layers]
    layers += [_other(name, tensors, file) for name, tensors in owned.items()]
    binary = _bytes(file, (n for n in file.tensors if n.endswith(BITS)))
    scales = _bytes(file, (n for n in file.tensors if n.endswith((*OWN[1:], ROW_SCALE))))
    tensors = _bytes(file, file.tensors)
    float32 = _float32_bytes(file, rows)
    weights = sum(math.prod(row.shape) for row in rows.values() if row.shape)
    bound = math.ceil(weights / 8) + tensors - binary  # one bit a binary weight, the rest as it is
    model = document.model
    return {
        "format": file.format,
        "method": document.method,
        "task": document.task,
        "model": {
            "source": model.source,
            "name": model.name,
            "num_classes": model.num_classes,
            "kwargs": model.builder_kwargs,
            "classes": model.classes,
        },
        "layers": layers,
        "bytes": {
            "total": file.total_bytes,
            "binary": binary,
            "scales": scales,
            "float": tensors - binary - scales,
            "metadata": file.total_bytes - tensors,
        },
        "macs": _macs(layers),
        "binary_weights": weights,
        "float32_bytes": float32,
        "ratio": round(float32 / file.total_bytes, 2),
        "smaller_than": {
            "float32": round(float32 / file.total_bytes, 2),
            "float16": round(float32 / 2 / file.total_bytes, 2),
            "int8": round(float32 / 4 / file.total_bytes, 2),
        },
        "bound": bound,
        "over_bound": round(file.total_bytes / bound, 3),
        "accuracy": document.accuracy and document.accuracy.model_dump(),
        "data": document.data.name if document.data else "-",
        "fingerprint": document.data.fingerprint if document.data else None,
        "recipe": document.full_recipe,
        "provenance": {**document.provenance.model_dump(), "seed": document.full_recipe["train"]["seed"]},
    }


def _owned(file: PackedFile, rows: dict[str, Row]) -> dict[str, list[str]]:
    """Row name -> its tensors, sorted. Tensors that a module with children owns itself are rows alone."""
    modules = {name.rpartition(".")[0] for name in file.tensors}
    parents = {module[:at] for module in modules for at, sign in enumerate(module) if sign == "."} | {""}
    owned: dict[str, list[str]] = {name: [] for name in rows}
    for name in sorted(file.tensors, key=_natural):
        module = name.rpartition(".")[0]
        alone = module in parents and module not in rows
        owned.setdefault(name if alone else module, []).append(name)
    return owned


def _natural(name: str) -> list[tuple[int, str]]:
    """Names in order, with blocks.2 before blocks.10."""
    return [(int(part) if part.isdecimal() and len(part) < 10 else -1, part) for part in name.split(".")]


def _layer(row: Row, tensors: list[str], file: PackedFile) -> dict[str, Any]:
    shape = row.shape
    if shape is None:
        shape = [] if row.is_matmul else list(file.tensors[row.name + ".weight"].shape)
    overflow = file.document.inputs.overflow if file.document.inputs else None
    said = described(row, overflow)
    return {
        "name": said["name"],
        "kind": said["kind"],
        "shape": shape,
        "bits": 1 if row.binary else _bits(tensors, file),
        "bytes": _bytes(file, tensors),
        "why": said["why"],
        "input": said["input"],
        "accumulator": said["accumulator"],
        "macs": said["macs"],
    }


def _other(name: str, tensors: list[str], file: PackedFile) -> dict[str, Any]:
    """Return what has tensors but is no layer that could be binary: its tensors say what it is."""
    leaves = [tensor.rpartition(".")[2] for tensor in tensors]
    lone = "parameter" if tensors == [name] else "norm"
    kind, why = next((OTHERS[leaf] for leaf in leaves if leaf in OTHERS), (lone, OTHER))
    return {
        "name": name,
        "kind": kind,
        "shape": list(max((file.tensors[t] for t in tensors), key=lambda t: t.size).shape),
        "bits": _bits(tensors, file),
        "bytes": _bytes(file, tensors),
        "why": why,
        "input": "float",
        "accumulator": None,
        "macs": 0,
    }


def _bits(tensors: list[str], file: PackedFile) -> int:
    if any(file.tensors[name].dtype == np.int8 for name in tensors):
        return 8
    return max(
        (8 * file.tensors[n].itemsize for n in tensors if file.tensors[n].dtype.kind == "f"), default=0
    )


def _macs(layers: list[dict[str, Any]]) -> dict[str, int]:
    """Multiplications of the layers, and binary matmuls of attention, for one image, by what is multiplied.

    `binary`: sign by sign, a bit operation; `signs`: a float by a sign, an addition; `float`: float by float.
    """
    counts = {"binary": 0, "signs": 0, "float": 0}
    for row in layers:
        kind = "float" if row["bits"] != 1 else "signs" if row["input"] == "float" else "binary"
        counts[kind] += row["macs"]
    return counts


def _bytes(file: PackedFile, names: Iterable[str]) -> int:
    return sum(file.tensors[name].nbytes for name in names)


def _float32_bytes(file: PackedFile, rows: dict[str, Row]) -> int:
    total = 4 * sum(math.prod(row.shape) for row in rows.values() if row.shape)
    for name, tensor in file.tensors.items():
        if not name.endswith((*OWN, ROW_SCALE)):
            floats = tensor.dtype.kind == "f" or tensor.dtype == np.int8
            total += 4 * tensor.size if floats else tensor.nbytes
    return total
