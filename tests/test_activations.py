"""Binary inputs, int8 accumulators, and the integers of the packed file (tasks bwa and bwaa)."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from binarize_cli.binarize.accumulator import AccumulatorRule, Window
from binarize_cli.binarize.activations import LatentInput, SignInput
from binarize_cli.binarize.blocks import BiRealBlock, RPReLU, rewrite_blocks
from binarize_cli.binarize.calibrate import InputStats, calibrate
from binarize_cli.binarize.convert import (
    binary_layers,
    binary_matmuls,
    harden,
)
from binarize_cli.binarize.float_accumulator import FloatAccumulator
from binarize_cli.binarize.layers import BinaryConv2d, BinaryLinear
from binarize_cli.binarize.phase import Moment, Phase, set_phase
from binarize_cli.binarize.prepare import (
    BinaryNetwork,
    binary_inputs,
    make_binary,
    quantizers,
    rewrite_and_choose,
)
from binarize_cli.binarize.select import Layer, count_macs
from binarize_cli.binarize.tiles import batched_matmul_in_tiles, conv_in_tiles, linear_in_tiles
from binarize_cli.binarize.weights import LatentWeight
from binarize_cli.models.load import load
from binarize_cli.models.names import resolve
from binarize_cli.packed.integer_accumulator import IntegerAccumulator
from binarize_cli.quantizers.functions import sign_swish_slope
from binarize_cli.recipe import Accumulator, Activation, Recipe, Train
from binarize_cli.training.phases import PhasePlan
from binarize_cli.training.teacher import block_names

RULES = [
    None,
    AccumulatorRule("saturate"),
    AccumulatorRule("wrap"),
    AccumulatorRule("saturate", 2),
    AccumulatorRule("wrap", 1),
]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def signs(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.where(draw(*shape, seed=seed) < 0, -1.0, 1.0)


# --- the accumulator: training, the packed file and an independent reference agree to the bit ---------------


def reference(products: np.ndarray, rule: AccumulatorRule | None) -> int:
    """Products in order -> their sum in an int8 accumulator, one tile of 64 after another."""
    if rule is None:
        return int(products.sum())
    total = 0
    for start in range(0, len(products), 64):
        tile = int(products[start : start + 64].sum())
        if rule.shift:
            tile = int(np.floor(tile / 2**rule.shift + 0.5))
        total += tile
        if rule.overflow == "saturate":
            total = max(-128, min(127, total))
        else:
            total = int(np.array(total).astype(np.int64).astype(np.int8))
    return total * 2**rule.shift


def reference_linear(x: np.ndarray, w: np.ndarray, rule: AccumulatorRule | None) -> np.ndarray:
    return np.array([[reference(row * kernel, rule) for kernel in w] for row in x], dtype=np.float32)


def adversarial(rows: int, length: int) -> torch.Tensor:
    """All +1, all -1, halves against each other, alternating tiles: what saturates, returns and wraps."""
    ones = torch.ones(length)
    halves = torch.where(torch.arange(length) < length // 2, 1.0, -1.0)
    tiles = torch.where(torch.arange(length) // 64 % 3 == 2, -1.0, 1.0)
    return torch.stack([ones, -ones, halves, -halves, tiles, -tiles] * rows)[:rows]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 300, 576])
def test_training_and_packed_sums_are_the_references(rule, length):
    for x, w in (
        (signs(5, length), signs(4, length, seed=1)),
        (adversarial(6, length), torch.ones(3, length)),
        (adversarial(6, length), adversarial(4, length)),
    ):
        expected = reference_linear(x.numpy(), w.numpy(), rule)
        for sums in (FloatAccumulator(rule), IntegerAccumulator(rule)):
            np.testing.assert_array_equal(sums.linear(x, w).numpy(), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(RULES),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from([-1, 0, 1]),
    st.sampled_from([4, 16, 32, 64, 70]),
    st.integers(0, 99),
)
def test_convolutions_too_whatever_their_geometry(
    rule, groups, kernel, stride, dilation, around, depth, seed
):
    x = nn.functional.pad(signs(2, depth * groups, 7, 6, seed=seed), (1, 1, 2, 2), value=around)
    w = signs(2 * groups, depth, kernel, kernel, seed=seed + 1)
    window = Window((kernel, kernel), (stride, stride), (dilation, dilation), groups)
    found = FloatAccumulator(rule).conv(x, w, window)
    assert torch.equal(found, IntegerAccumulator(rule).conv(x, w, window))
    reach = dilation * (kernel - 1) + 1
    for n, o, i, j in ((0, 0, 0, 0), (1, 2 * groups - 1, found.shape[2] - 1, found.shape[3] - 1)):
        group = o // 2
        y0, x0 = i * stride, j * stride
        channels = slice(depth * group, depth * (group + 1))
        patch = x[n, channels, y0 : y0 + reach : dilation, x0 : x0 + reach : dilation]
        products = (patch * w[o]).permute(1, 2, 0)  # row, column, channel
        assert found[n, o, i, j] == reference(products.flatten().numpy(), rule)
        if rule:
            old = IntegerAccumulator(replace(rule, tiles="channel")).conv(x, w, window)
            assert old[n, o, i, j] == reference((patch * w[o]).flatten().numpy(), rule)


def test_chunks_do_not_change_the_sums(monkeypatch):
    x, w = signs(9, 8, 10, 10), signs(6, 8, 3, 3, seed=1)
    window = Window((3, 3), (1, 1), (1, 1), 1)
    whole = FloatAccumulator(AccumulatorRule("saturate")).conv(x, w, window)
    monkeypatch.setattr("binarize_cli.binarize.tiles.CHUNK", 1000)
    monkeypatch.setattr("binarize_cli.packed.integer_accumulator.CHUNK", 1000)
    assert torch.equal(FloatAccumulator(AccumulatorRule("saturate")).conv(x, w, window), whole)
    assert torch.equal(IntegerAccumulator(AccumulatorRule("saturate")).conv(x, w, window), whole)


def test_gradients_go_straight_through_where_nothing_overflowed_and_overflows_are_counted():
    x, w = torch.ones(2, 300), torch.ones(3, 300)
    x[1, ::2] = -1  # sums of 0, which never overflow
    x.requires_grad_()
    sums = FloatAccumulator(AccumulatorRule("saturate"))
    y = sums.linear(x, w)
    assert y[0].tolist() == [127] * 3 and y[1].tolist() == [0] * 3
    y.sum().backward()
    assert torch.equal(x.grad, torch.stack([torch.zeros(300), torch.full((300,), 3.0)]))
    assert sums.count == 0  # training does not count
    with torch.no_grad():
        sums.linear(x, w)
    assert (int(sums.overflows), sums.count) == (3, 6)


@pytest.mark.parametrize(
    "groups,stride,zeros,dilation",
    [(1, (1, 1), (0, 0), (1, 1)), (2, (2, 1), (1, 2), (1, 2)), (8, (1, 1), (0, 0), (1, 1))],
)
def test_the_gradient_of_a_convolution_in_tiles_is_that_of_the_plain_one_where_nothing_overflowed(
    groups, stride, zeros, dilation
):
    x, w = signs(2, 8, 9, 9).requires_grad_(), signs(16, 8 // groups, 5, 5, seed=1).requires_grad_()
    y, overflowed = conv_in_tiles(x, w, stride, zeros, dilation, groups, "saturate", 0)
    grad = draw(*y.shape, seed=2) * ~overflowed
    plain = torch.nn.functional.conv2d(x, w, None, stride, zeros, dilation, groups)
    for found, expected in zip(
        torch.autograd.grad(y, (x, w), grad), torch.autograd.grad(plain, (x, w), grad), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_sums_in_tiles_are_exact_within_autocast():
    x, w = signs(3, 1000), signs(5, 1000, seed=1)
    images, kernels = signs(2, 64, 7, 7), signs(4, 64, 3, 3, seed=1)
    window = Window((3, 3), (1, 1), (1, 1), 1)
    sums = FloatAccumulator(AccumulatorRule("saturate", 2))
    with torch.autocast("cpu", torch.bfloat16):
        found = sums.linear(x.bfloat16(), w), sums.conv(images.bfloat16(), kernels, window)
    assert torch.equal(found[0], sums.linear(x, w))
    assert torch.equal(found[1], sums.conv(images, kernels, window))


@pytest.mark.parametrize(
    "operator,inputs",
    [
        (linear_in_tiles, lambda: (signs(5, 200), signs(3, 200, seed=1))),
        (batched_matmul_in_tiles, lambda: (signs(4, 5, 200), signs(4, 3, 200, seed=1))),
        (conv_in_tiles, lambda: (signs(2, 8, 9, 9), signs(6, 4, 3, 3, seed=1), (2, 1), (1, 2), (1, 1), 2)),
    ],
)
def test_operators_keep_the_rules_of_torch_compile(operator, inputs):
    given = [x.requires_grad_() if isinstance(x, torch.Tensor) else x for x in inputs()]
    torch.library.opcheck(operator, (*given, "saturate", 1))


# --- binary inputs -----------------------------------------------------------------------------------------


def recipe(task: str = "bwa", method: str = "bnn++", **sections) -> Recipe:
    return Recipe(method=method, task=task, **sections)


def binary_linear(rule: Recipe, progress: float = 0.0, hard: bool = False) -> BinaryLinear:
    weights, inputs = quantizers(rule)
    signs = LatentInput(inputs.tokens, (-1,), draw(20, seed=3), torch.tensor(0.7))
    linear = nn.Linear(20, 7)
    layer = BinaryLinear(linear, LatentWeight(linear.weight, weights), signs, FloatAccumulator())
    set_phase(layer, Phase.at(progress, "hard" if hard else "soft"))
    return layer


def test_a_hard_layer_is_signs_against_signs_in_numpy():
    layer, x = binary_linear(recipe(), 1.0, hard=True), draw(5, 20)
    w, t, b = (p.detach().numpy() for p in (layer.source.latent, layer.input.threshold, layer.bias))
    alpha = np.abs(w).mean(1)
    s = lambda v: np.where(v < 0, -1.0, 1.0)  # noqa: E731
    inputs = 0.7 * s(x.numpy() - t) + t
    expected = inputs @ (alpha[:, None] * s(w)).T + b
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_where_F_is_linear_the_layer_is_the_float_one():
    rule = recipe(
        quantizer={"normalize": 1e4, "schedules": {"mu": {"start": 1.0, "end": 1.0}}},
        activation={"normalize": 1e4},
    )
    layer, x = binary_linear(rule), draw(5, 20)
    expected = nn.functional.linear(x, layer.source.latent, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_where_F_is_linear_a_convolution_with_a_bias_is_the_float_one_and_hard_its_bias_is_kept(groups):
    rule = recipe(
        quantizer={"normalize": 1e4, "schedules": {"mu": {"start": 1.0, "end": 1.0}}},
        activation={"normalize": 1e4},
    )
    conv, x = nn.Conv2d(6, 12, 3, groups=groups), draw(2, 6, 5, 5)
    weights, inputs = quantizers(rule)
    expected = conv(x)
    signs = LatentInput(inputs.images, (1,), draw(6, seed=3), torch.tensor(0.7))
    layer = BinaryConv2d(conv, LatentWeight(conv.weight, weights), signs, FloatAccumulator())
    torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-3)
    set_phase(layer, Phase.at(0.0, "hard"))
    expected = layer(x).detach()
    fixed = harden(nn.Sequential(layer))
    torch.testing.assert_close(fixed(x).detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["bc", "bnn", "bnn+", "bnn++", "pc", "parq", "ede+", "pq"])
def test_the_gradient_of_binary_inputs_is_the_pairs(method):
    """F and B of the registry at (x - t) / n, against the layer's own backward pass."""
    q = quantizers(recipe(method=method))[1].tokens
    q.move_to(Moment(0.3))
    made = LatentInput(q, (-1,), draw(20, seed=3), torch.tensor(0.7))
    x = draw(5, 20).requires_grad_()
    values, beta = made(x)
    upstream = draw(5, 20, seed=5)
    (values * beta * upstream).sum().backward()
    n = 0.7 * (q.normalize or 1)
    u = (x - made.threshold).detach() / n
    typical = q.F(q.typical * 0.7 / n).abs().mean()
    torch.testing.assert_close(values, q.F(u) / typical)
    expected = upstream * 0.7 / typical / n * q.B(u)
    torch.testing.assert_close(x.grad, expected)
    torch.testing.assert_close(made.threshold.grad, -expected.sum(0))
    torch.testing.assert_close(made.log_scale.grad, 0.7 * (upstream * values).sum().detach())


def test_the_scale_of_inputs_outlasts_gradients_that_are_noise():
    """Adam turns any gradient into steps of the learning rate's size; where BatchNorm follows it is noise."""
    q = quantizers(recipe())[1].images
    made = LatentInput(q, (1,), torch.zeros(3), torch.tensor(0.4))
    optimizer = torch.optim.AdamW(made.parameters(), lr=4e-3, weight_decay=0.0)
    for step in range(2_000):
        optimizer.zero_grad()
        (made.beta() * (1e-9 if step < 1_500 else -1e-9)).backward()  # drifts down, then up
        optimizer.step()
        if step == 1_499:
            lowest = made.beta().item()
    assert 0 < lowest < made.beta().item()


@pytest.mark.parametrize("kind, window", [("images", 4.8), ("tokens", 2.4)])
@pytest.mark.parametrize("normalize", ["none", 1.0, 10.0])
def test_hardened_inputs_pass_gradients_on_within_a_window_of_beta(kind, window, normalize):
    quantizer = getattr(quantizers(recipe(activation={"normalize": normalize}))[1], kind)
    made = LatentInput(quantizer, (-1,), draw(20, seed=3), torch.tensor(0.7))
    quantizer.move_to(Moment(0.0, "hard"))
    x, upstream = (2 * draw(50, 20)).requires_grad_(), draw(50, 20, seed=5)
    values, beta = made(x)
    assert set(values.unique().tolist()) == {-1, 1}
    (values * beta * upstream).sum().backward()
    unit = 1.0 if normalize == "none" else 0.7  # n = 1: the window is that of inputs of magnitude 1
    distance = (x - made.threshold).detach() / unit
    slope = torch.where(distance.abs() < window, sign_swish_slope(distance, 2.3994 / window), 0.0)
    assert 0.01 < (slope == 0).float().mean() < 0.8
    torch.testing.assert_close(x.grad, upstream * slope * 0.7 / unit, atol=1e-4, rtol=1e-4)


def test_convolutions_have_a_wider_window_than_all_else():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    table = [Layer("0", "conv", [4, 3, 3, 3], True, ""), Layer("2", "linear", [5, 144], True, "")]
    for rule, windows in (({}, [4.8, 2.4]), ({"window": 3.0}, [3.0, 3.0])):
        made = make_binary(copy.deepcopy(net), table, recipe(activation=rule), [draw(6, 3, 8, 8)]).net
        assert [made[at].input.quantizer.window for at in (0, 2)] == windows


def test_hardening_leaves_a_pair_of_signs_as_it_is():
    for method in ("bnn", "poly"):
        quantizer = quantizers(recipe(method=method))[1].images
        x, soft = draw(50), quantizer.B(draw(50))
        quantizer.move_to(Moment(0.0, "hard"))
        assert torch.equal(quantizer.B(x), soft)


def test_activations_may_have_a_method_of_their_own_and_follow_the_weights_otherwise():
    weights, inputs = quantizers(recipe(activation=Activation(method="bnn")))
    assert inputs.images.method.name == inputs.tokens.method.name == "bnn" and weights.method.name == "bnn++"
    schedules = {"mu": {"start": 3.0, "end": 9.0}}
    weights, inputs = quantizers(recipe(quantizer={"schedules": schedules}))
    for quantizer in (weights, *inputs):
        quantizer.enter(Phase.at(0.5))
        assert float(quantizer.values["mu"]) == 6.0 and quantizer.mode == "soft"
    assert quantizers(recipe("bw"))[1] is None


# --- calibration -------------------------------------------------------------------------------------------


def test_calibration_finds_means_magnitudes_and_one_sided_inputs():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 3)).eval()
    images = [draw(64, 6, seed=i) for i in range(2)]
    stats = calibrate(net, ["0", "2", "4"], images, binary_inputs(recipe()))
    hidden = torch.relu(net[0](torch.cat(images))).detach()
    torch.testing.assert_close(stats["2"].inputs[0].mean, hidden.mean(0))
    torch.testing.assert_close(stats["2"].inputs[0].magnitude, (hidden - hidden.mean(0)).abs().mean())
    assert (
        stats["2"].inputs[0].one_sided
        and not stats["0"].inputs[0].one_sided
        and not stats["2"].inputs[0].constant
    )


def test_without_thresholds_an_input_that_is_never_negative_is_found_constant():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    bare = recipe(activation=Activation(threshold="none", scale="none"))
    stats = calibrate(net, ["0", "2"], [draw(64, 6)], binary_inputs(bare))
    assert stats["2"].inputs[0].constant and not stats["0"].inputs[0].constant


def test_bits_are_dropped_only_where_sums_overflow():
    net = nn.Sequential(nn.Linear(1000, 4), nn.Linear(4, 4))
    nn.init.constant_(net[0].weight, 1.0)  # sums of 1000 equal signs
    images = [draw(64, 1).expand(64, 1000).contiguous()]
    stats = calibrate(net, ["0", "1"], images, binary_inputs(recipe("bwaa")))
    assert stats["0"].rule.shift == 3 and stats["1"].rule.shift == 0
    fixed = calibrate(net, ["0"], images, binary_inputs(recipe("bwaa", accumulator=Accumulator(shift=1))))
    assert fixed["0"].rule.shift == 1


# --- blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "blocks"),
    [
        (lambda: load(resolve("digits_resnet"), pretrained=True).net, 6),
        (lambda: timm.create_model("resnet18"), 8),
        (lambda: torchvision.models.resnet18(), 8),
    ],
)
def test_rewritten_blocks_compute_the_same_and_keep_the_layers_names(net, blocks):
    net = net().eval()
    x = torch.rand(2, net.conv1.in_channels, 32, 32)
    before, names = net(x), [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    rewrite_blocks(net)
    assert sum(isinstance(m, BiRealBlock) for m in net.modules()) == blocks
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-4)
    assert sorted(names) == sorted(
        n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)
    )


def test_the_gradient_of_rprelu_is_autograds_own():
    x, *moves = (draw(3, 4, 5, 2, seed=9), draw(4), draw(4, seed=1), draw(4, seed=2))
    with torch.no_grad():
        x[0, 0, 0, 0] = moves[0][0]  # at the kink: PReLU has the slope of the left side there
    arguments = [t.double().requires_grad_() for t in (x, *moves)]
    layer = RPReLU(4).double()
    expected = nn.functional.prelu(arguments[0] - arguments[1].view(-1, 1, 1), arguments[2])
    expected = expected + arguments[3].view(-1, 1, 1)
    weights = draw(3, 4, 5, 2, seed=4).double()
    expected_gradients = torch.autograd.grad((expected * weights).sum(), arguments)
    parameters = (layer.move_in, layer.slope, layer.move_out)
    with torch.no_grad():
        for parameter, value in zip(parameters, arguments[1:], strict=True):
            parameter.copy_(value)
    found = layer(arguments[0])
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad((found * weights).sum(), (arguments[0], *parameters))
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_blocks_with_more_in_them_are_left_alone():
    net = rewrite_blocks(timm.create_model("seresnet18"))
    assert not any(isinstance(m, BiRealBlock) for m in net.modules())


def test_the_blocks_of_a_network_are_its_outermost_repeated_parts():
    assert block_names(load(resolve("digits_vit"), pretrained=False).net) == [f"blocks.{i}" for i in range(4)]
    resnet = block_names(timm.create_model("resnet18"))
    assert resnet == [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]


# --- the whole network, in training and from the file ------------------------------------------------------


def trained_network(model: str, rule: Recipe):
    """Return a binary network whose parameters have moved away from where they began."""
    torch.manual_seed(0)
    found = load(resolve(model), pretrained=True)
    head = "head" if "vit" in model else "linear"
    net, table = rewrite_and_choose(found.net, torch.zeros(2, 1, 8, 8), rule, [head])
    binary = make_binary(net, table, rule, [torch.rand(32, 1, 8, 8)])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    net.eval()
    return binary


def check_hard_and_integers(binary: BinaryNetwork) -> None:
    """The hard network computes what the latent one does, and with integers the same to the bit."""
    x, net = torch.rand(4, 1, 8, 8), binary.net
    binary.harden()
    trained = net(x).detach()
    fixed = harden(copy.deepcopy(net))
    torch.testing.assert_close(fixed(x), trained, rtol=1e-4, atol=1e-4)
    expected = fixed(x)
    for _, layer in binary_layers(fixed):
        assert isinstance(layer.input, SignInput)
    for _, module in (*binary_layers(fixed), *binary_matmuls(fixed)):
        module.accumulator = IntegerAccumulator(module.accumulator.rule)
    assert torch.equal(fixed(x), expected)


@pytest.mark.parametrize("task", ["bwa", "bwaa"])
@pytest.mark.parametrize("model", ["digits_vit", "digits_resnet"])
def test_the_hard_network_computes_what_training_did_and_integers_give_the_same_sums(model, task):
    check_hard_and_integers(trained_network(model, recipe(task)))


def test_macs_are_counted_for_one_image():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, groups=1), nn.Flatten(), nn.Linear(4 * 25, 7))
    assert count_macs(net, torch.zeros(2, 3, 5, 5)) == {"0": 25 * 4 * 27, "2": 700}


def test_padding_is_a_third_value_or_a_chosen_sign():
    outputs = {}
    for value in (-1, 0, 1):
        weights, inputs = quantizers(recipe())
        conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        nn.init.ones_(conv.weight)
        signs = LatentInput(inputs.images, (1,), None, torch.tensor(1.0))
        layer = BinaryConv2d(conv, LatentWeight(conv.weight, weights), signs, FloatAccumulator(), value)
        set_phase(layer, Phase.at(0.0, "hard"))
        outputs[value] = float(layer(torch.ones(1, 1, 4, 4))[0, 0, 0, 0].detach())
    assert outputs == {-1: 4 - 5, 0: 4, 1: 9}


def test_stats_say_what_the_table_prints():
    zero = torch.zeros(1)
    assert InputStats((1,), zero, zero[0], lighter=0.1, plus=0.5).one_sided
    assert not InputStats((1,), zero, zero[0], lighter=0.5, plus=0.5).one_sided


@pytest.mark.parametrize("rule", [{"method": "nope"}, {"method": "float"}, {"schedules": {"rho": 1.0}}])
def test_wrong_activation_sections_are_refused(rule):
    with pytest.raises(ValueError):
        recipe(activation=rule)


def test_activations_first_keeps_float_weights_and_then_the_inputs_stay_at_the_end_of_their_schedule():
    weights, inputs = quantizers(recipe())
    latent = LatentWeight(draw(4, 9), weights)
    first = PhasePlan("activations", steps=10, harden=0.5, harden_inputs=0.5)
    assert first.at(9).inputs.mode == "hard" and first.at(9).weights.mode == "float"
    weights.enter(first.at(9))
    units, alpha = latent.signs_and_scale()
    torch.testing.assert_close(units * alpha[:, None], latent.latent)
    second = PhasePlan("binary", steps=10, harden=0.5, harden_inputs=0.5, inputs_frozen=True).start()
    for quantizer in (weights, *inputs):
        quantizer.enter(second)
    assert float(inputs.images.values["mu"]) == 60 and float(weights.values["mu"]) == 5


def test_inputs_may_be_signs_before_weights_are():
    plan = PhasePlan("binary", steps=20, harden=0.5, harden_inputs=0.9)
    phases = [plan.at(step) for step in range(20)]
    modes = [(phase.weights.mode, phase.inputs.mode) for phase in phases]
    assert modes == [("soft", "soft")] * 2 + [("soft", "hard")] * 8 + [("hard", "hard")] * 10
    assert phases[1].inputs.progress == phases[9].weights.progress == 1.0 > phases[8].weights.progress
    assert [phase.is_hard for phase in phases] == [False] * 10 + [True] * 10
    assert [step for step in range(20) if plan.hardens_at(step)] == [10]
    always = replace(plan, harden_inputs=1.0)
    assert {always.at(step).inputs.mode for step in range(20)} | {always.start().inputs.mode} == {"hard"}
    assert always.start().weights == Moment() and not always.start().is_hard
    assert Train(harden=0.5, harden_inputs=0.9).inputs_hardened == 0.9
    assert Train(harden=0.5, harden_inputs=0.2).inputs_hardened == 0.5, "never later than the weights"


def test_soft_weights_may_meet_inputs_of_signs():
    layer, x = binary_linear(recipe()), draw(5, 20)
    set_phase(layer, Phase(Moment(0.5, "soft"), Moment(1.0, "hard")))
    w, t, b = (p.detach().numpy() for p in (layer.source.latent, layer.input.threshold, layer.bias))
    z = 5 * 12**0.5 * w / (10 * np.abs(w).mean(1, keepdims=True))  # mu from 5 to 60 by equal factors
    s = 1 / (1 + np.exp(-z))
    swish = 2 * s * (1 + z * (1 - s)) - 1
    weights = swish * np.abs(w).mean(1, keepdims=True) / np.abs(swish).mean(1, keepdims=True)
    expected = (0.7 * np.where(x.numpy() < t, -1.0, 1.0) + t) @ weights.T + b
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


# --- the command line --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["digits_vit", "digits_resnet"])
@pytest.mark.parametrize("task", ["bwa", "bwaa"])
def test_from_the_command_to_the_scored_file(model, task, bnnpp, tiny, tmp_path):
    words = ("--data-dir", tiny, "--epochs", 1, "-b", 6, "--set", "train.float_epochs=1")
    stages = ("--set", "train.activation_epochs=1", "--set", "distill.blocks=0.1")
    run = bnnpp("binarize", model, "--task", task, *words, *stages, "--output", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["task"] == task and report["agreement"]["equal"]
    speed = {"images_per_second": 0}  # no tensor of these networks is large: none is rounded
    assert report["accuracy"]["packed"] | speed == report["accuracy"]["hard"] | speed
    assert report["epochs"][-1]["hard_top1"] == report["accuracy"]["packed"]["top1"]
    assert report["rounding"] == {"float_dtype": "float16", "points": 0}
    assert [row["stage"] for row in report["epochs"]] == ["float"] * 2 + ["activations"] * 2 + ["binary"] * 2
    scored = json.loads(bnnpp("eval", run.packed, "--json").out)
    assert scored["top1"] == report["accuracy"]["packed"]["top1"]
    account = json.loads(bnnpp("inspect", run.packed, "--json").out)
    binary = [row for row in account["layers"] if row["bits"] == 1]
    assert all(row["input"].startswith("1 bit") for row in binary)
    assert any("one-sided" in row["input"] for row in binary)
    assert account["macs"]["signs"] == 0 < account["macs"]["float"] < account["macs"]["binary"]
    for row in binary:
        rule = row["accumulator"]
        assert (rule is None) if task == "bwa" else 0 <= rule["overflowed"] <= 1
    said = bnnpp("inspect", run.packed).out
    assert "sign by sign" in said and (" sums " in said.splitlines()[1]) == (task == "bwaa")


def test_training_starts_from_the_float_network_although_thresholds_are_taken_off(bnnpp, tmp_path):
    soft = ("--set", "train.harden_inputs=0")
    bnnpp("binarize", "digits_resnet", "--task", "bwa", "--epochs", 0, *soft, "-o", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["epochs"][0]["soft_top1"] > report["accuracy"]["float"]["top1"] - 5


def test_the_bare_form_warns_of_layers_that_see_a_constant(bnnpp, tiny, tmp_path):
    bare = ("--set", "activation.threshold=none", "--set", "activation.scale=none")
    words = ("--task", "bwa", "--data-dir", tiny, "--epochs", 0, "-b", 6, "--set", "train.float_epochs=1")
    outcome = bnnpp(
        "binarize", "digits_resnet", *words, *bare, "--set", "activation.blocks=keep", "-o", tmp_path / "run"
    )
    said = next(line for line in outcome.err.splitlines() if "see a constant" in line)
    assert (
        "12 layers see a constant" in said
        and "layer1.0.conv2" in said
        and said.count("activation.threshold") == 1
    )
