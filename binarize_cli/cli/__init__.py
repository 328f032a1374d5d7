"""The command line. Nothing heavy is imported at module level: help and every usage error answer at once."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated

import typer

from binarize_cli import __version__, ranks
from binarize_cli.cli import bench, recipes
from binarize_cli.cli.analyze import analyze
from binarize_cli.cli.binarize import binarize
from binarize_cli.cli.compare import compare
from binarize_cli.cli.evaluate import evaluate
from binarize_cli.cli.export import export
from binarize_cli.cli.inspect import inspect
from binarize_cli.cli.methods import methods
from binarize_cli.cli.options import WithWordsLeftOut
from binarize_cli.cli.predict import predict
from binarize_cli.cli.theory import theory
from binarize_cli.console import never_fail_to_encode, print_log, stderr
from binarize_cli.errors import BnnppError, InputError, Interrupted, did_you_mean
from binarize_cli.files import shortened
from binarize_cli.run_folder import claimed_folder

try:  # newer versions of typer carry their own copy of click
    from typer._click.exceptions import UsageError
except ImportError:
    from click import UsageError  # type: ignore[assignment]  # the same class in an older typer

app = typer.Typer(
    help="Turn a pretrained image classifier into a 1-bit network: a bit-packed file and a report on it.",
    epilog="First steps: 'bnnpp binarize digits_vit --method bnn++' needs no network and takes a minute.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=WithWordsLeftOut)(binarize)
app.command(name="eval")(evaluate)
app.command()(predict)
app.command()(export)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(compare)
app.command()(analyze)
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
    try:
        Path.cwd()
    except OSError:
        what, hint = "the working directory was deleted", "Change into a folder that exists."
        raise InputError(what, hint=hint) from None


OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "defaultcpuallocator",
    "status_alloc_failed",  # cuBLAS and cuDNN
    "allocation_failed",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
)


def main() -> None:
    """Run a command; every expected failure is one message on stderr and the exit code of its kind."""
    on_all_ranks = True  # with the other ranks, if there are any, that all of them leave
    never_fail_to_encode()
    print_log()
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
    except Exception as error:
        on_all_ranks = False
        if _is_out_of_memory(error):
            hint = "Lower --batch-size; on CUDA also try --amp bf16."
            what = f"out of memory ({first})" if (first := _first_line(error)) else "out of memory"
            code = _tell(InputError(what, hint=hint))
        else:
            ranks.await_alarm()
            code = _tell(_unexpected(error))
    ranks.leave(code if isinstance(code, int) else 0, on_all_ranks)


def _is_out_of_memory(error: Exception) -> bool:
    signs = any(sign in str(error).lower() for sign in OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and signs)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _unexpected(error: Exception) -> BnnppError:
    """Put what should not have happened into one message, and the traceback into a file."""
    what = f"unexpected {type(error).__name__}: {shortened(_first_line(error))}"
    name = f"traceback-{os.getpid()}.txt"
    folders = [claimed_folder(), Path(tempfile.gettempdir())]
    for file in [folder / name for folder in folders if folder]:
        try:
            file.write_text("".join(traceback.format_exception(error)), errors="backslashreplace")
        except OSError:
            continue
        return BnnppError(
            what, hint=f"This is a fault of bnnpp. Its traceback is in {file}; please report it."
        )
    traceback.print_exception(error)
    return BnnppError(what)


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


def _usage(error: UsageError) -> InputError:
    """Return a usage error in the form of all others: what, where, what to try (in our words)."""
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
    what = re.sub(r"\s*(\(Possible options.*|Did you mean.*)$|\bValue error, ", "", error.format_message())
    return InputError(what, where=where, hint=f"{guess} {hint}" if guess else hint)
