"""The contract of a method: every entry of the registry trains, hardens, packs and is reported."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from binarize_cli.binarize.convert import binary_weights, harden
from binarize_cli.binarize.rounding import round_floats
from binarize_cli.data.digits import open_digits
from binarize_cli.data.loaders import ScoreBatches
from binarize_cli.evaluation import measure
from binarize_cli.models.load import load
from binarize_cli.models.names import resolve
from binarize_cli.quantizers.methods import METHODS

MODELS = ("digits_resnet", "digits_vit")
BINARY = [name for name, method in METHODS.items() if method.binary]
TRAINED = [name for name, method in METHODS.items() if method.trains]


def tensors(net) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.named_parameters()}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", TRAINED)
def test_two_steps_move_every_weight_tensor_and_keep_the_numbers(method, model, make_trainer, tmp_path):
    two_steps = make_trainer(tmp_path, method, model, images=16, warmup=0.0, harden=0.0)
    before = tensors(two_steps.net)
    (start, end) = two_steps.run()
    after = tensors(two_steps.net)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert start.loss is None and 0 < end.loss < 100
    weights = [name for name in before if before[name].dim() > 1]
    still = [name for name in weights if torch.equal(before[name], after[name])]
    assert len(weights) > 10 and not still


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", BINARY)
def test_the_hard_network_is_plus_and_minus_alpha(method, model, make_trainer, tmp_path):
    two_steps = make_trainer(tmp_path, method, model, images=16)
    if METHODS[method].trains:
        two_steps.run()
    two_steps.binary.harden()
    latents = {name: weight.latent.detach().clone() for name, weight in binary_weights(two_steps.net)}
    net = round_floats(harden(two_steps.net), "float16")
    shipped = {name: weight() for name, weight in binary_weights(net)}
    assert shipped.keys() == latents.keys() and shipped
    for name, weight in shipped.items():
        latent = latents[name]
        alpha = latent.abs().flatten(1).mean(1).half().float().view(-1, *[1] * (latent.dim() - 1))
        torch.testing.assert_close(weight.abs(), alpha.expand_as(weight), rtol=1e-6, atol=0)
        assert torch.equal(weight > 0, latent >= 0)
    val = open_digits(None, need_train=False).val.subset(range(0, 360, 36))
    preprocessing = load(resolve(model), pretrained=False).preprocessing
    scored = measure(net, ScoreBatches(val, preprocessing, 10), torch.device("cpu"))
    assert scored.images == 10 and 0 < scored.loss < 100


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("model", MODELS)
def test_half_precision_trains_too_and_leaves_float32_latents(model, amp, make_trainer, tmp_path):
    two_steps = make_trainer(tmp_path, model=model, images=16, amp=amp, warmup=0.0)
    before = tensors(two_steps.net)
    end = two_steps.run()[-1]
    after = tensors(two_steps.net)
    assert 0 < end.loss < 100
    assert all(tensor.dtype == torch.float32 and torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_from_a_folder_of_images_to_a_report_on_the_packed_file(method, tiny, empty, bnnpp):
    words = ("digits_resnet", "--no-pretrained", "--data-dir", tiny, "--epochs", 2, "-b", 4)
    packed = bnnpp("binarize", *words, "--method", method).packed
    report = json.loads((packed.parent / "report.json").read_text())
    assert report["method"] == method and report["model"]["classes"] == ["class0", "class1", "class2"]
    assert report["agreement"]["equal"] and report["agreement"]["largest_difference"] == 0
    accuracy = report["accuracy"]
    if METHODS[method].binary:
        assert accuracy["float"] is None, "random weights are no reference"
        assert abs(accuracy["packed"]["loss"] - accuracy["hard"]["loss"]) < 1e-2, "rounded to float16"
    else:
        assert accuracy["hard"] is None and accuracy["float"]["images"] == accuracy["packed"]["images"] == 18
    assert (report["binary_weights"] > 0) == METHODS[method].binary
    rows = list(csv.DictReader((packed.parent / "log.csv").open()))
    assert [int(row["epoch"]) for row in rows] == ([0, 1, 2] if METHODS[method].trains else [])
