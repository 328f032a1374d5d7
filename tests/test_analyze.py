"""The analysis of layers: what it measures, that it leaves the network as it was, continues, and chooses."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from binarize_cli.analysis.choice import Gain, Score, patterns, ranked, until_points, within_budget
from binarize_cli.analysis.sensitivity import Trained, exchanged, units_of, with_moved_signs
from binarize_cli.analysis.session import Asked, images
from binarize_cli.cli.analyze import bytes_of
from binarize_cli.data.datasets import open_dataset
from binarize_cli.data.loaders import ScoreBatches, hold_out
from binarize_cli.errors import InputError
from binarize_cli.models.load import Preprocessing
from binarize_cli.packed.bits import unpack
from binarize_cli.packed.check import BITS
from binarize_cli.packed.format import read
from binarize_cli.packed.runtime import rebuild
from binarize_cli.recipe import Recipe

GOLDEN = Path(__file__).parent / "golden"


def test_a_file_is_measured_on_the_images_that_its_run_set_aside():
    split = open_dataset("digits", None).train
    _, aside = hold_out(split, 0.05, seed=3)
    rule = Preprocessing((1, 8, 8), "bicubic", (0.5,), (0.5,), 1.0, "center")
    judge = images(split, rule, Asked(images=len(aside)), torch.device("cpu"), seed=3)
    unseen = next(iter(ScoreBatches(aside, rule, len(aside))))[0]
    measured = torch.cat([each for each, _ in judge])
    assert sorted(measured.flatten(1).tolist()) == sorted(unseen.flatten(1).tolist())


@pytest.mark.parametrize("task", ["bw", "bwa"])
def test_a_twentieth_of_the_named_layers_signs_move_and_nothing_else(task):
    file = read(GOLDEN / f"format2-digits_resnet-{task}.safetensors")
    name = "layer2.0.conv2"
    found = with_moved_signs(file, [name], seed=1)
    row = next(row for row in file.document.layers if row.name == name)
    before, after = (unpack(each.tensors[name + BITS], row.shape) for each in (file, found))
    assert 0.04 < (before != after).mean() < 0.06
    assert (before.sum((1, 2, 3)) == after.sum((1, 2, 3))).all(), "they stay within their filter"
    same = [key for key in file.tensors if np.array_equal(file.tensors[key], found.tensors[key])]
    assert set(file.tensors) - set(same) == {name + BITS}
    others = with_moved_signs(file, [name], seed=2)
    assert not np.array_equal(others.tensors[name + BITS], found.tensors[name + BITS])
    x = torch.zeros(2, *file.document.preprocessing.input_size)
    assert not torch.equal(rebuild(found)(x), rebuild(file)(x)), "the network computes with them"


@given(st.integers(1, 6), st.integers(1, 40), st.floats(0, 1), st.integers(0, 99))
def test_signs_are_exchanged_for_others_of_their_filter(filters, weights, share, seed):
    signs = np.where(np.random.default_rng(seed).random((filters, weights)) < share, 1, -1).astype(np.int8)
    moved = exchanged(signs, np.random.default_rng(seed))
    assert set(np.unique(moved)) <= {1, -1} and (moved.sum(1) == signs.sum(1)).all()
    assert ((moved != signs).sum(1) <= 2 * np.ceil(0.05 / 2 * weights)).all()


def test_a_layer_costs_how_far_its_moved_signs_move_the_answers():
    file = read(GOLDEN / "format2-digits_resnet-bw.safetensors")
    split = open_dataset("digits", None).train
    rule = Preprocessing.from_json(file.document.preprocessing.model_dump())
    judge = images(split, rule, Asked(images=100), torch.device("cpu"), seed=0)
    trained = Trained(file, judge, torch.device("cpu"))
    units = units_of(rebuild(file), [row.name for row in file.document.layers if row.binary], by_block=True)
    base = trained.base()
    gains = list(trained.gains(units, base))
    moved = right = 0.0
    for seed, (x, y) in enumerate(judge):  # other signs are wrong for every batch
        with torch.inference_mode():
            wrong = rebuild(with_moved_signs(file, units[0].layers, seed))(x)
            own, other = (logits.double().softmax(1).numpy() for logits in (rebuild(file)(x), wrong))
        moved += (own * np.log(own / other)).sum()
        right += float((wrong.argmax(1) == y).sum())
    count = sum(len(y) for _, y in judge)
    assert len(judge) == 4 and count == 100
    assert gains[0].loss == pytest.approx(moved / count, rel=1e-4) and gains[0].loss > 0
    assert gains[0].points == pytest.approx(base.top1 - 100 * right / count, abs=1e-3)
    assert list(trained.gains(units[2:], base)) == gains[2:], "the rest of an interrupted one"


def test_units_are_layers_or_blocks_and_grow_by_what_float16_takes_more():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    (unit,) = units_of(net, ["0"], by_block=False)
    assert unit.bytes == 2 * 24 - (6 * 1 + 2 * 6)


GAINS = [
    Gain("a", ["a.0", "a.1"], 1000, 1.0, 0.5),
    Gain("b", ["b.0"], 100, 0.5, 0.2),
    Gain("c", ["c.0"], 100, -0.5, -0.1),
    Gain("d", ["d.0"], 5000, 3.0, 0.9),
]


def test_the_choice_takes_what_gains_most_a_byte_and_fits():
    assert [gain.name for gain in ranked(GAINS)] == ["b", "a", "d", "c"]
    choice = within_budget(GAINS, 1150)
    assert choice.layers == ["b.0", "a.0", "a.1"] and choice.bytes == 1100
    few = until_points(GAINS, 1.0, Score(80, 1), lambda names: Score(80 + 0.5 * len(names), 1))
    assert few.layers == ["b.0", "a.0", "a.1"]
    with pytest.raises(InputError, match=r"gains 9 points; the most is 2\.00"):
        until_points(GAINS, 9, Score(80, 1), lambda names: Score(80 + 0.5 * len(names), 1))


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(-5, 40)), max_size=8), st.integers(-3, 200))
def test_a_budget_buys_what_no_other_choice_exceeds(units, spare):
    gains = [Gain(str(i), [str(i)], size, 0.0, float(gain)) for i, (size, gain) in enumerate(units)]
    choice = within_budget(gains, spare)
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
    assert bytes_of(text) == count


def test_a_file_is_analysed_interrupted_continued_and_ends_in_lines_for_a_recipe(bnnpp, empty):
    bnnpp("binarize", "digits_resnet", "--method", "ptq", "--dataset", "digits", "-o", "run")
    words = ("analyze", "run/model.safetensors", "--images", 60, "--by", "block")
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
    tight = bnnpp(*words, "--budget", document["bytes"] + 10)
    assert "nothing that gains fits into the --budget: the smallest layer or block takes" in tight.err
    assert yaml.safe_load(tight.out)["layers"]["keep_float"] == ["first", "head"]


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
        ((file, "--points", 1), "--points goes with a model"),
        ((file, "--budget", "1KiB", "--images", 4, "--by", "block"), "Ask for a larger file"),
    ):
        outcome = bnnpp("analyze", *words, "-o", "out")
        assert outcome.code == 2 and said in outcome.err, outcome.err
