"""`bnnpp compare`."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from binarize_cli.cli import options as o
from binarize_cli.console import result, say, stdout, warn
from binarize_cli.errors import InputError, did_you_mean
from binarize_cli.run_folder import RunFolder, read_report

ERRORS = ("half-range", "standard-error")


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
    model: Annotated[
        str | None, typer.Argument(help="As of 'bnnpp binarize'; none with --from.", metavar="MODEL")
    ] = None,
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
    from_: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="Run nothing: compare the finished runs in this folder, or a report.json. Repeatable.",
            metavar="DIR",
        ),
    ] = None,
    error: Annotated[
        str, typer.Option("--error", help="What follows ±: half-range or standard-error, over the seeds.")
    ] = "half-range",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="For runs and tables. Default: runs/compare-<model> or runs/compare."
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Make one table of several methods on the same model and data: a run for each method and seed.

    Writes compare.html, .md, .csv and .json to the folder of the runs, or with --from to --output.

    All other flags are those of 'bnnpp binarize'. A run that has finished is read, not repeated, with a
    warning if another command made it; one that was interrupted is resumed. The float model's logits are
    computed once, for all runs of a seed.

    bnnpp compare digits_vit --methods all --seeds 0,1,2

    bnnpp compare resnet20 --methods bc,bnn++ --recipes paper/bnn++ --data-dir cifar10 --epochs 3

    bnnpp compare digits_resnet --methods bnn++ --tasks bw,bwa,bwaa --seeds 0,1,2

    bnnpp compare --from runs/compare-digits_vit --from runs/mine --output tables
    """
    if error not in ERRORS:
        hint = did_you_mean(error, ERRORS, f"Known: {', '.join(ERRORS)}.")
        raise InputError(f"'{error}' is no kind of error", where="--error", hint=hint)
    if from_:
        _refuse_with_from(
            {"MODEL": model, "--methods": methods, "--recipes": recipes, "--tasks": tasks}, context
        )
        folder = output or Path("runs") / "compare"
        runs = _read_runs(from_, folder)
        _tell(runs, folder, error, as_json)
        return
    if model is None:
        raise InputError("name a model, or --from a folder of runs", hint="Try 'bnnpp compare --help'.")
    entries = _entries(methods, recipes, tasks)
    numbers = _seeds(seeds)
    folder = output or Path("runs") / f"compare-{model.replace('/', '-')}"
    runs = []
    for entry in entries:
        runs += [_run(context, model, entry, seed, folder) for seed in numbers]
    _tell(runs, folder, error, as_json)


def _read_runs(places: list[Path], folder: Path) -> list[Any]:
    from binarize_cli.report.comparison import runs_of
    from binarize_cli.report.results import read_results

    return runs_of(read_results(places), folder)


def _refuse_with_from(given: dict[str, str | None], context: typer.Context) -> None:
    """Raise InputError if a flag of running goes with --from, which runs nothing."""
    unknown = [word for word in [*context.args, given["MODEL"] or ""] if word.startswith("-")]
    wrong = [*unknown, *context.args, *(flag for flag, value in given.items() if value)]
    if wrong:
        what = f"--from runs nothing, so {wrong[0]} has no meaning"
        raise InputError(what, hint="Leave one of them out.")


def _tell(runs: list[Any], folder: Path, error: Any, as_json: bool) -> None:
    """Write the comparison, and print it."""
    from functools import partial

    from binarize_cli.report.compare_files import write_comparison
    from binarize_cli.report.comparison import compare_runs
    from binarize_cli.report.means import cell
    from binarize_cli.report.tables import comparison_table

    comparison = compare_runs(runs)
    page = write_comparison(folder, comparison, error)
    if as_json:
        result(json.dumps(comparison))
    else:
        stdout().print(comparison_table(comparison["rows"], partial(cell, error=error)))
    say(f"written: {page}, and compare.md, .csv and .json beside it")


def _entries(methods: str | None, recipes: str | None, tasks: str | None) -> list[Entry]:
    """Return the rows asked for, every name checked before the first run starts."""
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


def _run(context: typer.Context, model: str, entry: Entry, seed: int, folder: Path) -> Any:
    """Return one run of an entry, with its report's place as seen from the folder of the comparison."""
    from dataclasses import replace

    from binarize_cli.report.comparison import runs_of
    from binarize_cli.report.results import trim

    run, document = _report(context, model, entry, seed, folder)
    return replace(runs_of([(run.report, trim(document))], folder)[0], label=entry.label)


def _report(
    context: typer.Context, model: str, entry: Entry, seed: int, folder: Path
) -> tuple[RunFolder, dict[str, Any]]:
    """Return one run and its report: finished before, or made now, as `bnnpp binarize` makes it."""
    from binarize_cli.cli.binarize import flags_of, run_job

    run = RunFolder(folder / f"{entry.folder}-{seed}")
    places = ["--output", str(run.path), "--teacher-logits", str(folder / "teacher")]
    words = [model, *entry.flags, "--seed", str(seed), *places, *context.args]
    command = f"bnnpp binarize {shlex.join(words)}"
    if run.finished:
        document = read_report(run)
        say(f"{entry.label}, seed {seed}: finished before, in {run.path}")
        if (other := document["command"].removesuffix(" --resume")) != command:
            warn(f"{entry.label}, seed {seed}: that was another command: {other}")
        return run, document
    say(f"{entry.label}, seed {seed}: {command}")
    _, document = run_job(command, flags_of(words) | ({"resume": "always"} if run.resumable else {}))
    return run, document
