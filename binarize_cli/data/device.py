"""A small training set kept on the device as uint8, with flip and padded crop done there.

What timm's transform does image by image on the CPU, for sets (CIFAR, digits) whose decoding would take
longer than the network. Like there, the augmentation of an image depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize_cli.data.images import ImageDataset, Split

if TYPE_CHECKING:
    from binarize_cli.models.load import Preprocessing
    from binarize_cli.recipe import Augment

SEEDS = 2**32  # an image's seed is below this


def fits_on_device(
    dataset: ImageDataset, split: Split, preprocessing: Preprocessing, augment: Augment, limit_gb: float
) -> bool:
    """Return whether flip and padded crop are all there is to do, to images of the input's size with room."""
    channels, height, width = preprocessing.input_size
    plain = augment.crop == "pad" and not (augment.color_jitter or augment.auto_augment or augment.reprob)
    room = len(split) * channels * height * width <= limit_gb * 2**30
    return plain and dataset.native_size == height == width and room


class DeviceCache:
    """The images [N, C, H, W] and targets [N] of a split on a device."""

    def __init__(self, pixels: Tensor, targets: Sequence[int], hflip: float, preprocessing: Preprocessing):
        self.pixels, self.hflip = pixels, hflip
        self.targets = torch.tensor(targets, device=pixels.device)
        self.mean, self.std = (
            torch.tensor(values, device=pixels.device).view(-1, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )

    def batches(self, plan: list[list[int]], seeds: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (float32 [B, C, H, W]) and targets (int64 [B]) for each list of indices."""
        rows, draws = (torch.tensor(each, device=self.pixels.device) for each in (plan, seeds))
        for chosen in rows:
            pixels = self.augmented(self.pixels[chosen], draws[chosen])
            yield pixels.float().div_(255).sub_(self.mean).div_(self.std), self.targets[chosen]

    def augmented(self, pixels: Tensor, seeds: Tensor) -> Tensor:
        """Return windows of uint8 [B, C, H, W], of that size, up to an eighth outside, some mirrored.

        Left, top and mirroring are three digits of the image's seed [B], which is a uniform number.
        """
        size = pixels.shape[-1]
        reach = max(1, size // 8)
        wide = 2 * reach + 1
        left, top, chance = seeds % wide, seeds // wide % wide, seeds // wide**2
        mirrored = chance < self.hflip * (SEEDS // wide**2)
        along = torch.arange(size, device=pixels.device)
        across = torch.where(mirrored[:, None], size - 1 - along, along) + left[:, None]  # [B, W]
        down = along + top[:, None]  # [B, H]
        padded = F.pad(pixels, [reach] * 4)
        each = torch.arange(len(pixels), device=pixels.device)
        windows = padded[each[:, None, None], :, down[:, :, None], across[:, None, :]]  # [B, H, W, C]
        return windows.permute(0, 3, 1, 2)
