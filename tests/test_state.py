"""States on disk: the last two, whole or refused by name; and runs that are killed come out the same."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from binarize_cli.errors import InputError
from binarize_cli.run_folder import RunFolder, choose_run
from binarize_cli.training import state
from binarize_cli.training.objective import Objective
from binarize_cli.training.stop import StopRequest

ROOT = Path(__file__).parents[1]


def written(folder: Path, steps: int) -> Path:
    return state.save_newest(folder, steps, {"position": {"step": steps}, "tensor": torch.full((50,), steps)})


def test_the_last_two_states_are_kept_and_the_newest_is_taken(tmp_path, capsys):
    assert state.load_newest(tmp_path / "none") is None
    paths = [written(tmp_path, steps) for steps in (9, 10, 200)]
    assert state.saved_states(tmp_path) == [paths[2], paths[1]] and not paths[0].exists()
    assert state.load_newest(tmp_path)["position"] == {"step": 200}


DAMAGES = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],
    "another format": lambda content: content.replace(b"state 1", b"state 7", 1),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_where_the_newest_state_is_damaged_the_one_before_is_taken_and_both_are_named(
    damage, tmp_path, capsys
):
    older, newest = written(tmp_path, 1), written(tmp_path, 2)
    newest.write_bytes(damage(newest.read_bytes()))
    assert state.load_newest(tmp_path)["position"] == {"step": 1}
    older.write_bytes(b"")
    with pytest.raises(InputError, match="checksum mismatch") as left:
        state.load_newest(tmp_path)
    assert str(newest) in str(left.value) and "--overwrite" in str(left.value)


def test_a_state_cannot_run_code(tmp_path):
    """It has the right checksum, which anyone can compute; but nothing but tensors is unpickled."""

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    whole = io.BytesIO()
    torch.save({"trap": Trap()}, whole)
    digest = hashlib.sha256(whole.getvalue()).hexdigest().encode()
    (tmp_path / "s").write_bytes(state.HEADER + digest + b"\n" + whole.getvalue())
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
        state.load(tmp_path / "s")
    assert not (tmp_path / "trapped").exists()


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path):
    (tmp_path / ".step-00000003.state.4711").write_bytes(b"half")
    written(tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004.state"]


def test_a_disk_that_fills_up_ends_the_run_and_the_state_before_it_continues(
    make_trainer, tmp_path, monkeypatch
):
    setting = {"epochs": 3, "images": 16}
    whole = make_trainer(tmp_path / "whole", **setting)
    whole.run()
    real, count = os.fsync, [0]

    def full(file):
        count[0] += 1
        if count[0] == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left") as left:
            make_trainer(tmp_path / "full", **setting).run()
    assert "kept" in left.value.hint and [p.name for p in (tmp_path / "full").iterdir()] == [
        "step-00000002.state"
    ]
    resumed = make_trainer(tmp_path / "full", **setting)
    resumed.run(resume=True)
    theirs = whole.net.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in resumed.net.state_dict().items())


def test_the_state_is_saved_every_so_many_minutes_too(make_trainer, tmp_path):
    fine_tuning = make_trainer(tmp_path, images=32)
    fine_tuning.saving.minutes = 0
    seen, rule = [], fine_tuning.step.objective

    def objective(*args):
        seen.append([path.name for path in state.saved_states(tmp_path)])
        return rule(*args)

    fine_tuning.step.objective = objective
    fine_tuning.run()
    assert seen[0] == [] and seen[3] == ["step-00000003.state", "step-00000002.state"]


# --- signals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_asks_for_75_and_sigcont_for_nothing(name, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.getsignal(getattr(signal, name))
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGCONT)
        assert stop.code == 0
        signal.raise_signal(getattr(signal, name))
        assert stop.code == 75
    assert signal.getsignal(getattr(signal, name)) == before


def test_ctrl_c_is_immediate_while_there_is_nothing_to_save():
    with StopRequest(training=False) as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with stop.in_training():
            signal.raise_signal(signal.SIGINT)
        assert stop.code == 130


def test_a_launchers_echo_of_a_signal_is_no_second_one(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with StopRequest() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        stop._came -= 10
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


SECOND = """
import os, signal, sys
from binarize_cli.training.stop import StopRequest
assert "torch" not in sys.modules
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print("once", stop.code, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("twice")
"""


def test_a_second_signal_ends_the_process_at_once():
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "once 75\n"), done.stderr


# --- the same command again ------------------------------------------------------------------------------


def started(folder: Path, command: str, finished: bool = False) -> RunFolder:
    run = RunFolder(folder)
    (folder / "state").mkdir(parents=True)
    run.identity.write_text("{}")
    run.command.write_text(command)
    if finished:
        run.report.write_text("{}")
    return run


def test_auto_continues_what_the_same_command_left_and_nothing_else(empty):
    def chosen(command: str, output=None):
        choice = choose_run("m", output, "auto", False, command)
        return str(choice.folder.path), choice.resumed, choice.finished

    assert chosen("a") == ("runs/m", False, False)
    started(Path("runs/m"), "a")
    started(Path("runs/m-2"), "b")
    assert chosen("a") == ("runs/m", True, False)
    assert chosen("b") == ("runs/m-2", True, False)
    assert chosen("c") == ("runs/m-3", False, False)
    with started(Path("runs/m-3"), "a").claimed():
        assert chosen("a") == ("runs/m", True, False), "the third is being worked at"
        with pytest.raises(InputError, match="another process"), RunFolder(Path("runs/m-3")).claimed():
            pass
    assert chosen("a") == ("runs/m-3", True, False)
    started(Path("done"), "a", finished=True)
    assert chosen("a", Path("done")) == ("done", False, True)
    with pytest.raises(InputError, match="holds a finished run"):
        chosen("b", Path("done"))
    assert chosen("x", Path("new")) == ("new", False, False)
    assert chosen("x", Path("runs/m")) == ("runs/m", True, False), "what changed is found and named later"


SHORT = ("digits_resnet", "--dataset", "digits", "--method", "bnn++", "--epochs", 2, "--batch-size", 256)


def test_the_same_command_run_again_continues_by_itself(bnnpp, empty, monkeypatch):
    """Stopped by SIGTERM; then again, when it has finished; then with another recipe."""
    words = ("binarize", *SHORT, "--output", "run", "--resume", "auto")
    whole, count = Objective.__call__, [0]

    def call(*args):
        count[0] += 1
        if count[0] == 7:
            signal.raise_signal(signal.SIGTERM)
        return whole(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "__call__", call)
        left = bnnpp(*words)
    assert (left.code, left.out) == (75, "") and "SIGTERM: saving" in left.err and "after step 7" in left.err
    again = bnnpp(*words)
    assert "continuing from run/state/binary/step-00000007.state" in again.err
    assert [row["epoch"] for row in rows_of(again.packed.parent)] == ["0", "1", "2"]
    third = bnnpp(*words)
    assert third.packed == again.packed and "holds the finished run" in third.err
    (empty / "run" / "report.json").unlink()
    changed = bnnpp(*words, "--lr", "1e-4")
    assert changed.code == 2 and "recipe.train.lr: 0.0005 -> 0.0001" in changed.err


@pytest.mark.parametrize("words", [("--resume",), ("--resume", "always")])
def test_resume_alone_means_always(words, bnnpp, empty):
    """Wherever it stands: before a flag, and before the model."""
    for place in (1, 2):
        line = ["binarize", "digits_resnet", "--method", "bc"]
        line[place:place] = words
        left = bnnpp(*line)
        assert left.code == 2 and "no unfinished run runs/digits_resnet-bc-bw*" in left.err


def test_inside_slurm_auto_is_the_default(bnnpp, empty, monkeypatch):
    asked = []
    monkeypatch.setattr("binarize_cli.pipeline.run_pipeline", lambda job, stop: asked.append(job) or exit(0))
    for env in ({}, {"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}):
        with monkeypatch.context() as patch:
            for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
                patch.delenv(name, raising=False)
            for name, value in env.items():
                patch.setenv(name, value)
            bnnpp("binarize", "digits_resnet", "--overwrite")
            bnnpp("binarize", "digits_resnet", "--resume", "never")
    assert [job.resume for job in asked] == ["never", "never", "auto", "never", "auto", "never"]
    assert [job.overwrite for job in asked[::2]] == [True, True, False], "it would overwrite its own run"


# --- kill -9 ---------------------------------------------------------------------------------------------


def killed_and_restarted(words: list[str], kills: int, longest: float, ranks: int) -> str:
    """Start a command and kill it after a random time, so many times; then let it finish. Its stderr then."""
    program = [sys.executable, "-m", "binarize_cli"]
    if ranks > 1:
        flags = ("--standalone", f"--nproc-per-node={ranks}", "-m", "binarize_cli")
        program = [sys.executable, "-m", "torch.distributed.run", *flags]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    draw = random.Random(0)
    for _ in range(kills):
        child = subprocess.Popen([*program, *words], env=env, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0, longest))
        for pid in [*descendants(child.pid), child.pid]:
            with contextlib.suppress(ProcessLookupError):  # it has finished before
                os.kill(pid, signal.SIGKILL)
        child.wait()
    done = subprocess.run([*program, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "kills"), [(1, 20), (2, 5)], ids=["one rank", "two ranks"])
def test_runs_that_are_killed_end_as_one_that_was_not(ranks, kills, empty):
    """SIGKILL at random moments, from imports to packing; the packed tensors are the same, byte for byte."""
    common = ["binarize", *map(str, SHORT), "--epochs", "12", "--resume", "auto", "--save-minutes", "0.02"]
    began = time.monotonic()
    killed_and_restarted([*common, "--output", "whole"], 0, 0, ranks)
    longest = time.monotonic() - began
    said = killed_and_restarted([*common, "--output", "killed"], kills, longest, ranks)
    print(f"{kills} kills within {longest:.0f} s of each start; the last start said:\n{said}")
    names = ("whole", "killed")
    tensors, documents = zip(*(parts(Path(name) / "model.safetensors") for name in names), strict=True)
    assert tensors[0] == tensors[1] and documents[0]["accuracy"] == documents[1]["accuracy"]
    logs = [[row["hard_top1"] for row in rows_of(Path(name))] for name in names]
    assert logs[0] == logs[1] and len(logs[0]) == 13


def descendants(pid: int) -> list[int]:
    """The processes below one: torchrun's ranks lead sessions of their own."""
    listed = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    below = [int(word) for text in listed for word in text.split()]
    return [other for each in below for other in (*descendants(each), each)]


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open() as file:
        return list(csv.DictReader(file))


def parts(file: Path) -> tuple[bytes, dict]:
    """The bytes of a safetensors file's tensors, and its document."""
    whole = file.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    return whole[end:], json.loads(json.loads(whole[8:end])["__metadata__"]["bnnpp"])
