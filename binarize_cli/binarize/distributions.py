"""What lies on either side of a sign: latent weights around 0, and inputs around their thresholds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from binarize_cli.binarize.activations import Axes, SignInput, above, channel_axes
from binarize_cli.binarize.convert import latent_weights

BINS = 41  # odd: the middle one lies around the sign's step
REACH = 4.0  # a histogram covers |x| <= REACH, x in units of a mean magnitude
NEAR = 0.1  # of the mean magnitude: where a small step changes the sign


@torch.no_grad()
def latent_distributions(net: nn.Module) -> list[dict[str, Any]]:
    """Return a row a layer of a trained network: the histogram of w* over its channel's mean |w*|.

    `near_zero` is the share with |w*| below a tenth of that mean.
    """
    rows = []
    for name, weight in latent_weights(net):
        x = weight.latent.flatten(1)  # [out, K]
        x = x / x.abs().mean(1, keepdim=True).clamp_min(1e-12)
        near = float((x.abs() < NEAR).float().mean())
        rows.append({"name": name, "weights": x.numel(), "near_zero": round(near, 5), **histogram(x)})
    return rows


@torch.no_grad()
def input_distributions(net: nn.Module, images: Tensor) -> list[dict[str, Any]]:
    """Return a row a binary input of a hard network, over a batch of images [N, C, H, W] on its device.

    The histogram is that of x - t over the mean |x - t|, with t the channel's threshold; `plus` is the share
    that becomes +1, `constant` that of the channels whose inputs all have one sign. An input of a layer has
    the layer's name, a factor of a matmul its own.
    """
    rows: dict[str, dict[str, Any]] = {}

    def hook(name: str) -> Callable[[SignInput, tuple[Tensor, ...]], None]:
        def look(module: SignInput, args: tuple[Tensor, ...]) -> None:
            off = above(args[0], module.threshold, module.axes).float()
            scaled = off / off.abs().mean().clamp_min(1e-12)
            rows[name] = {
                "name": name.removesuffix(".input"),
                "plus": round(float((off >= 0).float().mean()), 5),
                "constant": round(share_of_constant_channels(off, module.axes), 5),
                **histogram(scaled),
            }

        return look

    inputs = [(name, module) for name, module in net.named_modules() if isinstance(module, SignInput)]
    hooks = [module.register_forward_pre_hook(hook(name)) for name, module in inputs]
    training = net.training
    try:
        if hooks:
            net.eval()(images)
    finally:
        net.train(training)
        for each in hooks:
            each.remove()
    return [rows[name] for name, _ in inputs if name in rows]


def share_of_constant_channels(off: Tensor, axes: Axes) -> float:
    """Return the share of the channels, along those axes, in which x - t has the same sign everywhere."""
    channels = channel_axes(off, axes)
    plus = (off >= 0).float().mean([axis for axis in range(off.dim()) if axis not in channels])
    return float(((plus == 0) | (plus == 1)).float().mean())


def histogram(x: Tensor) -> dict[str, Any]:
    """Return the counts of x in BINS equal bins of [-REACH, REACH]; what lies beyond is in the last ones."""
    counts = torch.histc(x.float().clamp(-REACH, REACH), BINS, -REACH, REACH)
    return {"histogram": counts.long().tolist(), "reach": REACH}
