"""The generated parts of the documentation: the committed pages are what docs/generate.py writes."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from binarize_cli.quantizers.methods import METHODS
from binarize_cli.recipe import Recipe, Section

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generate():
    sys.path.insert(0, str(ROOT / "docs"))
    return importlib.import_module("generate")


def test_the_pages_are_what_the_generator_writes(generate):
    for page in generate.pages():
        text = page.read_text(encoding="utf-8")
        advice = f"{page.relative_to(ROOT)} is out of date: run `uv run python docs/generate.py`"
        assert generate.rewritten(text) == text, advice


def test_every_block_has_its_place_and_no_page_asks_for_another(generate):
    text = "".join(page.read_text(encoding="utf-8") for page in generate.pages())
    asked = [name for _, name, _ in generate.BLOCK.findall(text)]
    assert sorted(asked) == sorted(generate.BLOCKS)
    assert text.count("<!-- generated: ") == text.count("<!-- end -->") == len(asked)


def test_every_file_every_key_and_every_method_is_described(generate):
    files = {path.name for path in (ROOT / "binarize_cli").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert not [name for name in files if f"`{name}`: " not in generate.rooms.tree()]
    keys = generate.recipes.recipe_keys()
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            assert f"### `{name}`" in keys
            assert not [key for key in section.model_fields if f"| `{key}` |" not in keys]
    what = "The peak learning rate, of what was float and stays so: norms, biases, the first layer, the head."
    assert f"| `lr` | number > 0 <= 1e+30 | `0.0005` | {what} |" in keys
    assert "| `harden` | number from 0, below 1 |" in keys
    cards = generate.methods.cards()
    assert not [name for name in METHODS if f"### `{name}`: " not in cards]


def a_result(top1: float, seed: int, method: str = "bnn++", task: str = "bw", **train) -> dict:
    scores = {"top1": top1, "top5": 100.0, "loss": 0.1}
    return {
        "schema": "bnnpp result 1",
        "command": f"bnnpp binarize digits_vit --method {method} --seed {seed} --output /home/me/run",
        "model": "timm/digits_vit",
        "method": method,
        "task": task,
        "seed": seed,
        "recipe": {"train": {"epochs": 3, "seed": seed, "select": "last", **train}},
        "data": {"name": "digits", "fingerprint": "f", "train_images": 1437, "val_images": 360},
        "accuracy": {"float": scores | {"top1": 98.0}, "soft": None, "hard": scores, "packed": scores},
        "bytes": 2048,
        "float32_bytes": 20480,
        "seconds": 90.0,
        "flips": 0.01,
        "epochs": 3,
        "packed_epoch": 3,
        "curve": {"epoch": [], "soft": [], "hard": []},
        "provenance": {"precision": "float32", "device": "cpu"},
    }


def test_results_are_grouped_by_what_must_be_equal_and_averaged_over_seeds(generate, monkeypatch):
    rows = [a_result(97.0, 0), a_result(98.0, 1), a_result(90.0, 0, "bc"), a_result(91.0, 0, select="val")]
    monkeypatch.setattr(generate.results, "stored", lambda: rows)
    page = generate.results.results()
    assert page.count("## digits_vit, digits (1,437 training images), 3 epochs") == 2
    assert (
        "| `bnn++` | bw | 2 | **97.50 ± 0.50** | 0.1000 ± 0.0000 | - | 1.00 ± 0.00 | 2 KiB (10.0x) | 1.5 |"
        in page
    )
    assert "| `bc` | bw | 1 | **90.00** |" in page
    assert page.index("`bc` | bw") < page.index("`bnn++` | bw")
    assert page.count("selected on the reported images") == 1
    assert "/home/me" not in page and "$ bnnpp binarize digits_vit --method bc --seed 0" in page
    row = "| digits_vit, digits (1,437 training images) | 3 | 2 | 98.00 | 97.50 ± 0.50 | - | - |"
    assert row in generate.results.results_summary()


def test_goals_are_held_against_what_was_measured(generate, monkeypatch):
    rows = [a_result(97.0, 0), a_result(98.2, 1), a_result(90.0, 0, "bc"), a_result(94.0, 0, task="bwa")]
    for row in rows:
        row["epochs"] = 30
    monkeypatch.setattr(generate.results, "stored", lambda: rows)
    page = generate.goals.goals()
    assert "| digits_vit, 30 epochs | `bw` | no more than 0.5 below the float model | 2 |" in page
    assert "| 97.60 ± 0.60 | yes, by 0.10 |" in page and "| 94.00 | no, by 1.50 |" in page
    assert (
        "| digits_vit, 30 epochs | `bwaa` | no more than 3 below the float model | - | - | not run |" in page
    )
    assert generate.goals.tried().startswith("No goal was missed")
    rows[1]["command"] += " --set train.lr=1.0"
    assert "| 1 | 97.00 | no, by 0.50 |" in generate.goals.goals()
    assert "| `bw` | `train.lr=1.0` | 1 | 98.20 | yes, by 0.70 |" in generate.goals.tried()


def test_runs_of_other_settings_are_not_averaged(generate, monkeypatch):
    other = a_result(50.0, 1, lr=1.0)
    other["command"] += " --set train.lr=1.0"
    monkeypatch.setattr(generate.results, "stored", lambda: [a_result(97.0, 0), other])
    page = generate.results.results()
    assert "| bw | 1 | **97.00** |" in page and "| bw | 1 | **50.00** |" in page
    assert "train.lr=1.0" in page and "50.00" not in generate.results.results_summary()


def test_a_setting_that_the_recipe_itself_has_by_now_makes_no_row_of_its_own(generate, monkeypatch):
    with_it, another = a_result(96.0, 1, task="bwa"), a_result(50.0, 2, task="bwa", harden=0.9)
    # The one is in recipes/binary-activations.yaml, the other is the default of a key that it leaves out.
    with_it["command"] += " --set train.harden=0.3 --set activation.window=auto"
    another["command"] += " --set train.harden=0.9"
    monkeypatch.setattr(generate.results, "stored", lambda: [a_result(95.0, 0, task="bwa"), with_it, another])
    page = generate.results.results()
    assert "| `bnn++` | bwa | 2 | **95.50 ± 0.50** |" in page
    assert "| `bnn++ train.harden=0.9` | bwa | 1 | **50.00** |" in page
    assert "95.50" in generate.results.results_summary() and "50.00" not in generate.results.results_summary()


def test_methods_with_the_same_changes_to_a_recipe_are_held_against_each_other(generate, monkeypatch):
    rows = [
        a_result(97.0, 0),
        a_result(96.0, 0, "bc"),
        a_result(70.0, 0, lr=1.0),
        a_result(80.0, 0, "bc", lr=1.0),
    ]
    for row in rows[2:]:
        row["command"] += " --set train.lr=1.0"
    monkeypatch.setattr(generate.results, "stored", lambda: rows)
    title, page = "| digits_vit, digits (1,437 training images), 3 epochs", generate.results.lead()
    assert f"{title} | bw | 1 | 97.00 | `bc` 96.00 | ahead by 1.00 | - | 0.1000 | `bc` 0.1000 |" in page
    assert f"{title}, `train.lr=1.0` | bw | 1 | 70.00 | `bc` 80.00 | behind by 10.00 |" in page
    monkeypatch.setattr(generate.results, "stored", lambda: [rows[0], a_result(97.0, 0, "bc")])
    assert f"{title} | bw | 1 | 97.00 | `bc` 97.00 | level |" in generate.results.lead()
    rows = [a_result(96.0, 0), a_result(99.0, 1), a_result(95.0, 1, "bc"), a_result(94.0, 0, "bc")]
    monkeypatch.setattr(generate.results, "stored", lambda: rows)
    assert "| ahead by 3.00 | +3.00 ± 1.00 |" in generate.results.lead()  # +2 with seed 0, +4 with seed 1


def test_what_a_recipe_said_otherwise_when_a_run_was_made_is_said_with_its_row(generate, monkeypatch):
    rows = [a_result(97.0, 0), a_result(90.0, 1, harden=0.2), a_result(80.0, 0, "bc", harden=0.2)]
    monkeypatch.setattr(generate.results, "stored", lambda: rows)
    page = generate.results.results()
    assert "| `bnn++` | bw | 1 | **97.00** |" in page
    assert "| `bnn++ train.harden=0.2` | bw | 1 | **90.00** |" in page
    assert "| `bc` | bw | 1 | **80.00** |" in page  # F is sign all along: there is nothing to harden


def test_without_results_the_pages_say_so(generate, monkeypatch):
    monkeypatch.setattr(generate.results, "stored", list)
    assert generate.results.results() == generate.results.results_summary() == "No result is stored yet."


def test_the_results_of_finished_runs_are_kept(generate, monkeypatch, tmp_path, finished):
    monkeypatch.setattr(generate.results, "RESULTS", tmp_path)
    generate.results.store([finished])
    (file,) = tmp_path.iterdir()
    report = json.loads((finished / "report.json").read_text())
    kept = json.loads(file.read_text())
    assert kept["accuracy"]["packed"]["top1"] == report["accuracy"]["packed"]["top1"]
    assert file.name.startswith("digits_resnet-digits-bnn++-bw-") and "2epochs-seed0" in file.name


def test_pictures_are_those_of_the_stored_results(generate):
    for name, draw in generate.PLOTS.items():
        picture = (generate.ROOT / "docs" / name).read_text(encoding="utf-8")
        assert picture == draw(), "run `uv run python docs/generate.py`"
    rows = generate.speed.measured()
    assert rows and {row["batch_size"] for row in rows} == {1, 32}
    assert all(row["task"] in ("bw", "bwa", "bwaa") and row["float"] > 0 < row["packed"] for row in rows)


def test_every_export_that_is_kept_agrees_or_is_refused(generate):
    rows = [
        row for each in json.loads(generate.exports.EXPORTS.read_text())["tables"] for row in each["rows"]
    ]
    assert rows and not [row for row in rows if "failed" in row]
    for row in rows:
        if found := row.get("agreement"):
            assert found["same_top1"] == found["images"] and "of" not in found
    assert "| **refused** (2) |" in generate.exports.exports_held()
