"""The analysis of layers: what it measures, that it leaves the network as it was, continues, and chooses."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from binarize_cli.analysis.choice import Gain, Score, patterns, ranked, until_points, within_budget
from binarize_cli.analysis.sensitivity import Trained, _float_bias, set_free, units_of
from binarize_cli.binarize.activations import SignInput
from binarize_cli.binarize.convert import binary_layers
from binarize_cli.binarize.layers import BinaryConv2d, BinaryLinear
from binarize_cli.binarize.weights import SignWeight
from binarize_cli.cli.analyze import _bytes
from binarize_cli.errors import InputError
from binarize_cli.recipe import Recipe


class Exact(nn.Module):
    """Exact sums of signs, as `bwa` has them."""

    def linear(self, values, weights):
        return values @ weights.T

    def conv(self, images, weights, window):
        return nn.functional.conv2d(images, weights, None, window.stride, 0, window.dilation, window.groups)


def a_hard_network(task: str = "bw") -> nn.Module:
    """Return a linear layer of signs, ReLU, and a float layer; in bwa with thresholds far from 0."""
    torch.manual_seed(0)
    source = SignWeight(torch.randint(0, 2, (6, 4)) * 2 - 1, torch.full((6,), 0.5))
    inputs = {}
    if task == "bwa":
        inputs = {"input": SignInput((-1,), torch.full((4,), 3.0), torch.ones(())), "accumulator": Exact()}
    return nn.Sequential(BinaryLinear(nn.Linear(4, 6), source, **inputs), nn.ReLU(), nn.Linear(6, 3)).eval()


def batches(count: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 3, (count, 16), generator=draw)
    return [(nn.functional.one_hot(t, 4).float() + 3.0, t) for t in targets]


@pytest.mark.parametrize("task", ["bw", "bwa"])
def test_a_layer_that_is_set_free_learns_and_then_all_is_as_before(task):
    net = a_hard_network(task)
    images, targets = batches(1)[0]
    before = net(images)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with set_free(net, ["0"], []):
        start = nn.functional.cross_entropy(net(images), targets)
        assert task == "bwa" or torch.allclose(net(images), before), "the same weights, no longer signs"
    with set_free(net, ["0"], batches(40)):
        assert nn.functional.cross_entropy(net(images), targets) < start
    assert torch.equal(net(images), before)
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


class Half(nn.Module):
    """Two layers of signs, of which the second does nothing to the output."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = a_hard_network(), a_hard_network()

    def forward(self, x):
        return self.used(x) + 0 * self.unused(x)


def test_a_layer_gains_what_its_signs_cost_beside_all_others_that_are_free():
    net = Half().eval()
    before = net(batches(1)[0][0])
    trained = Trained(net, batches(40), batches(4), torch.device("cpu"))
    units = units_of(net, [name for name, _ in binary_layers(net)], by_block=False)
    used, unused = trained.gains(units, 0)
    assert used.name == "used.0" and used.loss > 0.01 and unused.loss == unused.points == 0
    assert [gain.name for gain in trained.gains(units, 1)] == ["unused.0"], "the rest of an interrupted one"
    assert torch.equal(net(batches(1)[0][0]), before)


def test_a_free_layer_gets_its_inputs_whole_so_thresholds_leave_its_bias():
    layer = a_hard_network("bwa")[0]
    signs, scale = layer.source.signs_and_scale()
    weight = signs * scale[:, None]
    assert torch.allclose(_float_bias(layer), layer.bias - weight @ layer.input.threshold)
    conv = nn.Conv2d(4, 6, 3, groups=2)
    source = SignWeight(torch.sign(conv.weight.detach()), torch.full((6,), 0.5))
    t = torch.tensor([1.0, 2.0, 3.0, 4.0])
    binary = BinaryConv2d(conv, source, SignInput((1,), t, torch.ones(())), Exact())
    image = t.view(1, 4, 1, 1).expand(1, 4, 3, 3)
    of_t = nn.functional.conv2d(image, source(), None, groups=2).flatten()
    assert torch.allclose(_float_bias(binary), conv.bias - of_t, atol=1e-6)


def test_units_are_layers_or_blocks_and_grow_by_what_float16_takes_more():
    net = a_hard_network()
    names = [name for name, _ in binary_layers(net)]
    (unit,) = units_of(net, names, by_block=False)
    assert unit.bytes == 2 * 24 - (6 * 1 + 2 * 6)


GAINS = [
    Gain("a", ["a.0", "a.1"], 1000, 1.0, 0.5),
    Gain("b", ["b.0"], 100, 0.5, 0.2),
    Gain("c", ["c.0"], 100, -0.5, -0.1),
    Gain("d", ["d.0"], 5000, 3.0, 0.9),
]


def test_the_choice_takes_what_gains_most_a_byte_and_fits():
    assert [gain.name for gain in ranked(GAINS)] == ["b", "a", "d", "c"]
    seen = []
    choice = within_budget(GAINS, 1150, lambda names: seen.append(list(names)) or Score(90, 1))
    assert choice.layers == ["b.0", "a.0", "a.1"] == seen[0] and choice.bytes == 1100
    few = until_points(GAINS, 1.0, Score(80, 1), lambda names: Score(80 + 0.5 * len(names), 1))
    assert few.layers == ["b.0", "a.0", "a.1"]
    with pytest.raises(InputError, match=r"gains 9 points; the most is 2\.00"):
        until_points(GAINS, 9, Score(80, 1), lambda names: Score(80 + 0.5 * len(names), 1))


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(-5, 40)), max_size=8), st.integers(-3, 200))
def test_a_budget_buys_what_no_other_choice_exceeds(units, spare):
    gains = [Gain(str(i), [str(i)], size, 0.0, float(gain)) for i, (size, gain) in enumerate(units)]
    choice = within_budget(gains, spare, lambda names: Score(0, 0))
    worth = [
        sum(gain.loss for gain in some)
        for count in range(len(gains) + 1)
        for some in combinations(gains, count)
        if sum(gain.bytes for gain in some) <= spare or not some
    ]
    assert choice.bytes <= max(spare, 0) and sum(gain.loss for gain in choice.units) == max(worth)


def test_patterns_name_exactly_the_layers():
    every = [f"blocks.{i}.{part}" for i in range(12) for part in ("attn.qkv", "attn.proj", "mlp.fc1")]
    assert patterns(["blocks.1.attn.qkv", "blocks.1.attn.proj"], every) == ["blocks.1.attn.*"]
    assert patterns([n for n in every if n.startswith("blocks.1.")], every) == ["blocks.1.*"]
    assert patterns(["blocks.10.mlp.fc1"], every) == ["blocks.10.mlp.fc1"]


@pytest.mark.parametrize(("text", "count"), [("1.5KiB", 1536), ("2 MiB", 2**21), ("1000", 1000)])
def test_a_budget_is_a_size(text, count):
    assert _bytes(text) == count


def test_a_file_is_analysed_interrupted_continued_and_ends_in_lines_for_a_recipe(bnnpp, empty):
    bnnpp("binarize", "digits_resnet", "--method", "ptq", "--dataset", "digits", "-o", "run")
    words = ("analyze", "run/model.safetensors", "--images", 60, "--steps", 6, "--by", "block")
    first = bnnpp(*words, "--json")
    document = json.loads(first.out)
    assert len(document["gains"]) == document["units"] > 3 and document["choice"] is None
    file = empty / "run" / "analysis.json"
    half = {**document, "gains": document["gains"][:2]}
    file.write_text(json.dumps(half))
    size = document["bytes"] + 40_000
    second = bnnpp(*words, "--budget", size)
    assert f"{document['units']} layers or blocks to look at, 2 of them before" in second.err
    again = json.loads(file.read_text())
    assert again["gains"] == document["gains"], "continued as if nothing had stopped it"
    assert again["choice"]["bytes"] <= size
    keep = Recipe.model_validate(yaml.safe_load(second.out)).layers.keep_float
    assert keep[:2] == ["first", "head"] and len(keep) > 2
    pairs = ("--set", f"layers.keep_float={json.dumps(keep)}", "--method", "ptq")
    done = bnnpp("binarize", "digits_resnet", "--dataset", "digits", *pairs, "-o", "kept")
    assert abs(done.packed.stat().st_size - again["choice"]["bytes"]) < 0.02 * size, "the size was foretold"


def test_a_float_model_is_forecast(bnnpp, empty):
    words = ("analyze", "digits_vit", "--dataset", "digits", "--images", 60, "--by", "block", "-o", "out")
    document = json.loads(bnnpp(*words, "--points", 5, "--json").out)
    assert document["float"]["top1"] > document["binary"]["top1"] + 30
    assert (
        len(document["gains"]) == 4 and document["choice"]["score"]["top1"] >= document["binary"]["top1"] + 5
    )


def test_what_cannot_be_analysed_is_refused(bnnpp, empty, finished):
    file = finished / "model.safetensors"
    for words, said in (
        (("nowhere.safetensors",), "no such file"),
        ((file, "--by", "net"), "neither layer nor block"),
        ((file, "--budget", "x"), "'x' is no size"),
        ((file, "--budget", "1KiB", "--points", 1), "exclude each other"),
        ((file, "--task", "bwa"), "--task goes with a model"),
        ((file, "--budget", "1KiB", "--images", 4, "--steps", 0, "--by", "block"), "Ask for a larger file"),
    ):
        outcome = bnnpp("analyze", *words, "-o", "out")
        assert outcome.code == 2 and said in outcome.err, outcome.err
