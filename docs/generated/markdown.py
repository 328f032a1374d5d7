"""Markdown of rows and sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from binarize_cli.report.means import LOSS_DIGITS, cell, spread


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> str:
    """Return a Markdown table, its last `right` columns aligned to the right; bars in cells are escaped."""
    rules = ["---"] * (len(heads) - right) + ["---:"] * right
    lines = [heads, rules, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def over_seeds(runs: Sequence[Mapping[str, float]], key: str) -> str:
    """Return the mean over runs and half the range: `0.5371 ± 0.0035`."""
    digits = LOSS_DIGITS if key == "loss" else 2
    return cell(spread([run[key] for run in runs], digits), digits=digits)


def prose(text: str) -> str:
    """Return text in which Markdown and HTML see no marks of their own, but for what is `code`."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else part.replace("*", "\\*").replace("<", "&lt;") for part in parts
    )


def sentence(text: str) -> str:
    """Return the first sentence of a docstring, on one line."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return prose(re.split(r"(?<=[.?!])\s+(?=[A-Z`])", paragraph)[0].removesuffix("."))
