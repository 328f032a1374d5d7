"""Images that the float model classified correctly and the packed file does not, small, for the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from binarize_cli.models.load import Preprocessing
from binarize_cli.report.picture import thumbnail

MOST = 12


@torch.no_grad()
def changed_images(
    float_net: nn.Module,
    packed_net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: Sequence[str],
    preprocessing: Preprocessing,
    device: torch.device,
    most: int = MOST,
) -> list[dict[str, str]]:
    """Return images whose answer went from right to wrong: `true` and `packed` class, and `image`.

    They are the first of each class, as many of each. The image is what the networks saw, as the address of
    a picture.
    """
    found: list[dict[str, str]] = []
    left = dict.fromkeys(range(len(classes)), math.ceil(most / len(classes)))
    for images, targets in batches:
        seen = images.to(device)
        before, after = (net.eval()(seen).argmax(1).cpu() for net in (float_net, packed_net))
        wrong = (before == targets.cpu()) & (after != targets.cpu())
        for index in wrong.nonzero().flatten().tolist():
            if not left[int(targets[index])]:
                continue
            left[int(targets[index])] -= 1
            names = {"true": classes[int(targets[index])], "packed": classes[int(after[index])]}
            found.append(names | {"image": thumbnail(as_image(images[index], preprocessing))})
            if len(found) == most:
                return found
    return found


def as_image(pixels: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """Return the picture that a network's input [C, H, W] shows."""
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    shown = ((pixels.cpu().float() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    array = shown.expand(3, -1, -1).permute(1, 2, 0) if len(shown) == 1 else shown.permute(1, 2, 0)
    return Image.fromarray(array.contiguous().numpy())
