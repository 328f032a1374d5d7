"""Fused blocks compute what their layers compute one after another, to the bit."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from binarize_cli.packed import kernels
from binarize_cli.packed.format import read
from binarize_cli.packed.fused.activation import limits_after
from binarize_cli.packed.fused.residual import FusedBiRealBlock
from binarize_cli.packed.runtime import rebuild

GOLDEN = Path(__file__).parent / "golden"
pytestmark = pytest.mark.skipif(kernels.arithmetic() != "popcount", reason="this CPU counts bits slowly")


def shaken(net: nn.Module) -> nn.Module:
    """The network with every float parameter and statistic moved, so that none is neutral."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in net.named_buffers():
            if name.endswith("running_var"):
                buffer *= 0.5 + torch.rand_like(buffer)
    return net


def one_by_one(net: nn.Module, x: Tensor) -> Tensor:
    """What the layers compute one after another: nothing is fused that somebody watches."""
    hooks = [module.register_forward_hook(lambda *args: None) for module in net.modules()]
    y = net(x)
    for hook in hooks:
        hook.remove()
    return y


def count_fused_calls(monkeypatch, block: type) -> list[int]:
    """Every call of that kind of block that runs fused adds to the list."""
    calls: list[int] = []
    convolve = block._convolve
    monkeypatch.setattr(block, "_convolve", lambda *args: calls.append(1) or convolve(*args))
    return calls


@pytest.mark.parametrize("name", ["format1-digits_resnet-bwa", "format2-digits_resnet-bwaa"])
@torch.no_grad()
def test_residual_blocks(name, monkeypatch):
    net = shaken(rebuild(read(GOLDEN / f"{name}.safetensors")))
    blocks = [module for module in net.modules() if isinstance(module, FusedBiRealBlock)]
    calls = count_fused_calls(monkeypatch, FusedBiRealBlock)
    for x in (torch.randn(3, 1, 8, 8), torch.randn(1, 1, 16, 12)):
        calls.clear()
        found = net(x)
        assert len(calls) == 2 * len(blocks) == 12
        assert torch.equal(found, one_by_one(net, x)) and len(calls) == 12
        last = x.to(memory_format=torch.channels_last)
        assert torch.equal(net.to(memory_format=torch.channels_last)(last), one_by_one(net, last))


@pytest.fixture(scope="module")
def resnet():
    return shaken(rebuild(read(GOLDEN / "format1-digits_resnet-bwa.safetensors")))


@torch.no_grad()
def test_a_changed_parameter_or_statistic_is_seen(resnet):
    net, x = copy.deepcopy(resnet), torch.randn(2, 1, 8, 8)
    before = net(x)
    for name in ("layer1.0.gain2", "layer2.0.act1.slope", "layer3.1.bn2.running_mean"):
        with torch.no_grad():
            net.state_dict()[name] += 0.5
        after = net(x)
        assert not torch.equal(before, after), name
        assert torch.equal(after, one_by_one(net, x)), name
        before = after


@torch.no_grad()
def test_whoever_watches_a_layer_sees_it_called(resnet, monkeypatch):
    calls = count_fused_calls(monkeypatch, FusedBiRealBlock)
    seen: list[Tensor] = []
    x = torch.randn(2, 1, 8, 8)
    resnet(x)
    handle = resnet.layer2[0].bn1.register_forward_hook(lambda module, args, y: seen.append(y))
    before = len(calls)
    y = resnet(x)
    handle.remove()
    assert len(seen) == 1 and len(calls) == before + before - 2
    assert torch.equal(y, resnet(x))


@torch.no_grad()
def test_other_numbers_and_other_weights_take_the_other_way(resnet):
    net, x = copy.deepcopy(resnet), torch.randn(2, 1, 8, 8)
    assert net.double()(x.double()).dtype == torch.float64
    net = copy.deepcopy(resnet)
    layer = net.layer1[0].conv1
    layer.source, layer.input = nn.Identity(), None  # as an analysis replaces them
    layer.source.forward = lambda: torch.zeros(16, 16, 3, 3)
    assert not torch.equal(net(x), resnet(x))
    net.train()
    assert net(x).shape == (2, 10)


@torch.no_grad()
def test_a_copy_computes_with_tensors_of_its_own(resnet):
    x = torch.randn(2, 1, 8, 8)
    expected = resnet(x)
    twin = copy.deepcopy(resnet)
    again = pickle.loads(pickle.dumps(resnet))
    blocks = [module for module in twin.modules() if isinstance(module, FusedBiRealBlock)]
    assert all(made.value is None for block in blocks for made in block._made.values())
    assert torch.equal(twin(x), expected) and torch.equal(again(x), expected)


def test_the_names_of_tensors_are_the_librarys(resnet):
    plain = set(resnet.state_dict())
    assert "layer1.0.gain1" in plain and not any("_made" in name for name in plain)


@pytest.mark.parametrize("name", ["digits_vit-bwa", "digits_vit-bwaa"])
@torch.no_grad()
def test_transformer_blocks(name, monkeypatch):
    net = shaken(rebuild(read(GOLDEN / f"format1-{name}.safetensors")))
    calls: list[Tensor] = []
    add = kernels.PopcountLinear.added_to
    monkeypatch.setattr(kernels.PopcountLinear, "added_to", lambda *args: calls.append(args[1]) or add(*args))
    x = torch.randn(40, 1, 8, 8)
    found = net(x)
    assert len(calls) == 8, "of 4 blocks the second layers of attention and perceptron"
    assert torch.equal(found, one_by_one(net, x)) and len(calls) == 8
    net.pos_embed.data = net.pos_embed.data.mT.contiguous().mT  # tokens lie one after another from here on
    net.patch_embed.register_forward_hook(lambda module, args, y: y.contiguous())
    assert torch.equal(net(x), one_by_one(net, x))


@torch.no_grad()
def test_binary_attention_decides_every_sign_as_its_modules_do(monkeypatch):
    net = shaken(rebuild(read(GOLDEN / "format1-digits_vit-bwaa-attention.safetensors")))
    doubts: list[int] = []
    weigh = kernels.weigh_signs

    def counted(*args):
        signs, doubtful = weigh(*args)
        doubts.append(int(doubtful.sum()))
        return signs, doubtful

    monkeypatch.setattr(kernels, "weigh_signs", counted)
    x = torch.randn(200, 1, 8, 8)
    found = net(x)
    assert len(doubts) == 4 and torch.equal(found, one_by_one(net, x))
    monkeypatch.setattr(kernels, "weigh_signs", lambda *args: _in_doubt(*weigh(*args)))
    assert torch.equal(net(x[:20]), one_by_one(net, x[:20])), "every row is computed anew"


def _in_doubt(signs: Tensor, doubts: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(signs), torch.ones_like(doubts)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.SiLU(), nn.Hardswish()]),
    st.integers(1, 200),
    st.none() | st.builds(kernels.Int8, st.just("saturate"), st.integers(0, 3)),
    st.integers(0, 2**32 - 1),
)
@torch.no_grad()
def test_the_signs_behind_an_activation_are_a_table_of_sums(act, length, rule, seed):
    torch.manual_seed(seed)
    scale, bias, t = torch.rand(20) * 4 / length**0.5, torch.randn(20), torch.randn(20) / 8
    limits = limits_after(length, scale, bias, rule, act, t)
    sums = torch.randint(0, length + 1, (300, 1)) * 2 - length
    sums = sums if rule is None else sums.clamp(-128, 127)
    y = sums.float() * (scale if rule is None else scale * 2**rule.shift) + bias
    assert limits is not None
    assert ((y >= limits.high) | (y <= limits.low)).equal(act(y) - t >= 0)
