"""Batches of tensors. What they hold depends on the seed, the epoch and the image, never on the workers.

Nor does it depend on how many ranks share a batch out between them.
"""

from __future__ import annotations

import contextlib
import math
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from binarize_cli import ranks
from binarize_cli.data.device import DeviceCache
from binarize_cli.data.images import Split, UnreadableImage
from binarize_cli.data.transforms import Mode, Transform, score_transform
from binarize_cli.errors import InputError

if TYPE_CHECKING:
    from binarize_cli.models.load import Preprocessing


class Batches:
    """Training batches. The last, incomplete one is dropped; a set smaller than a batch is one batch.

    `batch_size` is that of one step of the optimizer. It is shared out evenly over the ranks, and by
    each of them over `accumulate` micro-batches, which are what comes out of `epoch`. Raises InputError where
    that leaves a remainder.
    """

    def __init__(
        self,
        split: Split,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        accumulate: int = 1,
        workers: int = 0,
        device: torch.device | None = None,
        cache: DeviceCache | None = None,
    ):
        self.cache = cache  # augments by itself, instead of `transform`
        self.split, self.transform, self.seed = split, transform, seed
        self.accumulate, self.parts = accumulate, accumulate * ranks.world()
        self.batch_size = self._shareable(batch_size)
        self.workers, self.device = workers, device

    def __len__(self) -> int:
        """Steps of an epoch."""
        return len(self.split) // self.batch_size

    @property
    def micro_batch(self) -> int:
        """Images that a rank takes through the network at once."""
        return self.batch_size // self.parts

    def _shareable(self, batch_size: int) -> int:
        over = f"{ranks.world()} ranks of {self.accumulate} micro-batches"
        if batch_size % self.parts:
            hint = f"Choose a multiple of {self.parts}."
            raise InputError(
                f"{batch_size} images cannot be shared out over {over}", where="train.batch_size", hint=hint
            )
        whole = min(batch_size, len(self.split) // self.parts * self.parts)
        if not whole and len(self.split):
            hint = "Use fewer ranks or micro-batches."
            raise InputError(
                f"{len(self.split)} images are too few for {over}", where="train.batch_size", hint=hint
            )
        return whole

    def epoch(self, epoch: int, start: int = 0, all_parts: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's images (float32 [M, C, H, W]) and targets (int64 [M]), from step `start` on.

        A step has `accumulate` such micro-batches, of M = `micro_batch` images. Those before `start` are not
        decoded; those after it have the same bits as in the whole epoch. With `all_parts` those of all ranks
        come, to every rank. Raises UnreadableImage.
        """
        # A generator takes 32 bits, so seed and epoch are mixed into that many.
        mixed = np.random.SeedSequence((self.seed % 2**32, epoch)).generate_state(1).item()
        draw = torch.Generator().manual_seed(mixed)
        order = torch.randperm(len(self.split), generator=draw)
        seeds = torch.randint(2**32, order.shape, generator=draw).tolist()  # one an image
        batches = order[: len(self) * self.batch_size].view(-1, self.batch_size)[start:].tolist()
        own = range(self.parts) if all_parts else range(ranks.rank(), self.parts, ranks.world())
        batches = [_part(batch, number, self.parts) for batch in batches for number in own]
        if self.cache:
            return self.cache.batches(batches, seeds)
        return _load(_Decoded(self.split, self.transform, seeds), batches, self.workers, self.device)


def _part(batch: list[int], number: int, parts: int) -> list[int]:
    """Return part `number` of a batch: as many from its front as from its end.

    timm's mixup mixes the first image with the last, the second with the last but one: both are in one part.
    """
    size = len(batch) // parts
    front, back = (size + 1) // 2, size // 2
    end = len(batch) - number * back
    return batch[number * front : (number + 1) * front] + batch[end - back : end]


def cache_on_device(
    split: Split, preprocessing: Preprocessing, hflip: float, device: torch.device
) -> DeviceCache:
    """Return the images of a split, which have the input's size, on a device. Raises UnreadableImage."""
    to_tensor = transforms.Compose([Mode(preprocessing), transforms.PILToTensor()])
    pixels = torch.stack([to_tensor(split.read(index)) for index in range(len(split))])
    return DeviceCache(pixels.to(device), split.targets, hflip, preprocessing)


class ScoreBatches:
    """Batches to score: every image once, in order, the last batch as small as it comes out.

    Of several ranks each has a share of the batches: the last ones may have one less, or none.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        batch_size: int,
        workers: int = 0,
        device: torch.device | None = None,
        keep: bool = False,
    ):
        self.cached: list[tuple[Tensor, Tensor]] | None = [] if keep else None  # once read, on the device
        self.images = _Decoded(split, score_transform(preprocessing))
        starts = range(0, len(split), batch_size)[ranks.rank() :: ranks.world()]
        self.batches = [list(range(len(split))[at : at + batch_size]) for at in starts]
        self.workers, self.device = workers, device

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (float32 [B, C, H, W]) and targets (int64 [B]). Raises UnreadableImage."""
        if self.cached:
            return iter(self.cached)
        loaded = _load(self.images, self.batches, self.workers, self.device)
        return loaded if self.cached is None else self._caching(loaded)

    def _caching(self, loaded: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        whole = []
        for batch in loaded:
            whole.append(batch)
            yield batch
        self.cached = whole


def shuffled(count: int, seed: int) -> list[int]:
    """Return the numbers below `count` in the order in which a run with that seed sets images aside."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def hold_out(split: Split, share: float, seed: int, cap: int = 1000) -> tuple[Split, Split]:
    """Return the images to train on, and a random `share`, `cap` at most, that training must not see."""
    count = min(cap, math.ceil(share * len(split)))
    order = shuffled(len(split), seed)
    return split.subset(sorted(order[count:])), split.subset(sorted(order[:count]))


class _Decoded(Dataset):
    """A split whose items are whole batches: indices -> (images, targets)."""

    def __init__(self, split: Split, transform: Transform, seeds: Sequence[int] | None = None):
        self.split, self.transform, self.seeds = split, transform, seeds
        self.as_bytes = False  # whether batches are uint8, and normalised by whoever gets them

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor] | UnreadableImage:
        """Return a batch, or its unreadable image: raised, that would arrive as a traceback in a string."""
        try:
            with _private_randomness():
                pixels = torch.stack([self._pixels(index) for index in indices])
                images = pixels if self.as_bytes else self.transform.batch(pixels)
                self._erase(images, indices)
        except UnreadableImage as error:
            return error
        return images, torch.tensor([self.split.targets[index] for index in indices])

    def _pixels(self, index: int) -> Tensor:
        image = self.split.read(index)
        if self.seeds is not None:
            _seed(self.seeds[index])
        return self.transform.image(image)

    def _erase(self, images: Tensor, indices: Sequence[int]) -> None:
        """Patches of the images, in place; drawn for each by itself, so that its neighbours do not matter."""
        if self.transform.erase is None or self.seeds is None:
            return
        for image, index in zip(images, indices, strict=True):
            _seed((self.seeds[index] + 1) % 2**32)  # other numbers than those the image was cropped by
            self.transform.erase(image)


def _seed(seed: int) -> None:
    """Seed all that timm and torchvision draw from; torch.manual_seed visits every accelerator: slow."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def _private_randomness() -> Iterator[None]:
    """Seeding inside leaves the generators (dropout's, say) where they were, as it does with workers."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _load(
    images: _Decoded, batches: list[list[int]], workers: int, device: torch.device | None
) -> Iterator[tuple[Tensor, Tensor]]:
    on_cuda = device is not None and device.type == "cuda"
    # A quarter of the bytes to pin and to copy, and less for the workers to do; noise is erased into floats.
    images.as_bytes = on_cuda and images.transform.erase is None
    loader = DataLoader(
        images,
        sampler=batches,
        batch_size=None,  # an item is a batch already
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_main_process,
        pin_memory=on_cuda,
        generator=torch.Generator(),  # else each epoch would draw from the global one
        # Forked workers share the decoded images; elsewhere than on Linux forking is not safe.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    readable = (_checked(batch) for batch in loader)
    if device is None or not on_cuda:
        yield from readable
        return
    for pixels, targets in _one_ahead(readable, device):
        yield images.transform.batch(pixels) if images.as_bytes else pixels, targets


def _checked(batch: object) -> tuple[Tensor, Tensor]:
    if isinstance(batch, UnreadableImage):
        raise batch
    assert isinstance(batch, list | tuple)
    images, targets = batch
    return images, targets


def _one_ahead(
    batches: Iterator[tuple[Tensor, Tensor]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches on a CUDA device: while one is used, the next is copied on a stream of its own."""
    copies, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    present = None
    for batch in batches:
        with torch.cuda.stream(copies):
            coming = batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)
        if present is not None:
            yield present
        here.wait_stream(copies)
        for tensor in coming:
            tensor.record_stream(here)  # its memory is not used again before the network is done with it
        present = coming
    if present is not None:
        yield present


GRACE = 20  # seconds that a worker goes on after SIGTERM


def _leave_signals_to_the_main_process(_: int) -> None:
    """Ignore what a terminal and SLURM send to every process; the main one needs its workers for its step."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


def _as_it_is(batch: object) -> object:
    return batch
