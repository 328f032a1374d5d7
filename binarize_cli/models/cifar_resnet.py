"""The ResNets of CIFAR-10: three stages of basic blocks, shortcuts without parameters.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2. The state-dict
keys are those of akamaster/pytorch_resnet_cifar10, whose weights are the usual ones to start from.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class OptionA(nn.Module):
    """The shortcut without parameters: every `stride`-th pixel, and channels of zeros on both sides."""

    def __init__(self, stride: int, new_planes: int):
        super().__init__()
        self.stride, self.new_planes = stride, new_planes

    def forward(self, x: Tensor) -> Tensor:
        if self.new_planes == 0:
            return x
        half = self.new_planes // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the option-A shortcut: every second pixel, new channels filled with zeros."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = OptionA(stride, planes - in_planes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """`6 * blocks + 2` layers, widths 16-32-64: images [N, in_chans, H, W] -> logits [N, num_classes]."""

    def __init__(self, blocks: int, num_classes: int = 10, in_chans: int = 3):
        super().__init__()
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, 64
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))  # [N, 64, H / 4, W / 4]

    def forward_head(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.linear

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.linear = nn.Linear(self.num_features, num_classes)


def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_planes, planes, stride)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))


default_cfgs = generate_default_cfgs(
    {
        f"resnet{depth}_cifar": {
            "input_size": (3, 32, 32),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "num_classes": 10,
            "label_names": CIFAR10_LABELS,
            "first_conv": "conv1",
            "classifier": "linear",
        }
        for depth in (20, 32, 44, 56)
    }
)


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    return build_model_with_cfg(CifarResNet, "resnet20_cifar", pretrained, blocks=3, **kwargs)


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    return build_model_with_cfg(CifarResNet, "resnet32_cifar", pretrained, blocks=5, **kwargs)


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    return build_model_with_cfg(CifarResNet, "resnet44_cifar", pretrained, blocks=7, **kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    return build_model_with_cfg(CifarResNet, "resnet56_cifar", pretrained, blocks=9, **kwargs)
