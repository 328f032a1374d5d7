"""Images inside a tar file, read in place by their offsets."""

from __future__ import annotations

import atexit
import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from binarize_cli.console import say
from binarize_cli.data.images import decode_image
from binarize_cli.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
    ".txz": lzma.open,
}


class Member(NamedTuple):
    """One file in an archive."""

    archive: str  # as the user named it
    name: str
    file: str  # the uncompressed archive
    offset: int  # bytes
    size: int  # bytes

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"


def is_archive(path: Path) -> bool:
    """Return whether the name is that of a tar file."""
    return path.name.lower().endswith((".tar", *COMPRESSED))


def read_member(member: Member) -> Image:
    """Return the image; the archive is opened for each: threads and workers need not share a position."""
    with Path(member.file).open("rb") as file:
        file.seek(member.offset)
        return decode_image(io.BytesIO(file.read(member.size)))


def list_archive(path: Path) -> tuple[list[Member], list[str]]:
    """Return the files and folders in a tar file. A compressed one is unpacked first; that copy goes at exit.

    Raises InputError if it is no tar file, cut short, or holds links.
    """
    try:
        plain = _uncompressed(path)
        with tarfile.open(plain, "r:") as tar:
            entries = tar.getmembers()
            if (
                plain.stat().st_size < tar.offset + tarfile.BLOCKSIZE
            ):  # tarfile minds a cut inside a file only
                raise tarfile.ReadError("it has no end")
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        hint = "Check that it was copied whole: 'tar -tf FILE' lists a sound one."
        raise InputError(f"cannot be read as a tar file ({error})", where=str(path), hint=hint) from error
    except OSError as error:
        hint = "Unpacking needs room in the temporary folder; TMPDIR names another one."
        raise InputError(f"cannot be unpacked ({error})", where=str(path), hint=hint) from error
    links = [entry.name for entry in entries if not (entry.isdir() or entry.isreg()) or entry.issparse()]
    if links:
        hint = "Pack it again with 'tar --dereference --hard-dereference'."
        raise InputError(f"{len(links)} entries are links, such as {links[0]}", where=str(path), hint=hint)
    files = [
        Member(str(path), entry.name, str(plain), entry.offset_data, entry.size)
        for entry in entries
        if entry.isreg()
    ]
    return files, [entry.name for entry in entries if entry.isdir()]


def _uncompressed(path: Path) -> Path:
    """Return the path of a plain tar file with the same content."""
    opener = next((COMPRESSED[end] for end in COMPRESSED if path.name.lower().endswith(end)), None)
    if opener is None:
        return path
    folder = Path(tempfile.mkdtemp(prefix="bnnpp-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    say(f"unpacking {path} into {folder}")
    plain = folder / "data.tar"
    with opener(path) as packed, plain.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
    return plain
