"""The goals that we set ourselves before we measured, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from binarize_cli.report.comparison import Run, compare_runs
from binarize_cli.report.means import cell
from generated import results
from generated.markdown import table

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

    @property
    def key(self) -> tuple[str, str, int]:
        """The network, task and budget whose row is held against the goal."""
        return self.model, self.task, self.epochs

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
Rows = Mapping[tuple[str, str, int], Row]


def goals() -> str:
    """Return a line a goal: what was asked for, what was measured, and by how much it was reached."""
    rows = _plain_rows()
    lines = [(*_title(goal), goal.words(), *_outcome(goal, rows)) for goal in GOALS]
    return table(("network, budget", "task", "goal", "n", "measured", "reached"), lines)


def tried() -> str:
    """Return a line for each other setting with which `bnn++` ran where it missed a goal."""
    rows = _plain_rows()
    lines = []
    for goal in GOALS:
        row, aim = rows.get(goal.key), _aim(goal, rows)
        if row and aim is not None and _ahead(row, aim) < 0:
            lines += [(*_title(goal), *_of_others(other, aim)) for other in _other_settings(row)]
    heads = ("network, budget", "task", "settings", "n", "measured", "reached")
    return table(heads, lines) if lines else "No goal was missed where other settings ran."


def _plain_rows() -> Rows:
    """Return the row of plain `bnn++` of each network, task and budget."""
    found = [Run(result) for result in results.plain_bnnpp()]
    rows = compare_runs(found)["rows"] if found else []
    return {(row["model"].split("/")[-1], row["task"], row["epochs"]): row for row in rows}


def _other_settings(row: Row) -> list[Row]:
    """Return the rows of `bnn++` with other settings, of the same network, task and budget."""
    keys = ("model", "task", "epochs")
    same = [each for each in results.stored() if all(each[key] == row[key] for key in keys)]
    runs = [Run(each, label=results.label(each)) for each in same]
    changed = [run for run in runs if run.label.startswith("bnn++ ")]
    return sorted(compare_runs(changed)["rows"], key=lambda other: other["row"]) if changed else []


def _title(goal: Goal) -> tuple[str, str]:
    return f"{goal.model}, {goal.epochs} epochs", f"`{goal.task}`"


def _aim(goal: Goal, rows: Rows) -> float | None:
    """Return the top-1 that is asked for; None if what it may be below was not run."""
    if goal.below is None:
        return goal.at_least
    if goal.of == "float":
        other, network = rows.get(goal.key), "float"
    else:
        other, network = rows.get((goal.model, goal.of, goal.epochs)), "packed"
    return other[network]["mean"] - goal.below if other else None


def _ahead(row: Row, aim: float) -> float:
    return round(row["packed"]["mean"] - aim, 2)


def _outcome(goal: Goal, rows: Rows) -> tuple[str, str, str]:
    """Return n, the mean and its spread, and whether that is enough; dashes for what was not run."""
    row, aim = rows.get(goal.key), _aim(goal, rows)
    if row is None:
        return "-", "-", "not run"
    if aim is None:
        return str(row["n"]), cell(row["packed"]), f"`{goal.of}` was not run"
    return str(row["n"]), cell(row["packed"]), _verdict(_ahead(row, aim))


def _of_others(row: Row, aim: float) -> tuple[str, str, str, str]:
    settings = row["row"].removeprefix("bnn++ ")
    return f"`{settings}`", str(row["n"]), cell(row["packed"]), _verdict(_ahead(row, aim))


def _verdict(ahead: float) -> str:
    return f"yes, by {ahead:.2f}" if ahead >= 0 else f"no, by {-ahead:.2f}"
