"""Bits, the file format, the account of a file, and the network rebuilt from it."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save
from safetensors.torch import save_file
from torchvision.models import VisionTransformer

import bnnpp
from binarize_cli.binarize.convert import binary_weights, harden
from binarize_cli.binarize.int8 import from_int8, has_rows, to_int8
from binarize_cli.binarize.prepare import make_binary, rewrite_and_choose
from binarize_cli.binarize.rounding import round_floats
from binarize_cli.device import place
from binarize_cli.errors import InputError
from binarize_cli.files import atomic, write_text
from binarize_cli.models.build import build
from binarize_cli.models.heads import head_names
from binarize_cli.packed.agreement import compare_logits
from binarize_cli.packed.bits import pack, unpack
from binarize_cli.packed.codes import is_row, row_of
from binarize_cli.packed.contents import contents
from binarize_cli.packed.export import narrowest, packed_tensors
from binarize_cli.packed.format import PackedFile, read, validated, write
from binarize_cli.packed.runtime import rebuild
from binarize_cli.packed.schema import Document
from binarize_cli.recipe import Recipe

# --- bits ------------------------------------------------------------------------------------------------


def reference_bytes(channel) -> list[int]:
    """+-1 of one output channel as the format packs them: 8 to a byte, least significant first, padding 0."""
    bits = [sign > 0 for sign in np.ravel(channel)]
    return [sum(bit << i for i, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8)]


SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 40)),
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
)


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.integers(0, 2**32 - 1))
def test_any_signs_survive_packing_into_the_bytes_of_the_design(shape, seed):
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=shape)
    bits = pack(signs)
    assert bits.dtype == np.uint8 and bits.shape == (shape[0], math.ceil(math.prod(shape[1:]) / 8))
    assert bits.tolist() == [reference_bytes(channel) for channel in signs]
    back = unpack(bits, shape)
    assert back.dtype == np.int8 and np.array_equal(back, signs)


def test_the_order_of_bits_is_the_documented_one():
    signs = np.array([[+1, -1, -1, -1, -1, -1, -1, -1, +1, +1], [-1, +1, -1, -1, -1, -1, -1, +1, -1, -1]])
    assert pack(signs).tolist() == [[0b0000_0001, 0b11], [0b1000_0010, 0]]
    assert pack(signs.astype(np.float32)).tolist() == pack(signs).tolist()


def test_the_layout_in_memory_does_not_matter():
    signs = torch.randn(4, 3, 3, 3).sign().to(torch.int8)
    other = signs.contiguous(memory_format=torch.channels_last)
    assert other.stride() != signs.stride() and np.array_equal(pack(other.numpy()), pack(signs.numpy()))


# --- the file --------------------------------------------------------------------------------------------


def a_tree(name: str, rows=(), source: str = "timm", classes: int = 10, **kwargs) -> dict:
    """The document of a file, as JSON has it, without a run to tell of."""
    versions = dict.fromkeys(("bnnpp", "torch", "torchvision", "timm", "python"), "1.0")
    return {
        "format": 2,
        "model": {
            "source": source,
            "name": name,
            "classes": [f"für – 位 {i}" for i in range(classes)],
            "kwargs": kwargs,
        },
        "preprocessing": {
            "input_size": [1, 8, 8],
            "interpolation": "bilinear",
            "mean": [0.5],
            "std": [0.5],
            "crop_pct": 1.0,
            "crop_mode": "center",
        },
        "method": "bnn++",
        "task": "bw",
        "layers": [row_of(layer) for row in rows if is_row(layer := row.to_json())] or [ROW],
        "recipe": {"train": {"lr": 1.0}},
        "data": {"dataset": "digits", "fingerprint": "f" * 64},
        "provenance": versions | {"device": "cpu", "precision": "float32", "steps": 3, "weights": "random"},
    }


def a_document(*words, **more) -> Document:
    return validated(a_tree(*words, **more), "here")


ROW = {"name": "b", "shape": [2, 20], "macs": 40}
DOCUMENT = a_document("digits_resnet")
TENSORS = {
    "b.weight_bits": np.array([[1, 2, 3], [4, 5, 15]], np.uint8),
    "b.weight_scale": np.array([0.5, 0.25], np.float16),
    "a.count": np.array(7, np.int64),  # 0-d
    "a.norm": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3).T,  # not in C order
}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "run" / "model.safetensors"


def beside(path: Path) -> list[str]:
    """The names in the folder of a file."""
    return [entry.name for entry in path.parent.iterdir()]


def test_what_is_written_is_what_is_read(path):
    write(path, DOCUMENT, TENSORS)
    file = read(path)
    assert file.document.model_copy(update={"sha256": "0" * 64}) == DOCUMENT
    assert file.total_bytes == path.stat().st_size
    assert file.tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert (file.tensors[name].dtype, file.tensors[name].shape) == (expected.dtype, expected.shape)
        assert np.array_equal(file.tensors[name], expected)
    stored = load_file(path)  # any reader of safetensors will do
    assert stored["joined.U8"].tolist() == [1, 2, 3, 4, 5, 15] and stored["joined.I64"].tolist() == [7]


def test_the_same_content_is_the_same_bytes_in_whatever_order(path):
    write(path, DOCUMENT, TENSORS)
    before = path.read_bytes()
    again = validated(dict(reversed(a_tree("digits_resnet").items())), "here")
    write(path, again, dict(reversed(TENSORS.items())))
    assert path.read_bytes() == before


@pytest.mark.parametrize(("out", "K"), [(1, 1), (7, 8), (5, 9), (64, 576)])
def test_bits_take_one_byte_for_eight_weights_of_a_channel(path, out, K):
    document = validated(a_tree("digits_resnet") | {"layers": [{"name": "x", "shape": [out, K]}]}, "here")
    scale = {"x.weight_scale": np.ones(out, np.float16)}
    write(path, document, scale | {"x.weight_bits": pack(np.ones((out, K), np.int8))})
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == 8 + header + out * math.ceil(K / 8) + 2 * out


# --- whole or not at all ---------------------------------------------------------------------------------


def test_a_failure_in_the_middle_keeps_what_was_there_and_leaves_nothing_else(path):
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic(path) as file:
        file.write(b"half of the new")
        file.flush()
        raise ZeroDivisionError
    assert path.read_text() == "old" and beside(path) == [path.name]
    write_text(path, "new")
    assert path.read_text() == "new" and beside(path) == [path.name]


def test_a_reader_sees_the_old_content_or_the_new_never_a_part(path):
    write_text(path, "old")
    with path.open() as before:
        with atomic(path) as file:
            file.write(b"new")
            file.flush()
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert before.read() == "old"  # a new file took its place; the old one was not written into


@pytest.mark.parametrize(("code", "advice"), [(errno.ENOSPC, "--resume"), (errno.EIO, "--output")])
def test_a_full_disk_is_told_and_keeps_what_was_there(path, monkeypatch, code, advice):
    write(path, DOCUMENT, TENSORS)
    before = path.read_bytes()

    def fail(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match=f"cannot be written: {os.strerror(code)}") as caught:
        write(path, DOCUMENT, TENSORS)
    assert advice in str(caught.value) and str(path) in str(caught.value)
    assert path.read_bytes() == before and beside(path) == [path.name]


@pytest.mark.parametrize("name", ["file/model.safetensors", "file/run/model.safetensors", "a" * 300, "."])
def test_a_place_that_cannot_be_written_is_told(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / name, DOCUMENT, TENSORS)
    assert beside(tmp_path / "file") == ["file"]


# --- files that cannot be read ---------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "none.safetensors")
    assert "a folder, not a file" in refused(tmp_path)


def test_a_file_cut_anywhere_is_refused(path):
    write(path, DOCUMENT, TENSORS)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "truncated" in refused(path)
    path.write_bytes(whole)
    assert read(path).document.model == DOCUMENT.model


@pytest.mark.parametrize("content", [b"GIF89a and no tensors" * 10, b"\x80\x02}q\x00.", b"\xff" * 64])
def test_another_kind_of_file_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert "no safetensors file at all" in refused(path)


def test_foreign_safetensors_are_refused_with_what_they_are_good_for(tmp_path):
    path = tmp_path / "float.safetensors"
    for metadata in (None, {"format": "pt"}):
        path.write_bytes(save({"w": np.ones(2)}, metadata))
        message = refused(path)
        assert "not a packed file of bnnpp" in message and "--weights FILE" in message


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", '"x"', "3", "{}", '{"method": "bc"}', '{"format": 1}']
)
def test_a_damaged_document_is_refused(tmp_path, text):
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"w": np.ones(2)}, {"bnnpp": text}))
    with pytest.raises(InputError, match="document is damaged"):
        contents(read(path))


def test_a_newer_format_is_refused_by_its_number(path):
    path.parent.mkdir()
    path.write_bytes(save(TENSORS, {"bnnpp": json.dumps(a_tree("digits_resnet") | {"format": 3})}))
    message = refused(path)
    assert "format 3" in message and "reads formats 1 to 2" in message and "Update bnnpp" in message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_tensor_of_a_type_numpy_lacks_is_refused(tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(2).to(dtype)}, path, {"bnnpp": json.dumps(a_tree("digits_resnet"))})
    refused(path)


# --- a network in a file ---------------------------------------------------------------------------------

MODELS = ("digits_resnet", "digits_vit")
CPU = torch.device("cpu")
IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def a_float_network(name: str) -> torch.nn.Module:
    """Random weights, and BatchNorm statistics that are not those of a fresh network."""
    torch.manual_seed(0)
    net = build("timm", name, 10)
    for parameter in net.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    net(torch.randn(16, 1, 8, 8))
    return net.eval()


def hard_network(net: torch.nn.Module, example: torch.Tensor, float_dtype="float16", **rules):
    """The network as it ships, and its table of layers."""
    recipe = Recipe.model_validate(rules)
    net, rows = rewrite_and_choose(net, example, recipe, head_names(net))
    make_binary(net, rows, recipe)
    return place(round_floats(harden(net), float_dtype), CPU), rows


@pytest.fixture(scope="module", params=MODELS)
def shipped(request, tmp_path_factory):
    """(the float network, the hard one, its packed file)."""
    net = a_float_network(request.param)
    hard, rows = hard_network(copy.deepcopy(net), IMAGES)
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    write(path, a_document(request.param, rows), packed_tensors(hard))
    return net, hard, read(path)


@torch.no_grad()
def test_the_rebuilt_network_computes_the_hard_networks_logits_to_the_bit(shipped):
    net, hard, file = shipped
    loaded = place(rebuild(file), CPU)
    assert not loaded.training and torch.equal(loaded(IMAGES), hard(IMAGES))
    assert not torch.allclose(loaded(IMAGES), net(IMAGES), atol=1e-3)
    found = compare_logits(hard, loaded, IMAGES)
    assert (found.images, found.largest_difference, found.equal) == (5, 0, True)


MODES = {
    "bw": ("bw", {}, {}),
    "bwa": ("bwa", {}, {}),
    "bwa, padded with +1": ("bwa", {"padding": "plus"}, {}),
    "bwa, padded with -1": ("bwa", {"padding": "minus"}, {}),
    "bwa, blocks as they are": ("bwa", {"blocks": "keep"}, {}),
    "bwa, bare signs": ("bwa", {"threshold": "none", "scale": "none"}, {}),
    "bwa, binary attention": ("bwa", {"attention": "binary"}, {}),
    "bwaa": ("bwaa", {}, {}),
    "bwaa, saturated": ("bwaa", {"padding": "minus"}, {"shift": 0}),
    "bwaa, wrapped": ("bwaa", {}, {"overflow": "wrap", "shift": 1}),
    "bwaa, blocks as they are": ("bwaa", {"blocks": "keep"}, {"shift": 3}),
    "bwaa, binary attention": ("bwaa", {"attention": "binary"}, {"shift": 2}),
    "bwaa, binary attention, wrapped": ("bwaa", {"attention": "binary"}, {"overflow": "wrap", "shift": 0}),
}
OF_TRANSFORMERS, OF_CONVOLUTIONS = ("attention",), ("padded", "blocks")


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (name, mode)
        for name in MODELS
        for mode in MODES
        if not any(word in mode for word in (OF_TRANSFORMERS if "resnet" in name else OF_CONVOLUTIONS))
    ],
)
@torch.no_grad()
def test_a_file_of_any_mode_computes_the_hard_networks_logits_to_the_bit(tmp_path, name, mode):
    task, activation, accumulator = MODES[mode]
    rule = {"task": task}
    if task != "bw":
        rule["activation"] = activation
    if task == "bwaa":
        rule["accumulator"] = accumulator
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    made = bnnpp.binarize(a_float_network(name), images[:2], rule, images[:32])
    for parameter in made.net.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    hard = made.frozen().eval()
    loaded = bnnpp.load_into(a_float_network(name), bnnpp.save(made, tmp_path / "m"))
    x = images - 0.5
    assert torch.equal(loaded(x), hard(x)) and torch.equal(loaded(x[:1]), hard(x[:1]))


def test_the_file_holds_one_bit_for_each_binary_weight_and_the_rest_by_its_name(shipped):
    net, hard, file = shipped
    names = [name for name, _ in binary_weights(hard)]
    state, tensors = net.state_dict(), file.tensors
    assert len(names) == (12 if "layer1.0.conv1" in names else 16)
    for name in names:
        weight = state.pop(f"{name}.weight").numpy()
        assert tensors[f"{name}.weight_bits"].tolist() == [
            reference_bytes(c) for c in np.where(weight < 0, -1, 1)
        ]
        scale = np.abs(weight).reshape(len(weight), -1).mean(1)
        np.testing.assert_allclose(tensors[f"{name}.weight_scale"], scale, rtol=1e-3)
    marks = (".weight_bits", ".weight_scale")
    state = {n: t for n, t in state.items() if not n.endswith(".num_batches_tracked")}
    assert {name for name in tensors if not name.endswith(marks)} == set(state)
    assert all(tensors[n].dtype == np.float16 for n, t in state.items() if t.is_floating_point())


def test_every_byte_of_the_file_has_an_owner(shipped):
    net, hard, file = shipped
    account = contents(file)
    sizes = account["bytes"]
    assert sizes["total"] == file.path.stat().st_size
    assert sum(sizes[part] for part in ("binary", "scales", "float", "metadata")) == sizes["total"]
    assert sum(row["bytes"] for row in account["layers"]) == sizes["total"] - sizes["metadata"]
    header = int.from_bytes(file.path.read_bytes()[:8], "little")
    assert sizes["metadata"] == 8 + header
    weights = [weight.signs for _, weight in binary_weights(hard)]
    assert account["binary_weights"] == sum(w.numel() for w in weights)
    assert sizes["binary"] == sum(len(w) * math.ceil(w[0].numel() / 8) for w in weights)
    assert sizes["scales"] == sum(2 * len(w) for w in weights)
    state = net.state_dict().values()
    float32 = sum(t.nbytes for t in state if t.is_floating_point())
    assert account["float32_bytes"] == float32, "the counters of BatchNorm are not stored"
    assert account["ratio"] == pytest.approx(float32 / sizes["total"], abs=0.005)
    assert {row["name"] for row in account["layers"] if row["bits"] == 1} == {
        n for n, _ in binary_weights(hard)
    }
    assert {row["bits"] for row in account["layers"]} == {1, 16}


def test_the_account_of_a_file_needs_no_torch(shipped):
    program = (
        "import sys; from pathlib import Path;"
        "from binarize_cli.packed.contents import contents; from binarize_cli.packed.format import read;"
        f"print(contents(read(Path({str(shipped[2].path)!r})))['bytes']['total']);"
        "sys.exit(' '.join({'torch', 'timm', 'torchvision'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{shipped[2].total_bytes}\n"), done.stderr


@torch.no_grad()
def test_a_transformer_of_torchvision_with_its_attention_split_comes_back(path, monkeypatch):
    def small(*_, **kwargs):
        torch.manual_seed(0)
        return VisionTransformer(patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, **kwargs)

    for how in ("build", "build_skeleton"):
        monkeypatch.setattr(f"binarize_cli.packed.runtime.{how}", small)
    images, net = torch.randn(2, 3, 32, 32), small(image_size=32).eval()
    float32 = sum(tensor.nbytes for tensor in net.state_dict().values())
    hard, rows = hard_network(net, images)
    write(path, a_document("vit", rows, "torchvision", 1000, image_size=32), packed_tensors(hard))
    file = read(path)
    assert torch.equal(place(rebuild(file), CPU)(images), hard(images))
    account = contents(file)
    assert account["float32_bytes"] == float32
    assert sum(row["bytes"] for row in account["layers"]) == file.total_bytes - account["bytes"]["metadata"]
    bits = {row["name"]: row["bits"] for row in account["layers"]}
    attention = "encoder.layers.encoder_layer_1.self_attention"
    assert (bits[f"{attention}.in_proj"], bits[f"{attention}.out_proj"], bits["class_token"]) == (1, 1, 16)


@pytest.mark.parametrize("scale", ["layer", "learned", "none"])
@pytest.mark.parametrize("float_dtype", ["float16", "float32"])
@torch.no_grad()
def test_every_rule_for_scales_and_either_float_type_ships(tmp_path, scale, float_dtype):
    net, rule = a_float_network("digits_resnet"), {"quantizer": {"scale": scale}}
    hard, rows = hard_network(net, IMAGES, float_dtype, **rule)
    write(tmp_path / "m", a_document("digits_resnet", rows), packed_tensors(hard))
    assert torch.equal(place(rebuild(read(tmp_path / "m")), CPU)(IMAGES), hard(IMAGES))
    bits = {row["bits"] for row in contents(read(tmp_path / "m"))["layers"]}
    assert 32 in bits if float_dtype == "float32" else bits == {1, 16}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_binary_layer_of_one_input_channel_computes_the_same_to_the_bit(tmp_path, name):
    hard, rows = hard_network(a_float_network(name), IMAGES, layers={"keep_float": []})
    write(tmp_path / "m", a_document(name, rows), packed_tensors(hard))
    file = read(tmp_path / "m")
    assert {"conv1.weight_bits", "patch_embed.proj.weight_bits"} & set(file.tensors)
    assert torch.equal(place(rebuild(file), CPU)(IMAGES), hard(IMAGES))


def test_float16_is_chosen_only_where_it_loses_nothing():
    exact, inexact = torch.tensor([0.5, -3.0]), torch.tensor([0.1])
    assert narrowest(exact).dtype == np.float16 and narrowest(inexact).dtype == np.float32
    assert narrowest(torch.tensor([1e6])).dtype == np.float32
    assert narrowest(torch.tensor(3)).dtype == np.int64 and narrowest(torch.tensor(0.5)).shape == ()


# --- a file that does not fit its model ------------------------------------------------------------------


def damaged(file: PackedFile, **changes) -> PackedFile:
    """The file with tensors changed, or left out where the change is None."""
    tensors = file.tensors | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return replace(file, tensors={name: t for name, t in tensors.items() if t is not None})


def binary_name(file: PackedFile) -> str:
    return next(name for name in sorted(file.tensors) if name.endswith(".weight_bits")).removesuffix("_bits")


@pytest.mark.parametrize("mark", ["_bits", "_scale"])
def test_a_missing_or_misshapen_binary_tensor_is_refused_by_name(shipped, mark):
    file = shipped[2]
    name = binary_name(file) + mark
    for wrong in (None, file.tensors[name][:-1], file.tensors[name][..., None]):
        with pytest.raises(InputError, match="does not fit the model digits_") as caught:
            rebuild(damaged(file, **{name: wrong}))
        assert binary_name(file).removesuffix(".weight") in str(caught.value)
        assert str(file.path) in str(caught.value)


def test_a_misshapen_scale_is_told_by_its_own_shape(shipped):
    name = binary_name(shipped[2]) + "_scale"
    with pytest.raises(InputError, match="scale"):
        rebuild(damaged(shipped[2], **{name: shipped[2].tensors[name][:-1]}))


@pytest.mark.parametrize("dtype", [np.int8, np.float16])
def test_bits_of_another_type_are_refused(shipped, dtype):
    name = binary_name(shipped[2]) + "_bits"
    with pytest.raises(InputError, match="does not fit the model"):
        rebuild(damaged(shipped[2], **{name: shipped[2].tensors[name].astype(dtype)}))


def test_missing_extra_and_misshapen_float_tensors_are_refused_by_name(shipped):
    file = shipped[2]
    bias = next(name for name in ("linear.bias", "head.bias") if name in file.tensors)
    one = np.ones(1, np.float16)
    for name, wrong in ((bias, None), (bias, one), ("zzz.bias", one), ("zzz", one)):
        with pytest.raises(InputError, match=name):
            rebuild(damaged(file, **{name: wrong}))


@pytest.mark.parametrize("layer", ["zzz", "norm", "bn1"])
def test_bits_of_a_layer_that_is_not_there_are_refused(shipped, layer):
    one = {f"{layer}.weight_bits": np.ones((1, 1), np.uint8), f"{layer}.weight_scale": np.ones(1, np.float16)}
    with pytest.raises(InputError, match="does not fit the model"):
        rebuild(damaged(shipped[2], **one))


def test_a_model_that_the_library_lacks_is_refused(shipped):
    model = shipped[2].document.model.model_copy(update={"name": "digits_mlp"})
    document = shipped[2].document.model_copy(update={"model": model})
    with pytest.raises(InputError, match="has no such model"):
        rebuild(replace(shipped[2], document=document))


# --- agreement -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_file_that_computes_something_else_does_not_agree(shipped):
    _, hard, file = shipped
    flipped = binary_name(file) + "_bits"
    other = rebuild(damaged(file, **{flipped: file.tensors[flipped] ^ 1}))
    found = compare_logits(hard, other, IMAGES)
    assert not found.agrees and "logits differ from the hard network's by up to" in str(found)


class Shifted(torch.nn.Module):
    def __init__(self, by: float):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x + self.by


def test_agreement_allows_for_rounding_alone():
    images = torch.tensor([[1.0, -4.0]])
    found = compare_logits(Shifted(0), Shifted(1e-5), images)
    assert found.to_json() == {
        "images": 1,
        "largest_difference": pytest.approx(1e-5, abs=3e-7),
        "equal": False,
        "same_predictions": 1,
        "agrees": True,
    }
    for by in (1e-3, float("nan"), float("inf")):
        assert not compare_logits(Shifted(0), Shifted(by), images).agrees


def test_with_binary_inputs_predictions_decide_since_a_last_bit_may_turn_a_sign():
    images = torch.eye(100) * 4
    assert not compare_logits(Shifted(0), Shifted(0.5), images).agrees
    assert compare_logits(Shifted(0), Shifted(0.5), images, binary_inputs=True).agrees
    assert not compare_logits(Shifted(0), Shifted(float("nan")), images, binary_inputs=True).agrees
    other = torch.nn.ReLU()
    found = compare_logits(Shifted(0), torch.nn.Sequential(other, Turned()), images, binary_inputs=True)
    assert not found.agrees and found.same_predictions == 0


class Turned(torch.nn.Module):
    def forward(self, x):
        return x.roll(1, 1)


# --- int8 ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(3, 5), (1, 4, 6), (2, 1, 3, 3), (1, 1, 2, 7)]),
    st.integers(-12, 12),
    st.integers(0, 2**32 - 1),
)
def test_int8_codes_are_near_and_give_themselves_again(shape, exponent, seed):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    codes, scale = to_int8(tensor)
    assert codes.dtype == torch.int8 and codes.shape == tensor.shape and int(codes.min()) >= -127
    assert len(scale) == next(size for size in shape if size > 1)
    there = from_int8(codes, scale)
    step = tensor.abs().reshape(len(scale), -1).amax(1) / 127
    assert ((there - tensor).abs().reshape(len(scale), -1) <= 0.51 * step[:, None]).all()
    again, same = to_int8(there)
    assert torch.equal(again, codes) and torch.equal(same, scale)


def test_vectors_and_scales_stay_float():
    assert (
        has_rows(torch.ones(10, 64)) and has_rows(torch.ones(1, 16, 64)) and has_rows(torch.ones(8, 1, 3, 3))
    )
    assert not has_rows(torch.ones(64)) and not has_rows(torch.ones(1, 1, 64))
    assert not has_rows(torch.ones(4, 1, 1)) and not has_rows(torch.ones(3, 4, dtype=torch.long))
    zeros = to_int8(torch.zeros(2, 3))
    assert torch.equal(from_int8(*zeros), torch.zeros(2, 3))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_an_int8_remainder_ships_smaller_and_computes_the_hard_networks_logits(tmp_path, name):
    net = a_float_network(name)
    hard, rows = hard_network(copy.deepcopy(net), IMAGES, "int8")
    half, _ = hard_network(net, IMAGES)
    write(tmp_path / "8", a_document(name, rows), packed_tensors(hard, "int8"))
    write(tmp_path / "16", a_document(name, rows), packed_tensors(half))
    file = read(tmp_path / "8")
    assert torch.equal(place(rebuild(file), CPU)(IMAGES), hard(IMAGES))
    torch.testing.assert_close(hard(IMAGES), half(IMAGES), rtol=0.1, atol=0.1)
    account = contents(file)
    assert {row["bits"] for row in account["layers"]} == {1, 8, 16}
    small, large = account["bytes"], contents(read(tmp_path / "16"))["bytes"]
    assert small["float"] + small["scales"] < large["float"] + large["scales"]
    assert account["float32_bytes"] == contents(read(tmp_path / "16"))["float32_bytes"]
    assert account["bound"] == small["total"] - small["metadata"]
    vectors = [n for n, t in file.tensors.items() if n.endswith((".bias", "norm.weight", "_mean"))]
    assert vectors and all(file.tensors[n].dtype != np.int8 for n in vectors)
    codes = next(n for n, t in file.tensors.items() if t.dtype == np.int8)
    with pytest.raises(InputError, match=f"{codes}_row_scale"):
        rebuild(damaged(file, **{f"{codes}_row_scale": None}))


@pytest.mark.parametrize(
    ("model", "side", "float_dtype", "kib", "over_bound"),
    [("resnet20_cifar", 32, "float16", 48, 1.15), ("deit_tiny_patch16_224", 224, "int8", 0.92 * 1024, 1.02)],
)
def test_a_small_file_is_little_more_than_its_bits_scales_and_floats(
    tmp_path, model, side, float_dtype, kib, over_bound
):
    hard, rows = hard_network(build("timm", model, 10), torch.zeros(1, 3, side, side), float_dtype)
    tree = a_tree(model, rows)
    tree["preprocessing"] |= {"input_size": [3, side, side]}
    write(tmp_path / "m", validated(tree, "here"), packed_tensors(hard, float_dtype))
    account = contents(read(tmp_path / "m"))
    assert account["bytes"]["total"] <= kib * 1024 and account["over_bound"] <= over_bound
    assert account["bytes"]["metadata"] < 8 * 1024
