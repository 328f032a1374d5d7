"""Ctrl-C: the first asks for a stop at the next step boundary, the second is immediate."""

from __future__ import annotations

import signal

from binarize_cli.console import say


class StopRequest:
    """Inside the block, `requested` says whether SIGINT has come; outside Python's own handling is back."""

    def __init__(self):
        self.requested = False

    def __enter__(self) -> StopRequest:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, *_) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        say("Ctrl-C: saving after this step. Press it again to leave at once.")
