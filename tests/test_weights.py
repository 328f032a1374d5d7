"""Weights from strangers and from elsewhere: what cannot be used is named, what timm saves is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from binarize_cli.errors import InputError
from binarize_cli.models import hub
from binarize_cli.models.build import build
from binarize_cli.models.classes import adapt_head
from binarize_cli.models.load import load
from binarize_cli.models.names import resolve
from binarize_cli.models.weights import read_weights
from binarize_cli.recipe import Preprocess


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return build("timm", "digits_resnet", 10).state_dict()


def saved(content, folder: Path, name: str = "w.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


# --- item 10, 15, 16: what a file may hold ----------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_named_with_their_tensor(state, tmp_path, value):
    state["layer2.0.bn1.running_var"][3] = value
    with pytest.raises(InputError, match=r"NaN or infinite.*: layer2\.0\.bn1\.running_var$"):
        read_weights(saved(state, tmp_path))


def test_a_double_that_float32_cannot_hold_is_named(state, tmp_path):
    state["conv1.weight"] = state["conv1.weight"].double() * 1e300
    with pytest.raises(InputError, match=r"infinite in float32: conv1\.weight"):
        read_weights(saved(state, tmp_path))


def test_nan_in_weights_is_exit_2_and_leaves_no_file(bnnpp, state, tmp_path):
    state["conv1.weight"][0] = float("nan")
    words = ("--weights", saved(state, tmp_path), "--dataset", "digits", "--output", tmp_path / "run")
    outcome = bnnpp("binarize", "digits_resnet", *words)
    assert outcome.code == 2 and "conv1.weight" in outcome.err
    assert not (tmp_path / "run").exists()


STRANGE = {
    "sparse": lambda t: t.to_sparse(),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "complex": lambda t: t.to(torch.complex64),
    "meta": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_tensors_that_are_no_plain_numbers_are_named(state, tmp_path, kind):
    state["conv1.weight"] = STRANGE[kind](state["conv1.weight"])
    with pytest.raises(InputError, match=rf"{kind}.*: conv1\.weight|no file of PyTorch weights"):
        read_weights(saved(state, tmp_path))


def test_integer_keys_are_no_names(state, tmp_path):
    with pytest.raises(InputError, match="keys that are no names: 7"):
        read_weights(saved({**state, 7: torch.ones(1)}, tmp_path))


def test_a_dictionary_that_contains_itself_is_no_hang(tmp_path):
    loop: dict = {}
    loop["model"] = {"state_dict": loop}
    with pytest.raises(InputError, match=r"no.* state dict"):
        read_weights(saved(loop, tmp_path))


def test_a_head_without_rows_is_a_misfit(state, tmp_path):
    state["linear.weight"] = torch.tensor(1.0)
    with pytest.raises(InputError, match=r"wrong shape: linear\.weight \[\] instead of"):
        load(resolve("digits_resnet"), weights=saved(state, tmp_path))


@pytest.mark.parametrize("name", ["x" * 300 + ".pth", "a\0b.pth", "w.pth/below"])
def test_names_that_no_file_can_have_are_refused(state, tmp_path, name):
    saved(state, tmp_path)
    with pytest.raises(InputError):
        read_weights(tmp_path / name)


# --- item 14: what is accepted ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".th", ".pt", ".pth.tar"])
def test_every_usual_suffix_is_read(state, tmp_path, suffix):
    assert read_weights(saved(state, tmp_path, f"w{suffix}")).keys() == state.keys()


@pytest.mark.parametrize("wrapper", ["model_ema", "state_dict_ema"])
def test_averaged_weights_go_before_the_others(state, tmp_path, capsys, wrapper):
    averaged = {f"module.{key}": tensor * 0 for key, tensor in state.items()}
    found = read_weights(saved({"model": state, wrapper: averaged}, tmp_path))
    assert not found["conv1.weight"].any()
    assert f"{wrapper}, the averaged weights, is read" in capsys.readouterr().err


@pytest.fixture
def saved_vit(tmp_path) -> Path:
    """A folder as timm saves it, with four classes and a preprocessing of its own."""
    net = timm.create_model("test_vit", num_classes=4)
    net.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "crop_pct": 0.5, "label_names": ["a", "b", "c", "d"]}
    save_for_hf(net, tmp_path / "vit", model_config={"label_names": ["a", "b", "c", "d"]})
    return tmp_path / "vit"


def test_a_folder_that_timm_saved_is_a_model(saved_vit):
    name = resolve(f"local-dir:{saved_vit}")
    assert (name.name.partition(".")[0], name.short) == ("test_vit", "vit")
    model = load(name)
    assert (model.num_classes, model.classes, model.weights) == (4, ("a", "b", "c", "d"), "folder vit")
    assert model.preprocessing.mean == (0.1, 0.2, 0.3) and model.preprocessing.crop_pct == 0.5
    same = load(resolve("test_vit"), weights=saved_vit)
    assert same.classes == model.classes and same.weights_sha256 == model.weights_sha256
    with pytest.raises(InputError, match="weights of test_vit, not of test_resnet"):
        load(resolve("test_resnet"), weights=saved_vit)


def test_a_repository_in_the_cache_is_a_model(saved_vit, monkeypatch, tmp_path):
    monkeypatch.setattr(hub.hf, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    repo = tmp_path / "hf" / "models--me--mine"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    (repo / "snapshots").mkdir()
    saved_vit.rename(repo / "snapshots" / ("0" * 40))
    name = resolve("hf-hub:me/mine")
    model = load(name)
    assert (name.short, model.weights, model.num_classes) == ("mine", "Hugging Face me/mine", 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": None}, "names no architecture"),
        ({"architecture": "../../etc"}, "names no architecture"),
        ({"architecture": "no_such_net"}, "no model 'no_such_net'"),
        ({"num_classes": "ten"}, "num_classes"),
        ({"label_names": [1, 2]}, "label_names"),
        ({"model_args": {"checkpoint_path": "evil.pth"}}, "model_args cannot be used: checkpoint_path"),
        ({"model_args": {"global_pool": "max"}}, "global_pool is 'max'"),
        ({"pretrained_cfg": []}, "pretrained_cfg is not a mapping"),
        ({"pretrained_cfg": {"mean": ["x"]}}, "mean"),
        ({"pretrained_cfg": {"std": [0, 0, 0]}}, "std"),
        ({"pretrained_cfg": {"std": [1.0]}}, "1 numbers, but the input has 3 channels"),
        ({"pretrained_cfg": {"crop_pct": 0}}, "crop_pct"),
        ({"pretrained_cfg": {"input_size": [3, 10**6, 4]}}, "input_size"),
        ({"pretrained_cfg": {"input_size": [3]}}, "input_size"),
        ({"pretrained_cfg": {"crop_mode": ["center"]}}, "crop_mode"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(saved_vit, change, said):
    config = json.loads((saved_vit / "config.json").read_text())
    (saved_vit / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=said):
        load(resolve(f"local-dir:{saved_vit}"))


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_no_json_is_refused(saved_vit, content):
    (saved_vit / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json"):
        resolve(f"local-dir:{saved_vit}")


@pytest.mark.parametrize(
    "place", ["local-dir:/nowhere", "local-dir:~nosuchuser/x", "hf-hub:../../etc", "hf-hub:x"]
)
def test_a_place_that_is_none_is_refused(place):
    with pytest.raises(InputError) as left:
        resolve(place)
    assert place.partition(":")[2] in str(left.value)


def test_position_embeddings_are_resampled_for_another_image_size(tmp_path, capsys):
    net = timm.create_model("test_vit", img_size=160)
    path = tmp_path / "w.safetensors"
    save_file(net.state_dict(), path)
    model = load(resolve("test_vit"), weights=path, img_size=96)
    assert model.net.pos_embed.shape == (1, 37, 64)
    assert "resampled to the input size: pos_embed" in capsys.readouterr().err


def test_preprocessing_can_be_set():
    found = load(resolve("digits_vit"), pretrained=False).preprocessing
    wanted = Preprocess(mean=[0.5], interpolation="nearest")
    assert found.overridden(wanted).mean == (0.5,)
    assert found.overridden(wanted).std == found.std
    with pytest.raises(InputError, match=r"preprocess\.std"):
        found.overridden(Preprocess(std=[0.5, 0.5, 0.5]))


# --- item 11: heads ---------------------------------------------------------------------------------------


def test_another_number_of_classes_does_not_drop_a_trained_head():
    with pytest.raises(InputError, match=r"10 classes, not 7\n.*--head replace"):
        load(resolve("digits_resnet"), num_classes=7)
    assert load(resolve("digits_resnet"), num_classes=7, new_head=True).num_classes == 7
    assert load(resolve("digits_resnet"), pretrained=False, num_classes=7).num_classes == 7


def test_a_file_with_unknown_labels_does_not_lose_its_head(state, tmp_path):
    state["linear.weight"], state["linear.bias"] = torch.ones(5, 64), torch.zeros(5)
    path = saved(state, tmp_path)
    with pytest.raises(InputError, match=r"labels of its 5 classes are unknown, and 3 are needed"):
        adapt_head(load(resolve("digits_resnet"), weights=path), ("a", "b", "c"))
    assert adapt_head(load(resolve("digits_resnet"), weights=path), ("a", "b", "c"), "replace") == "replaced"


def test_the_head_can_be_chosen():
    model = load(resolve("digits_resnet"))
    weight = model.net.linear.weight.clone()
    assert adapt_head(model, ("3", "1"), "keep") == "kept"
    assert model.num_classes == 10 and torch.equal(model.net.linear.weight, weight)
    with pytest.raises(InputError, match=r"--head subset: 1 of the dataset's 2 classes .*: cat"):
        adapt_head(model, ("3", "cat"), "subset")
    assert adapt_head(model, ("3", "1"), "subset") == "subset"
    assert torch.equal(model.net.linear.weight, weight[[3, 1]])
    assert adapt_head(model, ("3", "1"), "replace") == "replaced"
