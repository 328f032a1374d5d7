"""An ONNX file that `bnnpp export` wrote: its document, and its network in onnxruntime or qonnx.

onnxruntime runs qonnx files too, with the definition of their one node; qonnx itself takes seconds an image.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from binarize_cli.errors import BnnppError, InputError, printable
from binarize_cli.packed.format import parse, validated
from binarize_cli.packed.schema import Document
from binarize_cli.run_folder import check_file

QONNX = "qonnx.custom_op.general"


def needed(name: str) -> ModuleType:
    """Import a library of the extra `onnx`. Raises InputError if it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        hint = "Install the extra: pip install 'bnnpp[onnx]'."
        raise InputError(
            f"{name.partition('.')[0]} is not installed ({error})", where="ONNX", hint=hint
        ) from None


@dataclass(frozen=True)
class OnnxFile:
    """What of an ONNX file stands in its metadata, and the file itself."""

    path: Path
    document: Document
    is_qonnx: bool

    def network(self) -> nn.Module:
        """Return its network as a module: images [N, C, H, W] -> logits [N, classes], on the CPU."""
        return _Session(self.path, self.is_qonnx)


def read_onnx(path: Path) -> OnnxFile:
    """Read an ONNX file that `bnnpp export` wrote. Raises InputError for any other file."""
    where = printable(str(path))
    check_file(path, "Give a file that 'bnnpp export --to onnx' wrote.")
    onnx: Any = needed("onnx")
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's own
        reason = printable(str(error))[:200]
        raise InputError(f"cannot be read ({reason})", where=where, hint="Is it an ONNX file?") from None
    facts = {each.key: each.value for each in model.metadata_props}
    if "bnnpp" not in facts:
        hint = "Only files that 'bnnpp export' wrote say what their images and classes are."
        raise InputError("an ONNX file, but not one of bnnpp", where=where, hint=hint)
    document = validated(parse(facts["bnnpp"], where), where)
    return OnnxFile(path, document, any(each.domain == QONNX for each in model.opset_import))


class _Session(nn.Module):
    """A session of onnxruntime, with as many threads as torch uses."""

    def __init__(self, path: Path, is_qonnx: bool):
        super().__init__()
        runtime: Any = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        content = with_definition(path) if is_qonnx else path.read_bytes()
        try:
            self.session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own
            what = f"onnxruntime cannot run it: {printable(str(error))[:500]}"
            raise BnnppError(what, where=str(path)) from None
        (images,) = self.session.get_inputs()
        self.name, self.one_by_one = images.name, images.shape[0] == 1

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(1) if self.one_by_one else [x]
        logits = [self.session.run(None, {self.name: part.numpy()})[0] for part in parts]
        return torch.from_numpy(np.concatenate(logits))


def with_definition(path: Path) -> bytes:
    """Return a qonnx model with BipolarQuant defined by ONNX's own operators, so that onnxruntime runs it."""
    onnx: Any = needed("onnx")
    model, make = onnx.load(str(path)), onnx.helper.make_node
    zero = onnx.numpy_helper.from_array(np.float32(0))
    nodes = [
        make("Constant", [], ["zero"], value=zero),
        make("GreaterOrEqual", ["x", "zero"], ["above"]),
        make("Neg", ["scale"], ["minus"]),
        make("Where", ["above", "scale", "minus"], ["y"]),
    ]
    own = [each for each in model.opset_import if each.domain in ("", "ai.onnx")]
    model.functions.append(
        onnx.helper.make_function(QONNX, "BipolarQuant", ["x", "scale"], ["y"], nodes, own)
    )
    return model.SerializeToString()


class Qonnx(nn.Module):
    """A model as qonnx itself executes it, node by node, one image at a time: for checks, not for use."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    @cached_property
    def _model(self) -> Any:
        model = needed("qonnx.core.modelwrapper").ModelWrapper(str(self.path))
        return model.transform(needed("qonnx.transformation.infer_shapes").InferShapes())

    def forward(self, x: Tensor) -> Tensor:
        execute = needed("qonnx.core.onnx_exec").execute_onnx
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes that it infers only in part
            (given,), (out,) = self._model.graph.input, self._model.graph.output
            logits = [execute(self._model, {given.name: image[None].numpy()})[out.name] for image in x]
        return torch.from_numpy(np.concatenate(logits))
