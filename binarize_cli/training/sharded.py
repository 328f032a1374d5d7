"""Training with parameters shared out over the ranks: everything that knows of FSDP2 (`fully_shard`).

Each rank has some output channels of every parameter, of its gradient and of its moments. The parameters of
a block, latents too, are whole while the block computes: its layers need not know, and the mean of a channel
or of a layer is what it is on one rank.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, cast

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from binarize_cli import ranks
from binarize_cli.binarize.convert import remove_banks
from binarize_cli.training.parallel import shared_out, whole
from binarize_cli.training.teacher import block_names


class Sharded:
    """A network of which every rank has a part; it has the methods of `DataParallel`.

    The network that it is made of stays as it is, on the CPU while training goes on; `whole_net` puts into
    that one what was learned.
    """

    def __init__(self, plain: nn.Module, device: torch.device):
        self.plain, self.device = plain, device
        self.mesh = init_device_mesh(device.type, (ranks.world(),))
        self.own = self.net = shard(copy.deepcopy(plain), self.mesh)

    def average(self, decay: float) -> ModelEmaV3:
        """Return the moving average of the network, shared out alike."""
        ema = ModelEmaV3(self.plain, decay=decay, foreach=False)
        ema.module = shard(ema.module, self.mesh)
        return ema

    def rest(self) -> None:
        """Let the plain network wait on the CPU."""
        self.plain.to("cpu")

    def whole_net(self, net: nn.Module) -> nn.Module:
        """Return the plain network, on the device, with the state of one that is shared out."""
        learned = net.state_dict()
        with torch.no_grad():
            for name, tensor in self.plain.to(self.device).state_dict().items():
                tensor.copy_(whole(learned[name]))
        return self.plain

    @contextmanager
    def exchange(self, now: bool) -> Iterator[None]:
        """Hand gradients of backward passes in this context to the ranks whose they are, `now` or later."""
        cast(FSDPModule, self.net).set_requires_gradient_sync(now)
        yield

    def gradient_norm(self) -> Tensor:
        """Return the norm of the whole gradient: []. Gradients that cannot be cut become means over ranks."""
        parts, numbers = self._gradients()
        if numbers:
            means = ranks.reduce_mean(torch.stack(numbers))
            torch._foreach_copy_(numbers, list(means.unbind()))
        square = ranks.reduce_sum(get_total_norm(parts).square())
        return (square + get_total_norm(numbers).square()).sqrt()

    def clip_gradient(self, largest: float, norm: Tensor) -> None:
        """Scale the gradient, whose norm is known, down to `largest`."""
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)
        for gradient in chain(*self._gradients()):
            gradient.mul_(factor)

    def _gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return this rank's parts of the gradients, and the gradients that every rank has whole."""
        found = [p.grad for p in self.own.parameters() if p.grad is not None]
        parts = [grad.to_local() for grad in found if isinstance(grad, DTensor)]
        return parts, [grad for grad in found if not isinstance(grad, DTensor)]

    def state_of(self, net: nn.Module) -> dict[str, Tensor]:
        """Return the whole state of a network or its average, on the CPU."""
        return {name: whole(tensor).cpu() for name, tensor in net.state_dict().items()}

    def load(self, net: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Let a network or its average take over the whole state."""
        with torch.no_grad():
            for name, tensor in net.state_dict().items():
                _local(tensor).copy_(_local(shared_out(state[name].to(tensor.device), tensor)))

    def state_of_optimizer(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state of the optimizer, as it is with one rank."""
        state = optimizer.state_dict()
        parts = {number: _each(facts, whole) for number, facts in state["state"].items()}
        return {**state, "state": parts}

    def load_optimizer(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Let the optimizer take over the whole state."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        parts = {}
        for number, facts in state["state"].items():
            like = parameters[number]
            parts[number] = {name: _moment(name, value, like) for name, value in facts.items()}
        optimizer.load_state_dict({**state, "state": parts})


def shard(net: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Share out, in place, the parameters of a network over the ranks; they are gathered block by block.

    No bank computes the weights of all layers together then: they are not there at the same time.
    """
    remove_banks(net)
    net.to(memory_format=torch.contiguous_format)  # others cannot be cut
    numbers = {p for p in net.parameters() if p.dim() == 0}  # nor can these: learned scales of inputs
    for name in block_names(net):
        fully_shard(net.get_submodule(name), mesh=mesh, ignored_params=numbers)
    fully_shard(net, mesh=mesh, ignored_params=numbers)
    return net


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _each(facts: Mapping[str, Any], change: Any) -> dict[str, Any]:
    return {name: change(value) if isinstance(value, Tensor) else value for name, value in facts.items()}


def _moment(name: str, value: Any, like: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    if name == "step":  # optimizers that are not fused read it on the CPU
        return value.cpu()
    value = value.to(like.device)
    return shared_out(value, like) if value.shape == like.shape else value
