"""Observe the calls of named modules during forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

Observer = Callable[[str, tuple[Tensor, ...], Tensor], None]


@torch.no_grad()
def observe_calls(
    net: nn.Module, names: Iterable[str], batches: Iterable[Tensor], observer: Observer
) -> None:
    """Call `observer(name, inputs, output)` for each call of the named modules, over batches, in eval mode.

    The network is left as it was.
    """

    def hook(name: str) -> Callable:
        return lambda _, args, output: observer(name, args, output)

    hooks = [net.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    training = net.training
    net.eval()
    try:
        for batch in batches:
            net(batch)
    finally:
        net.train(training)
        for each in hooks:
            each.remove()
