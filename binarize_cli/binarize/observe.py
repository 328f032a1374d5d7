"""A forward pass that is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

Look = Callable[[str, tuple[Tensor, ...], Tensor], None]


@torch.no_grad()
def watch(net: nn.Module, names: Iterable[str], batches: Iterable[Tensor], look: Look) -> None:
    """Call `look(name, inputs, output)` for each call of the named modules, over batches, in eval mode.

    The network is left as it was.
    """

    def hook(name: str) -> Callable:
        return lambda _, args, output: look(name, args, output)

    hooks = [net.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    training = net.training
    net.eval()
    for batch in batches:
        net(batch)
    net.train(training)
    for each in hooks:
        each.remove()
