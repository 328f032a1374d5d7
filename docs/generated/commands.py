"""The commands, their flags and exit codes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from binarize_cli import errors
from generated.markdown import prose, table


def commands() -> str:
    """Return every command with its help, its examples and its flags."""
    import typer

    from binarize_cli.cli import app

    return "\n\n".join(
        _command(command, f"bnnpp {name}") for name, command in _all(typer.main.get_command(app))
    )


def _all(group: Any, before: str = "") -> Iterable[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _all(command, f"{before}{name} ")
        else:
            yield before + name, command


def _command(command: Any, name: str) -> str:
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    examples = [part for part in paragraphs if part.startswith("bnnpp ")]
    words = [prose(part) for part in paragraphs if not part.startswith("bnnpp ")]
    parts = [f"## `{name}`", *words]
    if examples:
        parts.append("\n".join(["```console", *(f"$ {line}" for line in examples), "```"]))
    rows = [(_spelling(parameter), prose(parameter.help or "")) for parameter in command.params]
    rows = [row for row in rows if "--help" not in row[0]]
    if rows:
        parts.append(table(("argument or flag", "meaning"), rows))
    return "\n\n".join(parts)


def _spelling(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        several = "..." if parameter.nargs == -1 else ""
        return f"`{parameter.metavar}{several}`"
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    return f"{names} `{parameter.metavar}`" if parameter.metavar else names


def exit_codes() -> str:
    """Return what a command's exit code says."""
    rows = [("0", "Done."), ("1", "An unexpected failure: please report it, with the traceback.")]
    for kind in (errors.InputError, errors.Diverged, errors.Interrupted):
        rows.append((str(kind.exit_code), " ".join((kind.__doc__ or "").split())))
    return table(("code", "meaning"), [*rows, ("130", "Ctrl-C. The state has been saved.")])
