"""`bnnpp compare` and `bnnpp theory`."""

from __future__ import annotations

import itertools
import json

import numpy as np
import torch

from binarize_cli.quantizers.methods import METHODS
from binarize_cli.recipe_io import read
from binarize_cli.theory import make_problems, solve


def test_a_table_has_a_row_a_method_and_recipe_over_seeds_and_is_read_the_second_time(bnnpp, empty, tiny):
    words = (
        "compare",
        "digits_resnet",
        "--methods",
        "bc,bnn++",
        "--recipes",
        "paper/bnn++",
        "--seeds",
        "0,1",
    )
    flags = ("--data-dir", tiny, "--epochs", 1, "-b", 4, "--set", "train.float_epochs=1")
    first = bnnpp(*words, *flags, "--output", "all", "--json")
    rows = json.loads(first.out)["rows"]
    assert [row["row"] for row in rows] == ["bc", "bnn++", "paper/bnn++"]
    scores = []
    for seed in (0, 1):
        report = json.loads((empty / "all" / f"bnn++-{seed}" / "report.json").read_text())
        assert report["provenance"]["seed"] == seed
        assert report["command"].startswith("bnnpp binarize digits_resnet --method bnn++ --seed")
        scores.append(report["accuracy"]["packed"]["top1"])
    assert rows[1]["packed"]["mean"] == round(float(np.mean(scores)), 2)
    assert rows[1]["packed"]["spread"] == round(abs(scores[0] - scores[1]) / 2, 2)
    kept = sorted(path.name for path in (empty / "all" / "teacher").glob("*/*"))
    assert kept == ["epoch-0.pt", "epoch-0.pt"], "the teacher's logits, once a seed"
    second = bnnpp(*words, *flags, "--output", "all")
    assert second.code == 0 and "paper/bnn++" in second.out and second.err.count("finished before") == 6
    assert "another command" not in second.err
    third = bnnpp(*words, *flags, "--lr", 0.1, "--output", "all")
    assert third.code == 0 and third.err.count("that was another command: bnnpp binarize digits_resnet") == 6


def test_tasks_make_a_row_each(bnnpp, empty, tiny):
    flags = ("--data-dir", tiny, "--no-pretrained", "--epochs", 0, "--json", "--output", "all")
    both = ("--methods", "bc", "--recipes", "paper/binary-activations/bc")
    rows = json.loads(bnnpp("compare", "digits_resnet", *both, "--tasks", "bw,bwaa", *flags).out)["rows"]
    bare = "paper/binary-activations/bc"
    assert [row["row"] for row in rows] == ["bc bw", "bc bwaa", f"{bare} bw", f"{bare} bwaa"]
    report = json.loads((empty / "all" / "paper-binary-activations-bc-bwaa-0" / "report.json").read_text())
    assert (report["task"], report["recipe"]["activation"]["threshold"]) == ("bwaa", "none")
    for task, recipe in (("bw", "default"), ("bwaa", "binary-activations")):
        report = json.loads((empty / "all" / f"bc-{task}-0" / "report.json").read_text())
        assert report["task"] == task
        assert report["recipe"]["train"]["lr"] == read(recipe).validate().train.lr


def test_what_cannot_be_compared_is_refused_before_the_first_run(bnnpp, empty):
    for words, said in (
        ((), "nothing to compare"),
        (("--methods", "bc,bcc"), "no method is named 'bcc'"),
        (("--recipes", "papr/bc"), "no recipe is named 'papr/bc'"),
        (("--methods", "bc", "--seeds", "x"), "not a list of seeds"),
        (("--methods", "bc", "--tasks", "bw,bwb"), "no task is named 'bwb'"),
    ):
        outcome = bnnpp("compare", "digits_vit", *words)
        assert outcome.code == 2 and said in outcome.err and not outcome.out
    assert not list(empty.iterdir())


def test_enumeration_finds_the_best_binary_solution():
    problems = make_problems(3, equations=6, unknowns=4)
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=4)))
    A, b = problems.A.numpy(), problems.b.numpy()
    for i in range(3):
        losses = ((corners @ A[i].T - b[i]) ** 2).mean(1) / 2
        assert np.isclose(problems.best()[i], losses.min())


def test_the_principled_form_ends_closer_to_the_best_solution_than_its_heuristic():
    problems = make_problems(20)
    best = problems.best()
    excess = {
        name: float((problems.loss(solve(name, problems, 1000, 0.01)) / best - 1).mean())
        for name in ("bnn+", "bnn++")
    }
    assert 0 <= excess["bnn++"] < excess["bnn+"]


def test_every_solution_is_binary_and_none_beats_the_enumeration():
    problems = make_problems(4, unknowns=6)
    for name in (name for name, method in METHODS.items() if method.binary):
        w = solve(name, problems, 30, 0.01)
        assert set(w.unique().tolist()) <= {-1.0, 1.0}
        assert (problems.loss(w) >= problems.best() - 1e-12).all() and torch.isfinite(w).all()


def test_the_theory_command_has_a_row_a_binary_method(bnnpp):
    rows = json.loads(bnnpp("theory", "--problems", 2, "--steps", 20, "--json").out)["rows"]
    assert [row["method"] for row in rows] == [name for name, method in METHODS.items() if method.binary]
    assert all(row["worst_excess"] >= row["mean_excess"] >= 0 for row in rows)
