"""The library: what the command line does with a network, as functions. `import bnnpp` names them.

They raise InputError for what the caller can mend, log through the logger `bnnpp`, and print nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor, nn

from binarize_cli import recipe_io
from binarize_cli.binarize.prepare import BinaryNetwork, make_binary, rewrite_and_choose
from binarize_cli.data.images import UnreadableImage, decode_image, grey_or_rgb
from binarize_cli.data.transforms import ImageTransform
from binarize_cli.device import find_device, place
from binarize_cli.errors import InputError
from binarize_cli.models.heads import head_names
from binarize_cli.models.load import Preprocessing
from binarize_cli.packed.document import document_of_caller
from binarize_cli.packed.export import packed_tensors
from binarize_cli.packed.format import read, write
from binarize_cli.packed.int8_inputs import use_int8_inputs
from binarize_cli.packed.runtime import load_packed_into, rebuild
from binarize_cli.recipe import Recipe

AnyImage = str | Path | Image


class Prediction(NamedTuple):
    """A class of an image, and the probability that the network gives it, in [0, 1]."""

    name: str
    probability: float


def load(file: str | Path, device: str = "cpu", activations: str = "float") -> nn.Module:
    """Return the network of a packed file, in eval mode: images [N, C, H, W] -> logits [N, classes].

    It has `classes` (their names), `transform` (an image of PIL, or several, to the network's input) and
    `document` (what the file says of itself). With activations="int8" the inputs of binary weights are
    quantized to 8 bits, token by token or image by image (task bw). Raises InputError for a file that cannot
    be trusted.

    >>> net = load("model.safetensors")  # doctest: +SKIP
    >>> net(net.transform(image)).argmax()  # doctest: +SKIP
    """
    packed = read(Path(file))
    net: Any = place(rebuild(packed), find_device(device))
    if activations not in ("float", "int8"):
        raise InputError(f"'{activations}' is not float or int8", where="activations")
    if activations == "int8":
        use_int8_inputs(net)
    assert packed.document.preprocessing, "only a file of the caller's own model has none"
    net.classes = tuple(packed.document.model.classes)
    net.transform = ImageTransform(Preprocessing.from_json(packed.document.preprocessing.model_dump()))
    net.document = packed.document
    return net


@torch.no_grad()
def predict(
    network: str | Path | nn.Module,
    images: AnyImage | Iterable[AnyImage],
    top: int = 5,
    batch_size: int = 32,
) -> list[list[Prediction]]:
    """Return, for each image, the most probable classes, at most `top` of them, the first first.

    `network` is a packed file, or what `load` returned; `images` are files, or images of PIL. One alone is a
    list of one. Raises InputError, and UnreadableImage, which is one, for an image that cannot be decoded.
    """
    net: Any = network if isinstance(network, nn.Module) else load(network)
    device = next(net.parameters()).device
    several = [images] if isinstance(images, AnyImage) else list(images)
    found = []
    for start in range(0, len(several), batch_size):
        batch = net.transform([_decoded(image) for image in several[start : start + batch_size]])
        shares = net(batch.to(device)).float().softmax(1)
        best = shares.topk(min(top, shares.shape[1]), dim=1)
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            names = (net.classes[index] for index in indices)
            found.append([Prediction(name, share) for name, share in zip(names, values, strict=True)])
    return found


def _decoded(image: AnyImage) -> Image:
    if isinstance(image, Image):
        return grey_or_rgb(image)
    try:
        return decode_image(image)
    except MemoryError:
        raise
    except Exception as error:  # a broken file makes PIL's decoders raise nearly anything
        hint = "Give image files that Pillow reads, such as PNG or JPEG."
        raise UnreadableImage(f"cannot be decoded ({error})", where=str(image), hint=hint) from error


def binarize(
    module: nn.Module,
    example: Tensor,
    recipe: str | Path | Mapping[str, Any] | Recipe = "default",
    images: Tensor | Sequence[Tensor] | None = None,
    heads: Sequence[str] | None = None,
) -> BinaryNetwork:
    """Make any network binary, in place, and return it with its table of layers and its quantizer.

    `example` [N, C, H, W] is what the network takes, for one forward pass. `recipe` is a name, a file, a
    mapping of keys or a Recipe; what it says of training is the caller's to do. Tasks with binary inputs want
    `images` [N, C, H, W] of training, one batch or several, to calibrate on. `heads` are the names of the
    classifier layers, which the recipe knows as `head`; by default the last linear layer.

    Then move along the schedule with `.move_to(progress)`, train `.net`, `.harden()`, and `save`.
    Raises InputError for a recipe with a fault, and for layers that cannot be binarized.
    """
    checked = _recipe(recipe)
    if checked.task != "bw" and images is None:
        hint = "Pass images=, a batch of training images."
        raise InputError(f"task {checked.task} calibrates on images", where="binarize", hint=hint)
    batches = [images] if isinstance(images, Tensor) else list(images or [])
    names = head_names(module) if heads is None else list(heads)
    training = module.training
    net, table = rewrite_and_choose(module, example, checked, names)
    made = make_binary(net, table, checked, batches)
    made.net.train(training)
    return made


def _recipe(recipe: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return recipe_io.Draft("recipe", dict(recipe)).validate()
    return recipe_io.read(str(recipe)).validate()


def save(made: BinaryNetwork, file: str | Path, classes: Sequence[str] | None = None) -> Path:
    """Write a network that `binarize` made to a packed file, its weights one bit each, and return the path.

    What is written is `made.frozen()`; training may go on afterwards. `classes` name the logits; without them
    they are numbers. The file holds no code: the network's class is yours to keep, for `load_into`.
    Raises InputError if the file cannot be written.
    """
    net, path = made.frozen(), Path(file)
    names = classes or [str(number) for number in range(_logits(made))]
    device = next(net.parameters()).device
    document = document_of_caller(type(net).__name__, names, made.recipe, made.table, device)
    write(path, document, packed_tensors(net))
    return path


def _logits(made: BinaryNetwork) -> int:
    """Return how many outputs the last layer has."""
    return next(row.shape[0] for row in reversed(made.table) if len(row.shape) > 1)


def load_into(module: nn.Module, file: str | Path) -> nn.Module:
    """Turn a float network, in place, into that of a packed file, and return it in eval mode.

    `module` is built as the one that was saved, with whatever weights. Raises InputError for a file that
    cannot be trusted, and for one of another network.
    """
    net = load_packed_into(module, read(Path(file)))
    return place(net, next(module.parameters()).device)
