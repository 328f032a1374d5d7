"""The packed file: safetensors with one JSON document. Reading needs no torch, so `inspect` answers at once.

<module>.weight_bits    uint8 [out, ceil(K / 8)], see `bits`
<module>.weight_scale   [out]
<module>.input_threshold, .input_scale   [in], []: the inputs are sign(x - threshold), in units of the scale
<matmul>.left_threshold, .left_scale, .right_threshold, .right_scale   the same of the factors of q k^T, p v
every other tensor under its state-dict name, float16 or float32: see `binarize.rounding`
joined.<type>   small tensors of all these kinds, one after another: see `joined`
__metadata__["bnnpp"]   the document, see `schema`; it holds a checksum of itself and of the tensors

docs/format.md says all of it. What is read here has been checked against the document; `runtime` checks it
against the model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from binarize_cli.errors import BnnppError, InputError, printable
from binarize_cli.files import atomic
from binarize_cli.packed.check import faults_of_tensors
from binarize_cli.packed.joined import DTYPES, join, split
from binarize_cli.packed.schema import FORMAT, Document
from binarize_cli.packed.upgrade import upgrade
from binarize_cli.run_folder import check_file

KEY = "bnnpp"
NOT_YET = "0" * 64  # where the checksum goes, while it is computed
LARGEST_DOCUMENT = 2**24  # characters: a million classes with short names
DEEPEST = 16  # of nesting; the document has 5 levels, a recipe in it 5 more


@dataclass(frozen=True)
class PackedFile:
    """The document and the tensors of a packed file."""

    path: Path
    document: Document
    tensors: dict[str, np.ndarray]
    format: int = FORMAT
    """As it was written; `document` and `tensors` are in the terms of the present one."""

    @property
    def total_bytes(self) -> int:
        return self.path.stat().st_size


def write(path: Path, document: Document, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a packed file in one step: whole, or not at all. Raises InputError when the disk is full.

    Raises BnnppError, and writes nothing, if the tensors are not what the document says.
    """
    ordered = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    if faults := faults_of_tensors(document, ordered):
        raise BnnppError(f"would not be a valid packed file: {_some(faults)}", where=str(path))
    _check_names(str(path), ordered)
    entries, stored = join(ordered)
    document = document.model_copy(update={"joined": entries})
    text = as_json(document, checksum(as_json(document, NOT_YET), stored))
    with atomic(path) as file:
        file.write(save(stored, {KEY: text}))


def as_json(document: Document, sha256: str) -> str:
    """Return the document as the file holds it: without defaults, the same text for the same content."""
    tree = document.model_dump(mode="json", exclude_defaults=True) | {"sha256": sha256}
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checksum(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    """Return the sha256, in hex, of the document, with zeros for its checksum, and of all tensors.

    After the text and a line break, in the order of their names, of each tensor: a line "<name> <type>
    <sizes with commas between>", as safetensors writes the type, then its bytes, little-endian and row-major.
    """
    digest = hashlib.sha256(text.encode() + b"\n")
    for name in sorted(tensors):
        tensor = tensors[name]
        sizes = ",".join(map(str, tensor.shape))
        digest.update(f"{name} {DTYPES.get(tensor.dtype.name, '?')} {sizes}\n".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


def read(path: Path) -> PackedFile:
    """Read a packed file of any format. Raises InputError unless it is whole and means what it says.

    That is: missing, truncated, foreign, of a newer format, with a document that is not valid, with tensors
    that are not those of the document or of its checksum, or with numbers that are not finite.
    """
    where = printable(str(path))
    check_file(path, "Give a file that 'bnnpp binarize' wrote.")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tree = _tree(where, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = printable(str(error).removeprefix("Error while deserializing header: "))
        hint = "The file is truncated, or no safetensors file at all."
        raise InputError(f"cannot be read ({reason})", where=where, hint=hint) from None
    number = tree["format"]
    if number == FORMAT:
        _check_sum(where, metadata[KEY], tree, tensors)
    else:
        tree, tensors = _upgraded(where, tree, tensors)
    document = validated(tree, where)
    try:
        tensors = split(tensors, document.joined)
    except ValueError as error:
        raise InputError(f"its bnnpp document is damaged: joined: {error}", where=where) from None
    document = document.model_copy(update={"joined": []})  # which is about this file's bytes alone
    _check_names(where, tensors)
    if faults := faults_of_tensors(document, tensors):
        hint = "The file is damaged, or was not written by bnnpp."
        raise InputError(f"does not fit its own document: {_some(faults)}", where=where, hint=hint)
    return PackedFile(path, document, tensors, number)


def _tree(where: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the document as plain JSON, of a format that is known here."""
    if KEY not in metadata:
        hint = "'bnnpp binarize MODEL --weights FILE' takes float weights and makes a packed file."
        raise InputError("safetensors, but not a packed file of bnnpp", where=where, hint=hint)
    tree = parse(metadata[KEY], where)
    number = tree.get("format") if isinstance(tree, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise InputError("its bnnpp document is damaged: it names no format", where=where)
    if not 1 <= number <= FORMAT:
        update = "Update bnnpp: pip install -U bnnpp." if number > FORMAT else None
        what = f"format {printable(str(number))}; this bnnpp reads formats 1 to {FORMAT}"
        raise InputError(what, where=where, hint=update)
    return tree


def parse(text: str, where: str) -> Any:
    """Return what JSON text says. Raises InputError: no JSON, too large, too deep, NaN, repeated keys."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            raise ValueError("a key is repeated")
        return tree

    try:
        if len(text) > LARGEST_DOCUMENT or _depth(text) > DEEPEST:
            raise ValueError("larger or deeper than any document")
        return json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"its bnnpp document is damaged: {printable(str(error))}", where=where) from None


def _depth(text: str) -> int:
    """Return how deep brackets are nested in JSON text, found without parsing it."""
    depth = deepest = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text, re.DOTALL):
        sign = match[0]
        depth += (sign in "[{") - (sign in "]}")
        deepest = max(deepest, depth)
    return deepest


def _check_sum(where: str, text: str, tree: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    said = str(tree.get("sha256"))
    if len(said) != len(NOT_YET) or said != checksum(text.replace(said, NOT_YET, 1), tensors):
        hint = "The file is not as it was written: copy or download it again."
        raise InputError("checksum mismatch", where=where, hint=hint)


def _check_names(where: str, names: Iterable[str]) -> None:
    for name in names:
        if not name.isprintable() or not 0 < len(name) <= 300:
            raise InputError(f"a tensor has an impossible name: {printable(name)[:80]}", where=where)


def _upgraded(where: str, tree: dict, tensors: dict[str, np.ndarray]) -> tuple[dict, dict[str, np.ndarray]]:
    try:
        return upgrade(tree, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = printable(f"{type(error).__name__}: {error}")
        raise InputError(f"its bnnpp document is damaged: {reason}", where=where) from None


def validated(tree: Mapping[str, Any], where: str) -> Document:
    """Return the document of that content. Raises InputError with the first faults, each with its key."""
    try:
        return Document.model_validate(tree)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}".strip(": ")
            for fault in error.errors(include_input=False, include_url=False)
        ]
        raise InputError(f"its bnnpp document is damaged: {_some(faults)}", where=where) from None


def _some(faults: list[str]) -> str:
    """Return the first few faults, in one line."""
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return printable("; ".join(faults[:3]))[:1000] + more
