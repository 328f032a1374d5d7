"""What can go wrong, one class an exit code. `cli.main` alone turns them into messages and codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BnnppError(Exception):
    """A failure the user can act on: *what* is wrong, *where*, and what to *try* next."""

    exit_code = 1
    on_all_ranks = False
    """Whether every rank of the run raises it: then the first one alone tells it."""

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None):
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  {self.hint}" if self.hint else ""
        return f"{place}{self.what}{advice}"


class InputError(BnnppError):
    """The user's input is wrong: usage, recipe, file, dataset or model name. Nothing has been written."""

    exit_code = 2


class Diverged(BnnppError):
    """Training left the numbers: the message names the step and the layer; the last good state is kept."""

    exit_code = 3
    on_all_ranks = True  # by the loss and the gradient, which are means over the ranks


class Interrupted(BnnppError):
    """A signal came, and the state has been saved. Exit code 75, or 130 if it was Ctrl-C."""

    exit_code = 75
    on_all_ranks = True

    def __init__(self, what: str, *, exit_code: int = 75, **more: str | None):
        super().__init__(what, **more)
        self.exit_code = exit_code


def counted(count: int, noun: str) -> str:
    """Return the count with its noun: `1 epoch`, `3 epochs`, `2 classes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def printable(text: str) -> str:
    """Return the text with line breaks, control characters and lone surrogates as escapes, such as \\n."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class OutputError(BnnppError):
    """What should be printed cannot be: the pipe is closed, or the disk behind it full. The run is kept."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str | None = None) -> str | None:
    """Return a hint such as "Did you mean 'bnn++' or 'bnn+'?", or `otherwise` if nothing is near `name`.

    A plus that is written out counts as one: `bnn-plus` and `bnnplusplus` are near `bnn+` and `bnn++`.
    """
    choices, written = list(known), name.lower()
    with_signs = written.replace("-plus", "+").replace("plus", "+")
    near = difflib.get_close_matches(written, choices) or difflib.get_close_matches(with_signs, choices)
    if not near:
        return otherwise
    return "Did you mean " + " or ".join(repr(match) for match in near) + "?"


def closest(name: str, known: Iterable[str], listing: str) -> str:
    """Return the hint for an unknown name: near misses if there are any, and where the whole list is."""
    guess = did_you_mean(name, known)
    return f"{guess} {listing}" if guess else listing
