"""Parameters shared out over ranks (`--parallel fsdp`): the training of one rank, and its state."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from test_ranks import COMMON, SETTINGS, agree, trained, values
from torch.distributed.tensor import DTensor

from binarize_cli import ranks
from binarize_cli.binarize.convert import latent_weights
from binarize_cli.binarize.prepare import make_binary, rewrite_and_choose
from binarize_cli.errors import InputError
from binarize_cli.models.heads import head_names
from binarize_cli.models.load import load
from binarize_cli.models.names import resolve
from binarize_cli.recipe import Recipe
from binarize_cli.training import state
from binarize_cli.training.parallel import check_parallel, whole
from binarize_cli.training.sharded import Sharded
from binarize_cli.training.teacher import block_names

MORE = {
    "clipped, in micro-batches": {"model": "digits_vit", "task": "bwa", "clip_grad": 0.1, "accumulate": 2},
    "float layers of many inputs": {"model": "digits_vit", "lr_fan_in": 8},
    "one scale a layer": {"model": "digits_vit", "method": "pq", "scale": "layer"},
    "learned scales": {"model": "digits_vit", "method": "bnn++", "scale": "learned"},
}
QUICK = ("mixed, averaged", "map after the step", "clipped, in micro-batches", "float layers of many inputs")


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(setting, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, setting in (SETTINGS | MORE).items()
    ],
)
def test_a_training_in_parts_is_that_of_one_rank(setting, make_trainer, on_ranks, tmp_path):
    one = {key: value for key, value in setting.items() if key not in ("sync_batchnorm", "accumulate")}
    expected = trained(make_trainer, tmp_path / "one", **one)

    def in_parts(number: int):
        return trained(make_trainer, tmp_path / "two", parallel="fsdp", **setting)

    found = values(on_ranks(2, in_parts))
    for each in found:
        agree(each, expected)
    assert all(torch.equal(tensor, found[1][0][name]) for name, tensor in found[0][0].items())


def test_each_rank_has_a_part_of_parameters_gradients_and_moments(make_trainer, on_ranks, tmp_path):
    def numbers(rank: int):
        trainer = make_trainer(tmp_path / "run", model="digits_vit", parallel="fsdp", ema=0.5)
        trainer.take_step([next(iter(trainer.batches.epoch(0)))], 0)
        step = trainer.step
        moments = [facts["exp_avg"] for facts in step.optimizer.state_dict()["state"].values()]
        gradients = [p.grad for p in step.net.parameters()]
        held = [list(step.net.parameters()), gradients, moments, list(step.ema.module.parameters())]
        assert all(isinstance(each, DTensor) for each in chain(*held))
        whole = sum(p.numel() for p in trainer.net.parameters())
        return [sum(each.to_local().numel() for each in tensors) / whole for tensors in held]

    for shares in zip(*values(on_ranks(2, numbers)), strict=True):
        assert sum(shares) == 1 and max(shares) < 0.52


@pytest.mark.slow
@pytest.mark.parametrize(
    "model,task",
    [("mobilenetv3_small_100", "bw"), ("vit_tiny_patch16_224", "bwa"), ("torchvision/swin_t", "bw")],
)
def test_networks_of_libraries_compute_the_same_in_parts(model, task, on_ranks):
    """And between forward and backward pass no rank has latents of a block whole."""
    torch.manual_seed(0)
    float_model = load(resolve(model), pretrained=False)
    images = torch.randn(2, *float_model.preprocessing.input_size)
    recipe = Recipe(method="bnn++", task=task)
    net, table = rewrite_and_choose(float_model.net, images, recipe, head_names(float_model.net))
    net = make_binary(net, table, recipe, [images]).net.eval()

    def gradients(of, parameters) -> list[torch.Tensor]:
        loss = of(images).square().mean()
        assert of is net or all(isinstance(latent, DTensor) for latent in latents(of))
        loss.backward()
        return [whole(p.grad) for p in parameters if p.grad is not None]

    def latents(of) -> list[torch.Tensor]:
        return [
            weight.latent for name, weight in latent_weights(of) if name.startswith(tuple(block_names(of)))
        ]

    def compare(number: int):
        parts = Sharded(net, torch.device("cpu"))
        found = gradients(parts.net, parts.own.parameters())
        for ours, theirs in zip(found, gradients(net, net.parameters()), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
        return len(latents(net)), float(parts.gradient_norm())

    for count, norm in values(on_ranks(2, compare)):
        assert count > 5 and norm > 0


@pytest.mark.parametrize(
    "before,after",
    [
        ("one", "fsdp"),
        ("fsdp", "one"),
        pytest.param("ddp", "fsdp", marks=pytest.mark.slow),
        pytest.param("fsdp", "ddp", marks=pytest.mark.slow),
    ],
)
def test_a_state_is_the_same_whoever_saved_it_and_whoever_goes_on(
    before, after, make_trainer, on_ranks, tmp_path
):
    """AdamW: an epoch one way, saved again unchanged, and an epoch another way."""
    setting = {**COMMON, "model": "digits_vit", "task": "bwa", "opt": "adamw", "lr": 1e-3, "ema": 0.5}
    folder = tmp_path / "run"

    def trainer(kind: str):
        return make_trainer(folder, parallel="ddp" if kind == "one" else kind, **setting)

    def begin(kind: str):
        first = trainer(kind)
        first._leave_if = lambda code: first.position.epoch == 1 and 1 / 0
        with pytest.raises(ZeroDivisionError):
            first.run()

    def go_on(kind: str):
        second = trainer(kind)
        second._restore()
        second.saving.folder = tmp_path / "again"
        second._save()
        ranks.barrier()
        second.saving.folder = folder
        return [(row.epoch, row.loss, row.flip_ratio) for row in second.run(resume=True)]

    def on(kind: str, function):
        return function(kind) if kind == "one" else values(on_ranks(2, lambda number: function(kind)))[0]

    on(before, begin)
    assert same(state.load_newest(folder), on(after, go_on) and state.load_newest(tmp_path / "again"))
    rows = [row["loss"] for row in state.load_newest(folder)["rows"]]
    folder = tmp_path / "whole"
    expected = [row.loss for row in trainer("one").run()]
    assert rows[1:] == pytest.approx(expected[1:], rel=2e-3)


def same(found, expected) -> bool:
    """Return whether two states hold the same numbers, in tensors of the same kind."""
    if isinstance(expected, torch.Tensor):
        return type(found) is type(expected) and torch.equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected


def test_divergence_in_parts_names_the_layer_too(make_trainer, on_ranks, tmp_path):
    def diverging(number: int):
        trainer = make_trainer(tmp_path / "run", model="digits_vit", parallel="fsdp")
        latent = trainer.step.net.blocks[1].attn.qkv.source.latent
        with torch.no_grad():
            latent.to_local()[0] = torch.nan
        trainer.run()

    first, second = on_ranks(2, diverging)
    assert (first.code, second.code) == (3, 3)
    assert "diverged at step 1, in blocks.1.attn.qkv" in first.err and "error" not in second.err


@pytest.mark.parametrize(
    "compile,amp,said", [("default", None, "compiled"), (None, torch.float16, "float16")]
)
def test_what_does_not_go_with_parts_is_refused(compile, amp, said, monkeypatch):
    check_parallel("fsdp", compile, amp)  # one rank has all of it
    monkeypatch.setattr(ranks, "world", lambda: 2)
    check_parallel("ddp", compile, amp)
    with pytest.raises(InputError, match=said):
        check_parallel("fsdp", compile, amp)
