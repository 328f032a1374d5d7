"""Observe the calls of named modules during forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

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


class _Spy(nn.Module):
    """A parametrization that changes nothing and notes that the weights were read."""

    def __init__(self):
        super().__init__()
        self.read = False

    def forward(self, weight: Tensor) -> Tensor:
        self.read = True
        return weight


def read_past_the_layer(net: nn.Module, names: Sequence[str], example: Tensor) -> list[str]:
    """Return which of the named layers, that are never called, have their weights read in a forward pass.

    As nn.MultiheadAttention reads those of its `out_proj`. The network is left as it was.
    """
    spies = {}
    for name in names:
        layer, spies[name] = net.get_submodule(name), _Spy()
        parametrize.register_parametrization(layer, "weight", spies[name], unsafe=True)
        spies[name].read = False
    try:
        observe_calls(net, [], [example], lambda *_: None)
        return [name for name, spy in spies.items() if spy.read]
    finally:
        for name in spies:
            parametrize.remove_parametrizations(net.get_submodule(name), "weight", leave_parametrized=False)
