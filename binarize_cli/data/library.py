"""Datasets that timm opens by name: torch/..., hfds/..., hfids/..., tfds/..."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize_cli.data.images import ImageDataset, Split, decode_image
from binarize_cli.errors import InputError
from binarize_cli.files import absolute

if TYPE_CHECKING:
    from PIL.Image import Image

PREFIXES = ("torch/", "hfds/", "hfids/", "tfds/")
CACHE = Path("~/.cache/bnnpp")
PATIENCE = 5  # seconds without an answer from a server


def open_library(
    timm_name: str,
    data_dir: Path | None,
    need_train: bool,
    download: bool = True,
    *,
    name: str | None = None,
    native_size: int | None = None,
) -> ImageDataset:
    """Return the splits `train` and `validation` of a dataset of timm's; `name` is ours, if not timm's.

    A set that can only be streamed (hfids, tfds) is held in memory. The fingerprint is over the name and
    the validation targets. Raises InputError where it cannot be opened or downloaded.
    """
    name = name or timm_name
    if data_dir is None and timm_name.startswith("torch/"):
        root: Path | None = CACHE.expanduser()
    else:  # None: the other libraries have caches of their own
        root = data_dir and absolute(data_dir)
    with _opening(name, root):
        val, names = _split(_create(timm_name, root, "validation", download))
        train = _split(_create(timm_name, root, "train", download))[0] if need_train else val.subset([])
    classes = names or tuple(str(i) for i in range(max([*val.targets, *train.targets]) + 1))
    digest = hashlib.sha256(f"{name}\n{val.targets}".encode())
    reference = {"dataset": name} | ({"data_dir": str(root)} if data_dir else {})
    return ImageDataset(name, reference, classes, train, val, digest.hexdigest(), native_size=native_size)


@contextlib.contextmanager
def _opening(name: str, root: Path | None) -> Iterator[None]:
    """Whatever goes wrong inside becomes one message; servers must answer; stdout stays the result's."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except Exception as error:  # five libraries behind timm, each with exceptions of its own
        hint = "Without a network, --data-dir names the folder that already holds it."
        place = f" into {root}" if root else ""
        what = f"cannot be opened, or downloaded{place} ({str(error) or type(error).__name__})"
        raise InputError(what, where=name, hint=hint) from error
    finally:
        socket.setdefaulttimeout(patience)


def _create(timm_name: str, root: Path | None, split: str, download: bool) -> Any:
    from timm.data import create_dataset

    return create_dataset(timm_name, root=str(root) if root else None, split=split, download=download)


def _split(dataset: Any) -> tuple[Split, tuple[str, ...]]:
    """Return a dataset of timm's as a split, and the names of its classes where it knows them."""
    from torch.utils.data import IterableDataset

    reader = getattr(dataset, "reader", None)
    if isinstance(dataset, IterableDataset):
        split = _held(dataset)
    elif reader is not None:  # read past timm's dataset, which puts the next image in place of a broken one
        split = Split(range(len(reader)), list(reader.dataset[reader.label_key]), partial(_in_reader, reader))
    else:
        split = Split(
            range(len(dataset)), [int(t) for t in dataset.targets], partial(_in_torchvision, dataset)
        )
    index = getattr(reader, "class_to_idx", {})
    names = (
        getattr(dataset, "wnids", None)
        or getattr(dataset, "classes", None)
        or sorted(index, key=index.__getitem__)
    )
    return split, tuple(names)


def _held(dataset: Any) -> Split:
    """Read a stream into memory. Raises RuntimeError where images are left out, as timm's readers do."""
    samples = list(dataset)
    if len(dataset) > len(samples):
        raise RuntimeError(f"only {len(samples)} of its {len(dataset)} images can be read")
    return Split([image for image, _ in samples], [int(target) for _, target in samples], _as_it_is)


def _in_reader(reader: Any, index: int) -> Image:
    return decode_image(reader[index][0])


def _in_torchvision(dataset: Any, index: int) -> Image:
    return dataset[index][0]


def _as_it_is(image: Image) -> Image:
    return image
