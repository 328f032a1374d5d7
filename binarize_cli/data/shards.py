"""WebDataset shards: tar files of samples, read in place by their offsets.

A sample is the members of one key: n01440764_10026.jpg, n01440764_10026.cls, perhaps .json. Streaming, which
they are made for, would leave the order of images to chance; here any image can be read at any time, so that
epochs, ranks and resuming are as with folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from binarize_cli.data.archive import Member, list_archive, read_member
from binarize_cli.data.folder import SUFFIXES
from binarize_cli.data.images import ImageDataset, Split
from binarize_cli.errors import InputError, counted
from binarize_cli.files import absolute, kind_of

SHARDS = "wds/"  # how timm's names of such sets begin
INFO = ("_info.json", "info.json")  # which shards a split has, as timm writes and reads it
SPLITS = {"train": ("train",), "validation": ("validation", "val", "test")}  # the first that is there counts
BLOCK = 512  # bytes, of a tar file
OCTAL = re.compile(rb"[0-7]+")
PLAIN, EXTENDED = (b"\0", b"0"), (b"x", b"g")  # kinds of members: files, and facts about the next one or all


class Shards(NamedTuple):
    """The tar files of a split, how many images they should hold (None: unknown), and where labels are."""

    files: list[Path]
    images: int | None = None
    label: str = ""
    """A field of the samples' .json; their .cls if empty."""


def open_shards(name: str, root: Path | None, need_train: bool) -> ImageDataset:
    """Return the splits `train` and `validation` of the shards in a folder.

    The fingerprint is over the name and the validation targets. Raises InputError if shards are missing, or
    if a sample lacks its image or its class.
    """
    if root is None:
        hint = "Name the folder with --data-dir."
        raise InputError("its shards must be in a folder", where=name, hint=hint)
    root = absolute(root)
    if kind_of(root) != "folder":
        raise InputError("is not a folder of shards", where=str(root), hint="Check --data-dir.")
    val = _split(_shards(root, "validation"))
    train = _split(_shards(root, "train")) if need_train else val.subset([])
    classes = tuple(str(i) for i in range(max([*val.targets, *train.targets]) + 1))
    digest = hashlib.sha256(f"{name}\n{val.targets}".encode())
    reference = {"dataset": name, "data_dir": str(root)}
    return ImageDataset(name, reference, classes, train, val, digest.hexdigest())


def _shards(root: Path, split: str) -> Shards:
    """Return the shards of a split: those that an info file names, else those named after it."""
    info = next((root / name for name in INFO if (root / name).is_file()), None)
    if info is not None:
        return _from_info(info, split)
    for word in SPLITS[split]:
        if files := sorted(path for path in root.glob("*.tar") if word in path.name):
            return Shards(files)
    hint = f"Expected {INFO[0]}, or tar files with '{split}' in their names."
    raise InputError(f"holds no shards of the split '{split}'", where=str(root), hint=hint)


def _from_info(info: Path, split: str) -> Shards:
    try:
        splits = json.loads(info.read_text(encoding="utf-8"))["splits"]
        facts = next(splits[word] for word in SPLITS[split] if word in splits)
        files = [info.parent / str(name) for name in facts["filenames"]]
        found = Shards(files, int(facts["num_samples"]), str(facts.get("alt_label", "")))
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        what = f"names no shards of the split '{split}' ({type(error).__name__}: {error})"
        raise InputError(what, where=str(info), hint="See timm's ReaderWds for its form.") from error
    missing = [path.name for path in found.files if not path.is_file()] if files else ["any"]
    if missing:
        what = f"{counted(len(missing), 'shard')} of {len(files)} missing, such as '{missing[0]}'"
        raise InputError(what, where=str(info.parent), hint="Download the rest, or correct the info file.")
    return found


def _split(shards: Shards) -> Split:
    """Return the images of all shards, in their order."""
    from binarize_cli.data.decode import usable_cores  # and NumPy with it

    with ThreadPoolExecutor(usable_cores()) as pool:  # what takes time is the disk
        parts = list(pool.map(lambda path: _samples(path, shards.label), shards.files))
    items = [member for members, _ in parts for member in members]
    if shards.images is not None and len(items) < shards.images and not shards.label:
        what = f"hold only {len(items)} of {counted(shards.images, 'image')}"
        raise InputError(what, where=str(shards.files[0].parent), hint="Were all shards copied whole?")
    if not items:
        raise InputError("the shards hold no images", where=str(shards.files[0].parent))
    return Split(items, [target for _, targets in parts for target in targets], read_member)


def _samples(path: Path, label: str) -> tuple[list[Member], list[int]]:
    """Return the images of a shard, and their classes. A negative label in a .json leaves an image out."""
    samples: dict[str, dict[str, Member]] = {}
    for member in members(path):
        folder, _, base = member.name.rpartition("/")
        key, _, ending = base.partition(".")
        samples.setdefault(f"{folder}/{key}", {})["." + ending.lower()] = member
    images, targets = [], []
    with path.open("rb", buffering=0) as file:
        for key, parts in samples.items():
            image = next((parts[ending] for ending in parts if ending in SUFFIXES), None)
            fact = parts.get(".json" if label else ".cls")
            if image is None or fact is None:
                lacking = "an image" if image is None else "a label (.json)" if label else "a class (.cls)"
                raise InputError(f"sample {key.lstrip('/')} lacks {lacking}", where=str(path))
            target = _target(os.pread(file.fileno(), fact.size, fact.offset), label, str(fact))
            if target >= 0:
                images.append(image)
                targets.append(target)
    return images, targets


def _target(content: bytes, label: str, where: str) -> int:
    try:
        value: Any = json.loads(content)[label] if label else content
        return -1 if value is None else int(value)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"holds no class ({error})", where=where) from error


def members(path: Path) -> Sequence[Member]:
    """Return the files in a tar file. Raises InputError if it is none.

    Python's tarfile would take six minutes for ImageNet's four million; it reads what is not plain.
    """
    try:
        return list(_plain_members(path))
    except _NotPlain:
        return list_archive(path)[0]


class _NotPlain(Exception):
    """A member that only tarfile understands: a long name, a large file, a link; or no tar file at all."""


def _plain_members(path: Path) -> Iterator[Member]:
    with path.open("rb", buffering=0) as file:  # a header here, a header there: nothing to read ahead
        end, at, archive = path.stat().st_size, 0, str(path)
        while (head := os.pread(file.fileno(), BLOCK, at)) != bytes(BLOCK):
            kind, size = head[156:157], _size(head)
            data = at + BLOCK
            at = data + -(-size // BLOCK) * BLOCK
            if at >= end:  # cut short
                raise _NotPlain
            if kind in EXTENDED and not _says_more(os.pread(file.fileno(), size, data)):
                continue
            if kind not in PLAIN or head[345:346] != b"\0":
                raise _NotPlain
            yield Member(archive, _name(head), archive, data, size)


def _says_more(facts: bytes) -> bool:
    """Return whether facts of the extended kind say more of a member than its time or its owner."""
    return b" path=" in facts or b" size=" in facts or b" GNU." in facts


def _name(head: bytes) -> str:
    """Return a member's name, from its header."""
    try:
        return head[:100].split(b"\0", 1)[0].decode()
    except UnicodeDecodeError:
        raise _NotPlain from None


def _size(head: bytes) -> int:
    """Return a member's size in bytes, from its header."""
    digits = head[124:136].rstrip(b"\0 ") or b"0"
    if len(head) < BLOCK or head[257:262] != b"ustar" or not OCTAL.fullmatch(digits):
        raise _NotPlain
    return int(digits, 8)
