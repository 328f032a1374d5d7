"""timm's optimizer and schedule, as the recipe has them."""

from __future__ import annotations

import inspect
import math
from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from binarize_cli.binarize.convert import added_parameters
from binarize_cli.binarize.layers import is_candidate
from binarize_cli.errors import InputError, closest
from binarize_cli.recipe import Train


def check_optimizer(name: str) -> None:
    """Raise InputError if timm has no optimizer of that name."""
    known = [str(each) for each in list_optimizers()]
    if name not in known:
        hint = closest(name, known, "timm.optim.list_optimizers() lists them.")
        raise InputError(f"no optimizer is named '{name}'", where="train.opt", hint=hint)


def make_optimizer(net: nn.Module, train: Train) -> Optimizer:
    """Return the optimizer of all parameters.

    No weight decay for one-dimensional ones, nor for those that the model names in `no_weight_decay`.
    """
    never: set[str] = getattr(net, "no_weight_decay", set)()
    groups = param_groups_weight_decay(net, train.weight_decay, no_weight_decay_list=never)
    groups = _apart(groups, lr_scales(net, train))
    return create_optimizer_v2(groups, opt=train.opt, lr=train.lr, weight_decay=0.0, **_fused(net, train.opt))


def lr_scales(net: nn.Module, train: Train) -> dict[Tensor, float]:
    """Return the learning rate, in multiples of `train.lr`, of each parameter that has one of its own.

    What binarization added has `train.latent_lr`. A layer that stays float and has more than
    `train.lr_fan_in` inputs has less than 1: a step of Adam moves each weight by about the learning rate, and
    an output by that times the number of inputs (Yang et al. 2021, arXiv 2203.03466).
    """
    scales: dict[Tensor, float] = dict.fromkeys(added_parameters(net), train.latent_lr)
    if train.lr_fan_in:
        for layer in filter(is_candidate, net.modules()):
            scales[layer.weight] = min(1.0, train.lr_fan_in / math.prod(layer.weight.shape[1:]))
    return scales


def _apart(groups: list[dict[str, Any]], scales: dict[Tensor, float]) -> list[dict[str, Any]]:
    """Return the groups, each split by learning rate, the plain one first.

    timm's schedules multiply the learning rate of a group by its `lr_scale`.
    """
    apart = []
    for group in groups:
        found = {scales.get(p, 1.0) for p in group["params"]}
        for scale in sorted(found, key=lambda scale: (scale != 1, scale)):
            own = {**group, "params": [p for p in group["params"] if scales.get(p, 1.0) == scale]}
            apart.append(own if scale == 1 else {**own, "lr_scale": scale})
    return apart


def _fused(net: nn.Module, name: str) -> dict[str, Any]:
    """Return the flag for one kernel for all parameters, on CUDA, if the optimizer has it.

    Not if ranks share them: whole and cut parameters cannot be in one kernel.
    """
    on_cuda = any(p.is_cuda for p in net.parameters())
    on_cuda = on_cuda and not any(hasattr(p, "placements") for p in net.parameters())
    known = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    return {"fused": True} if on_cuda and "fused" in known else {}


def skips_by_itself(optimizer: Optimizer) -> bool:
    """Return whether the optimizer's kernels leave parameters alone where its `found_inf` is 1.

    The fused ones do, for the gradient scaler, which asks for the same attribute.
    """
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def make_scheduler(optimizer: Optimizer, train: Train, steps: int) -> Scheduler:
    """Return the learning rate as a function of the step alone, so that nothing of it needs saving."""
    warm = round(train.warmup * steps)
    steps = max(steps, 2)  # timm warns of fewer
    common: dict[str, Any] = {
        "warmup_t": warm,
        "warmup_lr_init": min(train.min_lr, train.lr),
        "t_in_epochs": False,
    }
    if train.sched == "constant":
        return StepLRScheduler(optimizer, decay_t=steps + 1, **common)
    if train.sched == "linear":
        return PolyLRScheduler(
            optimizer, t_initial=steps, power=1.0, lr_min=train.min_lr, cycle_limit=1, **common
        )
    return CosineLRScheduler(optimizer, t_initial=steps, lr_min=train.min_lr, cycle_limit=1, **common)
