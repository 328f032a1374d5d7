"""From an opened dataset to the batches of a run: to train on, to validate on, to judge BatchNorm on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from binarize_cli.data.decode import decode, usable_cores
from binarize_cli.data.device import fits_on_device
from binarize_cli.data.images import ImageDataset
from binarize_cli.data.loaders import Batches, ScoreBatches, cache_on_device, hold_out
from binarize_cli.data.transforms import train_transform
from binarize_cli.errors import InputError

if TYPE_CHECKING:
    from binarize_cli.models.load import Preprocessing
    from binarize_cli.recipe import Augment, Train


@dataclass(frozen=True)
class RunBatches:
    """The batches of a run."""

    train: Batches
    val: ScoreBatches
    held_out: ScoreBatches | None
    """Training images that training does not see; None if none were set aside."""


def open_batches(
    dataset: ImageDataset,
    preprocessing: Preprocessing,
    train: Train,
    augment: Augment,
    device: torch.device,
    *,
    set_aside: bool,
    workers: int | None = None,
    cache_gb: float = 4.0,
    skip_unreadable: bool = False,
) -> RunBatches:
    """Return the batches that a recipe asks for; with `set_aside`, some images are held out of training.

    Raises InputError, and UnreadableImage, which is one.
    """
    processes = choose_workers(workers, dataset, len(dataset.train))
    split = decode(dataset.train, skip_unreadable=skip_unreadable, limit_gb=cache_gb)
    val = decode(dataset.val, skip_unreadable=skip_unreadable, limit_gb=cache_gb)
    held_out = None
    if train.select == "held-out" and not train.hold_out:
        hint = "Set train.hold_out to the share of training images to set aside."
        raise InputError("held-out needs images that are held out", where="train.select", hint=hint)
    if set_aside and train.hold_out:
        split, aside = hold_out(split, train.hold_out, train.seed)
        if not len(split):
            raise InputError("leaves no image to train on", where="train.hold_out", hint="Lower it.")
        held_out = ScoreBatches(aside, preprocessing, train.batch_size, workers=processes, device=device)
    transform = train_transform(preprocessing, augment, dataset)
    on_device = device.type == "cuda" and fits_on_device(dataset, split, preprocessing, augment, cache_gb)
    hflip = dataset.hflip if augment.hflip == "auto" else augment.hflip
    batches = Batches(
        split,
        transform,
        batch_size=train.batch_size,
        seed=train.seed,
        accumulate=train.accumulate,
        workers=processes,
        device=device,
        cache=cache_on_device(split, preprocessing, hflip, device) if on_device else None,
    )
    if (train.mixup or train.cutmix) and batches.micro_batch % 2:
        what = (
            f"mixup and cutmix take images in pairs, and a batch has {batches.micro_batch}: it must be even"
        )
        raise InputError(what, where="train.mixup", hint="Choose an even --batch-size.")
    scoring = ScoreBatches(
        val, preprocessing, train.batch_size, workers=processes, device=device, keep=on_device
    )
    return RunBatches(batches, scoring, held_out)


def choose_workers(wanted: int | None, dataset: ImageDataset, images: int) -> int:
    """Return the number of loader processes: none for a few small images, else by the cores."""
    if wanted is not None:
        return wanted
    small = dataset.native_size is not None and images < 10_000
    return 0 if small else min(8, usable_cores())
