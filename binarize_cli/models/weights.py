"""A file of weights -> a state dict of plain, finite tensors, or one message that says what is wrong."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from binarize_cli.console import say
from binarize_cli.errors import InputError
from binarize_cli.files import kind_of

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".tar")  # timm writes .pth.tar
EMA_WRAPPERS = ("state_dict_ema", "model_ema")  # averaged weights go first, as in timm
WRAPPERS = (*EMA_WRAPPERS, "state_dict", "model_state_dict", "model_state", "model", "net")
DEEPEST = 8  # wrappers around wrappers; a file may also contain itself


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in `path` (.safetensors, .pth, .pt, .th, .bin or .pth.tar), in its own dtypes.

    The usual wrappings (`state_dict`, `model`, ...) and prefixes (`module.`, `_orig_mod.`) come off; averaged
    weights are preferred where there are some. No code in the file is ever run. Raises InputError, naming the
    file, if it is missing, truncated, of another kind, a packed 1-bit file, holds no state dict, or holds
    tensors that are not plain numbers.
    """
    where = str(path)
    if kind_of(path) != "file":
        raise InputError("there is no such file of weights", where=where)
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        state = _unwrap(_read_torch(path), where)
    else:
        kinds = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise InputError(f"not a kind of weights file that is read here: {kinds}", where=where)
    if any(key == "joined.U8" or key.endswith(".weight_bits") for key in state):
        hint = f"Score it with: bnnpp eval {path}"
        raise InputError("a packed 1-bit file, whose float weights are gone", where=where, hint=hint)
    _check_tensors(state, where)
    return {re.sub(r"^((module|_orig_mod)\.)+", "", key): tensor for key, tensor in state.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except MemoryError:
        raise
    except Exception as error:  # foreign bytes make the library raise nearly anything
        raise InputError(f"truncated, or no safetensors file ({error})", where=str(path)) from error


def _read_torch(path: Path) -> object:
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):  # timm's flags
            warnings.simplefilter("ignore")  # of sparse and quantized tensors, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # the unpickler stumbles over foreign bytes in every way; code it refuses
        if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
            raise InputError(
                f"holds pickled Python objects ({found[1]}), and bnnpp never runs code from a file",
                where=str(path),
                hint="Where you trust it, save its tensors alone: torch.save(model.state_dict(), FILE).",
            ) from error
        raise InputError("truncated, or no file of PyTorch weights", where=str(path)) from error


def _unwrap(content: object, where: str) -> dict[str, Tensor]:
    for _ in range(DEEPEST):
        if not isinstance(content, dict):
            break
        wrappers = [key for key in WRAPPERS if isinstance(content.get(key), dict)]
        if not wrappers:
            break
        if wrappers[0] in EMA_WRAPPERS and len(wrappers) > 1:
            say(f"{where}: {wrappers[0]}, the averaged weights, is read, not {wrappers[1]}")
        content = content[wrappers[0]]
    if not isinstance(content, dict) or not content:
        raise InputError("holds no state dict", where=where)
    if unnamed := [repr(key) for key in content if not isinstance(key, str)]:
        raise InputError(f"not a state dict: keys that are no names: {listed(unnamed)}", where=where)
    if strange := [key for key, value in content.items() if not isinstance(value, Tensor)]:
        raise InputError(f"not a state dict: no tensor under {listed(strange)}", where=where)
    return content


def _check_tensors(state: dict[str, Tensor], where: str) -> None:
    """Raise InputError, naming them, for tensors that have no values, or values that are no numbers."""
    faults: dict[str, list[str]] = {}
    for key, tensor in state.items():
        if fault := _fault_of(tensor):
            faults.setdefault(fault, []).append(key)
    if faults:
        lines = [f"{fault}: {listed(keys)}" for fault, keys in faults.items()]
        raise InputError("\n  ".join(["holds tensors that cannot be used", *lines]), where=where)


def _fault_of(tensor: Tensor) -> str | None:
    if tensor.is_meta:
        return "without values, on the meta device"
    if tensor.is_quantized:
        return "quantized"
    if tensor.is_complex():
        return "complex"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "sparse or nested"
    if tensor.is_floating_point() and not tensor.float().isfinite().all():
        return "NaN or infinite in float32"
    return None


def listed(keys: list[str], limit: int = 10) -> str:
    """Return the first few keys, and how many more there are."""
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
