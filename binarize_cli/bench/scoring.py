"""What scoring with a packed file costs beside its float model: batch by batch in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from binarize_cli.device import full_float32, place
from binarize_cli.models.build import build
from binarize_cli.packed.format import PackedFile
from binarize_cli.packed.runtime import rebuild

WARM_UP = 2


@torch.inference_mode()
def speeds(files: Sequence[PackedFile], batch_size: int, rounds: int, device: torch.device) -> list[dict]:
    """Images a second of each file and of its float model, on the same random images; medians of the rounds.

    The speed does not depend on the values of the weights: those of the float model are random.
    """
    rows = []
    for file in files:
        model, transform = file.document.model, file.document.preprocessing
        twin = build(model.source, model.name, model.num_classes, **model.builder_kwargs).eval()
        assert transform, "only a file of the caller's model has none, and that is not built"
        images = torch.randn(batch_size, *transform.input_size, device=device)
        nets = {"float": place(twin, device), "packed": place(rebuild(file), device)}
        seconds: dict[str, list[float]] = {name: [] for name in nets}
        for number in range(WARM_UP + rounds):
            for name, net in nets.items():
                taken = _seconds(net, images)
                if number >= WARM_UP:
                    seconds[name].append(taken)
        speed = {name: batch_size / statistics.median(each) for name, each in seconds.items()}
        row = {"file": str(file.path), "model": model.name, "task": file.document.task}
        rows.append(row | speed | {"ratio": speed["packed"] / speed["float"]})
    return rows


def _seconds(net: nn.Module, images: torch.Tensor) -> float:
    started = time.perf_counter()
    with full_float32(images.device):
        net(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - started
