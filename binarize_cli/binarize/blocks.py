"""Residual blocks that binary convolutions train well in: a shortcut around each, RPReLU for ReLU.

Bi-Real Net (Liu et al. 2018) gives every binary convolution a shortcut of its own, since a sign lets little
through; ReActNet (Liu et al. 2020) shifts and slopes what a ReLU would cut off. Here both start as
nothing, gains and slopes at 0, so that the pretrained network is the same network until training moves them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm.models.resnet
import torch
import torch.nn.functional as F
import torchvision.models.resnet
from torch import Tensor, nn

from binarize_cli.binarize.attention import unfuse_attention, use_linear_projections
from binarize_cli.binarize.fused.launch import fuses
from binarize_cli.binarize.fused.rprelu import fused_rprelu
from binarize_cli.models import cifar_resnet


class RPReLU(nn.Module):
    """x - move_in where that is positive, slope (x - move_in) elsewhere, plus move_out; all by channel."""

    why = "RPReLU for ReLU (activation.blocks)"

    def __init__(self, channels: int):
        super().__init__()
        self.move_in = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.zeros(channels))
        self.move_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        return _RPReLU.apply(x, self.move_in, self.slope, self.move_out)

    def of_sum(self, x: Tensor, gain: Tensor, past: Tensor, more: Tensor | None = None) -> Tensor:
        """Return RPReLU(x + gain past + more) for gain [C] and images [N, C, H, W]."""
        if fuses(x):
            return fused_rprelu(x, gain, past, more, self.move_in, self.slope, self.move_out)
        x = x + gain.view(-1, 1, 1) * past
        return self(x if more is None else x + more)


class _RPReLU(torch.autograd.Function):
    """The operation of RPReLU. Its gradient here takes half the passes over memory that autograd's takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, move_in: Tensor, slope: Tensor, move_out: Tensor) -> Tensor:
        moved = x - move_in.view(-1, 1, 1)
        ctx.save_for_backward(moved, slope)
        with torch.autocast(x.device.type, enabled=False):  # float32: a slope is a small number
            return F.prelu(moved, slope) + move_out.view(-1, 1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        moved, slope = ctx.saved_tensors
        above = torch.ops.aten.threshold_backward(grad, moved, 0)  # grad where moved > 0
        below = grad - above
        to_x = torch.addcmul(above, below, slope.view(-1, 1, 1))
        to_slope = (below * moved).sum((0, 2, 3))
        return to_x, -to_x.sum((0, 2, 3)), to_slope, grad.sum((0, 2, 3))


class BiRealBlock(nn.Module):
    """conv, BatchNorm, RPReLU twice, with the block's shortcut and one more around each convolution."""

    why = "gains of the shortcuts around single convolutions (activation.blocks)"

    def __init__(self, block: Any, downsample: nn.Module | None):  # a basic block of any of the libraries
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.downsample = downsample
        channels = block.conv2.out_channels
        self.act1, self.act2 = RPReLU(channels), RPReLU(channels)
        self.gain1 = nn.Parameter(torch.zeros(channels))
        self.gain2 = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C', H', W']
        past = x if self.downsample is None else self.downsample(x)
        y = self.act1.of_sum(self.bn1(self.conv1(x)), self.gain1, past)
        return self.act2.of_sum(self.bn2(self.conv2(y)), self.gain2, y, past)


def _of_cifar(block: cifar_resnet.BasicBlock) -> BiRealBlock:
    return BiRealBlock(block, block.shortcut)


def _of_timm(block: timm.models.resnet.BasicBlock) -> BiRealBlock | None:
    extras = (block.drop_block, block.aa, block.se, block.drop_path)
    return None if any(_does_something(each) for each in extras) else BiRealBlock(block, block.downsample)


def _of_torchvision(block: torchvision.models.resnet.BasicBlock) -> BiRealBlock:
    return BiRealBlock(block, block.downsample)


def _does_something(module: nn.Module | None) -> bool:
    return module is not None and not isinstance(module, nn.Identity)


REWRITES: dict[type[nn.Module], Callable[[Any], BiRealBlock | None]] = {
    cifar_resnet.BasicBlock: _of_cifar,
    timm.models.resnet.BasicBlock: _of_timm,
    torchvision.models.resnet.BasicBlock: _of_torchvision,
}


def rewrite_architecture(net: nn.Module, task: str, blocks: str, attention: str) -> nn.Module:
    """Rewrite, in place, attention as linear layers and, for binary inputs, what `activation` names.

    `blocks`: residual blocks; `attention`: its products, with which InputError is raised if there are none.
    """
    net = use_linear_projections(net)
    if task == "bw":
        return net
    net = rewrite_blocks(net) if blocks == "bi-real" else net
    return unfuse_attention(net) if attention == "binary" else net


def rewrite_blocks(net: nn.Module) -> nn.Module:
    """Replace, in place, the residual blocks known here; layers keep their names, the net its function.

    Blocks with more in them (squeeze-and-excitation, say), bottlenecks and other networks stay as they are.
    """
    for name, module in list(net.named_modules()):
        rewrite = REWRITES.get(type(module))
        new = rewrite(module) if rewrite else None
        if new is not None:
            net.set_submodule(name, new.train(module.training))
    return net
