"""`bnnpp bench train` and `bnnpp bench score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from binarize_cli.cli import options as o
from binarize_cli.console import result, say, stdout
from binarize_cli.errors import InputError

app = typer.Typer(help="Measure what training and scoring cost.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    pass


@app.command(cls=o.WithWordsLeftOut)
def train(
    model: o.Model,
    method: o.Method = None,
    tasks: o.Tasks = "bw",
    recipe: o.RecipeName = None,
    set_: o.Set = None,
    batch_size: o.BatchSize = None,
    opt: o.Opt = None,
    amp: o.Amp = None,
    steps: Annotated[int, typer.Option("--steps", help="Steps of each to measure.", min=1)] = 20,
    data_dir: o.DataDir = None,
    dataset: o.Dataset = None,
    workers: o.Workers = None,
    cache_gb: o.CacheGb = 4.0,
    img_size: o.ImgSize = None,
    device: o.Device = "auto",
    compile: o.Compile = None,
    as_json: o.Json = False,
) -> None:
    """Measure a training step of the binary model beside one of the float model: time and memory.

    All in one run, step by step in turn, without a teacher, from random weights; medians.

    bnnpp bench train digits_vit --tasks bw,bwa,bwaa

    bnnpp bench train deit_tiny --batch-size 256 --data-dir imagenette --compile
    """
    from binarize_cli.cli.binarize import recipe_from_flags

    flags = {
        "method": method,
        "train.batch_size": batch_size,
        "train.opt": opt,
        "train.amp": amp,
    }
    chosen = recipe_from_flags(recipe, flags, set_ or [])
    kinds = o.known_tasks(tasks)

    from binarize_cli.models import names

    name = names.resolve(model)

    from binarize_cli.bench.training import measure_loading, measure_training
    from binarize_cli.job import Job

    job = Job(
        command="bnnpp bench train",
        model=name,
        recipe=chosen,
        dataset=dataset,
        data_dir=data_dir,
        img_size=img_size,
        device=device,
        workers=workers,
        cache_gb=cache_gb,
        compile=compile,
    )
    costs, loader = measure_training(job, kinds, steps), measure_loading(job)
    if as_json:
        from binarize_cli.device import find_device, precision

        where = find_device(device)
        facts = _place(where) | {
            "model": name.name,
            "method": chosen.method,
            "batch_size": chosen.train.batch_size,
            "precision": precision(chosen.train.amp, where),
            "steps": steps,
        }
        ratios = {kind: _ratios(costs["float"], costs[kind]) for kind in kinds}
        facts |= {kind: vars(cost) for kind, cost in costs.items()}
        result(json.dumps(facts | {"ratios": ratios, "loader": vars(loader)}))
    else:
        stdout().print(_costs_table(costs))
        images = 1000 * chosen.train.batch_size / costs["float"].step
        stdout().print(
            f"the loader alone: {loader.images_per_second:,.0f} images/s with {loader.workers} workers "
            f"(--workers); a float step takes {images:,.0f}"
        )


@app.command()
def score(
    files: Annotated[list[Path], typer.Argument(help="Packed files, of any task.", metavar="FILE")],
    batch_size: Annotated[
        str, typer.Option("--batch-size", "-b", help="Images at a time; several with commas between.")
    ] = "64",
    threads: Annotated[
        str | None, typer.Option("--threads", help="CPU threads; several with commas between.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Batches of each to measure.", min=1)] = 20,
    into_report: Annotated[
        bool, typer.Option("--into-report", help="Show the speed in the report beside each file, too.")
    ] = False,
    device: o.Device = "auto",
    as_json: o.Json = False,
) -> None:
    """Measure the images a second of packed files beside their float models: medians, on random images.

    In turn, in one run; float by PyTorch and, where it is installed, by ONNX Runtime. Then where the packed
    network's time goes, and the bytes of its weights in memory.

    bnnpp bench score runs/*/model.safetensors

    bnnpp bench score model.safetensors --batch-size 1,32 --threads 1,2
    """
    sizes, counts = _numbers(batch_size, "--batch-size"), _numbers(threads, "--threads")
    if into_report and (len(sizes) > 1 or len(counts) > 1):
        hint = "Give one batch size and one number of threads."
        raise InputError("a report shows one measurement", where="--into-report", hint=hint)

    from binarize_cli.packed.format import read

    opened = [read(file) for file in files]

    import torch

    from binarize_cli.bench.scoring import speeds
    from binarize_cli.device import find_device, keep_freed_memory

    where = find_device(device)
    keep_freed_memory()
    rows = speeds(opened, sizes, counts or [torch.get_num_threads()], rounds, where)
    if into_report:
        from binarize_cli.report.speed import add_speed

        for file, row in zip(files, rows, strict=True):
            say(f"written: {add_speed(file, row, sizes[0], str(where))}")
    if as_json:
        result(json.dumps(_place(where) | {"rounds": rounds, "rows": rows}))
    else:
        stdout().print(_speeds_table(rows))
        stdout().print(_parts_table(rows))
        stdout().print(_memory_table(rows))


def _place(device: Any) -> dict[str, Any]:
    """Return where was measured: the processor and its threads, PyTorch's version, the device."""
    import torch

    from binarize_cli.report.origin import machine

    return {"machine": machine(str(device)), "torch": torch.__version__, "device": str(device)}


def _numbers(text: str | None, where: str) -> list[int]:
    """Return the positive numbers of a list with commas. Raises InputError on anything else."""
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if text is not None and (not parts or not all(part.isdecimal() and int(part) for part in parts)):
        raise InputError(f"'{text}' is no list of positive numbers", where=where, hint="For example: 1,32.")
    return [int(part) for part in parts]


def _ratios(float_cost: Any, cost: Any) -> dict[str, float | None]:
    known = float_cost.memory and cost.memory
    return {"time": cost.step / float_cost.step, "memory": cost.memory / float_cost.memory if known else None}


def _costs_table(costs: dict) -> Table:
    """Return a table with a column a kind; under the float one's figures, how much more the others take."""
    table = Table(box=box.SIMPLE)
    table.add_column("ms a step")
    for kind in costs:
        table.add_column(kind, justify="right")
    first = costs["float"]
    ratios = {kind: _ratios(first, cost) for kind, cost in costs.items()}
    table.add_row("whole step", *(f"{cost.step:.1f}" for cost in costs.values()))
    table.add_row("  ratio", *(f"{ratio['time']:.3f}" for ratio in ratios.values()), end_section=True)
    for part in first.parts:
        name = "of these, weight quantizers" if part == "quantizers" else f"  {part}"
        shares = (cost.parts[part] for cost in costs.values())
        table.add_row(name, *("-" if share is None else f"{share:.1f}" for share in shares))
    if all(cost.memory for cost in costs.values()):
        table.add_section()
        table.add_row("peak memory, MiB", *(f"{cost.memory:.0f}" for cost in costs.values()))
        table.add_row("  ratio", *(f"{ratio['memory']:.3f}" for ratio in ratios.values()))
    return table


def _speeds_table(rows: list[dict]) -> Table:
    table = Table(box=box.SIMPLE)
    for column in ("file", "model", "task"):
        table.add_column(column, overflow="fold")
    runs = [run for run in ("float", "onnxruntime", "packed", "int8") if any(run in row for row in rows)]
    for column in ("threads", "batch", *(f"{run}, images/s" for run in runs), "ratio"):
        table.add_column(column, justify="right")
    for row in rows:
        speed = (f"{row[run]:.0f}" if run in row else "-" for run in runs)
        numbers = str(row["threads"]), str(row["batch_size"]), *speed, f"{row['ratio']:.3f}"
        table.add_row(escape(row["file"]), row["model"], row["task"], *numbers)
    return table


def _parts_table(rows: list[dict]) -> Table:
    """Return a table of where the packed networks' time goes."""
    table = Table(box=box.SIMPLE)
    for column in ("model", "task"):
        table.add_column(column, overflow="fold")
    for column in ("threads", "batch", *(f"{part}, %" for part in rows[0]["of_packed"])):
        table.add_column(column, justify="right")
    for row in rows:
        shares = (f"{share:.0f}" for share in row["of_packed"].values())
        table.add_row(row["model"], row["task"], str(row["threads"]), str(row["batch_size"]), *shares)
    return table


def _memory_table(rows: list[dict]) -> Table:
    """Return a table of what the packed networks' weights take in memory."""
    table = Table(box=box.SIMPLE)
    for column in ("model", "task"):
        table.add_column(column, overflow="fold")
    for column in ("KiB in memory: signs", "all", "in the file"):
        table.add_column(column, justify="right")
    for row in {row["file"]: row for row in rows}.values():
        sizes = row["bytes"]
        every = sizes["signs_in_memory"] + sizes["rest_in_memory"]
        memory = (f"{number / 1024:.0f}" for number in (sizes["signs_in_memory"], every, sizes["file"]))
        table.add_row(row["model"], row["task"], *memory)
    return table
