"""`bnnpp theory`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from binarize_cli.cli import options as o
from binarize_cli.console import result, stdout


def theory(
    problems: Annotated[
        int, typer.Option("--problems", help="How many problems; their seeds count from 0.", min=1)
    ] = 20,
    steps: Annotated[int, typer.Option("--steps", help="Steps of SGD.", min=1)] = 1000,
    lr: Annotated[float, typer.Option("--lr", help="The first learning rate; it falls to 0.", min=0)] = 0.01,
    as_json: o.Json = False,
) -> None:
    """Show how close each method comes to the best binary solution of small least-squares problems.

    The problems are min |A w - b|^2 over w in {-1, 1}^10, whose best solution is known by enumeration. The
    table has the share of problems solved to the optimum, and how far the loss ends above the least one, in
    per cent.

    bnnpp theory --problems 20
    """
    from binarize_cli.quantizers.certify import certify
    from binarize_cli.quantizers.methods import METHODS
    from binarize_cli.theory import make_problems, solve

    drawn = make_problems(problems)
    best = drawn.best()
    rows = []
    for name, method in METHODS.items():
        if method.binary:
            excess = 100 * (drawn.loss(solve(name, drawn, steps, lr)) / best - 1)
            rows.append(
                {
                    "method": name,
                    "guarantee": certify(method).verdict,
                    "solved": round(100 * float((excess < 1e-6).double().mean()), 1),
                    "mean_excess": round(float(excess.mean()), 2),
                    "worst_excess": round(float(excess.max()), 2),
                }
            )
    if as_json:
        result(json.dumps({"problems": problems, "steps": steps, "rows": rows}))
        return
    table = Table(box=box.SIMPLE)
    for column in ("method", "guarantee"):
        table.add_column(column)
    for column in ("solved %", "mean excess %", "worst excess %"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row.values()))
    stdout().print(table)
