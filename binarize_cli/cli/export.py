"""`bnnpp export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from binarize_cli.cli import options as o
from binarize_cli.console import result, say
from binarize_cli.errors import InputError, printable
from binarize_cli.files import absolute, kind_of

TO = ("timm", "onnx", "qonnx")


def export(
    file: o.PackedFile,
    to: Annotated[
        str,
        typer.Option(
            "--to", help="timm (also torchvision), onnx or qonnx.", metavar="|".join(TO), show_default=False
        ),
    ],
    activations: Annotated[
        str,
        typer.Option(
            "--activations",
            help="Inputs of binary linear layers, of onnx: float, or int8, which is faster and rounds.",
            metavar="|".join(o.ACTIVATIONS),
        ),
    ] = "float",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write. Default: beside the packed file."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    as_json: o.Json = False,
) -> None:
    """Write a packed file as other libraries read it, and print the path.

    timm: dense weights for timm.create_model or torchvision (task bw). onnx: for onnxruntime, its weights
    still bits. qonnx: for FINN and hls4ml. Each is loaded by its own library and held against the packed
    file; if the logits differ by more than rounding explains, nothing is written.

    bnnpp export runs/deit_tiny-bnn++-bw/model.safetensors --to onnx --activations int8
    """
    o.check_choice(to, TO, "--to")
    o.check_choice(activations, o.ACTIVATIONS, "--activations")
    if activations == "int8" and to != "onnx":
        raise InputError("goes with --to onnx", where="--activations int8", hint="Leave it out.")
    from binarize_cli.packed.format import read

    packed = read(file)
    from binarize_cli.export.dense import call_to_load
    from binarize_cli.export.targets import TARGETS
    from binarize_cli.export.targets import export as write_export

    target = TARGETS["onnx-int8" if activations == "int8" else to]
    out = output or file.with_suffix(target.suffix)
    _check_output(out, file, overwrite)
    agreement = write_export(packed, target, out)
    say(f"held against the packed file: {agreement}")
    if to == "timm":
        say(f"load it with {call_to_load(out, packed.document)}")
    if as_json:
        facts = {"file": str(out), "bytes": out.stat().st_size, "to": to, "activations": activations}
        result(json.dumps(facts | agreement.to_json(), allow_nan=False))
    else:
        result(str(out))


def _check_output(out: Path, file: Path, overwrite: bool) -> None:
    """Raise InputError if something is at `out` that must stay."""
    where = printable(str(out))
    if absolute(out).resolve() == absolute(file).resolve():
        raise InputError("would replace the packed file", where=where, hint="Choose another --output.")
    kind = kind_of(out)
    if kind == "file" and not overwrite:
        raise InputError(
            "is there already", where=where, hint="Pass --overwrite, or choose another --output."
        )
    if kind not in (None, "file"):
        raise InputError(f"is a {kind}, not a file", where=where, hint="Give --output a file.")
