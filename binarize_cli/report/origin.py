"""Where a run took place: the code's commit and the machine, for results that are kept."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def commit(root: Path = ROOT) -> str | None:
    """Return the commit of the code, with `-changed` after it if files differ; None outside a checkout."""
    head = _git(root, "rev-parse", "--short=12", "HEAD") if (root / ".git").exists() else None
    if not head:
        return None
    return f"{head}-changed" if _git(root, "status", "--porcelain", "--untracked-files=no") else head


def _git(root: Path, *words: str) -> str | None:
    """Return what git says; None where it says nothing or is missing."""
    try:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def machine(device: str) -> str:
    """Return the processor and the threads that torch uses on it; a GPU by its name, which is `device`."""
    if device != "cpu":
        return device
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' * (threads > 1)}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
