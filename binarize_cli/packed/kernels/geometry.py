"""Where a convolution finds its bits: which words of the padded image an output pixel reads.

The image is bits [H, W, groups x words], padded, a pixel's channels of a group in whole words. Where they
fill their words and the order of products is (row, column, channel), the words of a window are tiles as they
lie. Otherwise a window's bits are first put together, shifted into place; so several taps share a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from binarize_cli.packed.kernels.matrix import WORD, words_of
from binarize_cli.packed.kernels.vectors import ROWS

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """How a convolution goes over an image; `order` is that of its products, in sums and in tiles.

    order: "pixel" is (row, column, channel); "channel", that of files of format 1, (channel, row, column).
    pad: the value around the image; 0 is a third value, which adds nothing.
    """

    channels: int
    kernel: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1
    margins: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, top, bottom
    pad: int = 0
    order: str = "pixel"

    @property
    def depth(self) -> int:
        """Channels of a group."""
        return self.channels // self.groups

    @property
    def length(self) -> int:
        """Products in a sum."""
        return self.depth * self.kernel[0] * self.kernel[1]

    @property
    def pixel_words(self) -> int:
        """Words of a pixel, all groups."""
        return self.groups * words_of(self.depth)

    @property
    def in_place(self) -> bool:
        """Whether words of the image are tiles as they lie."""
        single = self.kernel == (1, 1)
        return single or (self.depth % WORD == 0 and self.order == "pixel")

    def padded_size(self, height: int, width: int) -> Pair:
        """Return the image's size with its margins."""
        left, right, top, bottom = self.margins
        return height + top + bottom, width + left + right

    def output_size(self, height: int, width: int) -> Pair:
        """Return the size of what comes out."""
        sizes = zip(self.padded_size(height, width), self.kernel, self.stride, self.dilation, strict=True)
        high, wide = ((size - d * (k - 1) - 1) // s + 1 for size, k, s, d in sizes)
        return high, wide

    def taps_in_order(self, by_tap: np.ndarray) -> np.ndarray:
        """Flatten [..., rows, columns, channels] to [..., products], in the order of the sums."""
        moved = by_tap if self.order == "pixel" else np.moveaxis(by_tap, -1, -3)
        return moved.reshape(*by_tap.shape[:-3], -1)

    def by_tap(self, products: np.ndarray) -> np.ndarray:
        """Undo `taps_in_order`: [..., products] -> [..., rows, columns, channels]."""
        before = products.shape[:-1]
        if self.order == "pixel":
            return products.reshape(*before, *self.kernel, self.depth)
        return np.moveaxis(products.reshape(*before, self.depth, *self.kernel), -3, -1)


@dataclass(frozen=True)
class Plan:
    """The tables of a window over images of one size."""

    padded: Pair  # of the image of bits
    output: Pair
    starts: Tensor  # int64 [pixels and 4 more]: the first word of each output pixel's window, in the image
    places: Tensor  # int64, likewise: the number of the output pixel
    classes: Tensor  # int64, likewise: where its masks and counts begin
    steps: Tensor  # int64 [words]: where the window's words lie behind that, if they are read in place
    masks: Tensor  # int64 [classes, words]: which products there are
    valid: Tensor  # int64 [classes, words]: how many
    pieces: Tensor  # int64 [pieces, 5]: see `_pieces`; empty if words are read in place
    own_steps: Tensor  # int64 [words]: where a window's words lie in [words, pixels], put together


@lru_cache(maxsize=256)
def plan(window: Window, height: int, width: int) -> Plan:
    """Make the tables for images of that size."""
    padded, output = window.padded_size(height, width), window.output_size(height, width)
    rows, columns = np.arange(output[0]) * window.stride[0], np.arange(output[1]) * window.stride[1]
    starts = (rows[:, None] * padded[1] + columns) * window.pixel_words
    left, _, top, _ = window.margins
    row_class, row_taps = _inside(rows - top, height, window.kernel[0], window.dilation[0], window.pad)
    column_class, column_taps = _inside(
        columns - left, width, window.kernel[1], window.dilation[1], window.pad
    )
    masks, valid = _masks(window, row_taps, column_taps)
    words = words_of(window.length)
    classes = (row_class[:, None] * len(column_taps) + column_class) * words
    return Plan(
        padded,
        output,
        _to_fours(starts),
        _to_fours(np.arange(starts.size)),
        _to_fours(classes),
        torch.from_numpy(_steps(window, padded[1])),
        torch.from_numpy(masks),
        torch.from_numpy(valid),
        torch.from_numpy(_pieces(window, padded[1])),
        torch.arange(words) * starts.size,
    )


def _to_fours(table: np.ndarray) -> Tensor:
    """Flat, with the last entry repeated for the rows that fill up the last four."""
    flat = table.ravel()
    return torch.from_numpy(np.concatenate([flat, np.repeat(flat[-1:], ROWS)]))


def _inside(
    first: np.ndarray, size: int, taps: int, dilation: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sort places along one axis by which of their taps lie inside the image.

    Returns (the class of each place, bool [classes, taps]). With signs as padding all taps count.
    """
    at = first[:, None] + dilation * np.arange(taps)
    inside = ((at >= 0) & (at < size)) | (pad != 0)
    taps_of_class, of_place = np.unique(inside, axis=0, return_inverse=True)
    return of_place.reshape(-1), taps_of_class


def _masks(window: Window, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the words of products that exist and their number, both [classes, words] int64."""
    taps = rows[:, None, :, None, None] & columns[None, :, None, :, None]  # [row, column, kh, kw, 1]
    there = np.broadcast_to(taps, (*taps.shape[:4], window.depth))
    products = window.taps_in_order(there).reshape(-1, window.length)
    words = words_of(window.length)
    bits = np.zeros((len(products), words * WORD), bool)
    bits[:, : window.length] = products
    masks = np.packbits(bits, axis=1, bitorder="little").view(np.int64)
    return masks, bits.reshape(len(products), words, WORD).sum(2)


def _tap_offsets(window: Window, width: int) -> np.ndarray:
    """Return how many words lie between the first tap of a window and each: [kh, kw]."""
    (kh, kw), (dy, dx) = window.kernel, window.dilation
    return (np.arange(kh)[:, None] * dy * width + np.arange(kw) * dx) * window.pixel_words


def _steps(window: Window, width: int) -> np.ndarray:
    """Return where a window's words lie, if they are tiles as they are: [words]."""
    per_tap = np.arange(words_of(window.depth))
    return (_tap_offsets(window, width)[..., None] + per_tap).ravel()


def _pieces(window: Window, width: int) -> np.ndarray:
    """Return [pieces, 5]: (word of the image, shift right, mask, shift left, word of the window).

    Whole words of a tap at a time in the order of pixels; bit by bit in that of channels.
    """
    if window.in_place:
        return np.zeros((0, 5), np.int64)
    offsets = _tap_offsets(window, width)
    pieces = []
    if window.order == "channel":
        for number in range(window.length):
            channel, tap = divmod(number, offsets.size)
            word = offsets.flat[tap] + channel // WORD
            pieces.append((word, channel % WORD, 1, number % WORD, number // WORD))
    else:
        for tap, offset in enumerate(offsets.flat):
            for word in range(words_of(window.depth)):
                at = tap * window.depth + word * WORD
                pieces.append((offset + word, 0, -1, at % WORD, at // WORD))
                size = min(WORD, window.depth - word * WORD)
                if at % WORD + size > WORD:
                    pieces.append((offset + word, WORD - at % WORD, -1, 0, at // WORD + 1))
    return np.array(pieces, np.int64)
