"""`bnnpp recipes`: list, show and copy the recipes that come with the tool, and check one of your own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from binarize_cli.cli import options as o
from binarize_cli.console import result
from binarize_cli.errors import InputError, closest, counted
from binarize_cli.files import kind_of

app = typer.Typer(help="List, show, copy and check recipes.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="A recipe that 'bnnpp recipes ls' lists.", metavar="NAME")]


@app.command()
def ls(as_json: o.Json = False) -> None:
    """List the recipes that come with the tool."""
    from binarize_cli import recipe_io

    found = {name: recipe_io.read(name).data.get("description", "") for name in recipe_io.names()}
    if as_json:
        result(json.dumps([{"name": name, "description": text} for name, text in found.items()]))
        return
    width = max(map(len, found))
    result("\n".join(f"{name:{width}}  {text}".rstrip() for name, text in found.items()))


@app.command()
def show(
    name: Name,
    full: Annotated[bool, typer.Option("--full", help="Every key, defaults spelled out.")] = False,
) -> None:
    """Print a recipe.

    bnnpp recipes show default --full
    """
    from binarize_cli import recipe_io

    path = _path(name)
    text = recipe_io.read(name).validate().as_yaml() if full else path.read_text(encoding="utf-8")
    result(text.rstrip("\n"))


@app.command()
def cp(
    name: Name,
    dest: Annotated[Path, typer.Argument(help="A new file, or a folder.", metavar="DEST")],
) -> None:
    """Copy a recipe, to change it, and print the path of the copy. Nothing is overwritten.

    bnnpp recipes cp default mine.yaml
    """
    source = _path(name)
    target = dest / source.name if kind_of(dest) == "folder" else dest
    try:
        with target.open("x", encoding="utf-8") as copy:
            copy.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise InputError("exists already", where=str(target), hint="Choose another DEST.") from None
    except OSError as error:
        hint = "Name a file in a folder that exists."
        raise InputError(f"cannot be written: {error.strerror}", where=str(target), hint=hint) from None
    result(str(target))


@app.command()
def validate(file: Annotated[str, typer.Argument(help="A recipe of your own.", metavar="FILE")]) -> None:
    """Check a recipe, and name every fault with its line.

    bnnpp recipes validate mine.yaml
    """
    from binarize_cli import recipe_io

    checked = recipe_io.read(file).validate()
    epochs = counted(checked.train.epochs, "epoch")
    result(f"{file}: ok (method {checked.method}, task {checked.task}, {epochs})")


def _path(name: str) -> Path:
    """Return the file of a recipe that comes with the tool. Raises InputError if there is none."""
    from binarize_cli import recipe_io

    known = recipe_io.names()
    if name not in known:
        hint = closest(name, known, "Run 'bnnpp recipes ls' to see them.")
        raise InputError(f"no recipe is named '{name}'", hint=hint)
    return recipe_io.folder() / f"{name}.yaml"
