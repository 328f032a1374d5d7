"""BatchNorm over ranks, and after hardening: its statistics were those of the soft network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from binarize_cli import ranks
from binarize_cli.training.score import Score

ENOUGH_IMAGES = 10_000  # of which the statistics have long settled


def has_batchnorm(net: nn.Module) -> bool:
    """Whether the network has running statistics to re-estimate."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in net.modules())


def synchronise(net: nn.Module, device: torch.device) -> nn.Module:
    """In training BatchNorm normalises by the batch of all ranks. One rank: the network as it is."""
    if ranks.world() == 1:
        return net
    if device.type == "cuda":
        return convert_sync_batchnorm(net)
    norms = [name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for name in norms:
        net.set_submodule(name, SyncBatchNorm(net.get_submodule(name)))
    return net


class SyncBatchNorm(_BatchNorm):
    """nn.SyncBatchNorm on a CPU: torch's own takes accelerators only. Every rank has as many images.

    Like torch's, it computes in float32 whatever the inputs' type, which the output has too.
    """

    def __init__(self, norm: _BatchNorm):
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.load_state_dict(norm.state_dict(), strict=False)  # timm's has the activation's in it
        self.train(norm.training)
        self.drop, self.act = nn.Identity(), nn.Identity()
        if isinstance(norm, BatchNormAct2d):
            self.drop, self.act = norm.drop, norm.act

    def forward(self, x: Tensor) -> Tensor:  # [N, C, ...] -> [N, C, ...]
        out = self._over_ranks(x.float()).to(x.dtype) if self.training else super().forward(x)
        return self.act(self.drop(out))

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def _over_ranks(self, x: Tensor) -> Tensor:
        over, shape = [i for i in range(x.dim()) if i != 1], [1, -1] + [1] * (x.dim() - 2)
        world = ranks.world()
        mean = _SumOverRanks.apply(x.mean(over)) / world  # [C], as var
        var = _SumOverRanks.apply((x - mean.view(shape)).square().mean(over)) / world
        if self.track_running_stats:
            self._track(mean.detach(), var.detach(), world * x.numel() // len(mean))
        out = (x - mean.view(shape)) * (var.view(shape) + self.eps).rsqrt()
        return out * self.weight.view(shape) + self.bias.view(shape) if self.affine else out

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """The running statistics; `count` numbers a channel went into these."""
        self.num_batches_tracked += 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var * (count / (count - 1)), share)


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks; each rank's gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        return ranks.reduce_sum(tensor.clone())

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return ranks.reduce_sum(grad.clone())


@torch.no_grad()
def reestimate(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> nn.Module:
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
        norm.momentum = None  # a plain average over the batches
        norm.train()
    seen = 0
    for inputs, _ in batches:
        net(inputs.to(device))
        seen += len(inputs) * ranks.world()
        if seen >= ENOUGH_IMAGES:
            break
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        ranks.reduce_mean(norm.running_mean)
        ranks.reduce_mean(norm.running_var)
    return net.eval()


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
    batches: Iterable[tuple[Tensor, Tensor]],
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
