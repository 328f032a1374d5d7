"""A state dict -> the network: old spellings, positions of another image size, every misfit told."""

from __future__ import annotations

import re
import sys
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models import vision_transformer

from binarize_cli.console import say
from binarize_cli.errors import InputError
from binarize_cli.models.heads import head_names
from binarize_cli.models.weights import listed

OLD_SPELLINGS = (
    (r"\.mlp\.linear_1\.", ".mlp.0."),  # torchvision's transformers before 0.14, and their files to this day
    (r"\.mlp\.linear_2\.", ".mlp.3."),
    (r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1"),  # DenseNets of PyTorch 0.3, likewise
)
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # classifiers of torchvision's that only training calls
CLASSIFIER_SPELLINGS = ("fc", "head", "classifier", "linear", "last_linear", "head.fc", "heads.head")


def adapt_keys(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Put `state` under the names of `net`, where the file has old ones or calls the classifier otherwise.

    Auxiliary classifiers that `net` is built without are left out.

    Tensors are never reshaped or resized here.
    """
    known, heads = net.state_dict(), head_names(net)
    state = {key: tensor for key, tensor in state.items() if key in known or not key.startswith(AUXILIARY)}
    for old, new in OLD_SPELLINGS:
        state = {key if key in known else re.sub(old, new, key): tensor for key, tensor in state.items()}
    if len(heads) != 1 or f"{heads[0]}.weight" in state:
        return state
    spelt = [name for name in CLASSIFIER_SPELLINGS if f"{name}.weight" in state.keys() - known.keys()]
    if len(spelt) != 1:
        return state
    theirs = re.compile(rf"^{re.escape(spelt[0])}\.(?=weight$|bias$)")
    return {theirs.sub(f"{heads[0]}.", key): tensor for key, tensor in state.items()}


def resample_positions(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Return `state` with position embeddings of the network's image size, where the file has another's.

    timm does it by the architecture's own `checkpoint_filter_fn`, torchvision by `interpolate_embeddings`. If
    there is none, or anything else than positions misfits afterwards, `state` is returned as it is.
    """
    module = sys.modules[type(net).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None) or (
        _resample_torchvision if hasattr(module, "interpolate_embeddings") else None
    )
    if convert is None or not _misshapen(state, net):
        return state
    try:
        resampled = convert(dict(state), net)
    except Exception:  # made for the files of one architecture; `fit_weights` will say what is wrong
        return state
    if not isinstance(resampled, dict) or resampled.keys() != state.keys() or _misshapen(resampled, net):
        return state
    changed = [key for key in state if resampled[key].shape != state[key].shape]
    say(f"resampled to the input size: {listed(changed, 3)}")
    return resampled


def _resample_torchvision(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    return dict(vision_transformer.interpolate_embeddings(net.image_size, net.patch_size, OrderedDict(state)))


def fit_weights(net: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load `state` into `net` as float32: all of it, or nothing and one InputError with every misfit key.

    BatchNorm's `num_batches_tracked` may be absent: only training without a momentum reads it.
    """
    wanted = net.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    misshapen = [
        f"{key} {list(state[key].shape)} instead of {list(wanted[key].shape)}"
        for key in _misshapen(state, net)
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of the wrong shape": misshapen}
    if any(faults.values()):
        lines = [f"{len(keys)} {kind}: {listed(keys)}" for kind, keys in faults.items() if keys]
        raise InputError("\n  ".join(["these weights do not fit the model", *lines]), where=where)
    with torch.no_grad():
        for key, tensor in state.items():
            wanted[key].copy_(tensor)  # the state dict shares the network's memory


def _misshapen(state: dict[str, Tensor], net: nn.Module) -> list[str]:
    wanted = net.state_dict()
    return [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
