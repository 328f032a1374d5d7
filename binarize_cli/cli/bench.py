"""`bnnpp bench train`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from binarize_cli.cli import options as o
from binarize_cli.console import page, result

app = typer.Typer(help="Measure what training costs.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    pass


@app.command()
def train(
    model: o.Model,
    method: o.Method = None,
    recipe: o.RecipeName = "default",
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
    compile: o.Compile = False,
    as_json: o.Json = False,
) -> None:
    """A training step of the model with binary layers, beside one of the float model: time and memory.

    Both in one run, step by step in turn, without a teacher, from random weights; medians.

    bnnpp bench train digits_vit

    bnnpp bench train deit_tiny --batch-size 256 --data-dir imagenette --compile
    """
    from binarize_cli.cli.binarize import validated

    flags = {
        "method": method,
        "train.batch_size": batch_size,
        "train.opt": opt,
        "train.amp": amp,
    }
    chosen = validated(recipe, flags, set_ or [])

    from binarize_cli.models import names

    name = names.resolve(model)

    from binarize_cli import bench
    from binarize_cli.data.sources import open_source
    from binarize_cli.models.load import load
    from binarize_cli.training.precision import allow_tf32, find_device

    where = find_device(device)
    allow_tf32(chosen.train.amp, where)
    setting = bench.Setting(
        model=load(name, pretrained=False, img_size=img_size),
        source=open_source(dataset, data_dir),
        recipe=chosen,
        device=where,
        workers=workers,
        cache_gb=cache_gb,
        compile=compile,
    )
    costs = bench.compare(setting, steps)
    if as_json:
        facts = {"model": name.name, "method": chosen.method, "device": str(where), "steps": steps}
        result(json.dumps(facts | {kind: vars(cost) for kind, cost in costs.items()} | _ratios(costs)))
    else:
        page().print(_table(costs))


def _ratios(costs: dict) -> dict:
    f, b = costs["float"], costs["binary"]
    memory = b.memory / f.memory if f.memory and b.memory else None
    return {"time_ratio": b.step / f.step, "memory_ratio": memory}


def _table(costs: dict) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("ms a step")
    for column in ("float", "binary", "ratio"):
        table.add_column(column, justify="right")
    f, b = costs["float"], costs["binary"]
    table.add_row("whole step", f"{f.step:.1f}", f"{b.step:.1f}", f"{b.step / f.step:.3f}")
    for part in f.parts:
        name = "of these, quantizers" if part == "quantizers" else f"  {part}"
        table.add_row(name, f"{f.parts[part]:.1f}", f"{b.parts[part]:.1f}", "")
    if f.memory and b.memory:
        table.add_row("peak memory, MiB", f"{f.memory:.0f}", f"{b.memory:.0f}", f"{b.memory / f.memory:.3f}")
    return table
