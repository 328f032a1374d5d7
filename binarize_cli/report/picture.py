"""Pictures inside a page, as data: a heat map of one colour over whatever is behind it, small photographs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

BLUE = (38, 128, 200)  # reads on white and on near-black


def heat_map(shares: Sequence[Sequence[float]]) -> str:
    """Return the address (data:) of a picture with a pixel a value: 0 clear, 1 full colour."""
    alpha = (255 * np.clip(np.asarray(shares, dtype=float), 0, 1)).round().astype(np.uint8)
    pixels = np.zeros((*alpha.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = BLUE, alpha
    return address(Image.fromarray(pixels, "RGBA"), "PNG")


def thumbnail(image: Image.Image, side: int = 72) -> str:
    """Return the address of a small copy of an image; one of a few pixels keeps its pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    photo = max(image.size) > 48
    return address(small, "JPEG" if photo else "PNG")


def address(image: Image.Image, kind: str) -> str:
    """Return the image itself as an address."""
    data = io.BytesIO()
    image.save(data, kind, **({"quality": 80} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
