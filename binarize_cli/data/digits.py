"""The embedded dataset: 1,797 handwritten digits of 8 x 8 pixels.

The test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak; UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49), licence CC BY 4.0, unchanged. A row of
`assets/digits.csv.gz` holds 64 pixels from 0 (paper) to 16 (ink), row-major, then the digit.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from binarize_cli.data.images import ImageDataset, Split
from binarize_cli.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

ASSET = Path(__file__).with_name("assets") / "digits.csv.gz"
SIDE = 8  # pixels
INK = 16  # the darkest pixel


def open_digits(data_dir: Path | None, need_train: bool, download: bool = False) -> ImageDataset:
    """Open 1,437 training and 360 validation images, classes evenly. Raises InputError for a data_dir."""
    if data_dir is not None:
        hint = "Leave out --data-dir, or name the folder alone, without --dataset digits."
        raise InputError(
            "the dataset 'digits' is embedded and reads no folder", where=str(data_dir), hint=hint
        )
    packed = ASSET.read_bytes()
    rows = [[int(cell) for cell in line.split(b",")] for line in gzip.decompress(packed).splitlines()]
    rows.sort(key=lambda row: row[-1])  # stable: within a class the file's order stays
    # Every fifth of the images in order of class: no random generator that a library could change.
    train = [row for place, row in enumerate(rows) if place % 5]
    return ImageDataset(
        name="digits",
        reference={"dataset": "digits"},
        classes=tuple("0123456789"),
        train=_split(train),
        val=_split(rows[::5]),
        fingerprint=hashlib.sha256(packed).hexdigest(),
        hflip=0.0,
        native_size=SIDE,
    )


def _split(rows: list[list[int]]) -> Split:
    pixels = [bytes(ink * 255 // INK for ink in row[:-1]) for row in rows]
    return Split(pixels, [row[-1] for row in rows], _image)


def _image(pixels: bytes) -> Image:
    from PIL import Image

    return Image.frombytes("L", (SIDE, SIDE), pixels)
