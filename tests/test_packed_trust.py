"""Packed files from strangers: checksums, claims, hostile documents; and golden files that must load."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save

from binarize_cli.data.digits import open_digits
from binarize_cli.data.loaders import ScoreBatches
from binarize_cli.device import place
from binarize_cli.errors import InputError, printable
from binarize_cli.models import hub
from binarize_cli.models.build import build, build_skeleton
from binarize_cli.models.load import Preprocessing
from binarize_cli.packed.contents import contents
from binarize_cli.packed.format import checksum, parse, read, write
from binarize_cli.packed.joined import join, split
from binarize_cli.packed.runtime import rebuild

GOLDEN = Path(__file__).parent / "golden"
LOGITS = json.loads((GOLDEN / "logits.json").read_text())
CPU = torch.device("cpu")
ZEROS = "0" * 64


@dataclass
class Parts:
    """What a packed file is made of, to be changed and put together again."""

    document: dict
    tensors: dict[str, np.ndarray]

    def saved(self, to: Path, text: str | None = None) -> Path:
        """Write it with a checksum that is right: that of a stranger who knows the format."""
        text = json.dumps(self.document | {"sha256": ZEROS}) if text is None else text
        whole = text.replace(ZEROS, checksum(text, self.tensors), 1)
        to.write_bytes(save({n: np.asarray(t, order="C") for n, t in self.tensors.items()}, {"bnnpp": whole}))
        return to


def parts_of(path: Path) -> Parts:
    """What a file holds: its small tensors lie together."""
    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Parts(json.loads(file.metadata()["bnnpp"]), tensors)


def taken_apart(path: Path) -> Parts:
    """The same file with every tensor under its own name, as a file MAY have them."""
    document = {key: value for key, value in parts_of(path).document.items() if key != "joined"}
    return Parts(document, read(path).tensors)


@pytest.fixture(scope="module")
def present(tmp_path_factory):
    """`present(name)`: a golden file of format 1, written again in the present format."""
    folder = tmp_path_factory.mktemp("present")

    def make(name: str) -> Path:
        path = folder / f"{name}.safetensors"
        if not path.exists():
            old = read(GOLDEN / f"format1-{name}.safetensors")
            write(path, old.document, old.tensors)
        return path

    return make


def some_digits(preprocessing) -> torch.Tensor:
    split = open_digits(None, need_train=False).val.subset(range(0, 360, 72))
    rule = Preprocessing.from_json(preprocessing.model_dump())
    return next(iter(ScoreBatches(split, rule, 64, workers=0, device=CPU)))[0]


@torch.no_grad()
def logits(path: Path) -> torch.Tensor:
    file = read(path)
    return place(rebuild(file), CPU)(some_digits(file.document.preprocessing))


# --- golden files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LOGITS))
def test_a_golden_file_gives_the_logits_it_always_gave(name):
    torch.testing.assert_close(logits(GOLDEN / name), torch.tensor(LOGITS[name]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n.removeprefix("format1-") for n in sorted(LOGITS) if "format1" in n])
def test_a_file_of_format_1_means_the_same_in_the_present_format(name, present):
    name = name.removesuffix(".safetensors")
    old, new = read(GOLDEN / f"format1-{name}.safetensors"), read(present(name))
    assert (old.format, new.format) == (1, 2)
    assert contents(old)["layers"] == contents(new)["layers"]
    assert torch.equal(logits(old.path), logits(new.path))
    assert new.total_bytes < old.total_bytes


@torch.no_grad()
def test_the_products_of_convolutions_keep_the_order_of_their_format():
    old, new = (read(GOLDEN / f"format{n}-digits_resnet-bwaa.safetensors") for n in (1, 2))
    assert (old.document.inputs.tiles, new.document.inputs.tiles) == ("channel", "pixel")
    inputs = new.document.inputs.model_copy(update={"tiles": "channel"})
    other = replace(new, document=new.document.model_copy(update={"inputs": inputs}))
    x = some_digits(new.document.preprocessing)
    assert not torch.allclose(rebuild(other)(x), rebuild(new)(x), atol=0.1), "tiles are shifted here"


def test_format_1_is_told_in_the_words_of_the_present_format():
    file = read(GOLDEN / "format1-digits_vit-bwaa-attention.safetensors")
    document = file.document
    assert {"blocks.0.attn.matmuls.qk", "blocks.3.attn.matmuls.av"} <= {row.name for row in document.layers}
    assert "blocks.0.attn.matmuls.qk.left_threshold" in file.tensors
    assert document.inputs.attention == "binary" and document.inputs.overflow == "saturate"
    with safe_open(file.path, framework="np") as raw:
        recorded = json.loads(raw.metadata()["bnnpp"])
    assert {key: document.full_recipe[key] for key in recorded["recipe"]} == recorded["recipe"]
    assert document.accuracy.top1 == recorded["accuracy"]["top1"]


# --- checksums -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["inspect", "eval"])
def test_flipped_signs_are_a_checksum_mismatch(bnnpp, present, tmp_path, command):
    whole = bytearray(present("digits_resnet-bw").read_bytes())
    whole[-1] ^= 255
    (tmp_path / "m.safetensors").write_bytes(whole)
    left = bnnpp(command, tmp_path / "m.safetensors")
    assert left.code == 2 and "checksum mismatch" in left.err and left.out == ""


def test_a_changed_document_is_a_checksum_mismatch(present, tmp_path):
    whole = present("digits_resnet-bw").read_bytes()
    assert whole.count(b"0.304") == 1
    (tmp_path / "m.safetensors").write_bytes(whole.replace(b"0.304", b"0.704"))
    with pytest.raises(InputError, match="checksum mismatch"):
        read(tmp_path / "m.safetensors")


def test_the_checksum_is_over_names_types_sizes_and_bytes():
    tensors = {"a": np.zeros((2, 3), np.float16), "b": np.zeros(6, np.uint8)}
    others = [
        {"c": tensors["a"], "b": tensors["b"]},
        tensors | {"a": tensors["a"].reshape(3, 2)},
        tensors | {"a": np.zeros((2, 3), np.float32)[:, :3].astype(np.float16) + 1},
        tensors | {"b": np.zeros(6, np.int8)},
    ]
    found = {checksum("{}", t) for t in (tensors, *others)} | {checksum("{ }", tensors)}
    assert len(found) == 6
    text = b"{}\na F16 2,3\n" + bytes(12) + b"b U8 6\n" + bytes(6)
    assert checksum("{}", tensors) == hashlib.sha256(text).hexdigest()


def test_another_score_than_the_recorded_one_is_said(bnnpp, present, tmp_path):
    parts = taken_apart(present("digits_resnet-bw"))
    assert "the file says" not in bnnpp("eval", present("digits_resnet-bw")).err
    name = "layer2.0.conv1.weight_bits"
    parts.tensors[name] = ~parts.tensors[name]
    left = bnnpp("eval", parts.saved(tmp_path / "m.safetensors"), "--json")
    found = json.loads(left.out)
    assert left.code == 0 and f"top-1 {found['recorded']['top1']:.2f} on these images" in left.err
    assert found["top1"] != found["recorded"]["top1"]


# --- small tensors lie together --------------------------------------------------------------------------


def test_small_tensors_lie_together_and_mean_the_same_taken_apart(present, tmp_path):
    path = present("digits_vit-bwa")
    stored = parts_of(path)
    assert sorted(stored.tensors) == ["joined.F16", "joined.U8"]
    entry = next(entry for entry in stored.document["joined"] if "blocks.0.attn.qkv" in entry["modules"])
    assert entry["modules"] == [f"blocks.{i}.attn.qkv" for i in range(4)]
    assert entry["tensors"]["U8"] == {"weight_bits": [192, 8]}
    apart = taken_apart(path).saved(tmp_path / "m.safetensors")
    assert len(parts_of(apart).tensors) > 80 and apart.stat().st_size > 1.15 * path.stat().st_size
    assert torch.equal(logits(apart), logits(path))
    write(tmp_path / "again.safetensors", read(apart).document, read(apart).tensors)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_large_tensors_and_empty_ones_keep_their_names():
    tensors = {"a.large": np.zeros(2**14, np.float32), "a.empty": np.zeros((0, 3)), "b": np.ones((), bool)}
    entries, stored = join(tensors)
    assert sorted(stored) == ["a.empty", "a.large", "joined.BOOL"]
    assert entries[0].model_dump() == {"modules": [""], "tensors": {"BOOL": {"b": []}}}
    assert split(stored, entries).keys() == tensors.keys()


DISJOINED = {
    "too few": (lambda entry, file: entry["tensors"]["F16"].popitem(), "is not the"),
    "too many": (lambda entry, file: entry["modules"].append("extra"), "is not the"),
    "twice": (lambda entry, file: entry["modules"].__setitem__(0, entry["modules"][-1]), "is there twice"),
    "missing": (lambda entry, file: file.tensors.pop("joined.F16"), "joined.F16 is not the"),
    "another type": (
        lambda entry, file: file.tensors.update({"joined.F16": file.tensors["joined.F16"].view(np.int16)}),
        "joined.F16 is not the",
    ),
    "an axis of no length": (lambda entry, file: entry["tensors"]["F16"].update(x=[0]), "joined"),
    "an unknown type": (lambda entry, file: entry["tensors"].update(F64={"x": [1]}), "joined"),
    "a name of two lines": (lambda entry, file: entry["modules"].append("a\nb"), "joined"),
    "billions": (
        lambda entry, file: entry.update(modules=["a"] * 2**10, tensors={"F16": {"x": [2**40] * 8}}),
        "is not the",
    ),
    "not named": (lambda entry, file: file.document.pop("joined"), "missing"),
}


@pytest.mark.parametrize("case", DISJOINED)
def test_entries_that_do_not_fit_what_lies_together_are_refused(case, present, tmp_path):
    parts = parts_of(present("digits_resnet-bwa"))
    entry = next(entry for entry in parts.document["joined"] if len(entry["modules"]) > 1)
    change, said = DISJOINED[case]
    change(entry, parts)
    assert said in refused(parts.saved(tmp_path / "m.safetensors"))


# --- every tensor is claimed, and every claim is kept ----------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        rebuild(read(path))
    assert "\n" not in caught.value.what
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("digits_resnet-bwa", "layer1.0.conv1.input_scale"),
        ("digits_resnet-bwa", "layer1.0.conv1.input_threshold"),
        ("digits_resnet-bwa", "layer1.0.conv1.weight_scale"),
        ("digits_resnet-bwa", "layer1.0.act1.slope"),
        ("digits_resnet-bwa", "layer1.0.gain1"),
        ("digits_vit-bwaa-attention", "blocks.1.attn.matmuls.qk.left_threshold"),
        ("digits_vit-bwaa-attention", "blocks.1.attn.matmuls.av.right_scale"),
        ("digits_vit-bwaa-attention", "blocks.1.attn.qkv.bias"),
    ],
)
def test_a_missing_tensor_is_named(present, tmp_path, model, name):
    parts = taken_apart(present(model))
    del parts.tensors[name]
    said = refused(parts.saved(tmp_path / "m.safetensors"))
    assert name in said and "is missing" in said


@pytest.mark.parametrize(
    "name", ["layer9.input_scale", "conv1.input_scale", "layer1.0.conv1.left_scale", "extra", "bn1.scale"]
)
def test_a_tensor_that_nothing_uses_is_named(present, tmp_path, name):
    parts = taken_apart(present("digits_resnet-bwa"))
    parts.tensors[name] = np.ones((), np.float32)
    assert name in refused(parts.saved(tmp_path / "m.safetensors"))


@pytest.mark.parametrize("row", ["layer1.0.conv1", "conv1", "linear"])
def test_a_missing_row_is_named(present, tmp_path, row):
    parts = taken_apart(present("digits_resnet-bwa"))
    parts.document["layers"] = [r for r in parts.document["layers"] if r["name"] != row]
    assert row in refused(parts.saved(tmp_path / "m.safetensors"))


CHANGES = {
    "input": (None, "its input is not signs"),
    "shape": ([16, 16, 3, 4], "weight"),
    "shift": (3, "shift belongs"),
    "name": ("layer7", "layer7"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_row_that_claims_something_else_is_named(present, tmp_path, key):
    parts = taken_apart(present("digits_resnet-bwa"))
    row = next(r for r in parts.document["layers"] if r["name"] == "layer1.0.conv1")
    value, said = CHANGES[key]
    row.pop(key, None)
    row |= {} if value is None else {key: value}
    assert said in refused(parts.saved(tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("layer1.0.conv1.weight_scale", np.full(16, np.nan, np.float16)),
        ("layer1.0.conv1.weight_scale", np.ones(16, np.int32)),
        ("layer1.0.conv1.weight_scale", np.ones(15, np.float16)),
        ("layer1.0.conv1.weight_scale", np.ones(16, np.float64)),
        ("layer1.0.conv1.input_threshold", np.ones(15, np.float16)),
        ("layer1.0.conv1.weight_bits", np.zeros((16, 18), np.int8)),
        ("bn1.running_var", np.full(16, np.inf, np.float32)),
        ("bn1.running_var", np.ones(16, np.int64)),
        ("linear.bias", np.ones((10, 1), np.float16)),
    ],
)
def test_a_tensor_of_another_type_shape_or_range_is_named(present, tmp_path, name, tensor):
    parts = taken_apart(present("digits_resnet-bwa"))
    parts.tensors[name] = tensor
    assert name in refused(parts.saved(tmp_path / "m.safetensors"))


def test_set_bits_behind_the_last_weight_are_refused(tmp_path, present):
    parts = taken_apart(present("digits_resnet-bw"))
    row = next(r for r in parts.document["layers"] if r["name"] == "layer1.0.conv1")
    row["shape"] = [16, 143, 1, 1]  # as many bytes as 16 x 3 x 3, one bit less
    bits = np.full((16, 18), 255, np.uint8)
    parts.tensors["layer1.0.conv1.weight_bits"] = bits
    with pytest.raises(InputError, match="behind the last weight"):
        read(parts.saved(tmp_path / "m.safetensors"))


# --- hostile documents -----------------------------------------------------------------------------------

HOSTILE = {
    "kwargs that load a file": ({"model.kwargs": {"checkpoint_path": "evil.pth"}}, "checkpoint_path"),
    "kwargs of another kind": ({"model.kwargs": {"depth": 10**6}}, "depth"),
    "a size that is no number": ({"model.kwargs": {"img_size": "8"}}, "img_size"),
    "many classes": ({"model.num_classes": 10**7}, "num_classes"),
    "another library": ({"model.source": "os"}, "model.source"),
    "a hub": ({"model.name": "hf-hub:a/b"}, "model.name"),
    "a segmentation model": ({"model.source": "torchvision", "model.name": "fcn_resnet50"}, "no such model"),
    "another large model": ({"model.name": "vit_giant_patch14_dinov2"}, "does not fit the model"),
    "a large regnet": ({"model.source": "torchvision", "model.name": "regnet_y_128gf"}, "does not fit"),
    "huge images": ({"preprocessing.input_size": [1, 100_000, 100_000]}, "input_size"),
    "std 0": ({"preprocessing.std": [0.0]}, "std"),
    "negative std": ({"preprocessing.std": [-1.0]}, "std"),
    "crop 0": ({"preprocessing.crop_pct": 0.0}, "crop_pct"),
    "channels": ({"preprocessing.mean": [0.1, 0.2, 0.3]}, "preprocessing"),
    "an unknown key": ({"surprise": 1}, "surprise"),
    "a name of two lines": ({"method": "bnn++\nerror: all is well"}, "method"),
    "accuracy": ({"accuracy.top1": 123.0}, "accuracy.top1"),
    "task": ({"task": "bwaa"}, "overflow"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_document_is_refused_fast_and_in_one_line(case, present, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "answers", lambda *args, **kwargs: pytest.fail("asked the network"))
    parts = taken_apart(present("digits_resnet-bwa"))
    changes, said = HOSTILE[case]
    for path, value in changes.items():
        *parents, last = path.split(".")
        section = parts.document
        for parent in parents:
            section = section[parent]
        section[last] = value
    started = time.perf_counter()
    assert said in refused(parts.saved(tmp_path / "m.safetensors"))
    assert time.perf_counter() - started < 20, "no gigabytes are allocated"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        '{"format": NaN}',
        '{"format": 2, "format": 2}',
        "1" * 9999,
        '{"format": true}',
        '{"format": 1e999}',
        '{"format": 2, "method": "\\ud800"}',
    ],
)
def test_a_document_that_is_no_document_is_refused(present, tmp_path, text):
    parts = taken_apart(present("digits_resnet-bw"))
    with pytest.raises(InputError, match=r"damaged|format|checksum"):
        read(parts.saved(tmp_path / "m.safetensors", text=text))


def test_nesting_is_counted_outside_strings():
    assert parse('{"a": "[[[[[[[[[[[[[[[[[[[[[[[\\"[[["}', "here")["a"].startswith("[[[")


@pytest.mark.parametrize(
    "data",
    [
        {"dataset": "torch/places365"},
        {"dataset": "torch/image_folder", "data_dir": "/etc"},
        {"dataset": "cifar10", "data_dir": "/nowhere"},
        {"dataset": "hfds/a/b"},
        {"data_dir": "/etc"},
        {},
    ],
)
def test_a_recorded_dataset_is_never_downloaded_nor_opened_by_a_library(
    data, bnnpp, present, tmp_path, monkeypatch
):
    def no_network(*_, **__):
        pytest.fail("asked the network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("socket.socket.connect", no_network)
    parts = taken_apart(present("digits_resnet-bw"))
    parts.document["data"] = data | {"fingerprint": "f" * 64}
    left = bnnpp("eval", parts.saved(tmp_path / "m.safetensors"))
    assert left.code == 2 and left.out == "" and "Downloading" not in left.err
    assert "never downloaded" in left.err and left.err.count("error: ") == 1


def test_names_are_printed_without_control_characters(bnnpp, present, tmp_path):
    parts = taken_apart(present("digits_resnet-bw"))
    parts.document["data"] = {
        "data_dir": "a\n\x1b[31mb\ud800".encode("utf-8", "replace").decode(),
        "fingerprint": "f" * 64,
    }
    path = parts.saved(tmp_path / "m.safetensors")
    for words in (("inspect", path), ("eval", path)):
        left = bnnpp(*words)
        assert "\x1b[31m" not in left.out + left.err and "a\\n\\x1b[31mb" in left.out + left.err
    assert printable("a\n\x1b\ud800é") == "a\\n\\x1b\\ud800é"


# --- the architecture without memory ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "name"),
    [("timm", "digits_vit"), ("timm", "swin_tiny_patch4_window7_224"), ("torchvision", "regnet_x_400mf")],
)
def test_a_skeleton_has_the_names_and_shapes_of_the_network_and_no_memory(source, name):
    skeleton, net = build_skeleton(source, name, 7), build(source, name, 7)
    shapes = {key: (t.shape, t.dtype) for key, t in net.state_dict().items()}
    assert {key: (t.shape, t.dtype) for key, t in skeleton.state_dict().items()} == shapes
    assert all(parameter.is_meta for parameter in skeleton.parameters())
