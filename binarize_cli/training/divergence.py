"""Name the layer in which the loss or gradient became NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from binarize_cli.errors import Diverged
from binarize_cli.training.parallel import whole


def _finite(value: object) -> bool:
    return not isinstance(value, Tensor) or bool(torch.isfinite(whole(value)).all())


@torch.no_grad()
def first_nonfinite_layer(net: nn.Module, inputs: Tensor) -> str | None:
    """Return the first module of a forward pass whose output is not finite, or None."""
    bad: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, out: object) -> None:
            if not bad and not _finite(out):
                bad.append(name)

        return hook

    hooks = [m.register_forward_hook(watch(n)) for n, m in net.named_modules()]  # the innermost ends first
    net(inputs)
    for hook in hooks:
        hook.remove()
    return bad[0].removesuffix(".source") if bad else None


def diverged(net: nn.Module, inputs: Tensor, step: int, kept: str) -> Diverged:
    """Return the error for a loss or gradient that is not finite at a step (counted from 1)."""
    name = next((n for n, p in net.named_parameters() if not _finite(p)), None)
    # Backwards through the network: the last layer with such a gradient passed it on to all before it.
    bad = [n for n, p in net.named_parameters() if p.grad is not None and not _finite(whole(p.grad).norm())]
    name = name or (bad[-1] if bad else None)
    layer = first_nonfinite_layer(net, inputs) or name or "the loss itself"
    hint = f"Lower --lr, or set train.clip_grad. {kept}"
    return Diverged(f"training diverged at step {step}, in {layer}", hint=hint)
