"""The session of the front page: two commands, run for real, and what they printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from binarize_cli.report.results import read_results
from generated.places import RESULTS

SESSION = RESULTS / "session.txt"
RUN = "runs/digits_resnet-bnn++-bw"
COMMANDS = ("bnnpp binarize digits_resnet --method bnn++", f"bnnpp eval {RUN}/model.safetensors")
WIDEST = 104  # columns of the page
KEPT = {"epoch": (2, 1), "table": (4, 2)}  # of lines that are alike: how many at the start, and at the end
STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


def store_session(folders: Sequence[Path]) -> None:
    """Run the session in an empty folder; keep what it printed, but for the time of day, and the machine."""
    said: list[str] = []
    for command in COMMANDS:
        words = [sys.executable, "-m", "binarize_cli", *command.split()[1:]]
        environment = {name: value for name, value in os.environ.items() if name != "BNNPP_DATA"}
        together = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        ran = subprocess.run(words, cwd=folders[0], env=environment, text=True, check=True, **together)
        said += [f"$ uv run {command}", *(STAMP.sub("", line.rstrip()) for line in ran.stdout.splitlines())]
    ((_, run),) = read_results([folders[0] / RUN])
    said[0] += f"  # {run['provenance']['machine']}"
    SESSION.write_text("\n".join(said) + "\n", encoding="utf-8")


def session() -> str:
    """Return the session in short, without the blank lines around its tables."""
    lines = [line for line in SESSION.read_text(encoding="utf-8").splitlines() if line]
    parts = (_shortened(kind, list(group)) for kind, group in groupby(lines, _kind))
    return "\n".join(["```console", *(_cut(line) for part in parts for line in part), "```"])


def _kind(line: str) -> str:
    if line.startswith("binary "):
        return "epoch"
    return "table" if line.startswith(" ") else ""


def _shortened(kind: str, lines: list[str]) -> list[str]:
    """Return lines of one kind: of many, the first and the last ones.

    >>> _shortened("epoch", ["1", "2", "3", "4"]), _shortened("epoch", ["1", "2", "3"])
    (['1', '2', '  ...', '4'], ['1', '2', '3'])
    """
    first, last = KEPT.get(kind, (len(lines), 0))
    if len(lines) <= first + last:
        return lines
    return [*lines[:first], "  ...", *lines[len(lines) - last :]]


def _cut(line: str) -> str:
    """Return a line as wide as the page.

    >>> _cut("x " * 90)[-8:]
    'x x x...'
    """
    return line if len(line) <= WIDEST else f"{line[: WIDEST - 3].rstrip()}..."
