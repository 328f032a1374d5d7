"""log.csv: one row an epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class EpochRow:
    """What an epoch came to. Top-1 in per cent, on the validation images."""

    stage: str
    """`float` or `binary`."""
    epoch: int
    """Counted from 1; 0 is the network before training."""
    loss: float | None
    """The training objective, mean over the epoch's steps."""
    soft_top1: float
    soft_loss: float
    hard_top1: float
    """The signs: what counts, and what the best epoch is chosen by."""
    hard_loss: float
    lr: float
    parameters: str
    """The method's parameters at the end of the epoch, such as mu=30."""
    flip_ratio: float | None
    """The share of binary weights whose sign differs from an epoch before."""
    seconds: float
    """Training alone, without scoring."""
    images_per_second: float


def as_csv(rows: Sequence[EpochRow]) -> str:
    """The rows as CSV with a header; None is an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [f.name for f in fields(EpochRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return out.getvalue()
