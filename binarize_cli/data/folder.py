"""Image folders, and tar files of them: train/<class>/* and val/<class>/* (or validation/, test/)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from binarize_cli.data.archive import is_archive, list_archive, read_member
from binarize_cli.data.images import ImageDataset, Split, decode_image
from binarize_cli.errors import InputError, counted
from binarize_cli.files import absolute, expanded, kind_of

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
TRAIN, VAL = "train", ("val", "validation", "test")  # the first of VAL that is there counts
LAYOUT = "Expected <folder>/train/<class>/*.jpg and <folder>/val/<class>/*.jpg (or validation/, test/)."
DEEPEST = 8  # folders below a split
SMALL = 64  # pixels; smaller images leave no room for a random resized crop


class Entry(NamedTuple):
    """One name below the root, relative to it, such as train/cat/1.png."""

    path: str
    item: Any = None  # what the split's `load` takes; None for a folder
    size: int = 0  # bytes


@dataclass(frozen=True)
class Tree:
    """A folder or an archive: what is in it, without anything hidden."""

    root: Path
    entries: list[Entry]
    load: Callable[[Any], Any]

    def folders(self) -> list[str]:
        """Return the names of the folders at the top."""
        return sorted({e.path.split("/")[0] for e in self.entries if e.item is None or "/" in e.path})


def open_folder(root: Path, need_train: bool) -> ImageDataset:
    """Return the dataset in a folder or tar file; classes are sorted by name.

    The fingerprint is over relative paths and byte sizes, so it is the same for a folder and its archive.
    Without `need_train`, val/ alone is enough. Raises InputError where the layout is not as expected.
    """
    root = absolute(root)
    check_root(root)
    tree = _archive(root) if kind_of(root) == "file" else _folder(root)
    train_name, val_name = _find_splits(tree, need_train)
    val = _images(tree, val_name)
    train = _images(tree, train_name) if train_name else {}
    if train_name and train:
        _check_same(tree, train_name, train, val_name, val)
    train_split, val_split = _split(tree, train), _split(tree, val)
    return ImageDataset(
        name=str(root),
        reference={"data_dir": str(root)},
        classes=tuple(val),
        train=train_split,
        val=val_split,
        fingerprint=_fingerprint(train, val),
        native_size=_small_square(val_split),
    )


def check_root(root: Path) -> None:
    """Raise InputError where there is neither a folder nor a tar file; what is in it is not looked at."""
    kind = kind_of(expanded(root))
    if kind is None:
        raise InputError("does not exist", where=str(root), hint="Check --data-dir.")
    if kind != "folder" and not (kind == "file" and is_archive(root)):
        raise InputError("is neither a folder nor a tar file", where=str(root), hint=LAYOUT)


def _folder(root: Path) -> Tree:
    """Lists the root, and all below its splits; whatever else lies there may be large and is left alone."""
    try:
        entries = list(_scan(root, "", deep=False))
        for name in (TRAIN, *VAL):
            if (root / name).is_dir():
                entries += _scan(root / name, name + "/", deep=True)
    except OSError as error:
        raise InputError(f"cannot be listed ({error.strerror})", where=error.filename) from error
    return Tree(root, entries, decode_image)


def _scan(folder: Path | str, prefix: str, deep: bool) -> Iterator[Entry]:
    if prefix.count("/") > DEEPEST:  # a link to a folder above itself would have no end
        raise InputError("folders in folders without an end", where=str(folder), hint=LAYOUT)
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.startswith("."):
                continue
            path = prefix + entry.name
            if entry.is_dir():
                yield Entry(path)
                if deep:
                    yield from _scan(entry.path, path + "/", deep)
            elif entry.is_file():
                yield Entry(path, entry.path, entry.stat().st_size)
            elif not path.lower().endswith(SUFFIXES) or kind_of(Path(entry.path)) is None:
                yield Entry(path, entry.path, 0)  # a dangling link is listed: reading it will name it
            else:
                hint = "Remove it: reading from it might never end."
                raise InputError("is a FIFO, a socket or a device, not an image", where=entry.path, hint=hint)


def _archive(root: Path) -> Tree:
    """Lists a tar file; a single folder wrapped around the splits is taken off."""
    members, folders = list_archive(root)
    entries = [Entry(member.name, member, member.size) for member in members] + [Entry(f) for f in folders]
    entries = [e._replace(path=e.path.removeprefix("./").rstrip("/")) for e in entries if e.path != "."]
    entries = [e for e in entries if not any(part.startswith(".") for part in e.path.split("/"))]
    tops = {e.path.split("/")[0] for e in entries}
    if len(tops) == 1 and not tops & {TRAIN, *VAL}:
        inner = tops.pop() + "/"
        entries = [e._replace(path=e.path.removeprefix(inner)) for e in entries if e.path.startswith(inner)]
    latest = {entry.path: entry for entry in entries}  # `tar -r` leaves what it replaces in the archive
    return Tree(root, list(latest.values()), read_member)


def _find_splits(tree: Tree, need_train: bool) -> tuple[str | None, str]:
    """Return the names of the training split (None if absent and not needed) and of the validation split."""
    where, folders = str(tree.root), tree.folders()
    if not tree.entries:
        raise InputError("is empty", where=where, hint=LAYOUT)
    held = f"it holds {_some([f + '/' for f in folders])}" if folders else "it holds no folders at all"
    if need_train and TRAIN not in folders:
        raise InputError(f"has no {TRAIN}/ folder; {held}", where=where, hint=LAYOUT)
    val_name = next((name for name in VAL if name in folders), None)
    if val_name is None:
        raise InputError(f"has no val/, validation/ or test/ folder; {held}", where=where, hint=LAYOUT)
    return (TRAIN if TRAIN in folders else None), val_name


def _images(tree: Tree, split: str) -> dict[str, list[Entry]]:
    """Return the images of each class of a split, all sorted by name. Raises InputError where that fails."""
    where, prefix = str(tree.root / split), split + "/"
    loose: list[Entry] = []
    inner: dict[str, str] = {}  # folders inside class folders -> the first class that has such
    images: dict[str, list[Entry]] = {}
    for entry in sorted((e for e in tree.entries if e.path.startswith(prefix)), key=lambda e: e.path):
        name, *below = entry.path.removeprefix(prefix).split("/")
        if entry.item is None:
            images.setdefault(name, [])
        elif entry.path.lower().endswith(SUFFIXES):
            (images.setdefault(name, []) if below else loose).append(entry)
            inner.setdefault("/".join(below[:-1]), name)
    if len(inner) > 1:
        names = _some([f"{name}/{path}" for path, name in inner.items() if path])
        hint = f"Images lie in {split}/<class>/, or all of them in {split}/<class>/<one name for all>/."
        raise InputError(f"class folders hold folders of images: {names}", where=where, hint=hint)
    if loose:
        names = _some([e.path.removeprefix(prefix) for e in loose])
        hint = f"Move each into a folder of its class: {split}/<class>/."
        what = f"{counted(len(loose), 'image')} outside any class folder: {names}"
        raise InputError(what, where=where, hint=hint)
    if not images:
        raise InputError("has no class folders", where=where, hint=LAYOUT)
    empty = [name for name in images if not images[name]]
    if empty:
        hint = f"Images end in {' '.join(SUFFIXES)}. Fill the folders or remove them."
        raise InputError(f"class folders without images: {_some(empty)}", where=where, hint=hint)
    if len(images) == 1:
        hint = "A classifier needs two classes at least."
        raise InputError(f"holds one class only, {next(iter(images))}", where=where, hint=hint)
    return dict(sorted(images.items()))


def _check_same(tree: Tree, train_name: str, train: dict, val_name: str, val: dict) -> None:
    for lacking, there, missing in (
        (val_name, train_name, sorted(train.keys() - val.keys())),
        (train_name, val_name, sorted(val.keys() - train.keys())),
    ):
        if missing:
            what = f"lacks {len(missing)} of the classes of {there}/: {_some(missing)}"
            hint = f"{train_name}/ and {val_name}/ need the same class folders."
            raise InputError(what, where=str(tree.root / lacking), hint=hint)


def _split(tree: Tree, images: dict[str, list[Entry]]) -> Split:
    items = [entry.item for entries in images.values() for entry in entries]
    targets = [index for index, entries in enumerate(images.values()) for _ in entries]
    return Split(items, targets, tree.load)


def _fingerprint(*splits: dict[str, list[Entry]]) -> str:
    lines = sorted(
        f"{e.path}\t{e.size}\n" for images in splits for entries in images.values() for e in entries
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _small_square(split: Split) -> int | None:
    """Return the side of the images if a sample of them are small squares of one size, as CIFAR's are."""
    sizes = set()
    for index in range(0, len(split), max(1, len(split) // 8)):
        try:
            sizes.add(split.read(index).size)
        except InputError:  # `decode` will count and name it
            continue
    width, height = sizes.pop() if len(sizes) == 1 else (0, 1)
    return width if width == height <= SMALL else None


def _some(names: list[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
