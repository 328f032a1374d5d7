"""From a network to a small ONNX model: traced, stripped, its floats as narrow as in the packed file."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxscript.optimizer
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from binarize_cli.errors import BnnppError, printable
from binarize_cli.export.onnx_layers import dress
from binarize_cli.packed.check import ROW_SCALE
from binarize_cli.packed.format import PackedFile, as_json

LARGE = 64  # numbers: smaller tensors are not worth a node
INPUT, OUTPUT = "images", "logits"


def onnx_model(net: nn.Module, file: PackedFile, kind: str) -> onnx.ModelProto:
    """Return the ONNX model of a rebuilt network, which is changed: `kind` is `float`, `int8` or `qonnx`.

    images [N, C, H, W], preprocessed, -> logits [N, classes]. N is free, but 1 for qonnx, whose readers want
    fixed shapes. Raises BnnppError if torch cannot trace the network.
    """
    assert file.document.preprocessing, "only a file of the caller's own model has none"
    images = torch.zeros(1 if kind == "qonnx" else 2, *file.document.preprocessing.input_size)
    model = _traced(dress(net, kind), images, dynamic=kind != "qonnx")
    if kind == "qonnx":
        # Its readers search all nodes for every node; a third of them is left of swin_tiny.
        model = onnxscript.optimizer.optimize(model)
    _strip(model, keep_shapes=kind == "qonnx")
    _share_equal(model)
    if kind != "qonnx":
        _narrow(model, file.tensors)
    _describe(model, file, kind)
    return model


def _traced(net: nn.Module, images: torch.Tensor, dynamic: bool) -> onnx.ModelProto:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
    try:
        with _silence(), torch.no_grad():
            program = torch.onnx.export(
                net, (images,), dynamo=True, optimize=False, dynamic_shapes=shapes, verbose=False, **names
            )
    except Exception as error:  # torch.export fails in many ways
        reason = printable(str(error.__cause__ or error).strip().splitlines()[0])[:500]
        raise BnnppError(f"torch cannot trace the network for ONNX: {reason}") from error
    assert program is not None, "dynamo=True returns a program"
    return program.model_proto


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence the exporter, which prints its progress and logs warnings of its own versions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip(model: onnx.ModelProto, keep_shapes: bool) -> None:
    """Remove stack traces and doc strings, 3 MB of a DeiT-Tiny; and shapes, which a session infers."""
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        graph.doc_string = ""
        del graph.metadata_props[:]
        for part in (*graph.node, *graph.value_info):
            part.doc_string = ""
            del part.metadata_props[:]
        if not keep_shapes:
            del graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]


def _share_equal(model: onnx.ModelProto) -> None:
    """Keep one of the initializers that are equal: the table of bytes is one for all layers."""
    first: dict[tuple, str] = {}
    renamed, kept = {}, []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        same = first.setdefault((array.dtype.str, array.shape, array.tobytes()), tensor.name)
        if same == tensor.name:
            kept.append(tensor)
        else:
            renamed[tensor.name] = same
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = renamed.get(name, name)


def _narrow(model: onnx.ModelProto, tensors: Mapping[str, np.ndarray]) -> None:
    """Hold floats as float16 or int8 if that is the same numbers; nodes widen them when a session starts."""
    nodes: list[onnx.NodeProto] = []
    kept: list[onnx.TensorProto] = []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        codes, scale = tensors.get(tensor.name), tensors.get(tensor.name + ROW_SCALE)
        wide = array.dtype == np.float32 and array.size >= LARGE
        if wide and codes is not None and scale is not None and codes.shape == array.shape:
            nodes += _from_int8(tensor.name, codes, scale, kept)
        elif wide and np.array_equal(array, (half := _half(array)).astype(np.float32)):
            kept.append(numpy_helper.from_array(half, f"{tensor.name}.half"))
            nodes.append(
                helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT)
            )
        else:
            kept.append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def _half(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def _from_int8(name: str, codes: np.ndarray, scale: np.ndarray, kept: list) -> list[onnx.NodeProto]:
    """Return the nodes that make a tensor of codes and the scales of its rows."""
    axis = next((at for at, size in enumerate(codes.shape) if size > 1), 0)
    sizes = [1] * codes.ndim
    sizes[axis] = len(scale)
    kept += [
        numpy_helper.from_array(codes, f"{name}.codes"),
        numpy_helper.from_array(scale.astype(np.float32).reshape(sizes), f"{name}.scale"),
    ]
    cast = helper.make_node("Cast", [f"{name}.codes"], [f"{name}.wide"], to=TensorProto.FLOAT)
    return [cast, helper.make_node("Mul", [f"{name}.wide", f"{name}.scale"], [name])]


def _describe(model: onnx.ModelProto, file: PackedFile, kind: str) -> None:
    """Write down what the images must be, what the logits stand for, and which packed file it was."""
    document = file.document
    assert document.preprocessing, "only a file of the caller's own model has none"
    made = document.preprocessing.model_dump(mode="json")
    facts = {
        "bnnpp": as_json(document, document.sha256),
        "classes": json.dumps(document.model.classes),
        "activations": kind,
        **{key: json.dumps(value) for key, value in made.items()},
    }
    helper.set_model_props(model, facts)
    model.graph.name = document.model.name
    model.producer_name, model.producer_version = "bnnpp", document.provenance.bnnpp
    domains = sorted(model.opset_import, key=lambda each: each.domain)
    del model.opset_import[:]
    model.opset_import.extend(domains)  # qonnx takes the first for ONNX's own
