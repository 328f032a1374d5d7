"""What the report shows of training from within: flips a layer, latents near zero, inputs, changed images."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from binarize_cli.binarize.activations import SignInput
from binarize_cli.binarize.distributions import histogram, input_distributions, latent_distributions
from binarize_cli.models.classes import described
from binarize_cli.models.load import Preprocessing
from binarize_cli.report.changed import as_image, changed_images


def test_a_histogram_is_symmetric_and_keeps_what_lies_beyond():
    found = histogram(torch.tensor([0.0, -100.0, 100.0, 100.0, 1.0, -1.0]))
    counts = found["histogram"]
    assert counts[len(counts) // 2] == 1 and (counts[0], counts[-1]) == (1, 2) and sum(counts) == 6
    assert np.flatnonzero(counts).sum() == 5 * (len(counts) // 2), "1 and -1 mirror each other"


def test_inputs_are_counted_around_the_thresholds_of_their_channels():
    net = nn.Sequential(SignInput((-1,), torch.tensor([0.0, 10.0]), torch.ones(())))
    images = torch.tensor([[1.0, 9.0], [2.0, 11.0], [3.0, 12.0], [-1.0, 9.0]])
    (row,) = input_distributions(net, images)
    assert row["name"] == "0" and row["plus"] == 5 / 8 and sum(row["histogram"]) == 8
    assert row["constant"] == 0
    assert input_distributions(nn.Linear(2, 2), images) == []


@pytest.mark.parametrize("axes, share", [((1,), 1 / 3), ((-1,), 1 / 2), ((1, -1), 1 / 2)])
def test_channels_that_never_change_sign_are_counted(axes, share):
    values = torch.ones(2, 3, 4, 2)  # along axis 1 the third channel is always +1, along axis -1 the second
    values[0, 0, 1, 0] = values[1, 1, 2, 0] = -1
    if axes == (1, -1):
        values[0, 2, 0, 0] = -1
    net = nn.Sequential(SignInput(axes, None, torch.ones(())))
    assert input_distributions(net, values)[0]["constant"] == pytest.approx(share, abs=1e-5)


def test_a_report_holds_what_training_and_scoring_saw(bnnpp, empty, tiny):
    words = ("--task", "bwa", "--data-dir", tiny, "--no-pretrained", "--epochs", 2, "-b", 4, "-o", "run")
    done = bnnpp("binarize", "digits_resnet", *words)
    report = json.loads((done.packed.parent / "report.json").read_text())
    binary = [row["name"] for row in report["layers"] if row["bits"] == 1]
    assert report["flips"]["layers"] == binary and report["flips"]["first_epoch"] == 1
    assert all(len(shares) == 2 for shares in report["flips"]["shares"])
    weights = np.array([row["weights"] for row in report["latents"]])
    ratios = [row["flip_ratio"] for row in report["epochs"][1:]]
    assert np.allclose(weights @ np.array(report["flips"]["shares"]) / weights.sum(), ratios, atol=1e-5)
    assert [row["name"] for row in report["latents"]] == [row["name"] for row in report["inputs"]] == binary
    assert all(sum(row["histogram"]) == row["weights"] for row in report["latents"])
    assert report["changed"] == [] and "layer_flips" not in report["epochs"][1]
    page = (done.packed.parent / "report.html").read_text()
    for title in ("Where signs still move", "Inputs and their thresholds", "Latent weights at the end"):
        assert title in page
    assert len((done.packed.parent / "log.csv").read_text().splitlines()) == 4


def test_images_whose_answer_changed_are_shown_if_asked_for(bnnpp, empty):
    words = ("--dataset", "digits", "--method", "ptq", "--show-images", "-o", "run")
    done = bnnpp("binarize", "digits_resnet", *words)
    report = json.loads((done.packed.parent / "report.json").read_text())
    assert 6 < len(report["changed"]) <= 12
    assert all(row["true"] != row["packed"] for row in report["changed"])
    page = (done.packed.parent / "report.html").read_text()
    assert len(re.findall(r'<img src="data:image/png', page)) == len(report["changed"])
    assert len(page) < 300 * 1024


def test_an_input_is_shown_as_it_was_before_it_was_normalised():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    preprocessing = Preprocessing((3, 4, 4), "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.1), 1.0, "center")
    mean, std = (np.array(each, np.float32) for each in (preprocessing.mean, preprocessing.std))
    tensor = torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32)).permute(2, 0, 1)
    assert np.array_equal(np.asarray(as_image(tensor, preprocessing)), pixels)


class Says(nn.Module):
    """A network that always says the same class."""

    def __init__(self, answer: int):
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(torch.full((len(x),), self.answer), 3).float()


def test_only_what_went_from_right_to_wrong_has_changed_as_many_of_each_class():
    batches = [(torch.zeros(4, 1, 4, 4), torch.tensor([0, 1, 0, 2]))] * 3
    one = Preprocessing((1, 4, 4), "bicubic", (0.5,), (0.5,), 1.0, "center")
    cpu = torch.device("cpu")
    found = changed_images(Says(0), Says(1), batches, ("a", "b", "c"), one, cpu, most=5)
    assert [(row["true"], row["packed"]) for row in found] == [("a", "b")] * 2, "5 of 3 classes: 2 of each"
    assert changed_images(Says(0), Says(0), batches, ("a", "b", "c"), one, cpu) == []


def test_labels_of_imagenet_are_read_as_words():
    assert described(["n01440764", "n03417042", "tench", "0"]) == ["tench", "garbage truck", "tench", "0"]


def test_latents_of_a_float_network_are_none():
    assert latent_distributions(nn.Linear(3, 3)) == []
