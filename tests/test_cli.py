"""The command line as its users and their scripts see it: both streams, exit codes, files, and bad input."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import invent_images
from safetensors import safe_open
from safetensors.numpy import save_file

from binarize_cli import __version__
from binarize_cli.models import hub
from binarize_cli.packed.format import checksum, read
from binarize_cli.quantizers.methods import METHODS
from binarize_cli.recipe import Recipe
from binarize_cli.recipe_io import names

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "timm", "torchvision", "matplotlib")
SHORT = ("--dataset", "digits", "--epochs", "1", "--batch-size", "256")
Usage = namedtuple("Usage", "total used free")


def listing(place: Path) -> dict[str, bytes | None]:
    """All below a folder, with the files' bytes."""
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else None
        for path in place.rglob("*")
    }


@pytest.fixture
def refused(bnnpp, empty):
    """`refused(*words)` is the one message of a command that bad input stops, with nothing written."""

    def call(*words: object) -> str:
        before = listing(empty)
        left = bnnpp(*words)
        assert left.code == 2, left.err
        assert left.out == ""
        assert listing(empty) == before, "nothing is written"
        said = left.err[left.err.index("error: ") :]
        assert left.err.count("error: ") == 1 and "Traceback" not in left.err
        return said.removeprefix("error: ")

    return call


def rewritten(file: Path, to: Path, **changes: object) -> Path:
    """A packed file with other entries in its document; None takes one away."""
    with safe_open(file, framework="np") as packed:
        document = json.loads(packed.metadata()["bnnpp"])
        tensors = {name: packed.get_tensor(name) for name in packed.keys()}  # noqa: SIM118
    document = {key: value for key, value in (document | changes).items() if key not in changes or value}
    save_document(document, tensors, to)
    return to


def save_document(document: dict, tensors: dict, to: Path) -> None:
    text = json.dumps(document | {"sha256": "0" * 64})
    save_file(tensors, to, {"bnnpp": text.replace("0" * 64, checksum(text, tensors))})


# --- words that are wrong --------------------------------------------------------------------------------

WRONG_WORDS = {
    "unknown command": (["binarise", "digits_vit"], ["'binarise'", "Did you mean 'binarize'?", "--help"]),
    "no model": (["binarize"], ["Missing argument", "bnnpp binarize --help"]),
    "unknown option": (["binarize", "digits_vit", "--epoch", 3], ["--epoch", "--epochs"]),
    "option without value": (["binarize", "digits_vit", "--method"], ["--method"]),
    "no integer": (["binarize", "digits_vit", "--epochs", "ten"], ["--epochs", "integer"]),
    "unknown method": (["binarize", "digits_vit", "--method", "bn++"], ["--method", "'bn++'", "'bnn++'"]),
    "unknown task": (["binarize", "digits_vit", "--task", "bwx"], ["--task", "'bw'"]),
    "unknown schedule": (["binarize", "digits_vit", "--sched", "cosin"], ["--sched", "'cosine'"]),
    "negative rate": (["binarize", "digits_vit", "--lr", "-1"], ["--lr", "greater than 0"]),
    "infinite rate": (["binarize", "digits_vit", "--lr", "inf"], ["--lr", "finite"]),
    "no images a step": (["binarize", "digits_vit", "-b", 0], ["--batch-size", "greater than or equal to 1"]),
    "unknown recipe": (["binarize", "digits_vit", "--recipe", "defualt"], ["'defualt'", "'default'"]),
    "no recipe file": (["binarize", "digits_vit", "--recipe", "mine.yaml"], ["mine.yaml", "no such recipe"]),
    "unknown key": (["binarize", "digits_vit", "--set", "train.lrr=1"], ["--set", "train.lrr", "'lr'"]),
    "unknown section": (["binarize", "digits_vit", "--set", "trian.lr=1"], ["--set", "trian", "'train'"]),
    "key without value": (["binarize", "digits_vit", "--set", "train.lr"], ["--set", "KEY=VALUE"]),
    "broken value": (["binarize", "digits_vit", "--set", "layers.keep_float=[first"], ["--set"]),
    "value of another type": (["binarize", "digits_vit", "--set", "train.epochs=many"], ["--set", "integer"]),
    "foreign parameter": (
        ["binarize", "digits_vit", "--method", "bnn++", "--set", "quantizer.schedules.rho=1"],
        ["bnn++ has no parameter 'rho'", "mu"],
    ),
    "unknown model": (["binarize", "digits_vti"], ["'digits_vti'", "'digits_vit'"]),
    "unknown library": (["binarize", "keras/resnet18"], ["'keras'", "torchvision/NAME"]),
    "unknown optimizer": (["binarize", "digits_vit", "--opt", "adamx"], ["'adamx'", "'adam", "train.opt"]),
    "unknown dataset": (["binarize", "digits_vit", "--dataset", "digit"], ["'digit'", "'digits'"]),
    "digits in a folder": (
        ["binarize", "digits_vit", "--dataset", "digits", "--data-dir", "."],
        ["embedded", "--data-dir"],
    ),
    "no data folder": (["binarize", "digits_vit", "--data-dir", "none"], ["none", "does not exist"]),
    "empty data folder": (["binarize", "digits_vit", "--data-dir", "."], ["is empty", "train/<class>"]),
    "unknown device": (["binarize", "digits_vit", "--device", "gpu"], ["--device", "'gpu'", "cuda"]),
    "no weights file": (["binarize", "digits_vit", "--weights", "no.safetensors"], ["no.safetensors"]),
    "weights and none": (
        ["binarize", "digits_vit", "--weights", "w.pth", "--no-pretrained"],
        ["--weights", "--no-pretrained", "mutually exclusive"],
    ),
    "unknown word": (
        ["binarize", "digits_vit", "--parallel", "x"],
        ["'--parallel': 'x' is not one of", "'fsdp'"],
    ),
    "nothing to resume": (["binarize", "digits_vit", "--resume"], ["--resume", "no unfinished run"]),
    "nothing there to resume": (
        ["binarize", "digits_vit", "--resume", "--output", "there"],
        ["there", "no state to resume"],
    ),
    "pattern for nothing": (
        ["binarize", "digits_vit", "--set", "layers.keep_float=[first, 'blocks.*.qvk']"],
        ["'blocks.*.qvk'", "matches no layer", "layers.keep_float"],
    ),
    "no layer left": (
        ["binarize", "digits_vit", "--set", "layers.keep_float=['*']"],
        ["no layer is left", "layers.keep_float"],
    ),
    "unknown auto_augment": (
        ["binarize", "digits_vit", "--set", "augment.auto_augment=rnad-m9"],
        ["augment.auto_augment", "'rnad-m9'"],
    ),
    "odd batches for mixup": (
        ["binarize", "digits_vit", "--set", "train.mixup=0.2", "--batch-size", 7],
        ["mixup", "even", "--batch-size"],
    ),
    "no packed file": (["eval", "model.safetensors"], ["model.safetensors", "no such file"]),
    "no file to inspect": (["inspect", "model.safetensors"], ["model.safetensors", "no such file"]),
    "folder to inspect": (["inspect", "."], ["a folder, not a file"]),
    "misspelt card": (["methods", "bn+"], ["'bn+'", "'bnn+'"]),
    "no recipe to show": (["recipes", "show", "paper/bn"], ["paper/bn", "'paper/bnn'"]),
    "no file to validate": (["recipes", "validate", "mine.yaml"], ["mine.yaml"]),
}


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_wrong_words_get_one_message_that_names_thing_and_next_step(case, refused):
    words, parts = WRONG_WORDS[case]
    said = refused(*words)
    assert not [part for part in parts if part not in said], said


def test_a_recipe_file_with_faults_gets_them_all_at_once_with_their_lines(refused, empty):
    recipe = empty / "mine.yaml"
    recipe.write_text("method: bnn++\ntrain:\n  lr: fast\n  epoch: 3\nquantiser: {}\n")
    said = refused("binarize", "digits_vit", "--recipe", "mine.yaml", "--epochs", -1)
    assert "4 faults" in said
    for part in ("mine.yaml:3", "mine.yaml:4", "'epochs'", "mine.yaml:5", "'quantizer'", "--epochs"):
        assert part in said


# --- files that are wrong --------------------------------------------------------------------------------


def test_a_folder_of_one_class_is_refused(refused, empty):
    invent_images(empty / "one", classes=1, each=2)
    said = refused("binarize", "digits_resnet", "--data-dir", "one")
    assert "one class only, class0" in said and str(empty / "one") in said


def test_an_unreadable_image_is_counted_and_named_and_left_out_by_a_flag(bnnpp, refused, empty):
    invent_images(empty / "images", classes=2, each=4)
    for name in ("train/class0/2.png", "train/class1/0.png"):
        (empty / "images" / name).write_bytes(b"no picture")
    words = ("binarize", "digits_resnet", "--no-pretrained", "--data-dir", "images", "--epochs", 1, "-b", 2)
    said = refused(*words)
    assert "2 of 8 images" in said and "--skip-unreadable" in said
    assert "train/class0/2.png" in said and "train/class1/0.png" in said
    done = bnnpp(*words, "--skip-unreadable", "--set", "train.hold_out=0.0")
    assert "left out: 2 of 8 images" in done.err
    report = json.loads((done.packed.parent / "report.json").read_text())
    assert report["data"]["train_images"] == 6 and report["data"]["val_images"] == 8


def test_weights_of_another_model_are_refused_whole(refused, empty):
    save_file({"conv9.weight": np.zeros((2, 2), np.float32)}, empty / "other.safetensors")
    said = refused("binarize", "digits_resnet", "--weights", "other.safetensors")
    assert "other.safetensors" in said and "unexpected: conv9.weight" in said and "missing: conv1" in said


def test_truncated_and_foreign_weights_are_refused(refused, empty, finished):
    whole = hub_free_weights()
    (empty / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    (empty / "cut.pth").write_bytes(b"PK\x03\x04 cut short")
    (empty / "notes.txt").write_text("weights")
    for name, part in (("cut.safetensors", "truncated"), ("cut.pth", "truncated"), ("notes.txt", "kind")):
        said = refused("binarize", "digits_resnet", "--weights", name)
        assert name in said and part in said
    said = refused("binarize", "digits_resnet", "--weights", finished / "model.safetensors")
    assert "packed 1-bit file" in said and "bnnpp eval" in said


def hub_free_weights() -> Path:
    """The embedded weights of digits_resnet."""
    from binarize_cli.models.digits import embedded_weights

    return embedded_weights("digits_resnet")


@pytest.mark.parametrize("command", ["eval", "inspect"])
def test_packed_files_that_cannot_be_read_are_refused(command, refused, empty, finished):
    packed = finished / "model.safetensors"
    (empty / "cut.safetensors").write_bytes(packed.read_bytes()[:-1])
    (empty / "stub.safetensors").write_bytes(packed.read_bytes()[:100])
    (empty / "text.safetensors").write_text("no safetensors")
    save_file({"a": np.zeros(3, np.float32)}, empty / "foreign.safetensors")
    save_file({"a": np.zeros(3, np.float32)}, empty / "damaged.safetensors", {"bnnpp": "{"})
    rewritten(packed, empty / "newer.safetensors", format=3)
    rewritten(packed, empty / "gone.safetensors", model=None)
    parts = {
        "cut": "truncated",
        "stub": "truncated",
        "text": "no safetensors",
        "foreign": "not a packed file of bnnpp",
        "damaged": "damaged",
        "newer": "format 3; this bnnpp reads formats 1 to 2",
        "gone": "damaged",
    }
    for name, part in parts.items():
        said = refused(command, f"{name}.safetensors")
        assert f"{name}.safetensors" in said and part in said


def test_a_packed_file_that_does_not_fit_its_model_is_refused(refused, empty, finished):
    packed = finished / "model.safetensors"
    document = json.loads(json.dumps(_document(packed)))
    document["model"]["name"] = "digits_vit"
    rewritten(packed, empty / "other.safetensors", model=document["model"])
    assert "does not fit the model digits_vit" in refused("eval", "other.safetensors")


def _document(file: Path) -> dict:
    with safe_open(file, framework="np") as packed:
        return json.loads(packed.metadata()["bnnpp"])


def test_a_packed_file_that_has_no_accuracy_yet_can_still_be_inspected(bnnpp, empty, finished):
    """So it lies in the run folder while it is being scored, and after a run was killed then."""
    with safe_open(finished / "model.safetensors", framework="np") as packed:
        tensors = {name: packed.get_tensor(name) for name in packed.keys()}  # noqa: SIM118
    document = _document(finished / "model.safetensors") | {"accuracy": None}
    save_document(document, tensors, empty / "unscored.safetensors")
    assert json.loads(bnnpp("inspect", "unscored.safetensors", "--json").out)["accuracy"] is None
    assert bnnpp("inspect", "unscored.safetensors").code == 0


def test_eval_on_a_dataset_of_other_classes_is_refused(refused, tiny, finished):
    said = refused("eval", finished / "model.safetensors", "--data-dir", tiny)
    assert str(tiny) in said and "3 of its 3 classes are not among the file's 10" in said


def test_eval_where_the_recorded_dataset_is_gone_says_how_to_name_one(bnnpp, refused, empty):
    invent_images(empty / "images", classes=2, each=2)
    words = ("digits_resnet", "--no-pretrained", "--data-dir", "images", "--epochs", 0)
    packed = bnnpp("binarize", *words).packed
    shutil.move(empty / "images", empty / "moved")
    said = refused("eval", packed)
    assert "does not exist" in said and "--data-dir" in said
    assert bnnpp("eval", packed, "--data-dir", "moved").code == 0


def test_a_device_that_is_not_there_is_refused(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    said = refused("binarize", "digits_resnet", "--device", "cuda")
    assert "--device" in said and "'cuda'" in said and "--device auto" in said


# --- hubs that are not there -----------------------------------------------------------------------------


def test_weights_that_no_hub_gives_name_the_ways_out(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "answers", lambda url, patience=0: False)
    monkeypatch.setattr(hub.hf, "HF_HUB_CACHE", str(tmp_path / "hf"))
    said = refused("binarize", "deit_tiny")
    for part in ("deit_tiny_patch16_224", "--weights", "cache", str(tmp_path / "hf"), "--no-pretrained"):
        assert part in said


def test_a_real_process_without_a_network_gives_up_and_writes_nothing(empty, tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    env = {**os.environ, **nowhere, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "binarize_cli", "binarize", "deit_tiny"]
    left = subprocess.run(program, env=env, capture_output=True, text=True, timeout=60)
    assert (left.returncode, left.stdout) == (2, "") and not listing(empty)
    assert "--weights" in left.stderr and "--no-pretrained" in left.stderr and "cache" in left.stderr
    assert "Traceback" not in left.stderr


# --- where runs are written ------------------------------------------------------------------------------


def test_a_finished_run_is_overwritten_only_when_told_to(bnnpp, refused, empty, finished):
    shutil.copytree(finished, empty / "run")
    before = (empty / "run" / "model.safetensors").read_bytes()
    words = ("binarize", "digits_resnet", "--method", "ptq", *SHORT, "--output", "run")
    said = refused(*words)
    assert "run" in said and "holds a finished run" in said and "--overwrite" in said
    assert "finished" in refused(*words, "--resume")
    packed = bnnpp(*words, "--overwrite").packed
    assert packed == empty / "run" / "model.safetensors" and packed.read_bytes() != before
    assert json.loads((empty / "run" / "report.json").read_text())["method"] == "ptq"
    assert "binary" not in (empty / "run" / "log.csv").read_text(), "nothing of the old run is left"


def test_an_output_that_is_a_file_is_refused(refused, empty):
    (empty / "taken").write_text("mine")
    said = refused("binarize", "digits_resnet", *SHORT, "--output", "taken")
    assert "taken" in said and "is a file" in said and "--output" in said
    said = refused("binarize", "digits_resnet", *SHORT, "--output", "taken/run")
    assert "taken/run" in said and "--output" in said


def test_an_unfinished_run_is_neither_lost_nor_resumed_as_another(bnnpp, refused, empty, finished):
    shutil.copytree(finished, empty / "run")
    (empty / "run" / "report.json").unlink()
    words = ("binarize", "digits_resnet", "--dataset", "digits", "--output", "run")
    said = refused(*words, "--epochs", 2)
    assert "holds an unfinished run" in said and "--resume" in said and "--overwrite" in said
    said = refused(*words, "--epochs", 3, "--lr", "1e-4", "--resume")
    assert "recipe.train.epochs: 2 -> 3" in said and "recipe.train.lr: 0.0005 -> 0.0001" in said
    assert "seed" not in said
    said = refused("binarize", "digits_vit", *words[2:], "--epochs", 2, "--resume")
    assert "model: timm/digits_resnet -> timm/digits_vit" in said and "weights" in said
    packed = bnnpp(*words, "--epochs", 2, "--resume").packed
    assert packed.read_bytes() == (finished / "model.safetensors").read_bytes()


def test_a_run_is_not_resumed_with_another_image_size(refused, empty, finished):
    shutil.copytree(finished, empty / "run")
    (empty / "run" / "report.json").unlink()
    words = ("--dataset", "digits", "--epochs", 2, "--output", "run", "--resume", "--img-size", 16)
    said = refused("binarize", "digits_resnet", *words)
    assert "started with something else" in said and "input_size" in said


def test_a_distance_of_blocks_that_the_model_has_not_is_refused(bnnpp, tiny, empty):
    words = ("--no-pretrained", "--data-dir", tiny, "--set", "distill.blocks=0.1")
    outcome = bnnpp("binarize", "torchvision/alexnet", *words)
    assert outcome.code == 2 and "distill.blocks" in outcome.err and "no row of blocks" in outcome.err
    assert not list(empty.iterdir())


def test_a_set_smaller_than_what_is_held_out_is_refused(refused, tiny):
    words = ("--no-pretrained", "--data-dir", tiny, "--set", "train.hold_out=0.99")
    said = refused("binarize", "digits_resnet", *words)
    assert "train.hold_out" in said


def test_resume_finds_the_newest_unfinished_run_by_itself(bnnpp, refused, empty, finished):
    for name in ("", "-2", "-3"):
        shutil.copytree(finished, empty / "runs" / f"digits_resnet-bnn++-bw{name}")
    words = ("binarize", "digits_resnet", "--dataset", "digits", "--epochs", 2, "--resume")
    assert "no unfinished run" in refused(*words)
    (empty / "runs" / "digits_resnet-bnn++-bw-2" / "report.json").unlink()
    assert bnnpp(*words).packed == empty / "runs" / "digits_resnet-bnn++-bw-2" / "model.safetensors"


def test_a_disk_without_room_is_noticed_before_anything_is_written(refused, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 4096, 4096))
    said = refused("binarize", "digits_resnet", *SHORT, "--output", "deep/down")
    assert "deep/down" in said and "not enough disk space" in said and "--output" in said


@pytest.fixture
def one_mebibyte(tmp_path):
    """A real file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root on Linux")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_small_disk_is_refused_by_its_real_size(refused, one_mebibyte):
    said = refused("binarize", "digits_resnet", *SHORT, "--output", one_mebibyte / "run")
    assert "not enough disk space" in said and "1 MiB free" in said
    assert not list(one_mebibyte.iterdir())


def test_a_disk_that_fills_up_in_mid_run_is_one_message_and_no_half_file(bnnpp, one_mebibyte, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**12))
    left = bnnpp("binarize", "digits_resnet", *SHORT, "--output", one_mebibyte / "run")
    assert (left.code, left.out) == (2, "") and "Traceback" not in left.err
    assert "No space left" in left.err and "--resume" in left.err and left.err.count("error: ") == 1
    assert not list(one_mebibyte.rglob(".*")), "no temporary file is left"
    assert (one_mebibyte / "run" / "state" / "identity.json").is_file()
    assert not (one_mebibyte / "run" / "report.json").exists()


# --- what comes out --------------------------------------------------------------------------------------


def test_a_run_leaves_the_documented_files_and_the_next_one_takes_the_next_name(bnnpp, empty):
    first = bnnpp("binarize", "digits_resnet", "--method", "bc", *SHORT)
    assert first.out == "runs/digits_resnet-bc-bw/model.safetensors\n"
    folder = first.packed.parent
    documented = {
        "model.safetensors",
        "report.json",
        "report.html",
        "README.md",
        "log.csv",
        "recipe.yaml",
        "state",
    }
    assert {path.name for path in folder.iterdir()} == documented
    before = listing(folder)
    second = bnnpp("binarize", "digits_resnet", "--method", "bc", *SHORT)
    assert second.out == "runs/digits_resnet-bc-bw-2/model.safetensors\n"
    assert listing(folder) == before
    assert second.packed.read_bytes() == first.packed.read_bytes()


def test_what_a_person_reads_goes_to_stderr_with_the_time_of_day(bnnpp, empty):
    done = bnnpp("binarize", "digits_resnet", "--method", "bc", "--epochs", 1, "--batch-size", 256)
    lines = done.err.splitlines()
    assert "using the embedded 'digits'" in lines[0]
    assert "layer3.1.conv1,2 x2" in done.err and "head" in done.err
    epochs = [line for line in lines if "binary epoch" in line]
    assert len(epochs) == 2 and all(line[:4].isdigit() and line[4] == "-" for line in epochs)
    assert "packed file" in done.err and "\x1b" not in done.err
    first, last = (lines.index(line) for line in epochs)
    assert "" not in lines[first : last + 2], "no empty lines between lines of progress"


def test_json_is_one_document_and_the_same_as_the_report(bnnpp, empty):
    done = bnnpp("binarize", "digits_resnet", "--method", "ptq", "--dataset", "digits", "--json", "-o", "run")
    assert done.code == 0
    assert json.loads(done.out) == json.loads((empty / "run" / "report.json").read_text())
    assert json.loads(done.out)["command"].startswith("bnnpp binarize digits_resnet --method ptq")


def test_the_log_has_a_row_for_each_epoch_and_one_before_them(finished):
    rows = list(csv.DictReader((finished / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert {row["stage"] for row in rows} == {"binary"}
    assert rows[0]["loss"] == rows[0]["flip_ratio"] == ""
    assert all(float(row["loss"]) > 0 and 0 < float(row["flip_ratio"]) < 1 for row in rows[1:])
    report = json.loads((finished / "report.json").read_text())
    assert [str(row["hard_top1"]) for row in report["epochs"]] == [row["hard_top1"] for row in rows]


def test_the_recipe_is_kept_whole_in_the_folder_and_in_the_file(finished):
    kept = yaml.safe_load((finished / "recipe.yaml").read_text())
    assert kept == read(finished / "model.safetensors").document.full_recipe
    short = _document(finished / "model.safetensors")["recipe"]
    assert short["train"]["epochs"] == 2 and "lr" not in short["train"], "defaults are not repeated"
    recipe = Recipe.model_validate(kept)
    assert recipe.train.epochs == 2 and recipe.augment.crop == "pad" and recipe.augment.hflip == 0.0


def test_flags_and_set_reach_the_recipe(bnnpp, empty):
    words = ("--method", "bc", "--epochs", 0, "--lr", "1e-3", "--opt", "sgd", "--sched", "linear")
    more = ("--weight-decay", "0.1", "--amp", "bf16", "--seed", 7, "-b", 32, "--set", "distill.weight=0.25")
    last = ("--set", "train.lr=2e-3", "--set", "layers.keep_float=[first, head, 'layer1.*']")
    packed = bnnpp("binarize", "digits_resnet", "--dataset", "digits", *words, *more, *last).packed
    recipe = read(packed).document.full_recipe
    train = recipe["train"]
    assert (recipe["method"], train["epochs"], train["opt"], train["sched"]) == ("bc", 0, "sgd", "linear")
    assert (train["weight_decay"], train["amp"], train["seed"], train["batch_size"]) == (0.1, "bf16", 7, 32)
    assert recipe["distill"]["weight"] == 0.25
    assert train["lr"] == 2e-3, "--set has the last word"
    layers = {row["name"]: row for row in _document(packed)["layers"]}
    assert "shape" not in layers["layer1.0.conv1"] and "'layer1.*'" in layers["layer1.0.conv1"]["why"]


@pytest.mark.parametrize(
    ("amp", "said", "kept"), [("off", "cpu", "float32"), ("bf16", "cpu in bfloat16", "bfloat16")]
)
def test_the_precision_of_training_is_said_and_kept(amp, said, kept, bnnpp, empty):
    """`auto` takes bfloat16 on some machines: what was taken is told, and goes with the file."""
    words = ("--dataset", "digits", "--method", "bc", "--epochs", 0, "--amp", amp)
    outcome = bnnpp("binarize", "digits_resnet", *words)
    assert f"; on {said}\n" in outcome.err
    assert _document(outcome.packed)["provenance"]["precision"] == kept


def test_no_epochs_is_a_run_too(bnnpp, empty):
    packed = bnnpp("binarize", "digits_resnet", "--method", "bc", *SHORT, "--epochs", 0).packed
    rows = list(csv.DictReader((packed.parent / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["0"]
    assert json.loads((packed.parent / "report.json").read_text())["packed_epoch"] == 0


def test_eval_prints_what_the_report_says(bnnpp, empty, finished):
    report = json.loads((finished / "report.json").read_text())
    scored = report["accuracy"]["packed"]
    left = bnnpp("eval", finished / "model.safetensors")
    assert left.code == 0 and left.out.count("\n") == 1
    assert left.out.startswith(f"top-1 {scored['top1']:.2f}  top-5 {scored['top5']:.2f}  loss ")
    assert "images 360 " in left.out and "images/s" in left.out
    found = json.loads(bnnpp("eval", finished / "model.safetensors", "--json", "--batch-size", 100).out)
    assert found["top1"] == scored["top1"] == _document(finished / "model.safetensors")["accuracy"]["top1"]
    assert found["loss"] == pytest.approx(scored["loss"], abs=1e-5)
    assert found["confusion"] == report["confusion"] and found["worst"] == report["worst"]
    counts = found["confusion"]
    assert sum(counts["images"]) == found["images"] == 360
    triples = zip(counts["true"], counts["predicted"], counts["images"], strict=True)
    right = sum(n for true, predicted, n in triples if true == predicted)
    assert math.isclose(found["top1"], 100 * right / 360, abs_tol=1e-4)
    assert not listing(empty), "eval writes nothing"


def test_eval_needs_the_file_alone(bnnpp, empty, finished, monkeypatch):
    """No recipe, no folder, no state, and no hub beside it."""
    monkeypatch.setattr(hub, "answers", lambda *args, **kwargs: pytest.fail("asked the network"))
    (empty / "mail").mkdir()
    alone = Path(shutil.copy(finished / "model.safetensors", empty / "mail" / "attachment.bin"))
    expected = json.loads((finished / "report.json").read_text())["accuracy"]["packed"]["top1"]
    assert json.loads(bnnpp("eval", alone, "--json").out)["top1"] == expected


def test_inspect_accounts_for_every_byte_under_the_documented_keys(bnnpp, finished):
    file = finished / "model.safetensors"
    account = json.loads(bnnpp("inspect", file, "--json").out)
    assert {"format", "method", "task", "model", "layers", "bytes", "ratio"} <= account.keys()
    assert (account["format"], account["method"], account["task"]) == (2, "bnn++", "bw")
    assert account["model"]["name"] == "digits_resnet" and account["model"]["num_classes"] == 10
    keys = {"name", "kind", "shape", "bits", "bytes", "why", "input", "accumulator", "macs"}
    assert all(row.keys() == keys for row in account["layers"])
    sizes = account["bytes"]
    assert list(sizes) == ["total", "binary", "scales", "float", "metadata"]
    assert sizes["total"] == file.stat().st_size == sum(sizes.values()) - sizes["total"]
    binary = [row for row in account["layers"] if row["bits"] == 1]
    assert len(binary) == 12 and sum(math.prod(row["shape"]) for row in binary) == 170_496
    assert sizes["binary"] == 170_496 / 8
    assert sum(row["bytes"] for row in account["layers"]) == sizes["total"] - sizes["metadata"]
    why = {row["name"]: (row["bits"], row["why"]) for row in account["layers"]}
    assert why["conv1"] == (16, "first layer (keep_float)")
    assert why["linear"] == (16, "classifier head (keep_float)")
    assert account["ratio"] == pytest.approx(account["float32_bytes"] / sizes["total"], abs=0.005)


def test_inspect_prints_its_table_on_stdout(bnnpp, finished):
    left = bnnpp("inspect", finished / "model.safetensors")
    assert left.code == 0 and left.err == ""
    for part in ("layer2.0.conv1", "first", "170,496 binary weights", "seed 0", "top-1"):
        assert part in left.out


def test_version_and_help(bnnpp):
    assert bnnpp("--version").out == f"bnnpp {__version__}\n"
    for words in ([], ["binarize"], ["eval"], ["inspect"], ["methods"], ["recipes"], ["recipes", "ls"]):
        left = bnnpp(*words, "--help")
        assert left.code == 0 and "Usage: bnnpp" in left.out
    assert "bnnpp binarize digits_vit --method bnn++" in bnnpp("binarize", "--help").out
    bare = bnnpp()
    assert (bare.code, bare.out) == (2, "") and "Usage: bnnpp" in bare.err


def test_every_flag_of_timms_spelling_is_there(bnnpp):
    text = bnnpp("binarize", "--help").out
    flags = "--data-dir --dataset --batch-size --epochs --lr --opt --sched --weight-decay --amp --workers"
    more = "--seed --resume --output --device --num-classes --img-size --weights --no-pretrained --set"
    assert not [flag for flag in f"{flags} {more}".split() if flag not in text]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["methods"], 0),
        (["methods", "bnn++"], 0),
        (["recipes", "ls"], 0),
        (["binarize", "digits_vit", "--method", "bn++"], 2),
        (["binarize", "deit_tinny"], 2),
        (["binarize", "digits_vit", "--set", "train.lrr=1"], 2),
        (["inspect", "none.safetensors"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_answers_at_once_imports_nothing_heavy(words, code, empty):
    program = (
        "import sys; from binarize_cli.cli import main\n"
        "try: main()\n"
        f"finally: print(*sorted({HEAVY!r} & sys.modules.keys()), file=open('heavy', 'w'))"
    ).replace(repr(HEAVY), repr(set(HEAVY)))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    left = subprocess.run([sys.executable, "-c", program, *words], env=env, capture_output=True, text=True)
    assert left.returncode == code, left.stderr
    assert (empty / "heavy").read_text() == "\n"


# --- classes ---------------------------------------------------------------------------------------------


def test_other_classes_get_a_new_head_and_a_float_stage_that_teaches(bnnpp, tiny, empty):
    words = ("--data-dir", tiny, "--epochs", 2, "-b", 4, "--set", "train.float_epochs=3")
    done = bnnpp("binarize", "digits_resnet", "--method", "bnn++", *words)
    rows = list(csv.DictReader((done.packed.parent / "log.csv").open()))
    assert [row["stage"] for row in rows] == ["float"] * 4 + ["binary"] * 3
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3, 0, 1, 2]
    assert "head replaced" in done.err and "train.float_epochs" in done.err
    report = json.loads((done.packed.parent / "report.json").read_text())
    best = max(float(row["hard_top1"]) for row in rows if row["stage"] == "float")
    assert report["accuracy"]["float"]["top1"] == best, "the fitted float model is the reference"
    assert (
        report["model"]["classes"] == ["class0", "class1", "class2"] and max(report["confusion"]["true"]) == 2
    )
    assert json.loads(bnnpp("eval", done.packed, "--json").out)["confusion"] == report["confusion"]


def test_random_weights_need_no_float_stage(bnnpp, tiny, empty):
    words = ("--no-pretrained", "--data-dir", tiny, "--epochs", 1, "-b", 4)
    done = bnnpp("binarize", "digits_resnet", *words)
    rows = list(csv.DictReader((done.packed.parent / "log.csv").open()))
    assert [row["stage"] for row in rows] == ["binary", "binary"] and "from scratch" in done.err


def test_the_models_own_classes_keep_the_head(bnnpp, finished):
    document = _document(finished / "model.safetensors")
    assert document["model"]["classes"] == list("0123456789")
    report = json.loads((finished / "report.json").read_text())
    assert report["accuracy"]["float"]["top1"] > 95, "the embedded weights are those of a trained model"
    assert report["accuracy"]["packed"]["top1"] > 80


def test_every_recipe_and_method_is_listed_where_people_look(bnnpp):
    listed = bnnpp("recipes", "ls").out
    assert [line.split()[0] for line in listed.splitlines()] == names()
    assert {"default", "paper/bnn++"} <= set(names())
    table = bnnpp("methods").out
    assert not [name for name in METHODS if f" {name} " not in table]
