"""A dense state dict under the library's own names, as timm.create_model and load_state_dict take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from binarize_cli.binarize.attention import LinearProjAttention
from binarize_cli.binarize.layers import BinaryConv2d, BinaryLinear
from binarize_cli.errors import BnnppError, InputError, printable
from binarize_cli.models.build import build
from binarize_cli.packed.format import PackedFile
from binarize_cli.packed.schema import Document


def check_exportable(file: PackedFile) -> None:
    """Raise InputError for a file whose network the plain architecture cannot compute."""
    document = file.document
    if document.task != "bw":
        what = (
            f"task {document.task} has binary inputs, which the plain {document.model.name} does not compute"
        )
        hint = "Export it with --to onnx, or load it in Python: bnnpp.load(FILE)."
        raise InputError(what, where=printable(str(file.path)), hint=hint)


def dense_bytes(net: nn.Module, document: Document) -> bytes:
    """Return a safetensors file of the weights of a rebuilt network of task bw, in float32."""
    state = {name: tensor.detach().clone().contiguous() for name, tensor in dense_state(net).items()}
    return save(state, {"format": "pt", "model": document.model.name, "packed": document.sha256})


def dense_state(net: nn.Module) -> dict[str, Tensor]:
    """Return the network's state dict as its library has it: alpha sign(w) under the name of the weights."""
    state = dict(net.state_dict())
    for name, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, BinaryLinear | BinaryConv2d):
            state[f"{name}.weight"] = module.weight
    for name, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, LinearProjAttention):  # nn.MultiheadAttention, as the library has it
            for part in ("weight", "bias"):
                if f"{name}.in_proj.{part}" in state:
                    state[f"{name}.in_proj_{part}"] = state.pop(f"{name}.in_proj.{part}")
    return state


def load_dense(path: Path, document: Document) -> nn.Module:
    """Return the network as the library itself loads the file. Raises BnnppError if it does not."""
    model = document.model
    try:
        if model.source == "timm":
            net = timm.create_model(
                model.name, num_classes=model.num_classes, checkpoint_path=str(path), **model.builder_kwargs
            )
        else:
            net = build(model.source, model.name, model.num_classes, **model.builder_kwargs)
            net.load_state_dict(load_file(path))
    except (RuntimeError, ValueError, KeyError) as error:
        what = f"{model.source} does not load it: {printable(str(error))[:1000]}"
        raise BnnppError(what, where=str(path)) from None
    return net.eval().to(torch.float32)


def call_to_load(path: Path, document: Document) -> str:
    """Return the line of Python that loads the file."""
    model = document.model
    kwargs: dict[str, Any] = {"num_classes": model.num_classes} | model.builder_kwargs
    if model.source == "timm":
        kwargs["checkpoint_path"] = str(path)
    given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
    if model.source == "timm":
        return f"timm.create_model({model.name!r}, {given})"
    return f"torchvision.models.{model.name}({given}).load_state_dict(load_file({str(path)!r}))"
