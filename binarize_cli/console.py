"""The two streams: stdout carries the result alone, everything a person reads goes to stderr.

Of several ranks the first alone speaks.
"""

from __future__ import annotations

import sys
import time
from functools import cache
from typing import Any

from rich.console import Console
from rich.table import Table

from binarize_cli.ranks import is_rank0

PLAIN_WIDTH = 140  # columns off a terminal (a SLURM log, a pipe), so that tables keep their shape


def _console(stderr: bool) -> Console:
    look: dict[str, Any] = {"stderr": stderr, "highlight": False, "quiet": not is_rank0()}
    console = Console(**look)
    return console if console.is_terminal else Console(**look, width=PLAIN_WIDTH)


@cache
def stderr() -> Console:
    """What a person watches: stderr."""
    return _console(stderr=True)


@cache
def stdout() -> Console:
    """The result where that is a table or a card: stdout."""
    return _console(stderr=False)


def live() -> bool:
    """Whether a person watches: a live display then, plain timestamped lines otherwise."""
    return stderr().is_terminal


def say(message: str) -> None:
    """One line of progress on stderr; with the time of day when it goes to a log."""
    stamp = "" if live() else time.strftime("%Y-%m-%d %H:%M:%S ")
    stderr().print(stamp + message, markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """Something the user should know and may have to act on; the run goes on."""
    stamp = "" if live() else time.strftime("%Y-%m-%d %H:%M:%S ")
    stderr().print(f"{stamp}warning: {message}", style="yellow", markup=False, soft_wrap=True)


def show(table: Table) -> None:
    """A table, on stderr."""
    stderr().print(table)


def result(text: str) -> None:
    """The result, on stdout: a path or one JSON document."""
    if is_rank0():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
