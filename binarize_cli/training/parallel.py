"""Training on several ranks: everything that knows of DistributedDataParallel. One rank trains as it is.

Another way to spread a network over ranks is another class with these methods: `sharded` has one.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from binarize_cli import ranks
from binarize_cli.errors import InputError


def distributed(net: nn.Module) -> DistributedDataParallel:
    """Return the network, exchanging gradients alone.

    Buffers (BatchNorm's statistics) are taken from the first rank before they are used: in scoring.
    """
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(net, gradient_as_bucket_view=True, **options)


class Parallel(Protocol):
    """A network in training on several ranks: what `DataParallel` says of its methods."""

    own: nn.Module
    net: nn.Module

    def average(self, decay: float) -> ModelEmaV3: ...
    def rest(self) -> None: ...
    def whole_net(self, net: nn.Module) -> nn.Module: ...
    def exchange(self, now: bool) -> AbstractContextManager: ...
    def gradient_norm(self) -> Tensor: ...
    def clip_gradient(self, largest: float, norm: Tensor) -> None: ...
    def state_of(self, net: nn.Module) -> dict[str, Tensor]: ...
    def load(self, net: nn.Module, state: dict[str, Tensor]) -> None: ...
    def state_of_optimizer(self, optimizer: Optimizer) -> dict[str, Any]: ...
    def load_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> None: ...


def check_parallel(kind: str, compile: str | None, amp: torch.dtype | None) -> None:
    """Raise InputError if training in parts would not go with how it is to compute."""
    if kind != "fsdp" or ranks.world() == 1:
        return
    if compile:
        what, hint = "a model that ranks share is not compiled", "Leave out --compile, or use --parallel ddp."
        raise InputError(what, where="--parallel", hint=hint)
    if amp is torch.float16:
        what, hint = "a model that ranks share is not trained in float16", "Use --amp bf16 or --parallel ddp."
        raise InputError(what, where="--parallel", hint=hint)


def spread(net: nn.Module, kind: str, device: torch.device) -> Parallel:
    """Return a network for training on all ranks: by `ddp`, or by `fsdp`; one rank has no need of either."""
    if kind == "ddp" or ranks.world() == 1:
        return DataParallel(net)
    from binarize_cli.training.sharded import Sharded

    return Sharded(net, device)


class DataParallel:
    """A network of which every rank has a copy; gradients are the means over all ranks.

    `own` has the parameters that the optimizer moves, `net` is what training calls.
    """

    def __init__(self, own: nn.Module):
        self.own = own
        self.ddp = None if ranks.world() == 1 else distributed(own)
        self.net: nn.Module = own if self.ddp is None else self.ddp

    def average(self, decay: float) -> ModelEmaV3:
        """Return the moving average of the network."""
        return ModelEmaV3(self.own, decay=decay)

    def whole_net(self, net: nn.Module) -> nn.Module:
        """Return the network, or its average, as one that a rank can call by itself, to score it say."""
        return net

    def rest(self) -> None:
        """Have no use for that one until it is asked for again."""

    def exchange(self, now: bool) -> AbstractContextManager:
        """Return a context for a backward pass, in which ranks exchange their gradients `now` or later."""
        return nullcontext() if now or self.ddp is None else self.ddp.no_sync()

    def gradient_norm(self) -> Tensor:
        """Return the norm of the whole gradient: []."""
        return get_total_norm([p.grad for p in self.own.parameters() if p.grad is not None])

    def clip_gradient(self, largest: float, norm: Tensor) -> None:
        """Scale the gradient, whose norm is known, down to `largest`."""
        clip_grads_with_norm_(self.own.parameters(), largest, norm)

    def state_of(self, net: nn.Module) -> dict[str, Tensor]:
        """Return the whole state of the network or its average, whatever part of it this rank has."""
        return net.state_dict()

    def load(self, net: nn.Module, state: dict[str, Tensor]) -> None:
        """Let the network or its average take over the whole state."""
        net.load_state_dict(state)

    def state_of_optimizer(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state of the optimizer."""
        return optimizer.state_dict()

    def load_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Let the optimizer take over the whole state."""
        optimizer.load_state_dict(state)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor of which every rank has a part, as all ranks have it then; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shared_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor, cut as `like` is; all of it if that is not cut."""
    if not hasattr(like, "placements"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def mean_over_ranks(numbers: Sequence[Tensor]) -> Tensor:
    """Return the means over all ranks of numbers [] of this one, in one exchange: [len(numbers)]."""
    return ranks.reduce_mean(torch.stack(list(numbers)))


def synchronise(net: nn.Module, device: torch.device) -> nn.Module:
    """Make BatchNorm normalise by the batch of all ranks in training; leave the network of one rank alone."""
    if ranks.world() == 1:
        return net
    if device.type == "cuda":
        return convert_sync_batchnorm(net)
    norms = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for name, norm in norms:
        net.set_submodule(name, SyncBatchNorm(norm))
    return net


class SyncBatchNorm(_BatchNorm):
    """nn.SyncBatchNorm on a CPU: torch's own takes accelerators only. Every rank has as many images.

    Like torch's, it computes in float32 whatever the inputs' type, which the output has too.
    """

    def __init__(self, norm: _BatchNorm):
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.load_state_dict(norm.state_dict(), strict=False)  # timm's has the activation's in it
        self.train(norm.training)
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()
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
        self._track(mean.detach(), var.detach(), world * x.numel() // len(mean))
        out = (x - mean.view(shape)) * (var.view(shape) + self.eps).rsqrt()
        return out * self.weight.view(shape) + self.bias.view(shape) if self.affine else out

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics, if there are any; `count` numbers a channel went into the new ones."""
        if self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked += 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var * (count / (count - 1)), share)


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks; each rank's gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return ranks.reduce_sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return ranks.reduce_sum(grad.clone())
