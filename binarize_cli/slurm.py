"""SLURM: whether this process is part of a job, and putting that job back into the queue."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

from binarize_cli.console import say, warn


def job(env: Mapping[str, str] = os.environ) -> str | None:
    """What `scontrol` calls this job: of an array the one task, since the bare id may mean all of them."""
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def inside() -> bool:
    return job() is not None


def restarted() -> bool:
    """Whether this job has been queued again."""
    return "SLURM_RESTART_COUNT" in os.environ


def requeue() -> None:
    """Put this job back into the queue, unless SLURM is ending it.

    A job that is only warned (`--signal`, the grace time of a preemption) still runs, and would not come back
    by itself. One that is being cancelled or requeued is completing already, and SLURM knows what is next.
    """
    name = job()
    if name is None:
        return
    if shutil.which("scontrol") is None:
        warn(f"there is no scontrol here: queue job {name} again yourself")
        return
    state = _state(name)
    if state != "RUNNING":
        say(f"job {name} is {state}: it is left to SLURM")
        return
    asked = _scontrol("requeue", name)
    if asked.returncode:
        warn(f"job {name} cannot be requeued ({asked.stderr.strip()}): queue it again yourself")
    else:
        say(f"job {name} is requeued, and will continue")


def _state(name: str) -> str:
    shown = _scontrol("show", "job", "--oneliner", name).stdout
    words = dict(word.partition("=")[::2] for word in shown.split())
    return words.get("JobState", "unknown")


def _scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60)
