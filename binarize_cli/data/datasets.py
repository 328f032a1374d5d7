"""From what the user named to an opened dataset. Nothing heavy is imported until images are needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from binarize_cli.console import say
from binarize_cli.data.digits import open_digits
from binarize_cli.data.folder import check_root, open_folder
from binarize_cli.data.images import ImageDataset, Split, UnreadableImage
from binarize_cli.data.library import PREFIXES, open_library
from binarize_cli.data.shards import SHARDS, open_shards
from binarize_cli.errors import InputError, closest
from binarize_cli.files import kind_of

__all__ = [
    "DATASETS",
    "ImageDataset",
    "Split",
    "UnreadableImage",
    "check_dataset",
    "known_datasets",
    "open_dataset",
]

# A dataset is added here and nowhere else: its name, and what opens it from (data_dir, need_train, download).
DATASETS: dict[str, Callable[[Path | None, bool, bool], ImageDataset]] = {
    "digits": open_digits,
    "cifar10": partial(open_library, "torch/cifar10", name="cifar10", native_size=32),
    "cifar100": partial(open_library, "torch/cifar100", name="cifar100", native_size=32),
}


def known_datasets() -> list[str]:
    """Return the names that --dataset takes beside timm's prefixed ones."""
    return list(DATASETS)


def open_dataset(
    dataset: str | None = None, data_dir: Path | str | None = None, need_train: bool = True
) -> ImageDataset:
    """Return the dataset of that name, or that in a folder or tar file; else of $BNNPP_DATA, else `digits`.

    Without `need_train`, a validation split alone is enough, and `train` may be empty.
    Raises InputError for an unknown name, a failed download, or a folder that is not laid out as expected.
    """
    data_dir = Path(data_dir) if data_dir else None
    if dataset is None and data_dir is None:
        dataset, data_dir = _default()
    if dataset is None:
        assert data_dir, "one of the two is set by now"
        return open_folder(data_dir, need_train)
    if dataset in DATASETS:
        return DATASETS[dataset](data_dir, need_train, True)
    _check_name(dataset)
    if dataset.startswith(SHARDS):
        return open_shards(dataset, data_dir, need_train)
    return open_library(dataset, data_dir, need_train)


def check_dataset(dataset: str | None, data_dir: Path | None) -> None:
    """Raise InputError for a name or a folder that does not exist; list and import nothing.

    To be called before torch is imported: `open_dataset` looks again.
    """
    if dataset is not None:
        _check_name(dataset)
    elif folder := data_dir or os.environ.get("BNNPP_DATA"):
        check_root(Path(folder))


def _check_name(dataset: str) -> None:
    if dataset in DATASETS or dataset.startswith((*PREFIXES, SHARDS)):
        return
    if kind_of(Path(dataset)):
        raise InputError("is a path, not a dataset's name", where=dataset, hint=f"Use --data-dir {dataset}.")
    listing = (
        f"Known: {', '.join(DATASETS)}; timm's names with {', '.join(PREFIXES)}, {SHARDS}; "
        "a folder by --data-dir."
    )
    raise InputError(f"no dataset is named '{dataset}'", hint=closest(dataset, DATASETS, listing))


def open_recorded(dataset: str | None, data_dir: str | None) -> ImageDataset:
    """Open, for scoring, the dataset that a packed file names: the word of a stranger.

    So nothing is downloaded, and no library looks at a folder of the file's choice: it is one of our own
    datasets that is here already, or a folder of train/ and val/. Raises InputError for all else.
    """
    folder = Path(data_dir) if data_dir else None
    if dataset is None and folder is not None:
        return open_folder(folder, need_train=False)
    if dataset in DATASETS:
        return DATASETS[dataset](folder, False, False)
    raise InputError("is not opened unless you name it", where=dataset or "its dataset")


def _default() -> tuple[str | None, Path | None]:
    folder = os.environ.get("BNNPP_DATA")
    if folder:
        say(f"no dataset was named: using $BNNPP_DATA, {folder}")
        return None, Path(folder)
    say("no dataset was named, and $BNNPP_DATA is not set: using the embedded 'digits'")
    return "digits", None
