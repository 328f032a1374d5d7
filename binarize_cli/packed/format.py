"""bnnpp format 1: plain safetensors. Reading needs neither torch nor a model, so `inspect` answers at once.

<module>.weight_bits    uint8 [out, ceil(K / 8)], see `bits`
<module>.weight_scale   [out]
<module>.input_threshold, .input_scale   [in], []: the inputs are sign(x - threshold), in units of the scale
<product>.left_threshold, .left_scale, .right_threshold, .right_scale   the same of the factors of q k^T, p v
every other tensor under its state-dict name, float16 where that loses nothing
__metadata__["bnnpp"]   one JSON document: format, model, preprocessing, method, task, recipe, layers ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from binarize_cli.errors import InputError
from binarize_cli.files import atomic

FORMAT = 1
KEYS = {"model", "preprocessing", "method", "task", "recipe", "layers", "accuracy", "data", "provenance"}
BITS, SCALE = ".weight_bits", ".weight_scale"
SIDES = ("input", "left", "right")
"""What may be binary beside the weights: the input of a layer, the two factors of a product."""
OWN = (BITS, SCALE, *(f".{side}_{part}" for side in SIDES for part in ("threshold", "scale")))


@dataclass(frozen=True)
class PackedFile:
    """The document and the tensors of a packed file."""

    path: Path
    document: dict[str, Any]
    tensors: dict[str, np.ndarray]

    @property
    def total_bytes(self) -> int:
        return self.path.stat().st_size


def write(path: Path, document: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write a packed file in one step: whole, or not at all. Raises InputError when the disk is full."""
    metadata = {"bnnpp": json.dumps(document, sort_keys=True, separators=(",", ":"))}
    ordered = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    with atomic(path) as file:
        file.write(save(ordered, metadata))


def read(path: Path) -> PackedFile:
    """Read a packed file. Raises InputError: missing, truncated, foreign, or of a newer format."""
    if not path.is_file():
        raise InputError("no such file", where=str(path), hint="Give a file that 'bnnpp binarize' wrote.")
    try:
        with safe_open(path, framework="np") as file:
            document = _document(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        hint = "The file is truncated, or no safetensors file at all."
        raise InputError(f"cannot be read ({reason})", where=str(path), hint=hint) from None
    return PackedFile(path, document, tensors)


def _document(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if "bnnpp" not in metadata:
        hint = "'bnnpp binarize MODEL --weights FILE' takes float weights and makes a packed file."
        raise InputError("safetensors, but not a packed file of bnnpp", where=str(path), hint=hint)
    try:
        document = json.loads(metadata["bnnpp"])
        number = document["format"]
    except (ValueError, TypeError, KeyError):
        raise InputError("its bnnpp document is damaged", where=str(path)) from None
    if number != FORMAT:
        newer = isinstance(number, int) and number > FORMAT
        hint = "Update bnnpp: pip install -U bnnpp." if newer else None
        raise InputError(f"format {number}; this bnnpp reads format {FORMAT}", where=str(path), hint=hint)
    if KEYS - document.keys():
        raise InputError("its bnnpp document is damaged", where=str(path))
    return document
