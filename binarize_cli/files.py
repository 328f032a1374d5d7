"""What lies at a path, and writing that is whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from binarize_cli.errors import InputError


def kind_of(path: Path) -> Literal["file", "folder", "other"] | None:
    """Return what lies at `path`, following links; None where nothing does.

    "other" is what must not be read as a file: a FIFO, a socket, a device. Raises InputError where the
    system cannot even look: a name that is too long, a loop of links, a folder that may not be searched.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        what = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be looked at: {what}", where=shortened(str(path))) from None
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "other"


def expanded(path: Path) -> Path:
    """Return `path` with `~` and `~user` replaced. Raises InputError where there is no such user or home."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise InputError(f"cannot be expanded: {error}", where=str(path)) from None


def absolute(path: Path) -> Path:
    """Return `path` from the root on, `~` replaced. Raises InputError where the working directory is gone."""
    try:
        return expanded(path).absolute()
    except FileNotFoundError:
        hint = "Change into a folder that exists."
        raise InputError("the working directory was deleted", where=str(path), hint=hint) from None


def shortened(text: str, limit: int = 200) -> str:
    """Return `text`, cut where it is longer than a message should be."""
    return text if len(text) <= limit else f"{text[:limit]}..."


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends well: temporary file, fsync, rename.

    A reader sees the old content or the new, never a part. Raises InputError when the disk is full or the
    place cannot be written; what was there before is kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}", where=str(path), hint=advice(error)
        ) from None
    finally:
        with suppress(OSError):  # where the folder cannot be, neither can the file
            temporary.unlink()


def advice(error: OSError) -> str:
    """Return what to do about a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "What was written before is kept: free some space, and run again with --resume."
    return "Choose another place with --output."


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all. Raises InputError as `atomic` does."""
    with atomic(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # a path in it may not be UTF-8


def nearest(path: Path) -> Path:
    """Return the first of `path` and its parents at which something lies."""
    return next(place for place in (path, *absolute(path).parents) if kind_of(place))


def check_folder(folder: Path | None, flag: str) -> None:
    """Raise InputError unless `folder` can be written to, or be made where it is not there yet."""
    if folder is None:
        return
    place = nearest(folder)
    if kind_of(place) != "folder" or not os.access(place, os.W_OK | os.X_OK):
        hint = "Choose another folder."
        raise InputError("no files can be written there", where=f"{flag} {folder}", hint=hint)


def check_space(path: Path, needed: int) -> None:
    """Raise InputError if fewer than `needed` bytes are free at `path` (which need not exist yet)."""
    free = shutil.disk_usage(nearest(path)).free
    if free < needed:
        hint = "Free some space, or choose another place with --output."
        what = f"not enough disk space: {needed / 2**20:.0f} MiB needed, {free / 2**20:.0f} MiB free"
        raise InputError(what, where=str(path), hint=hint)
