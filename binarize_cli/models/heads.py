"""The classifier layers of any network, and their rows: one row of weights and one bias a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn


def head_names(net: nn.Module) -> list[str]:
    """Return the module names of the classifier layers: several for distilled models, none for a backbone.

    timm says which they are; of a torchvision network it is the last linear layer or 1x1 convolution.
    """
    declared = getattr(net, "pretrained_cfg", {}).get("classifier")
    if declared:
        names = [declared] if isinstance(declared, str) else list(declared)
        # timm forgets the second head of some distilled networks (levit_384_s8).
        names += [twin for name in names if (twin := name.replace("head", "head_dist", 1)) not in names]
        modules = dict(net.named_modules())
        return [name for name in names if _has_rows(modules.get(name))]
    return [name for name, module in net.named_modules() if _has_rows(module)][-1:]


class LogitsOf(nn.Module):
    """A classifier of some of the classes of `net`: its logits [N, C] -> the columns `rows` of them."""

    def __init__(self, net: nn.Module, rows: Sequence[int]):
        super().__init__()
        self.net, self.rows = net, list(rows)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)[:, self.rows]


def keep_rows(net: nn.Module, rows: Sequence[int]) -> None:
    """Keep those rows of every classifier layer, in that order: the logits become those columns, exactly."""
    index = torch.tensor(rows)
    for layer in _heads(net):
        _set_rows(layer, layer.weight[index], None if layer.bias is None else layer.bias[index])
    _set_num_classes(net, len(rows))


def fresh_rows(net: nn.Module, num_classes: int) -> None:
    """Untrained rows for `num_classes` classes, initialised as timm's transformers initialise theirs."""
    for layer in _heads(net):
        weight = layer.weight.new_empty(num_classes, *layer.weight.shape[1:])
        nn.init.trunc_normal_(weight, std=0.02)
        _set_rows(layer, weight, None if layer.bias is None else layer.bias.new_zeros(num_classes))
    _set_num_classes(net, num_classes)


def _heads(net: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    layers = (net.get_submodule(name) for name in head_names(net))
    return [layer for layer in layers if _has_rows(layer)]


def _has_rows(module: nn.Module | None) -> TypeGuard[nn.Linear | nn.Conv2d]:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    )


def _set_rows(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight = nn.Parameter(weight.detach())
    layer.bias = None if bias is None else nn.Parameter(bias.detach())
    if isinstance(layer, nn.Linear):
        layer.out_features = len(weight)
    else:
        layer.out_channels = len(weight)


def _set_num_classes(net: nn.Module, num_classes: int) -> None:
    if hasattr(net, "num_classes"):  # timm's models say it; torchvision's do not
        setattr(net, "num_classes", num_classes)  # noqa: B010 - no attribute that nn.Module knows
