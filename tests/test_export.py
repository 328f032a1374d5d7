"""Exports: what they write, that their own library computes the same with it, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from binarize_cli.binarize.accumulator import AccumulatorRule, Window
from binarize_cli.errors import BnnppError, InputError
from binarize_cli.export.held import hold
from binarize_cli.export.onnx_file import read_onnx
from binarize_cli.export.onnx_layers import FloatSums, dress, table_of_bytes
from binarize_cli.packed.bits import pack
from binarize_cli.packed.format import read
from binarize_cli.packed.integer_accumulator import IntegerAccumulator
from binarize_cli.packed.runtime import rebuild

onnx = pytest.importorskip("onnx", reason="the extra bnnpp[onnx] is not installed")

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str, to: Path) -> Path:
    """A copy of a golden file in a folder that may be written to."""
    return Path(shutil.copy(GOLDEN / f"format1-{name}.safetensors", to / "model.safetensors"))


@pytest.mark.parametrize("model", ["digits_vit", "digits_resnet"])
def test_timm_loads_the_dense_weights_and_computes_the_same(bnnpp, tmp_path, model):
    file = golden(f"{model}-bw", tmp_path)
    left = bnnpp("export", file, "--to", "timm")
    out = tmp_path / "model.timm.safetensors"
    assert left.packed == out and "top-1 the same on 32 of 32 (images of digits)" in left.err
    assert f"timm.create_model('{model}', num_classes=10, checkpoint_path=" in left.err
    net = timm.create_model(model, num_classes=10, checkpoint_path=str(out)).eval()
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x), rebuild(read(file))(x), rtol=1e-5, atol=1e-5)
    assert set(load_file(out)) == set(net.state_dict())


@pytest.mark.parametrize("model", ["torchvision/vit_b_16", "torchvision/swin_t"])
def test_torchvision_has_its_own_names_back(model):
    from binarize_cli.binarize.prepare import make_binary, rewrite_and_choose
    from binarize_cli.export.dense import dense_state
    from binarize_cli.models.heads import head_names
    from binarize_cli.recipe import Recipe

    name = model.removeprefix("torchvision/")
    import torchvision

    def build() -> nn.Module:
        small = {"vit_b_16": (torchvision.models.VisionTransformer, (32, 16, 2, 2, 24, 48))}
        if name in small:
            kind, sizes = small[name]
            return kind(*sizes, num_classes=5).eval()
        return torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [7, 7], num_classes=5).eval()

    recipe, example = Recipe(method="ptq"), torch.rand(2, 3, 32, 32)
    net, table = rewrite_and_choose(build(), example, recipe, head_names(build()))
    hard = make_binary(net, table, recipe, []).frozen().eval()
    plain = build()
    plain.load_state_dict(dense_state(hard))
    torch.testing.assert_close(plain(example), hard(example), rtol=1e-4, atol=1e-5)


def test_a_small_onnx_file_agrees_scores_and_says_what_it_is(bnnpp, tmp_path):
    file = golden("digits_vit-bw", tmp_path)
    out = bnnpp("export", file, "--to", "onnx", "-o", tmp_path / "net.onnx").packed
    model = onnx.load(str(out))
    facts = {each.key: each.value for each in model.metadata_props}
    document = read(file).document
    assert json.loads(facts["classes"]) == document.model.classes
    assert json.loads(facts["mean"]) == list(document.preprocessing.mean)
    assert {each.domain for each in model.opset_import} <= {"", "ai.onnx"}, "standard operators only"
    assert not any(node.domain or node.doc_string or len(node.metadata_props) for node in model.graph.node)
    dense = sum(tensor.numel() for tensor in rebuild(read(file)).state_dict().values()) * 4
    assert out.stat().st_size < 3 * file.stat().st_size < dense + 800_000
    for size in (1, 5):  # the batch is free
        x = torch.rand(size, 1, 8, 8)
        torch.testing.assert_close(read_onnx(out).network()(x), rebuild(read(file))(x), rtol=1e-4, atol=1e-4)
    scores = [json.loads(bnnpp("eval", each, "--json").out) for each in (file, out)]
    assert scores[0]["top1"] == scores[1]["top1"] and scores[1]["images"] == 360


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits_vit-bw", ("--to", "onnx", "--activations", "int8")),
        ("digits_vit-bw", ("--to", "qonnx")),
        ("digits_resnet-bw", ("--to", "onnx")),
        ("digits_resnet-bwa", ("--to", "onnx")),
        ("digits_resnet-bwa", ("--to", "qonnx")),
        ("digits_vit-bwa", ("--to", "onnx")),
        ("digits_vit-bwaa", ("--to", "onnx")),
        ("digits_vit-bwaa-attention", ("--to", "onnx")),
    ],
)
def test_every_onnx_export_scores_as_its_packed_file(bnnpp, tmp_path, name, words):
    file = golden(name, tmp_path)
    left = bnnpp("export", file, *words)
    expected, found = (json.loads(bnnpp("eval", each, "--json").out) for each in (file, left.packed))
    assert abs(expected["top1"] - found["top1"]) <= (1 if "int8" in words else 0.3)
    if "qonnx" in words:
        nodes = {node.op_type for node in onnx.load(str(left.packed)).graph.node}
        assert "BipolarQuant" in nodes


# --- layers ----------------------------------------------------------------------------------------------


def test_the_table_of_bytes_is_the_order_of_the_file():
    signs = torch.randint(0, 2, (3, 21), generator=torch.Generator().manual_seed(0)).float() * 2 - 1
    bits = torch.from_numpy(pack(signs.numpy()))
    assert torch.equal(table_of_bytes()[bits.int()].flatten(1)[:, :21], signs)


@pytest.mark.parametrize("overflow", ["saturate", "wrap"])
@pytest.mark.parametrize("shift", [0, 2])
def test_sums_without_branches_are_those_of_the_integer_accumulator(overflow, shift):
    draw = torch.Generator().manual_seed(1)

    def signs(*shape: int) -> torch.Tensor:
        return (torch.rand(shape, generator=draw) < 0.8).float() * 2 - 1  # mostly +1: sums overflow

    rule = AccumulatorRule(overflow, shift)
    ours, theirs = FloatSums(rule), IntegerAccumulator(rule)
    rows, weights = signs(4, 5, 700), signs(6, 700)
    assert torch.equal(ours.linear(rows, weights), theirs.linear(rows, weights))
    window = Window((3, 3), (2, 1), (1, 1), 2)
    images, kernels = signs(2, 96, 8, 8), signs(10, 48, 3, 3)
    assert torch.equal(ours.conv(images, kernels, window), theirs.conv(images, kernels, window))
    left, right = signs(2, 3, 7, 130), signs(2, 3, 9, 130)
    assert torch.equal(ours.matmul(left, right), theirs.matmul(left, right))


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "format1-digits_resnet-bwa",
        "format2-digits_resnet-bwaa",
        "format2-digits_vit-bwaa",
        "format2-digits_vit-bwaa-attention",
    ],
)
def test_the_layers_to_trace_compute_what_the_file_does(name):
    file = read(GOLDEN / f"{name}.safetensors")
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dress(rebuild(file), "float")(x), rebuild(file)(x), rtol=1e-4, atol=1e-4)


# --- what does not agree, and what is refused ------------------------------------------------------------


class Answer(nn.Module):
    """Always the same logits, with something added."""

    def __init__(self, extra: float):
        super().__init__()
        self.extra = extra

    def forward(self, x):
        return torch.eye(10)[: len(x)] * 5 + self.extra * torch.eye(10).roll(1, 1)[: len(x)]


def test_a_difference_that_matters_is_an_error():
    images = torch.zeros(8, 1)
    same = hold(Answer(0), Answer(1e-4), images, "images of digits", exact=True)
    assert same.same_top1 == 8 and 0 < same.largest_difference < 1e-3
    with pytest.raises(BnnppError, match=r"does not compute .* difference of logits 0\.1"):
        hold(Answer(0), Answer(0.1), images, "images of digits", exact=True)
    hold(Answer(0), Answer(0.1), images, "images of digits", exact=False)
    with pytest.raises(BnnppError, match="0 of 8"):
        hold(Answer(0), Answer(9), images, "images of digits", exact=False)


def test_an_export_that_computes_something_else_leaves_no_file(bnnpp, tmp_path, monkeypatch):
    from binarize_cli.export import dense

    file = golden("digits_resnet-bw", tmp_path)
    real = dense.dense_state
    negated = lambda net: {n: -t if n == "linear.weight" else t for n, t in real(net).items()}  # noqa: E731
    monkeypatch.setattr(dense, "dense_state", negated)
    left = bnnpp("export", file, "--to", "timm")
    assert left.code == 1 and "does not compute what the packed file does" in left.err and left.out == ""
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("digits_resnet-bwa", ("--to", "timm"), "task bwa has binary inputs"),
        ("digits_resnet-bwa", ("--to", "onnx", "--activations", "int8"), "inputs of one bit"),
        ("digits_resnet-bw", ("--to", "onnx", "--activations", "int8"), "no binary linear layer"),
        ("digits_resnet-bwaa", ("--to", "onnx"), "format 1 have another order"),
        ("digits_vit-bwaa", ("--to", "qonnx"), "no node for sums in int8"),
        ("digits_vit-bw", ("--to", "tflite"), "no choice is named 'tflite'"),
        ("digits_vit-bw", ("--to", "timm", "--activations", "int8"), "goes with --to onnx"),
        ("digits_vit-bw", ("--to", "timm", "-o", "model.safetensors"), "would replace the packed file"),
        ("digits_vit-bw", ("--to", "timm", "-o", "there"), "there: is there already"),
        ("digits_vit-bw", (), "Missing option '--to'"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_the_reason(bnnpp, empty, name, words, said):
    golden(name, empty)
    (empty / "there").write_text("mine")
    left = bnnpp("export", "model.safetensors", *words)
    assert left.code == 2 and said in left.err and left.out == "" and "Traceback" not in left.err
    assert sorted(each.name for each in empty.iterdir()) == ["model.safetensors", "there"]


def test_without_the_extra_one_message_says_so(bnnpp, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    left = bnnpp("export", golden("digits_vit-bw", tmp_path), "--to", "onnx")
    assert left.code == 2 and "onnxruntime is not installed" in left.err
    assert "pip install 'bnnpp[onnx]'" in left.err


def test_foreign_onnx_files_are_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="cannot be read"):
        read_onnx(tmp_path / "a.onnx")
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "b.onnx"))
    with pytest.raises(InputError, match="not one of bnnpp"):
        read_onnx(tmp_path / "b.onnx")
    with pytest.raises(InputError, match="no such file"):
        read_onnx(tmp_path / "c.onnx")
