"""Means over runs, and how far the runs lie apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Error = Literal["half-range", "standard-error"]
LOSS_DIGITS = 4  # of per cents two are enough


def spread(values: Sequence[float | None], digits: int = 2) -> dict[str, Any] | None:
    """Return mean, half the range and standard error (null for one value); None if a value is missing.

    `spread` is half the range rounded to `digits`, as the mean is.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    several = len(known) > 1
    error = statistics.stdev(known) / math.sqrt(len(known)) if several else None
    half = (max(known) - min(known)) / 2
    return {
        "mean": round(statistics.fmean(known), digits),
        "spread": round(half, digits),
        "half_range": round(half, digits + 2),
        "standard_error": None if error is None else round(error, digits + 2),
        "values": known,
    }


def cell(value: Mapping[str, Any] | None, error: Error = "half-range", digits: int = 2) -> str:
    """Return `95.74 ± 0.69`; the mean alone for one run, a dash for none."""
    if value is None:
        return "-"
    around = value["half_range"] if error == "half-range" else value["standard_error"]
    more = f" ± {around:.{digits}f}" if len(value["values"]) > 1 else ""
    return f"{value['mean']:.{digits}f}{more}"
