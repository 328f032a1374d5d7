"""The goals that we set ourselves before we measured, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from binarize_cli.report.comparison import Run, compare_runs
from binarize_cli.report.means import cell
from generated.markdown import table
from generated.results import plain_bnnpp

RESNET, DEIT, VIT, SMALL_RESNET = "resnet20_cifar", "deit_tiny_patch16_224", "digits_vit", "digits_resnet"


@dataclass(frozen=True)
class Goal:
    """A top-1 of the packed files of `bnn++`, mean over seeds: `at_least`, or that much `below` another's."""

    model: str
    task: str
    epochs: int
    at_least: float | None = None
    below: float | None = None
    of: str = "float"
    """What it may be below: the float model, or another task at the same budget."""

    def words(self) -> str:
        """Return what is asked for.

        >>> Goal(RESNET, "bw", 10, at_least=89.5).words()
        'at least 89.5'
        """
        if self.at_least is not None:
            return f"at least {self.at_least}"
        whose = "the float model" if self.of == "float" else f"`{self.of}`"
        return f"no more than {self.below} below {whose}"


GOALS = (
    Goal(RESNET, "bw", 10, at_least=89.5),
    Goal(RESNET, "bw", 60, at_least=90.5),
    Goal(RESNET, "bw", 100, at_least=91.3),
    Goal(RESNET, "bwa", 10, at_least=80),
    Goal(RESNET, "bwa", 200, at_least=88.1),
    Goal(RESNET, "bwaa", 10, below=1, of="bwa"),
    Goal(DEIT, "bw", 10, at_least=80),
    *(Goal(model, "bw", epochs, below=0.5) for model in (VIT, SMALL_RESNET) for epochs in (30, 60)),
    *(Goal(model, "bwa", epochs, below=2.5) for model, epochs in ((VIT, 30), (VIT, 60), (SMALL_RESNET, 30))),
    *(Goal(model, "bwaa", 30, below=3) for model in (VIT, SMALL_RESNET)),
)

Row = Mapping[str, Any]


def goals() -> str:
    """Return a line a goal: what was asked for, what was measured, and by how much it was reached."""
    found = [Run(result) for result in plain_bnnpp()]
    rows = {_key(row): row for row in (compare_runs(found)["rows"] if found else [])}
    lines = [(_title(goal), f"`{goal.task}`", goal.words(), *_outcome(goal, rows)) for goal in GOALS]
    return table(("network, budget", "task", "goal", "n", "measured", "reached"), lines)


def _key(row: Row) -> tuple[str, str, int]:
    return row["model"].split("/")[-1], row["task"], row["epochs"]


def _title(goal: Goal) -> str:
    return f"{goal.model}, {goal.epochs} epochs"


def _outcome(goal: Goal, rows: Mapping[tuple[str, str, int], Row]) -> tuple[str, str, str]:
    """Return n, the mean and its spread, and whether that is enough; dashes for what was not run."""
    row = rows.get((goal.model, goal.task, goal.epochs))
    if row is None:
        return "-", "-", "not run"
    aim = goal.at_least
    if goal.below is not None:
        other = row if goal.of == "float" else rows.get((goal.model, goal.of, goal.epochs))
        if other is None:
            return str(row["n"]), cell(row["packed"]), f"`{goal.of}` was not run"
        aim = other["float" if goal.of == "float" else "packed"]["mean"] - goal.below
    assert aim is not None
    ahead = round(row["packed"]["mean"] - aim, 2)
    verdict = f"yes, by {ahead:.2f}" if ahead >= 0 else f"no, by {-ahead:.2f}"
    return str(row["n"]), cell(row["packed"]), verdict
