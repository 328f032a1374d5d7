"""The table and the cards of the methods."""

from __future__ import annotations

from binarize_cli.cli.methods import cards
from binarize_cli.quantizers.methods import METHODS
from generated.markdown import table

__all__ = ["cards", "method_table"]


def method_table() -> str:
    """Return a line a method: F, B, source."""
    rows = [
        (f"`{m.name}`", f"`{m.forward_formula}`", f"`{m.backward_formula}`", m.source)
        for m in METHODS.values()
    ]
    return table(("method", "F, forward", "B, backward", "source"), rows)
