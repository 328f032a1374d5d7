"""Which layers become binary, and why: the table that is printed before training and kept in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from binarize_cli.binarize.layers import BINARY_LAYERS, is_candidate, kind
from binarize_cli.binarize.matmuls import is_matmul
from binarize_cli.binarize.observe import observe_calls
from binarize_cli.errors import InputError, closest
from binarize_cli.recipe import Layers

OTHER = "neither a linear nor a convolution layer"


@dataclass(frozen=True)
class Layer:
    """One row of the table of layers."""

    name: str
    kind: str
    shape: list[int]
    """Of the weights (of the largest tensor, where there are no weights; empty for a product)."""
    binary: bool
    """Whether its weights become signs; of a product of attention, whether its factors do."""
    why: str
    input: str = "float"
    """`1 bit` where the layer's inputs become signs, and whether they are one-sided."""
    accumulator: dict | None = None
    """Task bwaa: `overflow` (saturate or wrap) and `shift`, in bits."""
    macs: int = 0
    """Multiplications for one image."""

    def to_json(self) -> dict:
        return asdict(self)


def count_macs(net: nn.Module, example: torch.Tensor) -> dict[str, int]:
    """Return the multiplications for one image of each layer and product of attention in a forward pass.

    In the order of the first calls.
    """
    counts: dict[str, int] = {}

    def count(name: str, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        module = net.get_submodule(name)
        each = module.weight[0].numel() if is_candidate(module) else inputs[0].shape[-1]
        counts[name] = counts.get(name, 0) + output[0].numel() * each

    watched = [name for name, m in net.named_modules() if is_candidate(m) or is_matmul(m)]
    observe_calls(net, watched, [example], count)
    return counts


def select(
    net: nn.Module,
    rules: Layers,
    called: Sequence[str],
    heads: Sequence[str],
    read: Callable[[Sequence[str]], Sequence[str]] = lambda silent: (),
) -> list[Layer]:
    """Return every layer of a float network with the decision on it.

    `called` are the keys of `count_macs`, `heads` are the names of the classifier layers. Of layers that are
    never called, `read` says which have their weights read directly; those can be binary too. Raises
    InputError for a pattern that matches nothing, for a layer that is to be binary but that a forward pass
    never uses, for one whose operation is not known here, and when no layer is left.
    """
    candidates = {name: m for name, m in net.named_modules() if is_candidate(m)}
    groups = {"first": list(called[:1]), "head": list(heads)}
    kept = _matches("keep_float", rules.keep_float, candidates, groups)
    forced = _matches("make_binary", rules.make_binary, candidates, groups)
    everything = {name: "every layer but those kept float" for name in candidates if name not in kept}
    chosen = everything | forced
    _refuse_unknown(candidates, chosen)
    silent = [name for name in chosen if name not in called]
    used = set(read(silent)) if silent else set()
    _refuse_unused(net, [name for name in silent if name not in used])
    if not chosen:
        raise InputError("no layer is left to binarize", hint="Loosen layers.keep_float in the recipe.")
    return _table(net, chosen, kept)


def all_float(net: nn.Module) -> list[Layer]:
    """Return the table of a network that stays float."""
    candidates = [name for name, m in net.named_modules() if is_candidate(m)]
    return _table(net, {}, dict.fromkeys(candidates, "method float"))


def _table(net: nn.Module, chosen: dict[str, str], kept: dict[str, str]) -> list[Layer]:
    rows = []
    for name, module in net.named_modules():
        tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        if name in chosen:
            branch = ", here the downsample branch" if "downsample" in name.split(".") else ""
            rows.append(Layer(name, kind(module), list(module.weight.shape), True, chosen[name] + branch))
        elif is_candidate(module):
            rows.append(Layer(name, kind(module), list(module.weight.shape), False, kept[name]))
        elif is_matmul(module):
            rows.append(Layer(name, module.kind, [], True, "activation.attention: binary"))
        elif tensors and not list(module.children()):
            shape = list(max(tensors.values(), key=torch.Tensor.numel).shape)
            rows.append(Layer(name, kind(module), shape, False, getattr(module, "why", OTHER)))
        else:  # parameters that a container owns itself, such as a position embedding
            prefix = f"{name}." if name else ""
            rows += [
                Layer(prefix + own, "parameter", list(t.shape), False, getattr(module, "why", OTHER))
                for own, t in tensors.items()
            ]
    return rows


def _matches(
    key: str, patterns: Sequence[str], candidates: dict, groups: dict[str, list[str]]
) -> dict[str, str]:
    """Layer name -> the words for why it matched. Raises InputError for a pattern that matches nothing."""
    found: dict[str, str] = {}
    for pattern in patterns:
        names = groups.get(pattern) or [n for n in candidates if fnmatchcase(n, pattern)]
        if not names:
            hint = closest(pattern, candidates, f"The layers: {', '.join(list(candidates)[:6])} ...")
            raise InputError(f"the pattern '{pattern}' matches no layer", where=f"layers.{key}", hint=hint)
        words = {"first": "first layer", "head": "classifier head"}.get(pattern, f"matches '{pattern}'")
        for name in names:
            found.setdefault(name, f"{words} ({key})")
    return found


def _refuse_unknown(candidates: Mapping[str, nn.Module], chosen: dict[str, str]) -> None:
    for name in chosen:
        module = candidates[name]
        odd = type(module).__name__ if type(module) not in BINARY_LAYERS else ""
        if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
            odd = f"convolution with {module.padding_mode} padding"
        if odd:
            raise InputError(
                f"the layer is a {odd}, which cannot be binarized",
                where=name,
                hint=f"Keep such layers float (layers.keep_float: ['{name}', ...]) or choose another model.",
            )


def _refuse_unused(net: nn.Module, silent: Sequence[str]) -> None:
    if not silent:
        return
    parent = type(net.get_submodule(silent[0].rpartition(".")[0])).__name__
    raise InputError(
        f"{len(silent)} layers are never called by a forward pass ({parent} bypasses them, or they serve "
        f"training alone): {', '.join(silent[:4])}" + (" ..." if len(silent) > 4 else ""),
        hint="Keep them float (layers.keep_float). Task bw takes layers whose weights are read directly.",
    )
