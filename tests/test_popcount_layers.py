"""Binary layers on bits compute what the same layers compute on signs as numbers, to the bit."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import Tensor, nn

from binarize_cli.binarize.accumulator import AccumulatorRule
from binarize_cli.binarize.activations import SignInput
from binarize_cli.binarize.layers import BINARY_LAYERS, BinaryConv2d, BinaryLinear
from binarize_cli.packed import kernels
from binarize_cli.packed.bits import pack
from binarize_cli.packed.format import read
from binarize_cli.packed.integer_accumulator import IntegerAccumulator
from binarize_cli.packed.popcount_layers import PopcountConv2d, PopcountLinear, layer_class
from binarize_cli.packed.runtime import PackedWeight, rebuild

GOLDEN = Path(__file__).parent / "golden"
RULES = st.one_of(
    st.none(), st.builds(AccumulatorRule, st.sampled_from(["saturate", "wrap"]), st.integers(0, 5))
)
pytestmark = pytest.mark.skipif(kernels.arithmetic() != "popcount", reason="this CPU counts bits slowly")


def on_bits(module: nn.Module, rule: AccumulatorRule | None, pad: int = 0, threshold: bool = True):
    """A layer as files of binary inputs hold it, with the signs of a float layer's weights."""
    weight, binary = module.weight.detach(), BINARY_LAYERS[type(module)]
    bits = torch.from_numpy(pack(torch.where(weight < 0, -1, 1).numpy()))
    source = PackedWeight(bits, torch.rand(len(weight)) + 0.1, tuple(weight.shape))
    channels = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    t = torch.randn(channels) / 4 if threshold else None
    signs = SignInput(binary.axes, t, torch.rand(()) + 0.1)
    layer = layer_class(binary, module)(module, source, signs, IntegerAccumulator(rule), pad)
    assert type(layer) in (PopcountLinear, PopcountConv2d)
    return layer.eval()


def by_numbers(layer: nn.Module, x: Tensor) -> Tensor:
    """What the same layer computes without kernels."""
    parent = BinaryLinear if isinstance(layer, BinaryLinear) else BinaryConv2d
    return parent.forward(copy.deepcopy(layer), x)


def check(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        found = layer(x)
    assert layer.source._kept == {}, "no dense weights are kept"
    expected = by_numbers(layer, x)
    assert torch.equal(found, expected) and torch.equal(layer(x), expected)
    assert found.stride() == expected.stride() or 1 in found.shape


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 200),
    st.integers(1, 40),
    RULES,
    *[st.booleans()] * 2,
    st.integers(0, 2**32 - 1),
)
def test_linear(before, inputs, outputs, rule, bias, threshold, seed):
    torch.manual_seed(seed)
    check(on_bits(nn.Linear(inputs, outputs, bias), rule, 0, threshold), torch.randn(*before, inputs))


@settings(max_examples=60, deadline=None)
@given(st.data(), RULES, *[st.booleans()] * 3, st.integers(0, 2**32 - 1))
def test_convolution(data, rule, bias, threshold, last, seed):
    torch.manual_seed(seed)
    draw = data.draw
    groups, depth = draw(st.sampled_from([(1, 1), (1, 3), (1, 16), (1, 64), (1, 70), (2, 32), (3, 64)]))
    kernel, stride, dilation = (draw(st.tuples(*[st.integers(1, most)] * 2)) for most in (3, 2, 2))
    kind = draw(st.sampled_from([nn.Conv2d, Conv2dSame]))
    padding = draw(st.sampled_from([(0, 0), (1, 1), (2, 1)]))
    if kind is nn.Conv2d and stride == (1, 1):
        padding = draw(st.sampled_from([padding, "same"]))
    outputs = groups * draw(st.integers(1, 12))
    module = kind(groups * depth, outputs, kernel, stride, padding, dilation, groups, bias)
    layer = on_bits(module, rule, draw(st.sampled_from([0, 1, -1])), threshold)
    for size in ((6, 5), (9, 8)):  # one layer serves images of several sizes
        x = torch.randn(2, groups * depth, *size)
        check(layer, x.contiguous(memory_format=torch.channels_last) if last else x)


@torch.no_grad()
def test_a_batch_may_be_empty_and_wrong_shapes_are_refused_as_ever():
    linear, conv = on_bits(nn.Linear(70, 9), None), on_bits(nn.Conv2d(8, 9, 3), None)
    assert linear(torch.zeros(0, 70)).shape == (0, 9)
    for layer, shape in ((linear, (2, 69)), (conv, (2, 7, 5, 5)), (conv, (2, 8, 2, 5))):
        with pytest.raises(RuntimeError):
            layer(torch.zeros(shape))


@torch.no_grad()
def test_other_numbers_than_float32_take_the_other_way():
    layer = on_bits(nn.Linear(70, 9), None)
    x = torch.randn(3, 70, dtype=torch.float64)
    assert torch.equal(layer(x), by_numbers(layer, x))
    assert layer.source._kept, "float64 is nothing for the kernels"


def test_a_bias_that_changes_is_seen_and_has_a_gradient():
    layer, x = on_bits(nn.Linear(70, 9), None), torch.randn(3, 70)
    with torch.no_grad():
        before = layer(x)
        layer.bias += 1
        after = layer(x)
    torch.testing.assert_close(after, before + 1)
    layer(x).sum().backward()
    assert layer.bias.grad.tolist() == [3.0] * 9


def test_depthwise_convolutions_stay_as_they_are():
    assert layer_class(BinaryConv2d, nn.Conv2d(64, 64, 3, groups=64)) is BinaryConv2d
    assert layer_class(BinaryConv2d, nn.Conv2d(64, 64, 3, groups=2)) is PopcountConv2d


def test_a_slow_cpu_counts_nothing(monkeypatch):
    monkeypatch.setattr(kernels, "arithmetic", lambda: "int8")
    assert layer_class(BinaryLinear, nn.Linear(64, 64)) is BinaryLinear


@pytest.mark.parametrize("name", ["digits_resnet-bwa", "digits_vit-bwaa"])
@torch.no_grad()
def test_every_binary_layer_of_a_file_computes_on_bits_alone(name):
    net = rebuild(read(GOLDEN / f"format1-{name}.safetensors"))
    net(torch.rand(2, 1, 8, 8))
    layers = [module for module in net.modules() if isinstance(module, BinaryLinear | BinaryConv2d)]
    assert layers and all(isinstance(layer, PopcountLinear | PopcountConv2d) for layer in layers)
    assert all(layer.source._kept == {} for layer in layers)


def test_numba_is_imported_for_binary_inputs_alone():
    program = (
        "import sys; from pathlib import Path; import binarize_cli.cli.evaluate;"
        "from binarize_cli.packed.format import read; from binarize_cli.packed.runtime import rebuild;"
        f"rebuild(read(Path({str(GOLDEN / 'format1-digits_vit-bw.safetensors')!r})));"
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_scoring_compiles_once_and_says_so_and_needs_no_folder_for_it(tmp_path):
    file = GOLDEN / "format1-digits_vit-bwa.safetensors"

    def score(folder: Path) -> subprocess.CompletedProcess:
        words = [sys.executable, "-m", "binarize_cli", "eval", str(file), "-j", "0", "--device", "cpu"]
        environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)

    (tmp_path / "file").touch()
    first, second, nowhere = (score(tmp_path / name) for name in ("cache", "cache", "file"))
    assert [done.returncode for done in (first, second, nowhere)] == [0, 0, 0], nowhere.stderr
    assert [done.stderr.count("compiling the popcount kernels") for done in (first, second, nowhere)] == [
        1,
        0,
        1,
    ]
    scores = {done.stdout.partition("images/s")[0] for done in (first, second, nowhere)}
    assert len(scores) == 1
