"""`bnnpp analyze`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from binarize_cli.cli import options as o
from binarize_cli.console import result, say, show, stdout
from binarize_cli.errors import InputError
from binarize_cli.files import kind_of
from binarize_cli.run_folder import RunFolder, check_file

UNITS = {"": 1, "b": 1, "kib": 2**10, "kb": 1000, "mib": 2**20, "mb": 10**6}
LEVELS = ("layer", "block")


def analyze(
    target: Annotated[
        str,
        typer.Argument(
            help="A packed file; or a model, as of 'bnnpp binarize', for a forecast.", metavar="TARGET"
        ),
    ],
    by: Annotated[str, typer.Option("--by", help="layer or block: what is made float together.")] = "layer",
    budget: Annotated[
        str | None, typer.Option("--budget", help="Choose layers up to this file size.", metavar="SIZE")
    ] = None,
    points: Annotated[
        float | None, typer.Option("--points", help="Choose layers until top-1 gains this much.", min=0)
    ] = None,
    images: Annotated[int, typer.Option("--images", help="Training images to measure on.", min=1)] = 512,
    batch_size: o.ScoreBatchSize = 32,
    data_dir: o.DataDir = None,
    dataset: o.Dataset = None,
    weights: o.Weights = None,
    task: o.Task = None,
    recipe: o.RecipeName = None,
    set_: o.Set = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for analysis.json. Default: beside the file, or runs/."),
    ] = None,
    device: o.Device = "auto",
    as_json: o.Json = False,
) -> None:
    """Measure what each binary layer costs in accuracy, a KiB, and which layers are worth keeping float.

    Of a file: how far its answers move (loss: their Kullback-Leibler divergence) if a twentieth of a layer's
    signs change places. Of a float model, as a forecast: what it loses if one layer alone becomes binary,
    untrained. On training images, so that reported ones are not chosen on. With --budget, or with a model
    --points, ends in the lines of a recipe. Interrupted, it continues.

    bnnpp analyze runs/resnet20-bnn++-bw/model.safetensors --budget 80KiB

    bnnpp analyze deit_tiny --data-dir imagenette --by block
    """
    if by not in LEVELS:
        raise InputError(f"'{by}' is neither layer nor block", where="--by")
    if budget is not None and points is not None:
        raise InputError("--budget and --points exclude each other", hint="Leave one of them out.")
    size = None if budget is None else bytes_of(budget)
    opened, folder = _target(
        target, {"--weights": weights, "--task": task, "--recipe": recipe, "--set": set_, "--points": points}
    )
    from binarize_cli.cli.binarize import recipe_from_flags

    chosen = recipe_from_flags(recipe, {"task": task}, set_ or [])  # of a file nobody asks for it
    file = (output or folder) / "analysis.json"

    from binarize_cli.analysis.session import Asked, analyse, open_file, open_model
    from binarize_cli.data.datasets import open_dataset, open_recorded
    from binarize_cli.report.tables import gains_table

    asked = Asked(
        images=images,
        batch_size=batch_size,
        by_block=by == "block",
        budget=size,
        points=points,
        device=device,
    )
    if opened is not None:
        data = opened.document.data
        if opened.document.model.source == "caller":
            hint = "bnnpp.load_into puts it into a model of your own."
            raise InputError("its architecture is not in the file", where=target, hint=hint)
        if dataset is not None or data_dir is not None:
            images_of = open_dataset(dataset, data_dir)
        else:
            images_of = open_recorded(data.dataset, data.data_dir)
        session = open_file(opened, images_of, asked)
    else:
        from binarize_cli.models import names

        session = open_model(names.resolve(target), chosen, open_dataset(dataset, data_dir), weights, asked)
    document = analyse(session, file, _progress)
    if as_json:
        result(json.dumps(document))
        return
    table = gains_table(document["gains"])
    if document["choice"]:
        show(table)
        _tell_choice(document)
    else:
        stdout().print(table)
    say(f"written: {file}")


def _target(target: str, flags: dict[str, Any]) -> tuple[Any, Path]:
    """Return the packed file, or None for a model, and the default folder. Raises InputError."""
    path = Path(target)
    if path.suffix == ".safetensors" or kind_of(RunFolder(path).packed):
        check_file(path, "Give a file that 'bnnpp binarize' wrote.")
    if kind_of(path) != "file":
        return None, Path("runs") / f"analyze-{target.replace('/', '-')}"
    if wrong := next((flag for flag, value in flags.items() if value), None):
        raise InputError(f"{wrong} goes with a model, not with a file", hint="Leave it out.")

    from binarize_cli.packed.format import read

    return read(path), path.parent


def bytes_of(text: str) -> int:
    """Return the bytes of `1.3MiB`, `80 KiB`, `1000`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].lower() not in UNITS:
        raise InputError(f"'{text}' is no size", where="--budget", hint="For instance 1.3MiB or 80KiB.")
    return int(float(found[1]) * UNITS[found[2].lower()])


def _progress(done: int, of: int, last: Any) -> None:
    if last is None:
        say(f"{of} layers or blocks to look at" + (f", {done} of them before" if done else ""))
        return
    found = f"{last.points:+.2f} points, loss {-last.loss:+.4f}, {last.bytes / 1024:.1f} KiB"
    say(f"{done}/{of} {last.name}: {found}")


def _tell_choice(document: dict[str, Any]) -> None:
    """Print what was chosen, what it scores if that is known, and the lines for a recipe."""
    from binarize_cli.report.tables import size

    choice, before = document["choice"], document["binary"]
    top1 = ""
    if choice["score"]:
        gained = choice["score"]["top1"] - before["top1"]
        top1 = f"top-1 {before['top1']:.2f} -> {choice['score']['top1']:.2f} ({gained:+.2f}), "
    sizes = f"{size(document['bytes'])} -> {size(choice['bytes'])}"
    say(f"{len(choice['layers'])} layers float together: {top1}{sizes}")
    if not choice["layers"]:
        least = min(gain["bytes"] for gain in document["gains"])
        say(f"nothing that gains fits into the --budget: the smallest layer or block takes {size(least)}")
    result(choice["snippet"].rstrip())
