"""The float model in ONNX Runtime, where that is installed: what a user of it would compare with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn


def onnx_session(net: nn.Module, images: Tensor, threads: int) -> Callable[[Tensor], Any] | None:
    """Return what runs the network on images of that shape; None if onnx or onnxruntime is not installed."""
    if not (find_spec("onnxruntime") and find_spec("onnx")):
        return None
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    with TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a trace takes for a constant: the shape of the images
            torch.onnx.export(net, (images.clone(),), path, dynamo=False)
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images.numpy()})
