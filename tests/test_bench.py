"""What training and scoring cost: `bnnpp bench`, and that a compiled network is compiled once."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from binarize_cli.bench.time_by_kind import time_by_kind
from binarize_cli.bench.training import PARTS
from binarize_cli.binarize.fused import formulas
from binarize_cli.device import compiled
from binarize_cli.models.build import build
from binarize_cli.training.optimizer import make_optimizer


def test_a_training_step_is_measured_beside_that_of_the_float_model(bnnpp, empty):
    words = ("bench", "train", "digits_vit", "--dataset", "digits", "-b", 8, "--steps", 2)
    done = bnnpp(*words, "--tasks", "bw,bwa,bwaa", "--set", "train.accumulate=2", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    for kind in ("float", "bw", "bwa", "bwaa"):
        if kind != "float":
            expected = facts[kind]["step"] / facts["float"]["step"]
            assert facts["ratios"][kind]["time"] == pytest.approx(expected)
        parts = facts[kind]["parts"]
        assert set(parts) == set(PARTS) and facts[kind]["step"] > 0
        assert all(parts[name] > 0 for name in ("data", "forward", "backward", "optimizer"))
        assert facts[kind]["memory"] is None or facts[kind]["memory"] > 1
    assert facts["float"]["parts"]["quantizers"] == 0 < facts["bw"]["parts"]["quantizers"]
    assert not list(empty.iterdir()), "it leaves nothing"
    shown = bnnpp(*words).out
    assert "quantizers" in shown and "bw" in shown and "bwa" not in shown


def test_a_packed_file_is_measured_beside_its_float_model(bnnpp, tiny, tmp_path):
    flags = ("--task", "bwa", "--data-dir", tiny, "--epochs", 0, "--no-pretrained", "-o", tmp_path / "run")
    file = bnnpp("binarize", "digits_resnet", *flags).packed
    words = ("bench", "score", file, "--rounds", 2, "-b", 4)
    (row,) = json.loads(bnnpp(*words, "--json").out)["rows"]
    assert (row["model"], row["task"]) == ("digits_resnet", "bwa")
    assert row["ratio"] == pytest.approx(row["packed"] / row["float"]) and row["packed"] > 0
    sizes = row["bytes"]
    assert sizes["signs_in_memory"] <= 1.5 * sizes["signs_in_file"], (
        "whole words hold 16 channels of 3x3 taps"
    )
    shares = row["of_packed"]
    assert sum(shares.values()) == pytest.approx(100) and shares.pop("float attention") == 0
    assert all(share > 0 for share in shares.values())
    shown = bnnpp(*words, "--threads", "1,2")
    assert shown.out.count("digits_resnet") == 5, "two rows of speed and of time, one of memory"
    assert bnnpp("bench", "score", tmp_path / "none.safetensors").code == 2
    for wrong in (("--threads", "0"), ("-b", "4,x"), ("-b", "1,4", "--into-report")):
        left = bnnpp("bench", "score", file, *wrong)
        assert left.code == 2 and wrong[-1 if wrong[-1].startswith("--") else 0].strip("-")[0] in left.err


def test_the_time_of_float_attention_is_told_apart():
    net = build("timm", "digits_vit", 10)
    before = F.scaled_dot_product_attention
    shares = time_by_kind(net, torch.rand(2, 1, 8, 8))
    assert shares["float attention"] > 0 and shares["float layers"] > 0 == shares["packing"]
    assert F.scaled_dot_product_attention is before


def test_bench_refuses_as_binarize_does(bnnpp, empty):
    left = bnnpp("bench", "train", "digits_vit", "--set", "train.accumulate=0")
    assert left.code == 2 and "train.accumulate" in left.err
    left = bnnpp("bench", "train", "digits_vit", "--tasks", "bw,bwaaa")
    assert left.code == 2 and "--tasks" in left.err and "'bwaa'" in left.err
    left = bnnpp("bench", "train", "digits_vitt")
    assert left.code == 2 and "digits_vit" in left.err


@torch.no_grad()
def as_compiled(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What a network computes by operators alone: our kernels, which round otherwise, are for gradients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formulas, "plain_on_cpu", lambda x: False)
        return net(images)


@pytest.mark.parametrize(
    "method,model,task",
    [
        ("bnn++", "digits_vit", "bw"),
        ("pc", "digits_vit", "bw"),
        ("bnn++", "digits_vit", "bwaa"),
        ("bnn++", "digits_resnet", "bwaa"),
    ],
)
def test_a_compiled_network_is_compiled_once_while_parameters_move_and_once_more_when_hard(
    method, model, task, make_trainer, tmp_path, monkeypatch
):
    """Two graphs, of all weights and of the network, without breaks; and the numbers of one not compiled."""
    from torch._dynamo.testing import CompileCounter

    fine_tuning = make_trainer(tmp_path, method, model, task=task)
    net, binary = fine_tuning.net, fine_tuning.binary
    counter, whole = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, mode: whole(net, backend=counter, fullgraph=True))
    fast = compiled(net)
    images = torch.randn(2, *next(iter(fine_tuning.batches.epoch(0)))[0].shape[1:])
    for progress in (0.0, 0.3, 1.0):
        binary.move_to(progress)
        torch.testing.assert_close(fast(images), as_compiled(net, images))
    assert counter.frame_count == 2
    binary.harden()
    for _ in range(2):
        torch.testing.assert_close(fast(images), as_compiled(net, images))
    assert counter.frame_count == (3 if task == "bw" else 4)  # of weights alone the network sees no F


def test_a_compiled_training_ends_like_another(make_trainer, tmp_path, monkeypatch):
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, mode: whole(net, backend="eager"))
    monkeypatch.setattr(formulas, "plain_on_cpu", lambda x: False)  # kernels of our own round otherwise
    nets = []
    for number, compile in enumerate((None, "default")):
        fine_tuning = make_trainer(tmp_path / str(number), model="digits_vit", compile=compile)
        fine_tuning.run()
        nets.append(fine_tuning.net.state_dict())
    for name, tensor in nets[0].items():
        torch.testing.assert_close(nets[1][name], tensor)


def test_optimizers_are_fused_on_cuda_where_torch_has_that(monkeypatch):
    from binarize_cli.recipe import Train
    from binarize_cli.training import optimizer

    asked = {}
    monkeypatch.setattr(optimizer, "create_optimizer_v2", lambda net, opt, **more: asked.update({opt: more}))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    for name in ("adamw", "sgd", "lamb"):
        make_optimizer(nn.Linear(2, 2), Train(opt=name))
    assert asked["adamw"]["fused"] and asked["sgd"]["fused"] and "fused" not in asked["lamb"]
