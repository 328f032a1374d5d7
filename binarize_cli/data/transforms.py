"""From images to a network's input: timm's transforms, of training and of scoring, in two steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision import transforms

from binarize_cli.data.compat import allow_posterize_to_no_bits
from binarize_cli.data.images import ImageDataset
from binarize_cli.errors import InputError

if TYPE_CHECKING:
    from binarize_cli.models.load import Preprocessing
    from binarize_cli.recipe import Augment


allow_posterize_to_no_bits()


@dataclass(frozen=True)
class Transform:
    """From images to a batch, in timm's two steps: normalising a whole batch costs far less."""

    image: Callable[[Image.Image], Tensor]  # -> uint8 [C, H, W]
    batch: Callable[[Tensor], Tensor]  # uint8 [B, C, H, W] -> float32 [B, C, H, W]
    erase: Callable[[Tensor], Tensor] | None = None  # patches of a normalised image [C, H, W], in place


def resolve_augment(augment: Augment, preprocessing: Preprocessing, dataset: ImageDataset) -> Augment:
    """Return the augmentation with every `auto` settled for this model and dataset."""
    crop, hflip = augment.crop, augment.hflip
    if crop == "auto":
        crop = "pad" if dataset.native_size == preprocessing.input_size[1] else "rrc"
    if hflip == "auto":
        hflip = dataset.hflip
    return augment.model_copy(update={"crop": crop, "hflip": hflip})


def train_transform(preprocessing: Preprocessing, augment: Augment, dataset: ImageDataset) -> Transform:
    """Return the random transform of training images.

    Raises InputError for an `auto_augment` that timm does not know.
    """
    augment = resolve_augment(augment, preprocessing, dataset)
    try:
        crop_and_flip, colour, to_tensor = create_transform(
            preprocessing.input_size,
            is_training=True,
            scale=(augment.scale[0], augment.scale[1]),
            hflip=augment.hflip if augment.hflip != "auto" else 0.0,
            color_jitter=augment.color_jitter or None,  # type: ignore[arg-type]  # None is what timm tests for
            auto_augment=augment.auto_augment,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            use_prefetcher=True,
            separate=True,
        )
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        hint = "timm's spelling is, for instance, rand-m9-mstd0.5-inc1, original or augmix-m5-w4-d2."
        what = f"augment.auto_augment: timm cannot read '{augment.auto_augment}'"
        raise InputError(what, where="recipe", hint=hint) from error
    geometry = crop_and_flip.transforms
    if augment.crop == "pad":
        geometry[:1] = _pad_crop(preprocessing)
    elif augment.crop == "none":
        geometry[:1] = _test_crop(preprocessing)
    steps = [Mode(preprocessing), *geometry, *colour.transforms, *to_tensor.transforms]
    erase = RandomErasing(augment.reprob, mode="pixel", device="cpu") if augment.reprob else None
    return Transform(transforms.Compose(steps), _Normalize(preprocessing), erase)


def score_transform(preprocessing: Preprocessing) -> Transform:
    """Return the fixed transform of an image to be scored: the model's own."""
    steps = [Mode(preprocessing), *_test_crop(preprocessing), transforms.PILToTensor()]
    return Transform(transforms.Compose(steps), _Normalize(preprocessing))


class ImageTransform:
    """From images of PIL to a network's input, as the network is scored: [N, C, H, W], float32."""

    def __init__(self, preprocessing: Preprocessing):
        self.preprocessing, self._steps = preprocessing, score_transform(preprocessing)

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> Tensor:
        """Return the input for one image (N is 1) or several."""
        several = [images] if isinstance(images, Image.Image) else images
        return self._steps.batch(torch.stack([self._steps.image(image) for image in several]))


def _pad_crop(preprocessing: Preprocessing) -> list:
    """Return CIFAR's crop, for images of the input's size (others are resized to it)."""
    size = preprocessing.input_size[-2:]
    return [transforms.Resize(size, str_to_interp_mode(preprocessing.interpolation)), _shifted]


def _test_crop(preprocessing: Preprocessing) -> list:
    """Resize and crop as the model's data config says, all of timm's scoring transform but its last step."""
    whole = create_transform(
        preprocessing.input_size,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        use_prefetcher=True,
    )
    return whole.transforms[:-1]


def _shifted(image: Image.Image) -> Image.Image:
    """Return a random window of the image's own size, up to an eighth outside, where it is zero."""
    width, height = image.size
    reach = max(1, height // 8)
    left, top = random.randint(-reach, reach), random.randint(-reach, reach)
    return image.crop((left, top, left + width, top + height))  # ten times as fast as padding first


class Mode:
    """Gives an image one channel for a model of one channel, else three."""

    def __init__(self, preprocessing: Preprocessing):
        self.mode = "L" if preprocessing.input_size[0] == 1 else "RGB"

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if image.mode == self.mode else image.convert(self.mode)


class _Normalize:
    """Normalises a batch, to the same bits as timm does image by image."""

    def __init__(self, preprocessing: Preprocessing):
        self.mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
        self.std = torch.tensor(preprocessing.std).view(-1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        if self.mean.device != pixels.device:
            self.mean, self.std = self.mean.to(pixels.device), self.std.to(pixels.device)
        return pixels.float().div_(255).sub_(self.mean).div_(self.std)
