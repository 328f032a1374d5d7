"""`bnnpp methods`: the registry as a table, one method as a card, F and B as numbers or as a plot."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from binarize_cli.cli import options as o
from binarize_cli.console import result, stdout
from binarize_cli.errors import InputError, closest
from binarize_cli.quantizers.certify import certify
from binarize_cli.quantizers.method import UPDATES, Method
from binarize_cli.quantizers.methods import METHODS, find_method, with_parts

PICTURES = (".png", ".svg", ".pdf")


def methods(
    name: Annotated[
        str | None, typer.Argument(help="One method, as a card. Default: all.", metavar="NAME")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Plot F and B to this file: .png, .svg or .pdf.")
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="Evaluate F and B at these points.", metavar="X,X,...")
    ] = None,
    progress: Annotated[
        float | None, typer.Option("--progress", help="Training progress for --at, 0 to 1. Default: 1.")
    ] = None,
    map_name: Annotated[
        str | None, typer.Option("--map", help="Another proximal map P, for pq, rpc and pc++.")
    ] = None,
    transform: Annotated[
        str | None, typer.Option("--transform", help="Another transform T, for pc++.")
    ] = None,
    certify_: Annotated[
        bool, typer.Option("--certify", help="Decide whether the pair is guaranteed, and say why.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="All cards, as in docs/methods.md.")] = False,
    as_json: o.Json = False,
) -> None:
    """List the methods: forward quantizer F, backward quantizer B, schedules, guarantees, sources.

    bnnpp methods bnn++

    bnnpp methods pc++ --map parq --transform erf --certify

    bnnpp methods bnn++ --at "-0.5,0,0.5" --progress 0.5 --json

    bnnpp methods bnn++ --plot bnnpp.svg
    """
    if progress is not None and at is None:
        hint = 'Try: bnnpp methods bnn++ --at "0,1" --progress 0.5'
        raise InputError("--progress goes with --at", hint=hint)
    if plot and at:
        raise InputError("--plot and --at are mutually exclusive", hint="Leave one of them out.")
    if name is None:
        given = {
            "--plot": plot,
            "--at": at,
            "--map": map_name,
            "--transform": transform,
            "--certify": certify_,
        }
        if flag := next((flag for flag, value in given.items() if value), None):
            raise InputError(f"{flag} goes with one method", hint=f"Try: bnnpp methods bnn++ {flag} ...")
        if markdown:
            result(cards())
        else:
            _print_all(as_json)
        return
    method = with_parts(find_method(name), map_name, transform)
    if certify_:
        _print_certificate(method, as_json)
    elif plot:
        _plot(method, plot)
        result(str(plot))
    elif at is not None:
        _print_values(method, _points(at), _share(progress), as_json)
    elif as_json:
        result(json.dumps(_facts(method)))
    else:
        _print_card(method)


def _facts(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "title": method.title,
        "F": method.forward_formula,
        "B": method.backward_formula if method.backward else None,
        "update": method.update,
        "rule": UPDATES[method.update],
        "schedules": {name: asdict(schedule) for name, schedule in method.schedules.items()},
        "normalize": method.normalize,
        "parts": list(method.parts),
        "certificate": certify(method).to_json(),
        "when": method.when,
        "source": method.source,
    }


def _schedules(method: Method, between: str) -> str:
    return between.join(f"{name} {schedule}" for name, schedule in method.schedules.items()) or "-"


def _print_all(as_json: bool) -> None:
    if as_json:
        result(json.dumps([_facts(method) for method in METHODS.values()]))
        return
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("F, forward\nB, backward")
    table.add_column("update", no_wrap=True)
    table.add_column("schedules")
    table.add_column("guarantee")
    for method in METHODS.values():
        pair = f"{method.forward_formula}\n{method.backward_formula}"
        cells = (method.name, pair, method.update, _schedules(method, "\n"), _guarantee(method))
        table.add_row(*map(escape, cells), end_section=True)
    out = stdout()
    out.print(table)
    out.print("'bnnpp methods NAME' shows one in full, with a plot.", markup=False)


def _guarantee(method: Method) -> str:
    certificate = certify(method)
    if certificate.kind == "none":
        return "-"
    return f"{certificate.verdict}: {certificate.explanation}"


def _print_certificate(method: Method, as_json: bool) -> None:
    certificate = certify(method)
    if as_json:
        result(json.dumps({"method": method.name, **certificate.to_json()}))
        return
    out = stdout()
    out.print(f"{method.name}: {certificate.verdict}", style="bold", markup=False)
    out.print(f"{certificate.explanation}.\n{certificate.ending}.", markup=False)


def _lines(method: Method) -> dict[str, str]:
    """Return the lines of a card."""
    return {
        "F": method.forward_formula,
        "B": method.backward_formula,
        "update": UPDATES[method.update],
        "schedules": _schedules(method, ", "),
        "normalise": f"x = w* / n, n = {method.normalize:g} times the mean |w*| of an output channel",
        "guarantee": _guarantee(method),
        "when": method.when,
        "source": method.source,
    }


def cards() -> str:
    """Return the cards of all methods as Markdown: what docs/methods.md shows."""
    parts = []
    for method in METHODS.values():
        parts.append(f"### `{method.name}`: {method.title}")
        formulas = ("F", "B", "update", "normalise")  # stars and bars in them are not Markdown's
        lines = {k: f"`{text}`" if k in formulas else text for k, text in _lines(method).items()}
        parts.append("\n".join(f"- **{key}**: {text}" for key, text in lines.items()))
    return "\n\n".join(parts)


def _print_card(method: Method) -> None:
    from binarize_cli.report.curves import sample
    from binarize_cli.report.terminal import quantizer_plot

    card = Table.grid(padding=(0, 2))
    for key, text in _lines(method).items():
        card.add_row(key, escape(text))
    out = stdout()
    curves = sample(method, method.schedules, method.normalize)
    plot = quantizer_plot(curves, min(out.width, 100), out.color_system is not None)
    out.print(f"{method.name}: {method.title}\n", style="bold", markup=False)
    out.print(card)
    out.print(Text.from_ansi(f"\n{plot}"))


def _points(text: str) -> np.ndarray:
    """Return the points of --at, float64. Raises InputError if one is not a finite number."""
    values = []
    for word in text.split(","):
        try:
            values.append(float(word))
        except ValueError:
            values.append(np.nan)
        if not np.isfinite(values[-1]):
            hint = 'Give numbers with commas between: --at "-1,0,0.5".'
            raise InputError(f"'{word.strip()}' is not a number", where=f"--at {text}", hint=hint)
    return np.array(values)


def _share(progress: float | None) -> float:
    if progress is None:
        return 1.0
    if not 0 <= progress <= 1:
        hint = "0 is the start of training, 1 its end."
        raise InputError("progress lies between 0 and 1", where=f"--progress {progress:g}", hint=hint)
    return progress


def _print_values(method: Method, x: np.ndarray, progress: float, as_json: bool) -> None:
    parameters = method.values(progress)
    forward = method.F(x, parameters) + 0.0  # makes -0.0 a plain zero
    backward = method.B(x, parameters) + 0.0 if method.backward else None
    if as_json:
        document = {
            "method": method.name,
            "x": x.tolist(),
            "progress": progress,
            "parameters": parameters,
            "F": forward.tolist(),
            "B": None if backward is None else backward.tolist(),
        }
        result(json.dumps(document))
        return
    moment = ", ".join([f"progress {progress:g}", *(f"{k} = {v:g}" for k, v in parameters.items())])
    table = Table(box=box.SIMPLE)
    for column in ("x", "F(x)", "B(x)"):
        table.add_column(column, justify="right")
    for i, point in enumerate(x):
        slope = "-" if backward is None else f"{backward[i]:.9g}"
        table.add_row(f"{point:g}", f"{forward[i]:.9g}", slope)
    out = stdout()
    out.print(f"{method.name} at {moment}", markup=False)
    out.print(table)


def _plot(method: Method, path: Path) -> None:
    """Plot F and B to a picture file. Raises InputError if its kind is unknown or it cannot be written."""
    if path.suffix.lower() not in PICTURES:
        hint = closest(path.suffix, PICTURES, f"End it in {', '.join(PICTURES)}.")
        raise InputError(f"unknown kind of picture '{path.suffix}'", where=f"--plot {path}", hint=hint)

    from binarize_cli.report.curves import sample
    from binarize_cli.report.plots import quantizer_curves

    figure = quantizer_curves(sample(method, method.schedules, method.normalize))
    figure.suptitle(method.title)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        hint = "Name a file in a folder that exists."
        raise InputError(f"cannot be written: {error.strerror}", where=f"--plot {path}", hint=hint) from None
