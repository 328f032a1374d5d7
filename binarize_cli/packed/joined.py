"""Small tensors of a packed file: those of one type lie one after another in one tensor of safetensors.

A network has hundreds of vectors (norms, biases, scales). safetensors writes some 90 bytes of name and place
for each, which was a fifth of the file of a ResNet-20. The document says the same in fewer words, since the
modules that hold tensors of the same names, types and shapes share an entry.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from binarize_cli.packed.schema import Joined

SMALL = 2**16  # bytes; of a larger tensor the name and place are less than two thousandths
PREFIX = "joined."
"""Before the type of what lies together: joined.F16, joined.U8 ..."""
DTYPES = {"uint8": "U8", "int8": "I8", "int32": "I32", "int64": "I64", "bool": "BOOL"} | {
    "float16": "F16",
    "float32": "F32",
}
"""NumPy's names of the types that a packed file may hold, and safetensors'."""


def join(tensors: Mapping[str, np.ndarray]) -> tuple[list[Joined], dict[str, np.ndarray]]:
    """Return the entries of the document, and the tensors that the file holds."""
    modules: dict[str, dict[str, dict[str, list[int]]]] = defaultdict(lambda: defaultdict(dict))
    for name in sorted(tensors):
        tensor = tensors[name]
        if 0 < tensor.nbytes < SMALL and tensor.dtype.name in DTYPES:
            module, _, leaf = name.rpartition(".")
            modules[module][DTYPES[tensor.dtype.name]][leaf] = list(tensor.shape)
    groups: dict[str, list[str]] = defaultdict(list)
    for module, shapes in modules.items():
        groups[json.dumps(shapes, sort_keys=True)].append(module)
    entries = [Joined(modules=names, tensors=json.loads(shapes)) for shapes, names in groups.items()]
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for name, kind, _ in _places(entries):
        parts[PREFIX + kind].append(tensors[name].reshape(-1))
    together = {name: np.concatenate(each) for name, each in parts.items()}
    small = {name for name, _, _ in _places(entries)}
    return entries, together | {name: tensors[name] for name in tensors if name not in small}


def split(stored: Mapping[str, np.ndarray], entries: Sequence[Joined]) -> dict[str, np.ndarray]:
    """Return all tensors of a file by their own names. Raises ValueError if the entries do not fit them."""
    sizes: Counter[str] = Counter()
    for entry in entries:  # before any name is made, since a file of few bytes can speak of many
        for kind, shapes in entry.tensors.items():
            sizes[kind] += len(entry.modules) * sum(map(math.prod, shapes.values()))
    tensors, flat = dict(stored), {}
    for each, size in sizes.items():
        found = tensors.pop(PREFIX + each, np.empty(0))
        if found.shape != (size,) or DTYPES.get(found.dtype.name) != each:
            raise ValueError(f"{PREFIX}{each} is not the {size} numbers that the entries speak of")
        flat[each] = found
    at: Counter[str] = Counter()
    for name, each, shape in _places(entries):
        if name in tensors:
            raise ValueError(f"{name} is there twice")
        end = at[each] + math.prod(shape)
        tensors[name] = flat[each][at[each] : end].reshape(shape).copy()  # aligned, like one of its own
        at[each] = end
    return tensors


def _places(entries: Sequence[Joined]) -> Iterator[tuple[str, str, list[int]]]:
    """Yield (name, type, shape) of every tensor; those of one type in the order in which they lie."""
    for entry in entries:
        for module in entry.modules:
            for kind, shapes in entry.tensors.items():
                for leaf in sorted(shapes):
                    yield (f"{module}.{leaf}" if module else leaf), kind, shapes[leaf]
