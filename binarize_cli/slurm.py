"""SLURM: find out whether this process is part of a job, and put that job back into the queue."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

from binarize_cli.console import say, warn


def job(env: Mapping[str, str] = os.environ) -> str | None:
    """Return the id of this job as `scontrol` takes it, or None outside SLURM.

    Of an array it is the id of the one task, since the bare id may mean all of them.

    >>> job({"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"})
    '7_1'
    """
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def inside() -> bool:
    return job() is not None


def restarted() -> bool:
    """Return whether this job has been requeued."""
    return "SLURM_RESTART_COUNT" in os.environ


def requeue() -> None:
    """Put this job back into the queue, unless SLURM is ending it already.

    A job that was only warned (`--signal`, the grace time of a preemption) is still RUNNING, and would not
    come back by itself. One that is being cancelled or requeued is COMPLETING, and SLURM knows what is next.
    """
    name = job()
    if name is None:
        return
    if shutil.which("scontrol") is None:
        warn(f"scontrol was not found: requeue job {name} yourself")
        return
    state = _state(name)
    if state != "RUNNING":
        say(f"job {name} is {state}: not requeued")
        return
    asked = _scontrol("requeue", name)
    if asked.returncode:
        warn(f"job {name} cannot be requeued ({asked.stderr.strip()}): requeue it yourself")
    else:
        say(f"job {name} is requeued, and will continue")


def _state(name: str) -> str:
    shown = _scontrol("show", "job", "--oneliner", name).stdout
    words = dict(word.partition("=")[::2] for word in shown.split())
    return words.get("JobState", "unknown")


def _scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60)
