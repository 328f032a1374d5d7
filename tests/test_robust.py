"""Broken surroundings: folders, streams, signals and our own faults end in one message and lose nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import invent_images

from binarize_cli.console import OutputError, Stream, result
from binarize_cli.data.datasets import open_dataset
from binarize_cli.errors import BnnppError, InputError
from binarize_cli.files import kind_of
from binarize_cli.packed.agreement import Agreement
from binarize_cli.recipe_io import LARGEST, parse, parse_value, read
from binarize_cli.run_folder import RunFolder, choose_run
from binarize_cli.training.stop import StoppedEarly, StopRequest

QUICK = ("--dataset", "digits", "--method", "bc", "--epochs", 0)


def command(*words: object, **options) -> subprocess.CompletedProcess:
    """`python -m binarize_cli WORDS` in a process of its own."""
    argv = [sys.executable, "-m", "binarize_cli", *map(os.fsencode, map(str, words))]
    return subprocess.run(argv, **{"capture_output": True, "timeout": 120} | options)


# --- item 8: a folder that is not ours ------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize("name", ["model.safetensors", "thesis.tex"])
def test_a_folder_of_foreign_files_is_refused(bnnpp, tmp_path, name, overwrite):
    (tmp_path / name).write_text("mine")
    outcome = bnnpp("binarize", "digits_resnet", *QUICK, "--output", tmp_path, *overwrite)
    assert outcome.code == 2 and "no run of bnnpp" in outcome.err
    assert [file.name for file in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_the_beginning_of_a_run_is_not_foreign(tmp_path):
    run = RunFolder(tmp_path)
    for name in (".lock", "log.csv", "recipe.yaml", ".report.json.123"):
        (tmp_path / name).touch()
    assert not run.foreign
    (tmp_path / "model.safetensors").touch()
    assert run.foreign


def test_weights_are_not_replaced_by_the_file_made_of_them(bnnpp, tmp_path):
    weights = tmp_path / "run" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"float")
    (tmp_path / "same").symlink_to(tmp_path / "run")
    words = ("--weights", weights, "--output", tmp_path / "same", "--overwrite")
    outcome = bnnpp("binarize", "digits_resnet", *QUICK, *words)
    assert outcome.code == 2 and "would replace these weights" in outcome.err
    assert weights.read_bytes() == b"float"


# --- item 11, 12: heads, classes, folders in folders -----------------------------------------------------


@pytest.fixture(scope="module")
def three_digits(tmp_path_factory) -> Path:
    """A folder of three of the ten digits."""
    digits, root = open_dataset("digits"), tmp_path_factory.mktemp("digits") / "images"
    for name, split in (("train", digits.train), ("val", digits.val)):
        for index, target in enumerate(split.targets):
            if target in (1, 3, 7) and index % 4 == 0:
                folder = root / name / str(target)
                folder.mkdir(parents=True, exist_ok=True)
                split.read(index).save(folder / f"{index}.png")
    return root


def test_a_head_of_ten_classes_is_scored_on_three_of_them(bnnpp, three_digits, tmp_path):
    words = ("--method", "float", "--epochs", 0, "--data-dir", three_digits)
    kept = bnnpp("binarize", "digits_resnet", *words, "--head", "keep", "-o", tmp_path / "keep")
    subset = bnnpp("binarize", "digits_resnet", *words, "--head", "subset", "-o", tmp_path / "subset")
    scores = {}
    for name, outcome in (("keep", kept), ("subset", subset)):
        report = json.loads((outcome.packed.parent / "report.json").read_text())
        scores[name] = report["accuracy"]["packed"]["top1"], len(report["data"]["classes"])
    assert scores["keep"][1] == 10 and scores["subset"][1] == 3
    assert scores["subset"][0] >= scores["keep"][0] > 80
    assert re.search(r"images: 3 classes, \d+ training and \d+ validation images", subset.err)

    # The file of ten classes, on the folder of three: over all of them, or over those present.
    every = json.loads(bnnpp("eval", kept.packed, "--data-dir", three_digits, "--json").out)
    words = ("--data-dir", three_digits, "--classes", "present", "--json")
    present = bnnpp("eval", kept.packed, *words)
    assert every["top1"] == scores["keep"][0] and every["classes"] == 10
    found = json.loads(present.out)
    assert found["top1"] == scores["subset"][0] and found["classes"] == 3
    assert "3 of the file's 10 classes" in present.err


def test_a_head_choice_that_is_none_is_refused(bnnpp):
    outcome = bnnpp("binarize", "digits_resnet", "--head", "kep")
    assert outcome.code == 2 and "Did you mean 'keep'?" in outcome.err


def nested(root: Path, rename: dict[str, str]) -> Path:
    invent_images(root)
    for old, new in rename.items():
        for split in ("train", "val"):
            (root / split / new).parent.mkdir(exist_ok=True, parents=True)
            (root / split / old).rename(root / split / new)
    return root


def test_folders_in_class_folders_are_not_merged(tmp_path):
    classes = sorted(path.name for path in (invent_images(tmp_path / "flat") / "train").iterdir())
    merged = nested(tmp_path / "a", {classes[0]: "animals/cat", classes[1]: "animals/dog"})
    with pytest.raises(InputError, match=r"folders of images: animals/cat, animals/dog"):
        open_dataset(None, merged)
    alike = nested(tmp_path / "b", {name: f"_{name}/images" for name in classes})  # as in tiny-imagenet
    assert open_dataset(None, alike).classes == tuple(f"_{name}" for name in classes)


def test_a_fifo_among_the_images_is_no_hang(tmp_path):
    root = invent_images(tmp_path / "images")
    os.mkfifo(next((root / "train").iterdir()) / "x.png")
    with pytest.raises(InputError, match="FIFO"):
        open_dataset(None, root)


def test_a_link_to_the_folder_above_is_no_hang(tmp_path):
    root = invent_images(tmp_path / "images")
    folder = next((root / "train").iterdir())
    (folder / "loop").symlink_to(root / "train")
    with pytest.raises(InputError, match=r"without an end|folders of images"):
        open_dataset(None, root)


# --- item 15: names, folders, states that are broken -----------------------------------------------------


@pytest.mark.parametrize("flag", ["--data-dir", "--weights", "--output", "--recipe", "--teacher-logits"])
@pytest.mark.parametrize("name", ["x" * 5000, "a\udcffb" * 90, "~nosuchuser/x" * 30])
def test_names_that_no_file_can_have_are_one_message(bnnpp, empty, flag, name):
    outcome = bnnpp("binarize", "digits_resnet", flag, name)
    assert outcome.code == 2 and outcome.err.count("error: ") == 1
    assert "Traceback" not in outcome.err


READERS = {
    "eval": ("eval", "FILE"),
    "inspect": ("inspect", "FILE"),
    "predict": ("predict", "FILE", "one.png"),
    "export": ("export", "FILE", "--to", "timm"),
    "analyze": ("analyze", "FILE"),
    "bench score": ("bench", "score", "FILE"),
    "compare": ("compare", "--from", "FILE"),
    "compare into": ("compare", "digits_vit", "--methods", "ptq", "--output", "FILE"),
    "recipes cp": ("recipes", "cp", "default", "FILE"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx"])
@pytest.mark.parametrize("words", READERS.values(), ids=READERS)
def test_a_name_that_no_file_can_have_is_one_message_of_every_command(bnnpp, empty, words, suffix):
    name = "x" * 300 + suffix
    outcome = bnnpp(*(name if word == "FILE" else word for word in words))
    assert outcome.code == 2 and outcome.err.count("error: ") == 1 and "unexpected" not in outcome.err


@pytest.mark.parametrize("words", [READERS[name] for name in list(READERS)[:6]], ids=list(READERS)[:6])
def test_a_run_folder_is_answered_with_its_packed_file(bnnpp, finished, words):
    outcome = bnnpp(*(finished if word == "FILE" else word for word in words))
    assert outcome.code == 2 and f"{finished}: a folder, not a file" in outcome.err
    assert str(finished / "model.safetensors") in outcome.err


def test_a_folder_for_logits_that_cannot_be_made_is_told_before_training(bnnpp, empty):
    (empty / "file").touch()
    for place in ("file", "file/logits"):
        outcome = bnnpp("binarize", "digits_resnet", *QUICK, "--teacher-logits", place)
        assert outcome.code == 2 and f"--teacher-logits {place}: no files can be written" in outcome.err
    assert [entry.name for entry in empty.iterdir()] == ["file"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00"])
@pytest.mark.parametrize("broken", ["state/identity.json", "report.json"])
def test_a_damaged_file_of_a_run_is_told(bnnpp, tmp_path, finished, broken, content):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    words = ["binarize", "digits_resnet", "--output", str(run), "--resume", "auto"]
    (run / "state" / "command").write_text(shlex.join(["bnnpp", *words]))
    if broken != "report.json":
        (run / "report.json").unlink()
    (run / broken).write_bytes(content)
    outcome = bnnpp(*words)
    assert outcome.code == 2 and f"{Path(broken).name}: damaged: " in outcome.err


def test_a_damaged_command_is_that_of_another_run(tmp_path, finished):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "state" / "command").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="holds a finished run"):
        choose_run("x", tmp_path / "run", "auto", False, "bnnpp binarize x")


def test_to_resume_without_a_state_is_an_error(bnnpp, tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "report.json").unlink()
    for file in run.glob("state/*/step-*.state"):
        file.unlink()
    outcome = bnnpp("binarize", "digits_resnet", "--output", run, "--resume")
    assert outcome.code == 2 and "holds no state to resume" in outcome.err


@pytest.mark.parametrize(
    "words",
    [
        ("--seed", 10**30),
        ("--seed", -1),
        ("--epochs", 10**9),
        ("--batch-size", 10**12),
        ("--workers", 100_000),
        ("--img-size", 10**6),
        ("--num-classes", 10**9),
        ("--lr", "1e39"),
        ("--mean", "a,b"),
        ("--std", "0"),
        ("--crop-pct", "0"),
        ("--set", "a." * 2000 + "b=1"),
        ("--set", "train.lr=" + "[" * 3000),
        ("--set", "train.lr=" + "9" * 5000),
        ("--set", "quantizer.schedules.mu={start: 1e308, end: 1e308, shape: log}"),
        ("--set", "description=\udcff"),
    ],
)
def test_values_beyond_reason_are_one_message(bnnpp, empty, words):
    outcome = bnnpp("binarize", "digits_resnet", *words)
    assert outcome.code == 2 and outcome.err.count("error: ") == 1
    assert len(outcome.err) < 6000 and not list(empty.iterdir())


def test_a_network_that_training_made_worse_is_said_to_be_packed_untrained(bnnpp, empty):
    words = ("--method", "bc", "--epochs", 1, "--lr", 0.5, "--set", "train.warmup=0", "--dataset", "digits")
    outcome = bnnpp(
        "binarize", "digits_resnet", *words, "--set", "train.select=val", "--set", "train.latent_lr=1"
    )
    assert outcome.code == 0 and "no epoch is better than the network before training" in outcome.err
    report = json.loads((outcome.packed.parent / "report.json").read_text())
    assert (
        report["packed_epoch"] == 0 and report["accuracy"]["soft"]["top1"] == report["epochs"][0]["soft_top1"]
    )


def test_a_fault_of_ours_is_one_message_and_a_traceback_in_the_run_folder(bnnpp, tmp_path, monkeypatch):
    monkeypatch.setattr("binarize_cli.pipeline.fine_tune", lambda run: {}["no such key"])
    outcome = bnnpp("binarize", "digits_resnet", *QUICK, "--output", tmp_path / "run")
    assert outcome.code == 1 and "error: unexpected KeyError: 'no such key'" in outcome.err
    assert "Traceback" not in outcome.err
    (file,) = (tmp_path / "run").glob("traceback-*.txt")
    assert str(file) in outcome.err and "KeyError" in file.read_text()


def test_a_file_that_cannot_be_read_back_is_removed(bnnpp, tmp_path, monkeypatch):
    def fail(*_):
        raise BnnppError("checksum mismatch")

    monkeypatch.setattr("binarize_cli.pipeline.rebuild", fail)
    outcome = bnnpp("binarize", "digits_resnet", *QUICK, "--output", tmp_path / "run")
    assert outcome.code == 1 and "checksum mismatch" in outcome.err and not outcome.out
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_file_without_binary_inputs_that_computes_something_else_is_removed(bnnpp, tmp_path, monkeypatch):
    differing = Agreement(64, 0.5, equal=False, same_predictions=40, agrees=False)
    monkeypatch.setattr("binarize_cli.pipeline.compare_logits", lambda *_: differing)
    outcome = bnnpp("binarize", "digits_resnet", *QUICK, "--output", tmp_path / "run")
    assert outcome.code == 1 and not outcome.out, outcome.err
    assert "by up to 0.5, and 24 of 64 predictions differ: this is a fault of bnnpp" in outcome.err
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_file_with_binary_inputs_that_computes_something_else_is_kept(bnnpp, tmp_path, monkeypatch):
    differing = Agreement(64, 0.5, equal=False, same_predictions=40, agrees=False)
    monkeypatch.setattr("binarize_cli.pipeline.compare_logits", lambda *_: differing)
    outcome = bnnpp("binarize", "digits_resnet", *QUICK, "--task", "bwa", "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "by up to 0.5, and 24 of 64 predictions differ: this is a fault of bnnpp" in outcome.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["agreement"] == differing.to_json() and (tmp_path / "run" / "model.safetensors").exists()
    assert "a fault of bnnpp" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_memory_that_a_library_of_cuda_does_not_get_is_out_of_memory(text):
    from binarize_cli.cli import _is_out_of_memory

    assert _is_out_of_memory(RuntimeError(text))


def test_a_bare_memory_error_is_one_message(bnnpp, tmp_path, monkeypatch):
    def fail(run):
        raise MemoryError

    monkeypatch.setattr("binarize_cli.pipeline.fine_tune", fail)
    outcome = bnnpp("binarize", "digits_resnet", *QUICK, "--output", tmp_path / "run")
    assert outcome.code == 2 and "error: out of memory\n" in outcome.err


def test_a_deleted_working_directory_is_one_message(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && {sys.executable} -m binarize_cli methods"
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    left = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=environ)
    assert left.returncode == 2 and "working directory was deleted" in left.stderr
    assert "Traceback" not in left.stderr


# --- item 15: streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("redirection", [">&-", "> /dev/full", "> /dev/full 2>&1", ">&- 2>&-"])
def test_a_stdout_that_is_gone_is_exit_1(finished, redirection):
    packed = finished / "model.safetensors"
    script = f"{sys.executable} -m binarize_cli inspect --json {packed} {redirection}"
    left = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert left.returncode == 1 and "Traceback" not in left.stderr and "Exception ignored" not in left.stderr
    if "2>" not in redirection:
        assert left.stderr.count("error: ") == 1 and "stdout: cannot be written" in left.stderr


def test_an_encoding_without_our_characters_is_no_traceback(finished):
    for words in (["inspect", finished / "model.safetensors"], ["methods", "bnn++"]):
        left = command(*words, env=os.environ | {"PYTHONIOENCODING": "ascii"})
        assert left.returncode == 0 and left.stdout.isascii() and not left.stderr


def test_bytes_of_a_name_that_is_not_utf8_come_out_as_they_are():
    script = "from binarize_cli.console import *; never_fail_to_encode(); result('a\\udcff \\ud800 é')"
    environ = os.environ | {"PYTHONIOENCODING": "ascii"}
    left = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environ)
    assert left.stdout == b"a\xff \\ud800 \\xe9\n"


def test_a_stderr_that_is_gone_is_done_without(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    Stream("stderr").write("progress")
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OutputError):
        result("x")


# --- item 16: recipes that never end ---------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a: &x [1]\nb: *x", "train: &t {lr: 1.0}\ndistill: {<<: *t}"])
def test_aliases_are_refused(text):
    with pytest.raises(InputError, match=r"r\.yaml:2: not YAML: aliases"):
        parse(text, "r.yaml")


def test_a_recipe_of_megabytes_is_not_read(tmp_path):
    (tmp_path / "r.yaml").write_text("# " + "x" * LARGEST)
    with pytest.raises(InputError, match="too large for a recipe"):
        read(str(tmp_path / "r.yaml"))


def test_thousands_of_unknown_keys_are_told_in_part(tmp_path):
    draft = parse("".join(f"k{i}: 1\n" for i in range(5000)), "r.yaml")
    with pytest.raises(InputError, match=r"5000 faults in the recipe(?s:.*)and 4980 more"):
        draft.validate()


@pytest.mark.parametrize("text", ["[" * 3000, "2001-99-99", "9" * 5000, "&a [*a]", "!!python/name:os.system"])
def test_values_that_are_no_yaml_are_the_users_fault(text):
    with pytest.raises(InputError, match="--set"):
        parse_value(text)


def test_half_a_character_is_no_text():
    with pytest.raises(InputError, match="lone surrogate"):
        parse('description: "\\ud800"', "r.yaml")


def test_a_typo_of_a_flag_does_not_blame_the_recipe(bnnpp):
    outcome = bnnpp("binarize", "digits_resnet", "--method", "bnn+++")
    assert (outcome.code == 2 and outcome.err.startswith("20") is False) or "recipe:" not in outcome.err
    assert "error: --method: no method is named 'bnn+++'. Did you mean 'bnn++'" in outcome.err


def test_a_method_unlike_any_other_is_answered_with_where_they_are_listed(bnnpp):
    command = "binarize", "digits_resnet", "--method", "bnn-plus"
    assert bnnpp(*command).err.strip().endswith("'bnnpp methods' lists the methods.")
    assert bnnpp(*command, "--set", "train.lrr=1").err.strip().endswith("shows every key.")


def test_a_missing_folder_is_told_before_torch_is_imported(tmp_path):
    script = (
        "import sys; from binarize_cli.cli import main\n"
        f"sys.argv = ['bnnpp', 'binarize', 'deit_tiny', '--data-dir', '{tmp_path}/none']\n"
        "try: main()\nexcept SystemExit as left: print(left.code, 'torch' in sys.modules)"
    )
    left = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert left.stdout == "2 False\n" and "does not exist" in left.stderr


# --- item 17: processes that die, and two at once --------------------------------------------------------


def test_what_a_killed_process_was_writing_is_cleaned(tmp_path):
    stale = [".log.csv.4711", ".model.safetensors.1", "state/.identity.json.77", "state/binary/.step-1.9"]
    for name in stale:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".mine").touch()
    with RunFolder(tmp_path).claimed():
        assert not [name for name in stale if (tmp_path / name).exists()]
    assert (tmp_path / ".mine").exists()


def test_two_runs_at_once_take_two_names(empty):
    choices = [choose_run("net", None, "never", False) for _ in range(3)]
    assert len({choice.folder for choice in choices}) == 1  # none has written yet
    with choices[0].claimed() as first, choices[1].claimed() as second, choices[2].claimed() as third:
        assert [run.path.name for run in (first, second, third)] == ["net", "net-2", "net-3"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)],
)
def test_before_training_a_signal_is_immediate(number, code):
    with StopRequest(training=False), pytest.raises(StoppedEarly) as left:
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert left.value.exit_code == code


def test_in_training_sighup_asks_for_a_stop_as_sigterm_does(capsys):
    with StopRequest(training=False) as stop, stop.in_training():
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.01)
        assert stop.code == 75
    assert "SIGHUP: saving after this step" in capsys.readouterr().err


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(training=False):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2], ids=lambda n: n.name)
def test_what_a_job_script_ignores_until_bnnpp_listens_is_heeded(number, capsys):
    """`trap "" TERM USR1 USR2` in recipes/slurm: the ignoring is inherited through exec."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            assert stop.code == 75
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert f"{number.name}: saving after this step" in capsys.readouterr().err


def test_sigterm_ends_a_load_that_hangs(tmp_path):
    """Before training, whatever the process is busy with: here the weights are read for ever."""
    script = (
        "import sys, time, binarize_cli.models.weights as w; from binarize_cli.cli import main\n"
        "w.torch.load = lambda *a, **k: (print('reading', flush=True), time.sleep(60))\n"
        f"sys.argv = ['bnnpp', 'binarize', 'digits_resnet', '--weights', '{tmp_path}/w.pth']\n"
        "main()"
    )
    torch.save({}, tmp_path / "w.pth")
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    watchdog = threading.Timer(90, process.kill)
    watchdog.start()
    assert process.stdout.readline() == b"reading\n"
    process.terminate()
    _, err = process.communicate()
    watchdog.cancel()
    assert process.returncode == 75 and b"Traceback" not in err
    assert b"error: stopped before training began" in err


def test_ctrl_c_while_importing_is_no_traceback():
    script = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from binarize_cli.__main__ import main; main()"
    )
    left = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert left.returncode == -signal.SIGINT and not left.stderr


@pytest.mark.parametrize(("path", "kind"), [("/dev/null", "other"), ("/", "folder"), ("/nowhere", None)])
def test_kinds_of_paths(path, kind):
    assert kind_of(Path(path)) == kind
