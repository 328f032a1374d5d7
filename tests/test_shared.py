"""Real weights on real images: what the tool scores is what others measured. For machines that hold both."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"
SETS = Path("/tmp/sets")  # unpacked once a machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not SHARED.is_dir(), reason="no shared/ beside this checkout: no real weights or images"
    ),
]


def unpacked(name: str) -> Path:
    """The folder of a shared image set; the tool unpacks it where it is not there yet."""
    subprocess.run([SHARED / "tools" / "unpack-data", SETS, name], check=True)
    return SETS / name


# What shared/data/README.md says was measured, in per cent.
MEASURED = [
    ("deit_tiny", "deit_tiny_patch16_224", "imagenette", 98.33),
    ("resnet20", "resnet20_cifar10", "cifar10", 91.73),
    ("resnet56", "resnet56_cifar10", "cifar10", 93.39),
]


@pytest.mark.parametrize(("model", "weights", "dataset", "top1"), MEASURED, ids=[row[0] for row in MEASURED])
def test_the_float_network_scores_what_was_measured_elsewhere(model, weights, dataset, top1, bnnpp, empty):
    file = SHARED / "data" / "weights" / f"{weights}.safetensors"
    words = ("--weights", file, "--data-dir", unpacked(dataset), "--method", "float", "--epochs", 0)
    packed = bnnpp("binarize", model, *words, "--amp", "off", "--batch-size", 200).packed
    report = json.loads((packed.parent / "report.json").read_text())
    assert report["accuracy"]["float"]["top1"] == pytest.approx(top1, abs=0.005)
    assert report["accuracy"]["packed"]["top1"] == pytest.approx(top1, abs=0.2), "float16 is close"
    assert report["agreement"]["equal"] and report["binary_weights"] == 0
