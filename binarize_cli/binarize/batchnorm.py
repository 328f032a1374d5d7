"""BatchNorm's statistics, estimated anew where the network has changed under them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from binarize_cli import ranks

ENOUGH_IMAGES = 10_000  # of which the statistics have long settled


def has_batchnorm(net: nn.Module) -> bool:
    """Return whether the network has running statistics to re-estimate."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in net.modules())


@torch.no_grad()
def reestimate(net: nn.Module, batches: Iterable[tuple[Tensor, Any]], device: torch.device) -> nn.Module:
    """Replace, in place, every running statistic by its plain average over (at most 10,000) training images.

    The images come with the training augmentation: on clean images even a float network lost two
    points when measured. Only BatchNorm is in training mode meanwhile, so dropout stays off.
    Every rank has its own images, and all of them the mean of what each found.
    """
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    seen = 0
    for number, (inputs, _) in enumerate(batches, start=1):
        for norm in norms:
            norm.momentum = 1 / number  # a plain average; for None each would ask the device for the number
        net(inputs.to(device, non_blocking=True))
        seen += len(inputs) * ranks.world()
        if seen >= ENOUGH_IMAGES:
            break
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None:
                ranks.reduce_mean(statistic)
    return net.eval()


class Score(Protocol):
    """A network's accuracy on some images: top-1 in per cent."""

    @property
    def top1(self) -> float: ...
    @property
    def images(self) -> int: ...


@dataclass(frozen=True)
class Reestimation:
    """Hard top-1, in per cent, on the training images held out for this."""

    held_out_images: int
    held_out_top1_before: float
    held_out_top1_after: float

    @property
    def kept(self) -> bool:
        return self.held_out_top1_after > self.held_out_top1_before

    def __str__(self) -> str:
        outcome = "kept" if self.kept else "not kept"
        return (
            f"BatchNorm re-estimated on training images: {self.held_out_top1_before:.2f} -> "
            f"{self.held_out_top1_after:.2f} on {self.held_out_images} held-out ones, {outcome}"
        )

    def to_json(self) -> dict:
        return {"reestimated": self.kept, **asdict(self)}


def reestimate_if_better(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Any]],
    device: torch.device,
    score: Callable[[nn.Module], Score],
) -> Reestimation:
    """Re-estimate in place, and undo it unless `score` (on held-out training images) has risen."""
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    old = score(net)
    new = score(reestimate(net, batches, device))
    outcome = Reestimation(new.images, old.top1, new.top1)
    if not outcome.kept:
        with torch.no_grad():
            for name, tensor in net.named_buffers():
                tensor.copy_(before[name])
    return outcome
