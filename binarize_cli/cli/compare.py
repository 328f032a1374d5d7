"""`bnnpp compare`."""

from __future__ import annotations

import json
import shlex
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from binarize_cli.cli import options as o
from binarize_cli.console import result, say, stdout, warn
from binarize_cli.errors import InputError
from binarize_cli.files import RunFolder

SCORES = ("float", "soft", "hard", "packed")


@dataclass(frozen=True)
class Entry:
    """One row: a method with the default recipe of its task, or a recipe; in the task asked for."""

    label: str
    flags: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The label as a part of a folder's name."""
        return self.label.replace("/", "-").replace(" ", "-").removesuffix(".yaml")


def compare(
    context: typer.Context,
    model: o.Model,
    methods: Annotated[
        str | None,
        typer.Option("--methods", help="Methods, with commas between, or 'all'.", metavar="A,B,..."),
    ] = None,
    recipes: Annotated[
        str | None, typer.Option("--recipes", help="Recipes to add as rows of their own.", metavar="A,B,...")
    ] = None,
    tasks: o.Tasks = None,
    seeds: Annotated[
        str, typer.Option("--seeds", help="Seeds, with commas between.", metavar="N,N,...")
    ] = "0",
    output: o.Output = None,
    as_json: o.Json = False,
) -> None:
    """One table of several methods on the same model and data: a run for each method and seed.

    All other flags are those of 'bnnpp binarize'. A run that has finished is read, not repeated, with a
    warning if another command made it; one that was interrupted is resumed. The float model's logits are
    computed once, for all runs of a seed.

    bnnpp compare digits_vit --methods all --seeds 0,1,2

    bnnpp compare resnet20 --methods bc,bnn++ --recipes paper/bnn++ --data-dir cifar10 --epochs 3

    bnnpp compare digits_resnet --methods bnn++ --tasks bw,bwa,bwaa --seeds 0,1,2
    """
    entries = _entries(methods, recipes, tasks)
    numbers = _seeds(seeds)
    folder = output or Path("runs") / f"compare-{model.replace('/', '-')}"
    rows = []
    for entry in entries:
        reports = [_report(context, model, entry, seed, folder) for seed in numbers]
        rows.append(_row(entry, reports))
    if as_json:
        result(json.dumps({"model": model, "seeds": numbers, "rows": rows}))
    else:
        stdout().print(_table(rows))


def _entries(methods: str | None, recipes: str | None, tasks: str | None) -> list[Entry]:
    """The rows asked for, every name checked before the first run starts."""
    from binarize_cli import recipe_io
    from binarize_cli.quantizers.methods import METHODS, find_method

    names = list(METHODS) if methods == "all" else o.words(methods)
    files = o.words(recipes)
    for name in names:
        find_method(name, where="--methods")
    for file in files:
        recipe_io.read(file).validate()
    chosen = o.known_tasks(tasks)
    if not (names or files):
        hint = "For instance --methods all, or --methods bc,bnn++."
        raise InputError("nothing to compare: give --methods or --recipes", hint=hint)
    rows = [Entry(name, ("--method", name)) for name in names]
    rows += [Entry(file, ("--recipe", file)) for file in files]
    if not chosen:
        return rows
    return [Entry(f"{row.label} {task}", (*row.flags, "--task", task)) for row in rows for task in chosen]


def _seeds(text: str) -> list[int]:
    words = o.words(text)
    if not words or not all(word.isdigit() for word in words):
        raise InputError(
            f"'{text}' is not a list of seeds", where="--seeds", hint="For instance --seeds 0,1,2."
        )
    return [int(word) for word in words]


def _report(context: typer.Context, model: str, entry: Entry, seed: int, folder: Path) -> dict[str, Any]:
    """Return the report of one run: finished before, or made now, as `bnnpp binarize` makes it."""
    from binarize_cli.cli.binarize import flags_of, run_job

    run = RunFolder(folder / f"{entry.folder}-{seed}")
    places = ["--output", str(run.path), "--teacher-logits", str(folder / "teacher")]
    words = [model, *entry.flags, "--seed", str(seed), *places, *context.args]
    command = f"bnnpp binarize {shlex.join(words)}"
    if run.finished:
        document = json.loads(run.report.read_text())
        say(f"{entry.label}, seed {seed}: finished before, in {run.path}")
        if (other := document["command"].removesuffix(" --resume")) != command:
            warn(f"{entry.label}, seed {seed}: that was another command: {other}")
        return document
    say(f"{entry.label}, seed {seed}: {command}")
    _, document = run_job(command, flags_of(words) | ({"resume": "always"} if run.started else {}))
    return document


def _row(entry: Entry, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread (half the range) over seeds of each top-1, and of the signs that flipped in all."""
    row: dict[str, Any] = {"row": entry.label, "method": reports[0]["method"]}
    for name in SCORES:
        scored = [report["accuracy"][name] for report in reports]
        row[name] = _spread([score["top1"] for score in scored]) if all(scored) else None
    flips = [[100 * e["flip_ratio"] for e in r["epochs"] if e["flip_ratio"] is not None] for r in reports]
    row["flips"] = _spread([sum(each) for each in flips]) if all(flips) else None
    row["minutes"] = round(sum(report["provenance"]["seconds"] for report in reports) / 60, 1)
    row["commands"] = [report["command"] for report in reports]
    return row


def _spread(values: list[float]) -> dict[str, float]:
    half = (max(values) - min(values)) / 2
    return {"mean": round(statistics.fmean(values), 2), "spread": round(half, 2)}


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("method or recipe")
    for column in ("float", "soft", "hard", "packed file", "flips %", "minutes"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [_cell(row[name]) for name in (*SCORES, "flips")]
        table.add_row(escape(row["row"]), *cells, str(row["minutes"]))
    return table


def _cell(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value['mean']:.2f}" + (f" ± {value['spread']:.2f}" if value["spread"] else "")
