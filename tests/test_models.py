"""The models room: names, weights files, the hub that is not there, labels and heads."""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from conftest import invent_images
from huggingface_hub import constants as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform
from torch import nn

from binarize_cli.errors import InputError
from binarize_cli.models import hub, names
from binarize_cli.models.build import build
from binarize_cli.models.classes import adapt_head
from binarize_cli.models.fit import adapt_keys
from binarize_cli.models.heads import fresh_rows, head_names, keep_rows
from binarize_cli.models.load import Preprocessing, _torchvision_preprocessing, load
from binarize_cli.models.names import ALIASES, OWN, resolve
from binarize_cli.models.weights import read_weights

SHARED = Path(__file__).parents[2] / "shared" / "data" / "weights"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared weights are not on this machine")
IMAGENETTE = (
    *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
    *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
)


# --- names -----------------------------------------------------------------------------------------------


def test_timm_names_are_those_of_timm():
    assert names.timm_names() == set(timm.list_models()) - set(OWN)
    assert not names.timm_names() & {*OWN, *ALIASES}


def test_torchvision_names_are_those_of_torchvision():
    assert names.torchvision_names() == set(torchvision.models.list_models(torchvision.models))


def test_timm_tags_are_those_of_timm_wherever_any_is_written_down():
    for architecture, tags in names.timm_tags().items():
        registered = timm.models._registry._model_with_tags[architecture]
        assert {f"{architecture}.{tag}" for tag in tags} == set(registered) - {architecture}


def test_renamed_models_are_those_of_timm():
    assert names.timm_renamed() == timm.models._registry._deprecated_models


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_an_alias_is_a_model(alias):
    assert timm.is_model(resolve(alias).name)


def test_resolve_knows_aliases_tags_old_names_and_both_libraries():
    assert resolve("deit_tiny").name == "deit_tiny_patch16_224"
    assert resolve("vit_base.augreg_in21k").name == "vit_base_patch16_224.augreg_in21k"
    assert resolve("timm/resnet18.a1_in1k").name == "resnet18.a1_in1k"
    assert resolve("tv_resnet50").name == "resnet50.tv_in1k"
    assert resolve("cifar_resnet20").name == resolve("resnet20").name == "resnet20_cifar"
    assert resolve("torchvision/resnet18").short == "torchvision-resnet18"
    assert resolve("torchvision/resnet18").source == "torchvision"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("deit_tinny", "deit_tiny"),
        ("digits_vti", "digits_vit"),
        ("resnet20_cifra", "resnet20_cifar"),
        ("torchvision/resnet81", "torchvision/resnet18"),
        ("resnet18.a1_in1", "a1_in1k"),
        ("pytorch/resnet18", "torchvision/NAME"),
        ("digits_vit.tag", "no tags"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_right_one(typed, meant):
    with pytest.raises(InputError, match=meant):
        resolve(typed)


def test_names_and_hub_import_nothing_heavy():
    program = (
        "import sys; from binarize_cli.models import hub, names; names.resolve('deit_tiny'); "
        "names.resolve('torchvision/resnet18'); print({'torch', 'timm', 'torchvision'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


# --- our own models --------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018)])
def test_cifar_resnets_hold_the_usual_weights(depth, parameters):
    model = load(resolve(f"resnet{depth}"), weights=SHARED / f"resnet{depth}_cifar10.safetensors")
    assert sum(p.numel() for p in model.net.parameters()) == parameters
    assert model.pretrained and len(model.weights_sha256) == 64
    assert model.classes[0] == "airplane" and model.classes[-1] == "truck"
    assert model.preprocessing.input_size == (3, 32, 32)
    assert model.net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_cifar_resnets_have_their_depth(depth):
    net = build("timm", f"resnet{depth}_cifar", 100)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == depth
    net.reset_classifier(7)
    assert net.get_classifier().out_features == 7


@pytest.mark.parametrize("name", ["digits_vit", "digits_resnet"])
def test_digits_models_are_small(name):
    model = load(resolve(name), pretrained=False)
    assert model.net(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert model.classes == tuple("0123456789")
    assert model.preprocessing.input_size == (1, 8, 8) and model.preprocessing.crop_pct == 1.0
    assert sum(tensor.numel() * 4 for tensor in model.net.state_dict().values()) < 1_000_000


def test_missing_embedded_weights_are_said_to_be_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("binarize_cli.models.load.embedded_weights", lambda name: tmp_path / name)
    with pytest.raises(InputError, match=r"no pretrained weights.*\n.*--weights FILE.*--no-pretrained"):
        load(resolve("digits_vit"))


# --- weights files ---------------------------------------------------------------------------------------


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return build("timm", "digits_resnet", 10).state_dict()


def load_digits(path: Path):
    return load(resolve("digits_resnet"), weights=path)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_wrapped_and_prefixed_weights_load(state, tmp_path, wrapper, prefix):
    prefixed = {prefix + key: tensor for key, tensor in state.items()}
    torch.save({wrapper: prefixed, "epoch": 3} if wrapper else prefixed, tmp_path / "w.pth")
    loaded = load_digits(tmp_path / "w.pth").net.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_half_precision_without_counters_and_another_classifier_name_loads(state, tmp_path):
    halved = {
        key.replace("linear.", "fc."): tensor.half()
        for key, tensor in state.items()
        if not key.endswith("num_batches_tracked")
    }
    save_file(halved, tmp_path / "w.safetensors")
    loaded = load_digits(tmp_path / "w.safetensors").net.state_dict()
    assert loaded["linear.weight"].dtype == torch.float32
    assert torch.equal(loaded["linear.weight"], state["linear.weight"].half().float())


@pytest.mark.parametrize(("name", "auxiliary"), [("googlenet", "aux1"), ("inception_v3", "AuxLogits")])
def test_classifiers_that_only_training_calls_are_left_out(name, auxiliary):
    with torch.device("meta"):
        net = build("torchvision", name, 1000)
        whole = torchvision.models.get_model(name, weights=None, init_weights=False)
    assert any(key.startswith(auxiliary) for key in whole.state_dict())
    assert adapt_keys(whole.state_dict(), net).keys() == net.state_dict().keys()
    assert net.transform_input


def test_old_spellings_of_torchvision_files_are_known():
    with torch.device("meta"):
        net = build("torchvision", "vit_b_32", 1000)
    old = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t
        for key, t in net.state_dict().items()
    }
    assert old.keys() != net.state_dict().keys() == adapt_keys(old, net).keys()


def test_all_misfit_keys_come_in_one_message(state, tmp_path):
    del state["conv1.weight"], state["bn1.bias"]
    state |= {"extra.weight": torch.ones(3), "layer1.0.conv1.weight": torch.ones(16, 16, 5, 5)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        load_digits(tmp_path / "w.safetensors")
    for part in (
        "w.safetensors for digits_resnet",
        "2 missing: conv1.weight, bn1.bias",
        "1 unexpected: extra.weight",
        "1 of the wrong shape: layer1.0.conv1.weight [16, 16, 5, 5] instead of [16, 16, 3, 3]",
    ):
        assert part in str(caught.value)


def test_long_lists_of_keys_are_cut(tmp_path):
    save_file({f"t{i}": torch.ones(1) for i in range(30)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"30 unexpected: t0, .* and 20 more"):
        load_digits(tmp_path / "w.safetensors")


class Payload:
    """Unpickling this would run code."""

    def __reduce__(self):
        return Path.touch, (Path("ran-code"),)


def broken_files(folder: Path, state: dict[str, torch.Tensor]) -> dict[str, Path]:
    """Name -> a file that must be refused."""
    save_file(state, folder / "whole.safetensors")
    torch.save(state, folder / "whole.pth")
    contents = {
        "truncated.safetensors": (folder / "whole.safetensors").read_bytes()[:5000],
        "truncated.pth": (folder / "whole.pth").read_bytes()[:5000],
        "foreign.safetensors": b"GIF89a and no tensors" * 10,
        "foreign.pth": b"hello, this is a text",
        "empty.safetensors": b"",
        "empty.pth": b"",
        "weights.h5": b"another kind",
        "legacy-pickle.pth": pickle.dumps(Payload(), protocol=2),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    torch.save({"state_dict": state, "args": Payload()}, folder / "code.pth")
    torch.save({"state_dict": state, "hooks": nn.ReLU()}, folder / "module.pth")
    torch.save([1, 2, 3], folder / "list.pth")
    torch.save({"epoch": 3, "lr": 0.1}, folder / "no-tensors.pth")
    save_file({"head.weight_bits": torch.zeros(2, 2, dtype=torch.uint8)}, folder / "packed.safetensors")
    made = (
        *contents,
        "code.pth",
        "module.pth",
        "list.pth",
        "no-tensors.pth",
        "packed.safetensors",
        "missing.pth",
    )
    return {name: folder / name for name in made}


def test_every_bad_file_is_refused_by_name_and_runs_no_code(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, path in broken_files(tmp_path, state).items():
        with pytest.raises(InputError) as caught:
            load_digits(path)
        assert name in str(caught.value)
    assert not Path("ran-code").exists()
    with pytest.raises(InputError, match="never runs code"):
        read_weights(tmp_path / "code.pth")
    with pytest.raises(InputError, match="bnnpp eval"):
        read_weights(tmp_path / "packed.safetensors")


# --- the hub ---------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Empty caches, and a proxy that is not there."""
    monkeypatch.setattr(hf, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("typed", ["deit_tiny", "torchvision/resnet18", "gcvit_tiny"])
@pytest.mark.parametrize("attempt", [hub.check_reachable, load])
def test_an_unreachable_hub_fails_soon_and_says_what_to_do(no_network, tmp_path, typed, attempt):
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        attempt(resolve(typed))
    assert time.perf_counter() - start < 8
    for advice in ("--weights FILE", "cache", str(tmp_path), "--no-pretrained"):
        assert advice in str(caught.value)


def test_the_early_check_leaves_alone_what_may_be_cached_or_is_embedded(no_network, tmp_path):
    hub.check_reachable(resolve("digits_vit"))
    (tmp_path / "hf" / "models--timm--resnet18").mkdir(parents=True)
    hub.check_reachable(resolve("resnet18"))


def test_a_silent_server_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.perf_counter()
        assert not hub.answers(f"http://127.0.0.1:{silent.getsockname()[1]}", patience=0.5)
        assert time.perf_counter() - start < 2


def test_cached_weights_need_no_network(no_network, tmp_path):
    weights = build("torchvision", "shufflenet_v2_x0_5", 1000).state_dict()
    url = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url
    cached = hub.torch_cache() / Path(url).name
    cached.parent.mkdir(parents=True)
    torch.save(weights, cached)
    model = load(resolve("torchvision/shufflenet_v2_x0_5"))
    assert torch.equal(model.net.fc.weight, weights["fc.weight"]) and len(model.classes) == 1000

    weights = build("timm", "test_vit", 1000).state_dict()
    repo = tmp_path / "hf" / "models--timm--test_vit.r160_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    (repo / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(weights, repo / "snapshots" / ("0" * 40) / "model.safetensors")
    model = load(resolve("test_vit"))
    assert torch.equal(model.net.head.weight, weights["head.weight"]) and model.pretrained
    assert model.weights == "Hugging Face timm/test_vit.r160_in1k"


def test_a_model_without_pretrained_weights_says_so():
    bare = next(
        name
        for name in sorted(names.timm_names())
        if (config := timm.get_pretrained_cfg(name)) and not config.has_weights and config.num_classes
    )
    with pytest.raises(InputError, match="no pretrained weights"):
        load(resolve(bare))


def test_a_backbone_is_refused():
    with pytest.raises(InputError, match="not a classifier"):
        load(resolve("vit_small_patch14_dinov2"), pretrained=False)


# --- the float model -------------------------------------------------------------------------------------


def test_build_refuses_what_a_model_does_not_take():
    with pytest.raises(InputError, match="img_size"):
        build("timm", "resnet18", 10, img_size=64)
    with pytest.raises(InputError, match="image_size"):
        build("torchvision", "resnet18", 10, image_size=64)
    with pytest.raises(InputError, match="no such model"):
        build("timm", "resnet19", 10)
    with pytest.raises(InputError, match="library"):
        build("keras", "resnet18", 10)


def test_image_size_reaches_network_and_preprocessing():
    model = load(resolve("deit_tiny"), pretrained=False, img_size=64)
    assert model.kwargs == {"img_size": 64} and model.preprocessing.input_size == (3, 64, 64)
    assert model.net(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    convolutional = load(resolve("torchvision/shufflenet_v2_x0_5"), pretrained=False, img_size=64)
    assert convolutional.kwargs == {} and convolutional.preprocessing.input_size == (3, 64, 64)


def test_another_number_of_classes_leaves_the_labels_unknown():
    model = load(resolve("digits_resnet"), pretrained=False, num_classes=4)
    assert (model.num_classes, model.classes) == (4, None)
    assert model.net(torch.zeros(1, 1, 8, 8)).shape == (1, 4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "swin_t", "efficientnet_b0"])
def test_torchvision_preprocessing_is_that_of_its_weights(name):
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    found = _torchvision_preprocessing(name)
    transform = create_transform(
        input_size=found.input_size,
        interpolation=found.interpolation,
        mean=found.mean,
        std=found.std,
        crop_pct=found.crop_pct,
    )
    image = Image.effect_mandelbrot((300, 260), (-2, -1.2, 1, 1.2), 90).convert("RGB")
    assert (transform(image) - preset(image)).abs().max() < 1e-5


def test_preprocessing_survives_json():
    found = load(resolve("digits_vit"), pretrained=False).preprocessing
    assert Preprocessing.from_json(found.to_json()) == found


# --- classes and heads -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deit_tiny():
    if not SHARED.is_dir():
        pytest.skip("the shared weights are not on this machine")
    return SHARED / "deit_tiny_patch16_224.safetensors"


def test_the_subset_head_is_the_rows_of_the_full_head(deit_tiny):
    model = load(resolve("deit_tiny"), weights=deit_tiny)
    assert model.num_classes == 1000 and model.preprocessing.crop_pct == 0.9
    columns = [model.classes.index(name) for name in IMAGENETTE]
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = model.net(images)[:, columns]
        assert adapt_head(model, IMAGENETTE) == "subset"
        torch.testing.assert_close(model.net(images), full, rtol=0, atol=1e-5)
    assert (model.num_classes, model.classes) == (10, IMAGENETTE)
    assert torch.equal(model.net.head.weight, load_file(deit_tiny)["head.weight"][columns])


@needs_shared
def test_a_file_says_by_its_head_how_many_classes_there_are(capsys):
    model = load(resolve("deit_tiny"), weights=SHARED / "deit_tiny_patch16_224_cifar10.safetensors")
    assert (model.num_classes, model.classes) == (10, None)
    assert next(model.net.parameters()).dtype == torch.float32
    assert adapt_head(model, IMAGENETTE) == "kept"
    assert "dataset's order" in capsys.readouterr().err


def test_equal_classes_are_kept_and_foreign_ones_replace_the_head():
    model = load(resolve("digits_resnet"), pretrained=False)
    before = model.net.linear.weight.clone()
    assert adapt_head(model, tuple("0123456789")) == "kept"
    assert torch.equal(model.net.linear.weight, before)
    assert adapt_head(model, ("cat", "dog", "emu")) == "replaced"
    assert model.net.linear.weight.shape == (3, 64) and model.classes == ("cat", "dog", "emu")
    assert 0.01 < model.net.linear.weight.std() < 0.03 and not model.net.linear.bias.any()


HEADS = {
    "test_vit": ["head"],
    "deit_tiny_distilled_patch16_224": ["head", "head_dist"],
    "convnext_atto": ["head.fc"],
    "mobilenetv3_small_050": ["classifier"],
    "levit_128s": ["head.linear", "head_dist.linear"],
    "levit_384_s8": ["head.linear", "head_dist.linear"],
    "resnet20_cifar": ["linear"],
    "torchvision/squeezenet1_1": ["classifier.1"],
    "torchvision/mobilenet_v3_small": ["classifier.3"],
}


@pytest.mark.parametrize("typed", HEADS)
def test_an_adapted_head_is_that_of_a_network_built_so(typed):
    name = resolve(typed)
    model = load(name, pretrained=False)
    net = model.net
    assert head_names(net) == HEADS[typed]
    for head in HEADS[typed]:
        nn.init.normal_(net.get_submodule(head).weight)  # some start as zeros, whose rows are all alike
    images = torch.rand(2, *model.preprocessing.input_size)
    with torch.no_grad():
        logits = net(images)
        keep_rows(net, [7, 2, 5])
        torch.testing.assert_close(net(images), logits[:, [7, 2, 5]], rtol=1e-4, atol=1e-4)
    assert shapes(net) == shapes(build(name.source, name.name, 3))
    fresh_rows(net, 5)
    assert {len(net.get_submodule(head).weight) for head in HEADS[typed]} == {5} and len(net(images)[0]) == 5


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in net.state_dict().items()}


@pytest.mark.parametrize(
    "name", ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "maxvit_t", "mnasnet0_5", "swin_t"]
)
def test_the_head_of_a_torchvision_network_is_found(name):
    with torch.device("meta"):
        net = build("torchvision", name, 17)
    assert [len(net.get_submodule(head).weight) for head in head_names(net)] == [17]


def test_a_network_that_insists_on_versions_is_packed_and_loaded(bnnpp, tmp_path):
    """torchvision's MNASNet loads no state dict that has lost what its modules note beside the tensors."""
    folder = invent_images(tmp_path / "images", classes=2, each=2, side=32)
    words = ["--no-pretrained", "--data-dir", folder, "--img-size", 32, "--epochs", 0, "--workers", 0]
    words += ["--set", "train.hold_out=0.0", "--output", tmp_path / "run"]
    packed = bnnpp("binarize", "torchvision/mnasnet0_5", *words).packed
    assert bnnpp("eval", packed, "--workers", 0).code == 0
