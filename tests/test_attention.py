"""The products of attention as modules, and with signs for their factors (activation.attention: binary)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from test_activations import (
    RULES,
    adversarial,
    check_hard_and_integers,
    draw,
    reference_linear,
    signs,
    trained_network,
)
from torch import nn
from torchvision.models.vision_transformer import EncoderBlock

from binarize_cli.binarize.accumulator import AccumulatorRule
from binarize_cli.binarize.activations import LatentInput, SignInput
from binarize_cli.binarize.attention import UnfusedAttention, unfuse_attention, use_linear_projections
from binarize_cli.binarize.calibrate import calibrate
from binarize_cli.binarize.convert import binary_matmuls
from binarize_cli.binarize.float_accumulator import FloatAccumulator
from binarize_cli.binarize.matmuls import BinaryAVMatmul, BinaryQKMatmul
from binarize_cli.binarize.prepare import binary_inputs, make_binary, rewrite_and_choose
from binarize_cli.binarize.select import count_macs
from binarize_cli.errors import InputError
from binarize_cli.models.load import load
from binarize_cli.models.names import resolve
from binarize_cli.packed.integer_accumulator import IntegerAccumulator
from binarize_cli.recipe import Activation, Recipe


def recipe(task: str = "bwa", **rest) -> Recipe:
    return Recipe(task=task, activation=Activation(attention="binary", **rest))


# --- opened, and still float -------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"qk_norm": True}, {"scale_attn_norm": True}])
def test_opened_attention_of_timm_computes_the_same(extra):
    shape = {"img_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    net = timm.create_model("vit_tiny_patch16_224", patch_size=4, **shape, **extra).eval()
    x = torch.rand(2, 3, 16, 16)
    before = net(x)
    unfuse_attention(net)
    assert sum(isinstance(m, UnfusedAttention) for m in net.modules()) == 2
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-5)
    counts = count_macs(net, x)
    length = 17
    assert counts["blocks.0.attn.matmuls.qk"] == 3 * length * length * 8
    assert counts["blocks.0.attn.matmuls.av"] == 3 * length * length * 8


def test_opened_attention_of_torchvision_computes_the_same():
    block = EncoderBlock(4, 32, 64, dropout=0.0, attention_dropout=0.0, norm_layer=nn.LayerNorm).eval()
    x = torch.randn(2, 9, 32)
    before = block(x)
    unfuse_attention(use_linear_projections(block))
    torch.testing.assert_close(block(x), before, rtol=0, atol=1e-6)


def test_attention_not_known_here_is_refused_and_masks_are():
    for name in ("resnet18", "swin_tiny_patch4_window7_224"):
        with pytest.raises(InputError, match="no attention whose matmuls"):
            unfuse_attention(timm.create_model(name))
    net = load(resolve("digits_vit"), pretrained=False).net
    net.blocks[0].attn.attn_drop.p = 0.1
    unfuse_attention(net)
    assert not isinstance(net.blocks[0].attn, UnfusedAttention) and isinstance(
        net.blocks[1].attn, UnfusedAttention
    )
    with pytest.raises(NotImplementedError):
        net.blocks[1].attn(torch.rand(1, 4, 64), attn_mask=torch.zeros(4, 4))


# --- the sums ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [1, 16, 64, 197, 300])
def test_sums_of_pairs_are_the_references(rule, length):
    left, right = signs(2, 3, 5, length), signs(2, 3, 4, length, seed=1)
    left[1, 2], right[0, 0] = adversarial(5, length), adversarial(4, length)
    for sums in (FloatAccumulator(rule), IntegerAccumulator(rule)):
        found = sums.matmul(left, right)
        assert found.shape == (2, 3, 5, 4)
        for n in range(2):
            for head in range(3):
                expected = reference_linear(left[n, head].numpy(), right[n, head].numpy(), rule)
                np.testing.assert_array_equal(found[n, head].numpy(), expected)


def test_chunks_of_pairs_do_not_change_the_sums(monkeypatch):
    left, right = signs(4, 3, 7, 200), signs(4, 3, 6, 200, seed=1)
    whole = FloatAccumulator(AccumulatorRule("saturate")).matmul(left, right)
    monkeypatch.setattr("binarize_cli.binarize.tiles.CHUNK", 50)
    assert torch.equal(FloatAccumulator(AccumulatorRule("saturate")).matmul(left, right), whole)


def test_gradients_of_pairs_go_straight_through_where_nothing_overflowed():
    left, right = torch.ones(1, 1, 2, 300), torch.ones(1, 1, 3, 300)
    left[..., 1, ::2] = -1
    left.requires_grad_()
    sums = FloatAccumulator(AccumulatorRule("saturate"))
    sums.matmul(left, right).sum().backward()
    assert left.grad[0, 0, 0].eq(0).all() and left.grad[0, 0, 1].eq(3).all()
    with torch.no_grad():
        sums.matmul(left, right)
    assert sums.overflowed == 0.5


# --- the binary products -----------------------------------------------------------------------------------


def fixed(axes: tuple[int, ...], channels: int, scale: float, seed: int) -> SignInput:
    return SignInput(axes, 0.3 * draw(channels, seed=seed), torch.tensor(scale))


def test_a_product_of_signs_is_attention_over_the_restored_factors_in_numpy():
    heads, width, tokens = 2, 4, 6
    q, k, v = (draw(3, heads, tokens, width, seed=i) for i in range(3))
    left, right = fixed((1, -1), heads * width, 0.7, 5), fixed((1, -1), heads * width, 1.3, 6)
    scores = BinaryQKMatmul(left, right, FloatAccumulator())(q, k)

    def restored(side: SignInput, x: torch.Tensor) -> np.ndarray:
        t = side.threshold.numpy().reshape(1, heads, 1, -1)
        return t + float(side.scale) * np.where(x.numpy() - t >= 0, 1.0, -1.0)

    expected = restored(left, q) @ restored(right, k).swapaxes(-1, -2)
    np.testing.assert_allclose(  # what differs is the same for a query's keys: nothing to softmax
        scores.softmax(-1).numpy(), torch.from_numpy(expected).softmax(-1).numpy(), atol=1e-6
    )
    p = draw(3, heads, tokens, tokens, seed=7).softmax(-1)
    left = SignInput((1,), torch.tensor([0.1, 0.2]), torch.tensor(0.15))
    right = fixed((1, -1), heads * width, 0.9, 8)
    t_v = right.threshold.numpy().reshape(1, heads, 1, -1)
    expected = restored(left, p) @ (restored(right, v) - t_v) + t_v
    np.testing.assert_allclose(
        BinaryAVMatmul(left, right, FloatAccumulator())(p, v).numpy(), expected, atol=1e-5
    )


def test_bare_factors_are_signs_alone():
    p, q, k = draw(1, 2, 3, 3), draw(1, 2, 3, 4, seed=1), draw(1, 2, 3, 4, seed=2)
    bare = [SignInput((1, -1), None, torch.ones(())) for _ in range(2)]
    plus_minus = [torch.where(x < 0, -1.0, 1.0) for x in (p, q, k)]
    assert torch.equal(BinaryQKMatmul(*bare, FloatAccumulator())(q, k), plus_minus[1] @ plus_minus[2].mT)
    assert torch.equal(BinaryAVMatmul(*bare, FloatAccumulator())(p, k), plus_minus[0] @ plus_minus[2])


def test_calibration_finds_probabilities_one_sided_and_queries_not():
    found = load(resolve("digits_vit"), pretrained=True)
    net, table = rewrite_and_choose(found.net, torch.zeros(2, 1, 8, 8), recipe(), ["head"])
    names = [row.name for row in table if row.binary]
    stats = calibrate(net, names, [torch.rand(32, 1, 8, 8)], binary_inputs(recipe()))
    scores, mix = (stats[f"blocks.0.attn.matmuls.{part}"].inputs for part in ("qk", "av"))
    assert [found.one_sided for found in (*scores, *mix)] == [False, False, True, False]
    torch.testing.assert_close(mix[0].mean, torch.full((4,), 1 / 16))  # a row of 16 sums to 1
    assert len(scores[0].mean) == 64 and not any(found.constant for found in (*scores, *mix))
    made = make_binary(net, table, recipe(), [torch.rand(32, 1, 8, 8)])
    assert [name for name, _ in binary_matmuls(made.net)] == [
        f"blocks.{i}.attn.matmuls.{part}" for i in range(4) for part in ("qk", "av")
    ]


def test_every_factor_gets_a_gradient():
    binary = trained_network("digits_vit", recipe())
    binary.harden()
    net = binary.net
    net(torch.rand(4, 1, 8, 8)).square().sum().backward()
    for _, matmul in binary_matmuls(net):
        for side in (matmul.left, matmul.right):
            assert isinstance(side, LatentInput) and side.log_scale.grad.abs() > 0
            if side is not matmul.right or isinstance(matmul, BinaryAVMatmul):
                assert side.threshold.grad.abs().sum() > 0
    assert net.blocks[0].attn.qkv.source.latent.grad.abs().sum() > 0


@pytest.mark.parametrize("task", ["bwa", "bwaa"])
def test_the_hard_network_computes_what_training_did_and_integers_give_the_same_sums(task):
    binary = trained_network("digits_vit", recipe(task))
    assert len(list(binary_matmuls(binary.net))) == 8
    check_hard_and_integers(binary)


# --- the command line --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["bwa", "bwaa"])
def test_from_the_command_to_the_scored_file(task, bnnpp, tiny, tmp_path):
    words = ("--data-dir", tiny, "--epochs", 1, "-b", 6, "--set", "train.float_epochs=1")
    binary = ("--task", task, "--set", "activation.attention=binary")
    run = bnnpp("binarize", "digits_vit", *binary, *words, "--output", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["agreement"]["equal"]
    scored = json.loads(bnnpp("eval", run.packed, "--json").out)
    assert scored["top1"] == report["accuracy"]["packed"]["top1"] == report["accuracy"]["hard"]["top1"]
    account = json.loads(bnnpp("inspect", run.packed, "--json").out)
    products = {row["name"]: row for row in account["layers"] if row["kind"].startswith("matmul")}
    assert len(products) == 8 and all(row["bits"] == 1 for row in products.values())
    assert all((row["accumulator"] is not None) == (task == "bwaa") for row in products.values())
    mix = products["blocks.3.attn.matmuls.av"]
    assert mix["input"] == "1 bit, one-sided" and mix["macs"] == 4 * 16 * 16 * 16 and mix["bytes"] > 0
    assert account["binary_weights"] == 196_608
    assert "matmul q k^T" in bnnpp("inspect", run.packed).out


def test_a_model_without_attention_is_refused_with_exit_code_2(bnnpp, tmp_path):
    words = ("--task", "bwa", "--set", "activation.attention=binary", "-o", tmp_path / "run")
    outcome = bnnpp("binarize", "digits_resnet", *words)
    assert outcome.code == 2 and "activation.attention" in outcome.err and "Set it to float" in outcome.err
    assert not (tmp_path / "run").exists()
