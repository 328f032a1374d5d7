"""`bnnpp predict`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from binarize_cli.cli import options as o
from binarize_cli.console import result, warn
from binarize_cli.errors import InputError, printable
from binarize_cli.files import kind_of
from binarize_cli.run_folder import check_file

STDIN = "-"


def predict(
    file: o.PackedFile,
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, folders of them, or - for a list on stdin.", metavar="IMAGE"),
    ],
    top: Annotated[int, typer.Option("--top", help="Classes an image.", min=1)] = 5,
    batch_size: o.ScoreBatchSize = 32,
    skip_unreadable: o.SkipUnreadable = False,
    device: o.Device = "auto",
    as_json: o.Json = False,
) -> None:
    """Say what is in images: the most probable classes of each, by a packed file.

    A folder stands for all images in it and below it. Images that cannot be decoded are named at the end,
    with exit code 2; with --skip-unreadable that is a warning.

    bnnpp predict runs/deit_tiny-bnn++-bw/model.safetensors photos/ one.jpg --top 3

    find . -name '*.jpg' | bnnpp predict model.safetensors - --json | jq .images
    """
    check_file(file, "Give a file that 'bnnpp binarize' wrote.")  # before torch is imported
    files = list(_files(images))
    if not files:
        raise InputError("there are no images", where=", ".join(images)[:200])

    from binarize_cli import api

    net, found = api.load(file, device), []
    broken: list[InputError] = []
    for start in range(0, len(files), batch_size):
        for image, classes in _predicted(net, files[start : start + batch_size], top, broken):
            if as_json:
                found.append({"image": str(image), "top": [each._asdict() for each in classes]})
            else:
                shares = ", ".join(f"{each.name} {each.probability:.3f}" for each in classes)
                result(printable(f"{image}  {shares}"))
    if as_json:
        unreadable = [str(error.where) for error in broken]
        result(json.dumps({"file": str(file), "images": found, "unreadable": unreadable}, allow_nan=False))
    _tell_broken(broken, len(files), skip_unreadable)


def _files(words: list[str]) -> Iterator[Path]:
    """Yield the image files that the words stand for. Raises InputError for one that is not there."""
    for word in words:
        if word == STDIN:
            yield from _files([line for line in sys.stdin.read().splitlines() if line.strip()])
            continue
        path = Path(word)
        kind = kind_of(path)
        if kind == "folder":
            yield from _in_folder(path)
        elif kind == "file":
            yield path
        else:
            what = "there is no such image" if kind is None else "is no regular file"
            raise InputError(what, where=printable(word), hint="Give image files, folders, or - for stdin.")


def _in_folder(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder and below it, by name, without hidden ones. Raises InputError."""
    from binarize_cli.data.folder import SUFFIXES

    images = [
        Path(place) / name
        for place, folders, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    ]
    visible = [
        image for image in images if not any(p.startswith(".") for p in image.relative_to(folder).parts)
    ]
    if not visible:
        hint = f"Images end in {', '.join(SUFFIXES)}."
        raise InputError("there are no images in it", where=printable(str(folder)), hint=hint)
    yield from sorted(visible)


def _predicted(net: Any, files: list[Path], top: int, broken: list[InputError]) -> Iterator[tuple[Path, Any]]:
    """Yield each readable image with its classes; what is wrong with the others goes to `broken`."""
    from binarize_cli import api
    from binarize_cli.data.images import UnreadableImage

    try:
        yield from zip(files, api.predict(net, files, top, len(files)), strict=True)
    except UnreadableImage as error:
        if len(files) == 1:
            broken.append(error)
            return
        for image in files:  # the others of the batch, one by one
            yield from _predicted(net, [image], top, broken)


def _tell_broken(broken: list[InputError], images: int, skip: bool) -> None:
    """Name the images that cannot be decoded. Raises UnreadableImage unless they are to be skipped."""
    from binarize_cli.data.images import SKIP_HINT, UnreadableImage

    if not broken:
        return
    names = ", ".join(printable(str(error.where)) for error in broken)
    what = f"{len(broken)} of {images} images cannot be decoded: {names}"
    if not skip or len(broken) == images:
        raise UnreadableImage(what, hint=SKIP_HINT)
    warn(f"left out: {what}")
