"""Networks of timm and torchvision go from their name to a packed file, or are refused with the reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import invent_images

from binarize_cli.packed.format import read

pytestmark = pytest.mark.slow

# Network, its binary layers, and the image size that makes it quick (None: it takes its own alone).
PACKED = [
    ("torchvision/resnet18", 19, 64),
    ("torchvision/vit_b_16", 48, 32),
    ("timm/resnet18", 19, 64),
    ("swin_tiny_patch4_window7_224", 51, None),
    ("convnext_atto", 39, 64),
    ("mobilenetv3_small_100", 52, 64),
    ("torchvision/swin_t", 51, 64),
    ("torchvision/mnasnet0_5", 51, 64),
]
FRESH = ["torchvision/mobilenet_v2", "torchvision/shufflenet_v2_x0_5"]  # deep, with BatchNorm
REFUSED = [("torchvision/swin_t", "ShiftedWindowAttention")]  # with binary inputs: there are none to be had


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return invent_images(tmp_path_factory.mktemp("zoo") / "images", classes=2, each=4, side=64)


@pytest.fixture(scope="module")
def table():
    """A line an outcome, printed when all are through; $BNNPP_ZOO names a file to append them to."""
    lines = []
    yield lines
    text = "\n".join(lines)
    print(f"\n{text}")
    if path := os.environ.get("BNNPP_ZOO"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def words(model: str, folder, size: int | None) -> list:
    sized = [] if size is None else ["--img-size", size]
    settings = ["--set", "train.hold_out=0.0", "--workers", 0]
    return [
        "binarize",
        model,
        "--no-pretrained",
        "--data-dir",
        folder,
        "--epochs",
        1,
        "-b",
        4,
        *sized,
        *settings,
    ]


@pytest.mark.parametrize(("model", "binary", "size"), PACKED, ids=[row[0] for row in PACKED])
def test_a_network_goes_from_its_name_to_a_packed_file_that_computes_the_same(
    model, binary, size, bnnpp, folder, empty, table
):
    packed = bnnpp(*words(model, folder, size)).packed
    report = json.loads((packed.parent / "report.json").read_text())
    found = sum(row["bits"] == 1 for row in report["layers"])
    table.append(
        f"{model:30} {found:3} binary layers  {packed.stat().st_size:10,} bytes  ratio {report['ratio']:5.2f}"
        f"  largest difference {report['agreement']['largest_difference']:g}"
    )
    assert report["agreement"] == {
        **{"images": 4, "largest_difference": 0.0, "equal": True},
        **{"same_predictions": 4, "agrees": True},
    }
    assert found == binary and report["ratio"] > 4
    again = json.loads(bnnpp("eval", packed, "--workers", 0, "--json").out)
    assert again["confusion"] == report["confusion"]


@pytest.mark.parametrize("model", FRESH)
def test_from_scratch_binary_inputs_are_calibrated_on_statistics_of_their_own(
    model, bnnpp, folder, empty, table
):
    """A fresh network's statistics are 0 and 1: its inputs shrank to 1e-10, and the first step diverged."""
    packed = bnnpp(*words(model, folder, 64), "--task", "bwa").packed
    scales = {name: t for name, t in read(packed).tensors.items() if name.endswith(".input_scale")}
    least = min(float(scale) for scale in scales.values())
    table.append(f"{model:30} bwa from scratch: the least scale of inputs is {least:.3g}")
    assert least > 0.01


@pytest.mark.parametrize(("model", "reason"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_network_that_reads_its_weights_past_its_layers_is_refused(
    model, reason, bnnpp, folder, empty, table
):
    left = bnnpp(*words(model, folder, None), "--task", "bwa")
    table.append(f"{model:30} refused: {left.err[left.err.index('error: ') :].splitlines()[0]}")
    assert (left.code, left.out) == (2, "") and not list(empty.iterdir())
    assert reason in left.err and "never called" in left.err and "keep_float" in left.err
