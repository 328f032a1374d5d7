"""Where the libraries that read images disagree with each other, by version."""

from __future__ import annotations

import PIL
from PIL import Image
from timm.data import auto_augment

POSTERIZE = ("Posterize", "PosterizeIncreasing", "PosterizeOriginal")  # timm's names of the operation


def allow_posterize_to_no_bits() -> None:
    """Let timm's strongest posterize keep one bit of a colour where Pillow refuses to keep none.

    At the end of its range timm (1.0.31, the newest, too) asks Pillow to keep 0 bits; from version 13 on
    Pillow raises ValueError for that, which would end a training run.
    """
    if int(PIL.__version__.partition(".")[0]) >= 13:
        auto_augment.NAME_TO_OP |= dict.fromkeys(POSTERIZE, _posterize)


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    return auto_augment.posterize(image, max(1, bits))
