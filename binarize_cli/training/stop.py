"""Signals: in training the first asks for a stop at the next step boundary, the second is immediate.

Before training there is nothing to save, and the first is immediate.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from binarize_cli.console import say

# SLURM's warnings (--signal=USR1@60) and its request to end. The SIGCONT that it sends before a SIGTERM is
# none of them: it only wakes what was stopped.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
CTRL_C, AGAIN = 130, 75  # 75 is EX_TEMPFAIL of sysexits.h: run the same command again
EXIT_CODES = (CTRL_C, AGAIN)
# Ignored at the start, these stay ignored: nohup and a shell that starts a job with `&` mean it. The others a
# script ignores only until this program listens, as recipes/slurm/*.sbatch do.
LEFT_ALONE = (signal.SIGINT, signal.SIGHUP)
ECHO = 3.0  # seconds in which a second signal is an echo of the first


class StoppedEarly(KeyboardInterrupt):
    """A signal came before training began. No exception of a library's own, so that none swallows it."""

    def __init__(self, exit_code: int):
        super().__init__()
        self.exit_code = exit_code


class StopRequest:
    """Inside the block, `code` is the exit code asked for: 0 until a signal comes. Outside nothing changes.

    Entered twice, it listens until the outer block ends. Made before torch is imported, it cannot come too
    late: a signal without a handler would kill the process. Until training begins a signal raises
    StoppedEarly. After it, while the file is packed, Ctrl-C is immediate, and the others, which come from
    SLURM, let the run finish.
    """

    def __init__(self, training: bool = True):
        self.code, self.training = 0, training
        self.began = training
        self._depth = 0
        self._before: dict[signal.Signals, Any] = {}
        self._came = 0.0

    def __enter__(self) -> StopRequest:
        if self._depth == 0:
            left = [n for n in LEFT_ALONE if signal.getsignal(n) is signal.SIG_IGN]
            self._before = {n: signal.signal(n, self._note) for n in SIGNALS if n not in left}
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """Inside, there are steps to stop after."""
        before, self.training, self.began = self.training, True, True
        try:
            with self:
                yield
        finally:
            self.training = before

    def leaving(self) -> None:
        """Ignore signals from now on: the process ends by itself, with its own exit code."""
        self._before = dict.fromkeys(SIGNALS, signal.SIG_IGN)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, _frame: object) -> None:
        if not self.began:
            raise StoppedEarly(CTRL_C if number == signal.SIGINT else AGAIN)
        if number == signal.SIGINT and not self.training:
            raise KeyboardInterrupt
        if not self.code:
            self.code, self._came = CTRL_C if number == signal.SIGINT else AGAIN, time.monotonic()
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            say(f"{name}: saving after this step. {_once_more(number)} to leave at once.")
        elif not (_launched() and time.monotonic() - self._came < ECHO):
            _leave_at_once(number)


def _launched() -> bool:
    """Return whether a launcher may pass on a signal that came here already, as torchrun and SLURM do."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_JOB_ID" in os.environ


def _once_more(number: int) -> str:
    return "Press it again" if number == signal.SIGINT else "Send it again"


def _leave_at_once(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)  # to die of it, so that the parent sees what it was
    os.kill(os.getpid(), number)
