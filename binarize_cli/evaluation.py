"""Model + loader -> measurements. The one place where accuracy is counted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize_cli import ranks
from binarize_cli.device import full_float32


@dataclass(frozen=True)
class Measurement:
    """What a network scored on a set of images."""

    top1: float
    """Per cent, as top5."""
    top5: float
    loss: float
    """Mean cross-entropy, nats."""
    images: int
    seconds: float
    confusion: list[list[int]]
    """[true class][predicted class], counts."""

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    def to_json(self, speed: bool = True) -> dict:
        """Return all but the confusion and, for a file that must come out the same twice, the speed."""
        facts = {"top1": self.top1, "top5": self.top5, "loss": self.loss, "images": self.images}
        return facts | ({"images_per_second": round(self.images_per_second, 1)} if speed else {})


@torch.no_grad()
def measure(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Measurement:
    """Score a network, in eval mode, in float32: every image of the batches of all ranks once.

    The network's own training flag is restored. top5 is over at most as many classes as there are.
    """
    started = time.perf_counter()
    training = net.training
    net.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, first, among the first five
    seen, confusion = 0, None
    with full_float32(device):
        for inputs, targets in batches:
            inputs, targets = inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            logits = net(inputs).float()
            classes = logits.shape[1]
            if confusion is None:
                confusion = torch.zeros(classes, classes, dtype=torch.long, device=device)
            ranked = logits.topk(min(5, classes), dim=1).indices  # [N, 5]
            hits = ranked == targets[:, None]
            loss = F.cross_entropy(logits, targets, reduction="sum")
            sums += torch.stack([loss, hits[:, 0].sum(), hits.sum()])
            cells = targets * classes + ranked[:, 0]  # bincount would wait for the device
            confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))
            seen += len(targets)
    net.train(training)
    confusion = _over_ranks(confusion, device)
    totals = torch.cat([sums, sums.new_tensor([seen])])
    loss, first, among, images = ranks.reduce_sum(totals).tolist()
    return Measurement(
        top1=round(100 * first / images, 4),
        top5=round(100 * among / images, 4),
        loss=round(loss / images, 6),
        images=int(images),
        seconds=time.perf_counter() - started,
        confusion=confusion.tolist(),
    )


def _over_ranks(confusion: Tensor | None, device: torch.device) -> Tensor:
    """Return the sum over ranks; one that had no batch does not even know how many classes there are."""
    if confusion is not None and ranks.world() == 1:
        return confusion
    own = torch.tensor([0 if confusion is None else len(confusion), confusion is not None], device=device)
    total, knowing = ranks.reduce_sum(own).tolist()
    classes = total // knowing
    if confusion is None:
        confusion = torch.zeros(classes, classes, dtype=torch.long, device=device)
    return ranks.reduce_sum(confusion)


def worst_confusions(measurement: Measurement, classes: Sequence[str], most: int = 5) -> list[dict]:
    """Return the classes with the lowest accuracy: name, top-1 in per cent, and what they are taken for."""
    rows: list[dict[str, Any]] = []
    for index, counts in enumerate(measurement.confusion):
        total = sum(counts)
        if not total or counts[index] == total:
            continue
        wrong = sorted(
            ((n, i) for i, n in enumerate(counts) if n and i != index), key=lambda pair: (-pair[0], pair[1])
        )
        taken = [{"for": classes[i], "images": n} for n, i in wrong[:3]]
        rows.append({"class": classes[index], "top1": round(100 * counts[index] / total, 2), "taken": taken})
    return sorted(rows, key=lambda row: row["top1"])[:most]
