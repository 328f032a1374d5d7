"""The two streams: stdout carries the result alone, everything a person reads goes to stderr, through a log.

Of several ranks the first alone speaks. Neither stream can end a run in a traceback: what its encoding
lacks is escaped, a stderr that is gone is done without, and a stdout that is gone is an OutputError.
"""

from __future__ import annotations

import codecs
import logging
import os
import sys
import time
from functools import cache
from typing import Any

from rich.console import Console
from rich.table import Table

from binarize_cli.errors import OutputError
from binarize_cli.ranks import is_rank0

LOG = logging.getLogger("bnnpp")
PLAIN_WIDTH = 140  # columns off a terminal (a SLURM log, a pipe), so that tables keep their shape


class Stream:
    """sys.stdout or sys.stderr, whatever stands there at the time, whose failures are ours to handle."""

    def __init__(self, name: str):
        self.name = name

    def write(self, text: str) -> int:
        """Write all of `text`. Raises OutputError for stdout; for stderr there is nobody left to tell."""
        try:
            getattr(sys, self.name).write(text)
        except (OSError, ValueError, AttributeError) as error:  # full; closed in Python; closed by the shell
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Hand over what was written."""
        try:
            getattr(sys, self.name).flush()
        except (OSError, ValueError, AttributeError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, OSError):
            silence(self.name)
        if self.name == "stdout":
            what = getattr(error, "strerror", None) or "it is closed"
            raise OutputError(f"cannot be written: {what}", where="stdout") from None

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(sys, self.name), name)


def silence(name: str) -> None:
    """Send the rest of a broken stream nowhere: Python flushes it once more when it exits."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), getattr(sys, name).fileno())
    except (OSError, ValueError, AttributeError):  # nothing is open behind it
        setattr(sys, name, None)


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a file's name as they are, everything else that an encoding lacks as \\u escapes."""
    if isinstance(error, UnicodeEncodeError):
        text = error.object[error.start : error.end]
        if all("\udc80" <= sign <= "\udcff" for sign in text):
            return bytes(ord(sign) - 0xDC00 for sign in text), error.end
    return codecs.backslashreplace_errors(error)


codecs.register_error("bnnpp.escape", _escape)


def never_fail_to_encode() -> None:
    """Let both streams escape what their encoding lacks: with ASCII, and in names that are not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="bnnpp.escape")


def _console(stderr: bool) -> Console:
    file = Stream("stderr" if stderr else "stdout")
    look: dict[str, Any] = {"file": file, "highlight": False, "quiet": not is_rank0()}
    console = Console(**look)
    return console if console.is_terminal else Console(**look, width=PLAIN_WIDTH)


@cache
def stderr() -> Console:
    """Return the console of stderr, which a person watches."""
    return _console(stderr=True)


@cache
def stdout() -> Console:
    """Return the console of stdout, for a result that is a table or a card."""
    return _console(stderr=False)


def live() -> bool:
    """Return whether a person watches: then there is a live display, else plain lines with the time."""
    return stderr().is_terminal


def say(message: str) -> None:
    """Log a line of progress: the command line prints it, a program sees it if it asks for INFO."""
    LOG.info("%s", message)


def warn(message: str) -> None:
    """Log what the user should know and may have to act on; the run goes on."""
    LOG.warning("%s", message)


class Printer(logging.Handler):
    """Prints what is logged on stderr; with the time of day when that is no terminal but a log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line of progress, or a warning in yellow."""
        stamp = "" if live() else time.strftime("%Y-%m-%d %H:%M:%S ")
        warning = record.levelno >= logging.WARNING
        text = f"{stamp}{'warning: ' if warning else ''}{record.getMessage()}"
        stderr().print(text, style="yellow" if warning else None, markup=False, soft_wrap=True)


def print_log() -> None:
    """Print what is logged from now on, as the command line does. The library leaves that to its caller."""
    if not any(isinstance(handler, Printer) for handler in LOG.handlers):
        LOG.addHandler(Printer())
        LOG.setLevel(logging.INFO)
        LOG.propagate = False


def show(table: Table) -> None:
    """Print a table on stderr."""
    stderr().print(table)


def result(text: str) -> None:
    """Print the result on stdout: a path or one JSON document."""
    if is_rank0():
        out = Stream("stdout")
        out.write(text + "\n")
        out.flush()
