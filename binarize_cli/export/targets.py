"""The targets of `bnnpp export`: what each writes, and how it is held against its packed file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from binarize_cli.errors import InputError, printable
from binarize_cli.export import dense
from binarize_cli.export.held import IMAGES, Agreement, hold, some_images
from binarize_cli.export.onnx_file import Qonnx, needed, read_onnx
from binarize_cli.files import atomic
from binarize_cli.packed.format import PackedFile
from binarize_cli.packed.runtime import rebuild


@dataclass(frozen=True)
class Target:
    """A kind of file that other libraries read."""

    suffix: str
    """Of the file, which lies beside the packed one."""
    content: Callable[[nn.Module, PackedFile], bytes]
    """From the rebuilt network, which may be changed, and the packed file."""
    load: Callable[[Path, PackedFile], nn.Module]
    """By the library that the file is for."""
    check: Callable[[PackedFile], None]
    """Raises InputError for a packed file that cannot be exported."""
    rounds: Callable[[PackedFile], bool]
    """Whether numbers are rounded on the way, so that logits differ a little."""
    images: int = IMAGES
    """To hold it against the packed file."""


def _has_signs(file: PackedFile) -> bool:
    return file.document.inputs is not None


def _onnx_bytes(kind: str) -> Callable[[nn.Module, PackedFile], bytes]:
    def content(net: nn.Module, file: PackedFile) -> bytes:
        from binarize_cli.export.onnx_graph import onnx_model

        return onnx_model(net, file, kind).SerializeToString()

    return content


def _load_onnx(path: Path, file: PackedFile) -> nn.Module:
    return read_onnx(path).network()


def _check_onnx(file: PackedFile) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        needed(name)
    inputs = file.document.inputs
    convolutions = any(row.binary and "conv" in row.kind for row in file.document.layers)
    if inputs and inputs.overflow and inputs.tiles == "channel" and convolutions:
        what = "the int8 sums of a file of format 1 have another order, which no export has"
        raise InputError(what, where=printable(str(file.path)), hint="Binarize the model again.")


def _check_int8(file: PackedFile) -> None:
    _check_onnx(file)
    if file.document.task != "bw":
        what = f"task {file.document.task} has inputs of one bit: there is nothing to quantize to int8"
        raise InputError(what, where="--activations int8", hint="Leave it out.")
    if not any(row.binary and row.kind == "linear" for row in file.document.layers):
        what = "it has no binary linear layer; as int8, onnxruntime's convolutions are slower than as float"
        raise InputError(what, where="--activations int8", hint="Leave it out.")


def _check_qonnx(file: PackedFile) -> None:
    _check_onnx(file)
    needed("qonnx")
    if file.document.task == "bwaa":
        what = "qonnx has no node for sums in int8 accumulators"
        raise InputError(what, where=printable(str(file.path)), hint="Export it with --to onnx.")


TARGETS = {
    "timm": Target(
        ".timm.safetensors",
        lambda net, file: dense.dense_bytes(net, file.document),
        lambda path, file: dense.load_dense(path, file.document),
        dense.check_exportable,
        lambda file: False,
    ),
    "onnx": Target(".onnx", _onnx_bytes("float"), _load_onnx, _check_onnx, _has_signs),
    "onnx-int8": Target(".int8.onnx", _onnx_bytes("int8"), _load_onnx, _check_int8, lambda file: True),
    "qonnx": Target(
        ".qonnx.onnx",
        _onnx_bytes("qonnx"),
        lambda path, file: Qonnx(path),
        _check_qonnx,
        _has_signs,
        images=2,
    ),
}
"""By the word after --to; onnx with --activations int8 is `onnx-int8`."""


def export(file: PackedFile, target: Target, out: Path) -> Agreement:
    """Write a packed file as another library reads it, load it by that, and return how far they agree.

    Raises InputError for a file that cannot be exported so; BnnppError if the export cannot be made, loaded,
    or computes something else. Then nothing is left at `out`, or what was there before.
    """
    target.check(file)
    content = target.content(rebuild(file), file)
    with _unfinished(out) as trial:
        with atomic(trial) as written:
            written.write(content)
        images, of = some_images(file.document, target.images)
        loaded: Any = target.load(trial, file)
        agreement = hold(rebuild(file), loaded, images, of, exact=not target.rounds(file))
        trial.replace(out)
    return agreement


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """Return a file beside `out`, of the same kind, that is gone afterwards."""
    trial = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        yield trial
    finally:
        with suppress(OSError):
            trial.unlink()
