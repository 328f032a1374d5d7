"""bnnpp, the library: 1-bit image classifiers by ProxConnect++ (Lu et al., NeurIPS 2023).

`__all__` is all of it. Nothing is imported before a name is used, so `import bnnpp` costs nothing.

>>> import bnnpp
>>> import numpy as np
>>> bnnpp.quantizers.sign(np.array([-0.3, 0.0, 2.0]))
array([-1.,  1.,  1.])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from binarize_cli import __version__

if TYPE_CHECKING:
    from binarize_cli.api import binarize, load, load_into, predict, save
    from binarize_cli.binarize.phase import Moment, Phase
    from binarize_cli.binarize.prepare import BinaryNetwork
    from binarize_cli.errors import BnnppError, InputError
    from binarize_cli.quantizers import functions as quantizers
    from binarize_cli.recipe import Recipe

__all__ = [
    "BinaryNetwork",
    "BnnppError",
    "InputError",
    "Moment",
    "Phase",
    "Recipe",
    "__version__",
    "binarize",
    "load",
    "load_into",
    "predict",
    "quantizers",
    "save",
]

_HOMES = {
    "BinaryNetwork": "binarize_cli.binarize.prepare",
    "BnnppError": "binarize_cli.errors",
    "InputError": "binarize_cli.errors",
    "Moment": "binarize_cli.binarize.phase",
    "Phase": "binarize_cli.binarize.phase",
    "Recipe": "binarize_cli.recipe",
    "binarize": "binarize_cli.api",
    "load": "binarize_cli.api",
    "load_into": "binarize_cli.api",
    "predict": "binarize_cli.api",
    "save": "binarize_cli.api",
}


def __getattr__(name: str) -> Any:
    if name == "quantizers":
        return import_module("binarize_cli.quantizers.functions")
    if name not in _HOMES:
        raise AttributeError(f"module 'bnnpp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
