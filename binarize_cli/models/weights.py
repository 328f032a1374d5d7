"""A file of weights -> a state dict that fits the network, or one message that lists every fault."""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from binarize_cli.errors import InputError
from binarize_cli.models.heads import head_names

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar")  # timm writes .pth.tar
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net")
OLD_SPELLINGS = (
    (r"\.mlp\.linear_1\.", ".mlp.0."),  # torchvision's transformers before 0.14, and their files to this day
    (r"\.mlp\.linear_2\.", ".mlp.3."),
    (r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1"),  # DenseNets of PyTorch 0.3, likewise
)
CLASSIFIER_SPELLINGS = ("fc", "head", "classifier", "linear", "last_linear", "head.fc", "heads.head")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in `path` (.safetensors, .pth, .pt, .bin or .pth.tar), on the CPU, in its own dtypes.

    The usual wrappings (`state_dict`, `model`, ...) and prefixes (`module.`, `_orig_mod.`) come off. No code
    in the file is ever run. Raises InputError, naming the file, if it is missing, truncated, of another
    kind, a packed 1-bit file, or holds no state dict.
    """
    where = str(path)
    if not path.is_file():
        raise InputError("there is no such file of weights", where=where)
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        state = _unwrap(_read_torch(path), where)
    else:
        kinds = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise InputError(f"not a kind of weights file that is read here: {kinds}", where=where)
    if any(key.endswith(".weight_bits") for key in state):
        hint = f"Score it with: bnnpp eval {path}"
        raise InputError("a packed 1-bit file, whose float weights are gone", where=where, hint=hint)
    return {re.sub(r"^((module|_orig_mod)\.)+", "", key): tensor for key, tensor in state.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"truncated, or no safetensors file ({error})", where=str(path)) from error


def _read_torch(path: Path) -> object:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the flags in timm's checkpoints
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError) as error:
        # The unpickler stumbles over foreign bytes in all these ways; code it refuses, by name.
        if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
            raise InputError(
                f"holds pickled Python objects ({found[1]}), and bnnpp never runs code from a file",
                where=str(path),
                hint="Where you trust it, save its tensors alone: torch.save(model.state_dict(), FILE).",
            ) from error
        raise InputError("truncated, or no file of PyTorch weights", where=str(path)) from error


def _unwrap(content: object, where: str) -> dict[str, Tensor]:
    while isinstance(content, dict) and (wrapper := next((key for key in WRAPPERS if key in content), None)):
        content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise InputError("holds no state dict", where=where)
    if strange := [str(key) for key, value in content.items() if not isinstance(value, Tensor)]:
        raise InputError(f"not a state dict: no tensor under {_listed(strange)}", where=where)
    return content


def adapt_keys(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """`state` under the names of `net`, where the file has old ones or calls the classifier otherwise.

    Tensors are never reshaped or resized here.
    """
    known, heads = net.state_dict(), head_names(net)
    for old, new in OLD_SPELLINGS:
        state = {key if key in known else re.sub(old, new, key): tensor for key, tensor in state.items()}
    if len(heads) != 1 or f"{heads[0]}.weight" in state:
        return state
    spelt = [name for name in CLASSIFIER_SPELLINGS if f"{name}.weight" in state.keys() - known.keys()]
    if len(spelt) != 1:
        return state
    theirs = re.compile(rf"^{re.escape(spelt[0])}\.(?=weight$|bias$)")
    return {theirs.sub(f"{heads[0]}.", key): tensor for key, tensor in state.items()}


def fit_weights(net: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load `state` into `net` as float32: all of it, or nothing and one InputError with every misfit key.

    BatchNorm's `num_batches_tracked` may be absent: only training without a momentum reads it.
    """
    wanted = net.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    misshapen = [
        f"{key} {list(state[key].shape)} instead of {list(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of the wrong shape": misshapen}
    if any(faults.values()):
        lines = [f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in faults.items() if keys]
        raise InputError("\n  ".join(["these weights do not fit the model", *lines]), where=where)
    with torch.no_grad():
        for key, tensor in state.items():
            wanted[key].copy_(tensor)  # the state dict shares the network's memory


def _listed(keys: list[str], limit: int = 10) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
