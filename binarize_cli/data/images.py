"""What a dataset is to the rest of the tool: two splits of images with their classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from binarize_cli.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SKIP_HINT = "Fix or remove it, or leave unreadable images out with --skip-unreadable."


class UnreadableImage(InputError):
    """An image that cannot be decoded; `where` is its file."""


@dataclass(frozen=True)
class Split:
    """Images and their classes. An image is decoded each time it is read.

    An item is a file name, a place in an archive, pixels: whatever `load` takes. `load` is a module's
    function (or a partial of one), so that a split can be sent to a worker process.
    """

    items: Sequence[Any]
    targets: Sequence[int]  # [n] class indices
    load: Callable[[Any], Image]

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> Image:
        """Image `index`, in mode RGB or L. Raises UnreadableImage."""
        item = self.items[index]
        try:
            return self.load(item)
        except MemoryError:
            raise
        except Exception as error:  # a broken file makes PIL's decoders raise nearly anything
            name = f"image {item}" if isinstance(item, int) else str(item)
            raise UnreadableImage(f"cannot be decoded ({error})", where=name, hint=SKIP_HINT) from error

    def subset(self, indices: Iterable[int]) -> Split:
        """Return the images at `indices`, in that order."""
        indices = list(indices)
        return Split([self.items[i] for i in indices], [self.targets[i] for i in indices], self.load)


@dataclass(frozen=True)
class ImageDataset:
    """An opened dataset: two splits of images with their classes."""

    name: str
    """What to print: `digits`, `cifar10`, or the path of the folder."""
    reference: dict[str, str]
    """JSON that opens the same dataset again: `open_dataset` takes its values."""
    classes: tuple[str, ...]
    train: Split
    val: Split
    fingerprint: str
    """sha256, in hex, of what tells this dataset from another of the same name."""
    hflip: float = 0.5
    """The chance of a mirrored training image; 0 where the mirror image is another sign."""
    native_size: int | None = None
    """The side in pixels where all images are small squares of one size, else None."""

    @property
    def summary(self) -> str:
        """Its name, and the classes and images of every split, as the first line of a command says them."""
        splits = {"training": self.train, "validation": self.val}
        counts = [f"{len(split):,} {name}" for name, split in splits.items() if len(split)]
        return f"{self.name}: {len(self.classes)} classes, {' and '.join(counts)} images"

    def relabelled(self, classes: Sequence[str]) -> ImageDataset:
        """Return the same images with targets among `classes`, which hold all of its own and maybe more."""
        if tuple(classes) == self.classes:
            return self
        place = {name: index for index, name in enumerate(classes)}
        index = [place[name] for name in self.classes]
        train, val = (
            Split(split.items, [index[target] for target in split.targets], split.load)
            for split in (self.train, self.val)
        )
        return replace(self, classes=tuple(classes), train=train, val=val)


def decode_image(file: str | Path | BinaryIO) -> Image:
    """Return the image in a file, in mode L if it is stored in shades of grey, else RGB."""
    from PIL import Image

    with Image.open(file) as image:
        image.load()
        return grey_or_rgb(image)


def grey_or_rgb(image: Image) -> Image:
    """Return an image of PIL in mode L if it is in shades of grey, else RGB."""
    if image.mode.startswith("I;16"):  # PIL's own conversion would cut everything above 255 to white
        return image.point(lambda value: value / 256).convert("L")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")
