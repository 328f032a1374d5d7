"""The comparison of runs: its rows, its files, and that it is made again from results alone."""

from __future__ import annotations

import csv
import json
import math

import pytest
from test_report import a_document

from binarize_cli.report.compare_files import as_csv, as_markdown
from binarize_cli.report.compare_page import render_comparison
from binarize_cli.report.comparison import Run, compare_runs
from binarize_cli.report.means import cell, spread
from binarize_cli.report.results import as_json, trim


def a_result(method: str = "bnn++", seed: int = 0, top1: float = 90.0, task: str = "bw", **changes) -> dict:
    """Return the result of an invented run."""
    result = trim(a_document(["a", "b", "c"], method=method, task=task, epochs=3))
    result["recipe"] = {**result["recipe"], "task": task}
    result["recipe"]["train"] = {**result["recipe"]["train"], "seed": seed}
    result["seed"] = seed
    result["accuracy"]["packed"]["top1"] = top1
    result["command"] = f"bnnpp binarize deit_tiny --method {method} --seed {seed}"
    return result | changes


def test_runs_that_differ_in_their_seed_alone_are_one_row():
    runs = [Run(a_result(seed=seed, top1=90 + seed)) for seed in range(3)] + [Run(a_result("bc", top1=80))]
    comparison = compare_runs(runs)
    first, second = comparison["rows"]
    assert (first["row"], first["n"], first["seeds"]) == ("bnn++", 3, [0, 1, 2])
    assert first["packed"]["mean"] == 91 and first["packed"]["half_range"] == 1
    assert first["packed"]["standard_error"] == pytest.approx(1 / math.sqrt(3), abs=1e-4)
    assert second["packed"] == spread([80]) and second["packed"]["standard_error"] is None
    assert comparison["common"]["model"] == "timm/deit_tiny_patch16_224"
    assert json.loads(as_json(comparison)) == comparison


@pytest.mark.parametrize(
    ("method", "inputs", "rows"), [("bnn", None, 1), ("bnn", "bnn++", 2), ("pc", None, 2)]
)
def test_how_f_hardens_says_nothing_of_methods_whose_f_is_sign(method, inputs, rows):
    first, second = a_result(method), a_result(method, seed=1)
    for result, harden, window in ((first, 0.2, 4.8), (second, 0.5, 1.6)):
        result["recipe"]["activation"] = {"method": inputs, "window": window}
        result["recipe"]["train"]["harden"] = harden
    assert len(compare_runs([Run(first), Run(second)])["rows"]) == rows


def test_a_key_that_is_newer_than_a_result_has_its_default_there():
    old, new, other = (a_result(seed=seed) for seed in range(3))
    old["recipe"]["train"].pop("harden_inputs", None)
    new["recipe"]["train"]["harden_inputs"] = 0.0
    other["recipe"]["train"]["harden_inputs"] = 1.0
    found = compare_runs([Run(old), Run(new), Run(other)])["rows"]
    assert [row["seeds"] for row in found] == [[0, 1], [2]]
    assert [row["row"].split()[-1] for row in found] == ["train.harden_inputs=0.0", "train.harden_inputs=1.0"]


def test_rows_of_one_name_are_told_apart_by_what_differs():
    slow, big = a_result(), a_result()
    slow["recipe"] = {**slow["recipe"], "train": {**slow["recipe"]["train"], "lr": 1e-4}}
    big["data"] = {**big["data"], "train_images": 50_000}
    rows = compare_runs([Run(a_result()), Run(a_result(task="bwa")), Run(slow), Run(big)])["rows"]
    names = [row["row"] for row in rows]
    assert len(set(names)) == 4 and all("bw" in name for name in names)
    assert "train.lr=0.0001" in names[2] and "50,000" in names[3]
    told = ["train.lr=" in name for name in names]
    assert told == [True, False, True, False], "a recipe's keys only where model, data and task are the same"


def test_a_score_that_a_run_lacks_is_no_mean_of_the_others():
    without = a_result(seed=1)
    without["accuracy"]["float"] = None
    (row,) = compare_runs([Run(a_result()), Run(without)])["rows"]
    assert row["float"] is None and cell(row["float"]) == "-" and row["packed"]["mean"] == 90


def test_the_loss_of_the_packed_file_is_given_to_four_digits():
    runs = [a_result(seed=seed) for seed in (0, 1)]
    for result, loss in zip(runs, (0.40001, 0.41004), strict=True):
        result["accuracy"]["packed"]["loss"] = loss
    comparison = compare_runs([Run(result) for result in runs])
    (row,) = comparison["rows"]
    assert row["loss"]["mean"] == 0.405 and row["loss"]["half_range"] == pytest.approx(0.005015)
    assert "| 0.4050 ± 0.0050 |" in as_markdown(comparison)
    assert ">0.4050 ± 0.0050<" in render_comparison(comparison)


def test_the_soft_score_is_what_the_log_says_of_the_packed_epoch():
    curve = {"epoch": [0, 1, 2, 3], "soft": [50.0, 70.0, 80.0, 85.0], "hard": [10.0, 60.0, 75.0, 85.0]}
    for packed, soft in ((1, 70.0), (3, 85.0)):
        (row,) = compare_runs([Run(a_result(curve=curve, packed_epoch=packed))])["rows"]
        assert row["soft"]["mean"] == soft


def test_the_tables_have_a_line_a_row_and_say_what_the_error_is():
    comparison = compare_runs([Run(a_result(seed=s, top1=90 + s)) for s in (0, 1)] + [Run(a_result("bc"))])
    text = as_markdown(comparison)
    assert "half the range over n runs" in text and "**90.50 ± 0.50**" in text and "`bc`" in text
    assert "$ bnnpp binarize deit_tiny --method bc --seed 0" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert "standard error" in as_markdown(comparison, "standard-error")
    rows = list(csv.DictReader(as_csv(comparison).splitlines()))
    assert [row["packed_mean"] for row in rows] == ["90.5", "90.0"] and rows[1]["packed_standard_error"] == ""
    assert all(float(row["loss_mean"]) > 0 for row in rows)


def test_the_page_links_to_reports_and_says_what_is_unequal():
    longer = a_result("bc", epochs=60)
    page = render_comparison(compare_runs([Run(a_result(), "bnn++-0/report.html"), Run(longer)]))
    assert '<a href="bnn++-0/report.html">0</a>' in page
    assert "The rows differ in their numbers of epochs." in page
    assert "<script" not in page and len(page) < 300 * 1024


def test_a_comparison_is_made_again_from_folders_and_results_alone(bnnpp, empty):
    for seed in (0, 1):
        run = empty / "runs" / f"vit-{seed}"
        run.mkdir(parents=True)
        document = a_document(["a", "b", "c"], epochs=3, command=f"bnnpp binarize vit --seed {seed}")
        document["recipe"]["train"]["seed"] = seed
        (run / "report.json").write_text(as_json(document))
        (run / "report.html").write_text("a page")
    (empty / "kept.json").write_text(as_json(a_result("bc")))
    done = bnnpp("compare", "--from", "runs", "--from", "kept.json", "--output", "tables", "--json")
    assert done.code == 0, done.err
    comparison = json.loads(done.out)
    assert [(row["row"], row["n"]) for row in comparison["rows"]] == [("bnn++", 2), ("bc", 1)]
    assert comparison["rows"][0]["reports"] == ["../runs/vit-0/report.html", "../runs/vit-1/report.html"]
    assert json.loads((empty / "tables" / "compare.json").read_text()) == comparison
    assert {path.name for path in (empty / "tables").iterdir()} == {
        f"compare.{kind}" for kind in ("json", "csv", "md", "html")
    }
    shown = bnnpp("compare", "--from", "runs", "--error", "standard-error", "-o", "tables")
    assert shown.code == 0 and "bnn++" in shown.out


def test_what_makes_no_sense_with_from_is_refused(bnnpp, empty):
    (empty / "kept.json").write_text(as_json(a_result()))
    for words, said in (
        (("--from", "nowhere"), "no such file"),
        (("--from", "kept.json", "--methods", "bc"), "--from runs nothing, so --methods has no meaning"),
        (("--from", "kept.json", "--epochs", 3), "--from runs nothing, so --epochs has no meaning"),
        (("--from", "kept.json", "--error", "sd"), "'sd' is no kind of error"),
        ((), "name a model"),
    ):
        outcome = bnnpp("compare", *words)
        assert outcome.code == 2 and said in outcome.err and not outcome.out
    assert [path.name for path in empty.iterdir()] == ["kept.json"]
