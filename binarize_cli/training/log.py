"""log.csv: one row an epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class EpochRow:
    """What an epoch came to. Top-1 in per cent, on the validation images."""

    stage: str
    """`float`, `activations` or `binary`."""
    epoch: int
    """Counted from 1; 0 is the network before training."""
    loss: float | None
    """The training objective, mean over the epoch's steps."""
    soft_top1: float
    soft_loss: float
    hard_top1: float
    """The network of signs: what counts."""
    hard_loss: float
    lr: float
    hard: bool
    """Whether F is sign at the end of the epoch."""
    flip_ratio: float | None
    """The share of binary weights whose sign differs from an epoch before."""
    seconds: float
    """Training alone, without scoring."""
    images_per_second: float
    parameters: Mapping[str, float] = field(default_factory=dict)
    """The method's parameters at the end of the epoch: {"mu": 30.0}."""
    layer_flips: Sequence[float] = ()
    """The flip ratio of each binary layer, in the network's order; not in log.csv."""

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON, the parameters under their own names."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        return row | {"parameters": dict(self.parameters), "layer_flips": list(self.layer_flips)}


def as_csv(rows: Sequence[EpochRow]) -> str:
    """Return the rows as CSV with a header, each parameter of the method in a column; None is an empty field.

    >>> print(as_csv([]), end="")
    stage,epoch,loss,soft_top1,soft_loss,hard_top1,hard_loss,lr,hard,flip_ratio,seconds,images_per_second
    """
    own = [f.name for f in fields(EpochRow) if f.name not in ("parameters", "layer_flips")]
    parameters = list(dict.fromkeys(name for row in rows for name in row.parameters))
    out = io.StringIO()
    writer = csv.DictWriter(out, [*own, *parameters], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {name: getattr(row, name) for name in own}
        writer.writerow(cells | {"hard": int(row.hard)} | dict(row.parameters))
    return out.getvalue()
