"""The one place where accuracy is counted, against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from binarize_cli.evaluation import Measurement, measure, worst_confusions

CPU = torch.device("cpu")


class Look(nn.Module):
    """Logits are the input; notes how it was called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append((self.training, torch.is_grad_enabled(), len(x)))
        return x


def by_hand(logits: np.ndarray, targets: np.ndarray):
    """top-1 and top-5 in per cent, the mean cross-entropy and the confusion, image by image."""
    first = among = loss = 0
    confusion = np.zeros((logits.shape[1],) * 2, int)
    for row, target in zip(logits.astype(float), targets, strict=True):
        order = sorted(range(len(row)), key=lambda index: -row[index])
        first += order[0] == target
        among += target in order[:5]
        loss += np.log(np.exp(row - row.max()).sum()) + row.max() - row[target]
        confusion[target, order[0]] += 1
    n = len(targets)
    return 100 * first / n, 100 * among / n, loss / n, confusion.tolist()


@pytest.mark.parametrize(("images", "classes", "batch"), [(23, 12, 8), (17, 5, 17), (7, 3, 2), (1, 2, 4)])
def test_a_measurement_is_the_count_by_hand_whatever_the_batches(images, classes, batch):
    generator = torch.Generator().manual_seed(images)
    logits = 3 * torch.randn(images, classes, generator=generator)
    targets = torch.randint(classes, (images,), generator=generator)
    net = Look()
    found = measure(net, zip(logits.split(batch), targets.split(batch), strict=True), CPU)
    top1, top5, loss, confusion = by_hand(logits.numpy(), targets.numpy())
    assert (found.top1, found.top5) == (round(top1, 4), round(top5, 4))
    assert found.loss == pytest.approx(loss, abs=2e-6)
    assert found.confusion == confusion and found.images == images
    assert [n for _, _, n in net.seen] == [len(part) for part in targets.split(batch)]
    assert classes > 5 or found.top5 == 100


@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_scored_in_eval_mode_without_gradients_and_comes_back_as_it_was(training):
    net = nn.Sequential(nn.Dropout(0.9), Look()).train(training)
    measure(net, [(torch.eye(6), torch.arange(6))], CPU)
    assert net[1].seen == [(False, False, 6)]
    assert net.training is net[0].training is training and torch.is_grad_enabled()


def test_half_precision_logits_are_counted_in_float32():
    logits = torch.tensor([[11.0, 0.0], [0.0, 11.0]]).half()
    found = measure(Look(), [(logits, torch.tensor([0, 0]))], CPU)
    assert found.loss == pytest.approx(np.log1p(np.exp(-11)) + 5.5, abs=1e-6)
    assert (found.top1, found.confusion) == (50, [[1, 1], [0, 0]])


def measurement(confusion, seconds: float = 2.0) -> Measurement:
    return Measurement(50.0, 75.0, 1.25, images=10, seconds=seconds, confusion=confusion)


def test_a_measurement_as_json_leaves_out_the_speed_on_request():
    facts = {"top1": 50.0, "top5": 75.0, "loss": 1.25, "images": 10}
    assert measurement([]).to_json(speed=False) == facts
    assert measurement([]).to_json() == facts | {"images_per_second": 5.0}
    assert measurement([], seconds=0.0).images_per_second == 0


def test_the_worst_classes_come_first_with_what_they_are_taken_for():
    confusion = [
        [4, 0, 0, 0, 0],  # never wrong
        [1, 6, 1, 2, 0],
        [0, 0, 0, 0, 0],  # never seen
        [1, 1, 3, 0, 2],  # always wrong, in four ways
        [0, 0, 0, 1, 1],
    ]
    rows = worst_confusions(measurement(confusion), "abcde")
    assert [(row["class"], row["top1"]) for row in rows] == [("d", 0), ("e", 50), ("b", 60)]
    assert rows[0]["taken"] == [
        {"for": "c", "images": 3},
        {"for": "e", "images": 2},
        {"for": "a", "images": 1},
    ]
    assert [t["for"] for t in rows[2]["taken"]] == ["d", "a", "c"]
    assert worst_confusions(measurement(confusion), "abcde", most=1) == rows[:1]
    assert worst_confusions(measurement([[3, 0], [0, 2]]), "ab") == []
