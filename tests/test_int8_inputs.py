"""Inputs of 8 bits for files of binary weights: the kernels, the other way, and what `eval` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from binarize_cli import api
from binarize_cli.binarize.layers import BinaryConv2d, BinaryLinear
from binarize_cli.errors import InputError
from binarize_cli.packed.bits import pack
from binarize_cli.packed.int8_inputs import Int8InputConv2d, Int8InputLinear, quantized, use_int8_inputs
from binarize_cli.packed.packed_weight import PackedWeight

GOLDEN = Path(__file__).parent / "golden"


def binary(module: nn.Module) -> nn.Module:
    weight = module.weight.detach()
    bits = torch.from_numpy(pack(torch.where(weight < 0, -1, 1).numpy()))
    source = PackedWeight(bits, torch.rand(len(weight)) + 0.1, tuple(weight.shape))
    return (BinaryLinear if isinstance(module, nn.Linear) else BinaryConv2d)(module, source)


@pytest.mark.parametrize(
    "module,shape",
    [
        (nn.Linear(70, 9), (3, 5, 70)),
        (nn.Linear(70, 9, bias=False), (4, 70)),
        (nn.Conv2d(6, 8, 3, 2, 1, groups=2), (2, 6, 9, 7)),
        (nn.Conv2d(6, 8, 1, bias=False), (2, 6, 5, 5)),
    ],
)
@torch.no_grad()
def test_a_layer_computes_with_its_quantized_inputs(module, shape):
    torch.manual_seed(0)
    layer, x = binary(module), torch.randn(shape)
    axes = (-1,) if isinstance(module, nn.Linear) else (1, 2, 3)
    codes, steps = quantized(x, axes)
    assert codes.abs().amax() == 127 and ((codes * steps - x).abs() <= steps * 0.5001).all()
    expected = layer(codes * steps)
    use_int8_inputs(layer)
    assert type(layer) in (Int8InputLinear, Int8InputConv2d)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    with torch.enable_grad():  # the other way
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert layer(torch.zeros(shape)).isfinite().all()


@pytest.mark.parametrize("name", ["digits_vit-bw", "digits_resnet-bw"])
@torch.no_grad()
def test_a_file_is_almost_the_same_network(name):
    file, x = GOLDEN / f"format1-{name}.safetensors", torch.rand(8, 1, 8, 8)
    net = api.load(file, activations="int8")
    found, expected = net(x), api.load(file)(x)
    assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()
    assert all(layer.source._kept == {} for layer in net.modules() if type(layer) is Int8InputLinear)


def test_eval_says_what_it_computed_with(bnnpp):
    file = GOLDEN / "format1-digits_vit-bw.safetensors"
    plain, small = (bnnpp("eval", file, "--activations", kind) for kind in ("float", "int8"))
    assert "int8" not in plain.out and "inputs int8" in small.out
    scored = json.loads(bnnpp("eval", file, "--activations", "int8", "--json").out)
    assert scored["activations"] == "int8"
    assert abs(scored["top1"] - scored["recorded"]["top1"]) < 2


def test_inputs_that_are_signs_are_refused(bnnpp):
    file = GOLDEN / "format1-digits_vit-bwa.safetensors"
    for left in (bnnpp("eval", file, "--activations", "int8"), bnnpp("eval", file, "--activations", "int4")):
        assert left.code == 2 and "--activations" in left.err
    with pytest.raises(InputError, match="int4"):
        api.load(file, activations="int4")
