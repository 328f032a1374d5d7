"""The command line. Nothing heavy is imported at module level: help and every usage error answer at once."""

from __future__ import annotations

import re
import sys
from typing import Annotated

import typer

from binarize_cli import __version__, ranks
from binarize_cli.cli import bench, recipes
from binarize_cli.cli.binarize import binarize
from binarize_cli.cli.compare import compare
from binarize_cli.cli.evaluate import evaluate
from binarize_cli.cli.inspect import inspect
from binarize_cli.cli.methods import methods
from binarize_cli.cli.options import WithResume
from binarize_cli.cli.theory import theory
from binarize_cli.console import stderr
from binarize_cli.errors import BnnppError, InputError, Interrupted, did_you_mean

try:  # newer versions of typer carry their own copy of click
    from typer._click.exceptions import UsageError
except ImportError:
    from click import UsageError

app = typer.Typer(
    help="Turn a pretrained image classifier into a 1-bit network: a bit-packed file and a report on it.",
    epilog="First steps: 'bnnpp binarize digits_vit --method bnn++' needs no network and takes a minute.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=WithResume)(binarize)
app.command(name="eval")(evaluate)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(compare)
app.command()(inspect)
app.command()(methods)
app.command()(theory)
app.add_typer(recipes.app, name="recipes")
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bnnpp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "defaultcpuallocator")


def main() -> None:
    """Run a command; every expected failure is one message on stderr and the exit code of its kind."""
    on_all_ranks = True  # with the other ranks, if there are any, that all of them leave
    try:
        code = app(prog_name="bnnpp", standalone_mode=False)
    except BnnppError as error:
        leave_with(error)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message(), err=True)
            sys.exit(2)
        code = _tell(_usage(error))
    except (KeyboardInterrupt, typer.Abort):
        code, on_all_ranks = 130, False
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(
            sign in str(error).lower() for sign in OUT_OF_MEMORY
        ):
            ranks.await_alarm()
            raise
        on_all_ranks = False
        hint = "Lower --batch-size; on CUDA also try --amp bf16."
        code = _tell(InputError(f"out of memory ({str(error).splitlines()[0]})", hint=hint))
    ranks.leave(code if isinstance(code, int) else 0, on_all_ranks)


def leave_with(error: BnnppError) -> None:
    """Tell it, and end this process with its code; the other ranks end too."""
    ranks.leave(_tell(error), error.on_all_ranks)


def _tell(error: BnnppError) -> int:
    if not ranks.is_rank0() and ranks.world() > 1 and not error.on_all_ranks:  # the first does not know of it
        sys.stderr.write(f"error: rank {ranks.rank()}: {error}\n")
    # Plain text: a message may hold brackets, which rich would take for markup.
    style = None if isinstance(error, Interrupted) else "bold red"
    stderr().print(f"error: {error}", style=style, markup=False, soft_wrap=True)
    return error.exit_code


def _usage(error: Exception) -> InputError:
    """A usage error in the form of all others: what, where, what to try (in our words, not click's)."""
    context = error.ctx
    where = context.command_path if context else "bnnpp"
    hint = f"Try '{where} --help'."
    wrong = getattr(error, "option_name", None)
    if wrong and context:
        known = [name for p in context.command.params for name in (*p.opts, *p.secondary_opts)]
        guess = did_you_mean(wrong, known)
    else:
        wrong = error.format_message().partition("'")[2].partition("'")[0]
        guess = did_you_mean(wrong, getattr(context.command, "commands", {})) if context and wrong else None
    what = re.sub(r"\s*(\(Possible options.*|Did you mean.*)$", "", error.format_message())
    return InputError(what, where=where, hint=f"{guess} {hint}" if guess else hint)
