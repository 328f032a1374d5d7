"""Decoding a split once, into memory, where it fits; every unreadable image is found on the way."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from binarize_cli.console import warn
from binarize_cli.data.images import SKIP_HINT, Split, UnreadableImage

GB = 10**9
CHUNK = 64  # images a task: small images decode faster than a thread pool hands out work
SAMPLE = 16  # images


def decode(split: Split, *, skip_unreadable: bool, limit_gb: float) -> Split:
    """Return the split, its pixels in memory (uint8, shared with forked workers) if `limit_gb` is enough.

    A larger split is returned as it is, and an unreadable image raises when it is met; with `skip_unreadable`
    all of it is read through once first. Raises UnreadableImage, which counts and names the images; with
    `skip_unreadable` they are left out with a warning instead, unless a whole class would be lost.
    """
    fits = _estimate(split) <= limit_gb * GB
    if not (fits or skip_unreadable):
        return split
    outcomes = _read_all(split, keep=fits)
    broken = [outcome for outcome in outcomes if isinstance(outcome, UnreadableImage)]
    sound = [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, UnreadableImage)]
    if broken:
        found = f"{len(broken)} of {len(split)} images cannot be decoded: {_names(broken)}"
        if not skip_unreadable:
            raise UnreadableImage(found, hint=SKIP_HINT)
        lost = set(split.targets) - {split.targets[i] for i in sound}
        if lost:
            raise UnreadableImage(f"{found}; no image is left of {len(lost)} of the classes")
        warn(f"left out: {found}")
    if not fits:
        return split.subset(sound)
    return Split([outcomes[i] for i in sound], [split.targets[i] for i in sound], Image.fromarray)


def _read_all(split: Split, keep: bool) -> list[np.ndarray | UnreadableImage | None]:
    """Return each image's pixels ([H, W] or [H, W, 3]; None unless `keep`), or what is wrong with it."""

    def attempt(index: int) -> np.ndarray | UnreadableImage | None:
        try:
            image = split.read(index)
        except UnreadableImage as error:
            return error
        return np.asarray(image) if keep else None

    def chunk(start: int) -> list:
        return [attempt(i) for i in range(start, min(start + CHUNK, len(split)))]

    with ThreadPoolExecutor(usable_cores()) as pool:
        return [outcome for part in pool.map(chunk, range(0, len(split), CHUNK)) for outcome in part]


def _estimate(split: Split) -> float:
    """Bytes of the decoded split in RGB, from a sample of its images."""
    sizes = []
    for index in range(0, len(split), max(1, len(split) // SAMPLE)):
        try:
            width, height = split.read(index).size
        except UnreadableImage:
            continue
        sizes.append(3 * width * height)
    return len(split) * sum(sizes) / max(1, len(sizes))


def _names(broken: list[UnreadableImage]) -> str:
    more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
    return ", ".join(str(error.where) for error in broken[:4]) + more


def usable_cores() -> int:
    """Return how many cores this process may use, which a cluster may have made fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
