"""What a packed file holds, layer by layer and byte by byte, from the file alone and without torch."""

from __future__ import annotations

import math
from typing import Any

from binarize_cli.packed.format import BITS, OWN, PackedFile


def contents(file: PackedFile) -> dict[str, Any]:
    """The account of a packed file: every tensor belongs to one layer, every byte to one of four kinds.

    `ratio` is the size the same tensors take in float32 (integers as they are) over the file's size.
    """
    document = file.document
    owner = _owners(file)
    layers = [_layer(row, owner[row["name"]], file) for row in document["layers"]]
    binary = _bytes(file, (n for n in file.tensors if n.endswith(BITS)))
    scales = _bytes(file, (n for n in file.tensors if n.endswith(OWN[1:])))
    tensors = _bytes(file, file.tensors)
    float32 = _float32_bytes(file)
    return {
        "format": document["format"],
        "method": document["method"],
        "task": document["task"],
        "model": document["model"],
        "layers": layers,
        "bytes": {
            "total": file.total_bytes,
            "binary": binary,
            "scales": scales,
            "float": tensors - binary - scales,
            "metadata": file.total_bytes - tensors,
        },
        "macs": _macs(layers),
        "binary_weights": sum(
            math.prod(row["shape"]) for row in layers if row["name"] + BITS in file.tensors
        ),
        "float32_bytes": float32,
        "ratio": round(float32 / file.total_bytes, 2),
        "accuracy": document["accuracy"],
        "data": document["data"]["name"],
        "provenance": document["provenance"],
    }


def _owners(file: PackedFile) -> dict[str, list[str]]:
    """Row name -> its tensors. A row is a module (its tensors are `<row>.<x>`) or a lone tensor."""
    owner: dict[str, list[str]] = {row["name"]: [] for row in file.document["layers"]}
    for tensor in file.tensors:
        row = tensor if tensor in owner else tensor.rpartition(".")[0]
        owner.setdefault(row, []).append(tensor)
    return owner


def _layer(row: dict, tensors: list[str], file: PackedFile) -> dict[str, Any]:
    binary = row["name"] + BITS in file.tensors or row["name"] + ".left_scale" in file.tensors
    floats = [8 * file.tensors[n].itemsize for n in tensors if file.tensors[n].dtype.kind == "f"]
    return {
        "name": row["name"],
        "kind": row["kind"],
        "shape": row["shape"],
        "bits": 1 if binary else max(floats, default=0),
        "bytes": _bytes(file, tensors),
        "why": row["why"],
        "input": row["input"],
        "accumulator": row["accumulator"],
        "macs": row["macs"],
    }


def _macs(layers: list[dict[str, Any]]) -> dict[str, int]:
    """Multiplications of the layers, and binary matmuls of attention, for one image, by what is multiplied.

    `binary`: sign by sign, a bit operation; `signs`: a float by a sign, an addition; `float`: float by float.
    """
    counts = {"binary": 0, "signs": 0, "float": 0}
    for row in layers:
        kind = "float" if row["bits"] != 1 else "signs" if row["input"] == "float" else "binary"
        counts[kind] += row["macs"]
    return counts


def _bytes(file: PackedFile, names) -> int:
    return sum(file.tensors[name].nbytes for name in names)


def _float32_bytes(file: PackedFile) -> int:
    weights = {row["name"] + BITS: 4 * math.prod(row["shape"]) for row in file.document["layers"]}
    total = 0
    for name, tensor in file.tensors.items():
        if name.endswith(BITS):
            total += weights[name]
        elif not name.endswith(OWN):
            total += 4 * tensor.size if tensor.dtype.kind == "f" else tensor.nbytes
    return total
