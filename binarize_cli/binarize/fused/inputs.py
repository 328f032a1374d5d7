"""Binary inputs in one kernel each way: threshold, F, scale and border forwards, B and its sums backwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from binarize_cli.binarize.fused.formulas import NUMBERS, Formula, formula_of
from binarize_cli.binarize.fused.launch import BLOCK, blocks, by_rows, channels_of, dense, launch
from binarize_cli.binarize.quantizer import GRID, ActivationQuantizer
from binarize_cli.quantizers.scales import TINY


class Border(NamedTuple):
    """Pixels around an image, and the value they have."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0
    value: int = 0


class Pair(NamedTuple):
    """F and B of a quantizer as kernels call them."""

    F: Formula
    B: Formula
    numbers: list[Tensor]
    """Their parameters [] on the device, and as many more as kernels expect."""


def pair_of(quantizer: ActivationQuantizer) -> Pair | None:
    """Return a quantizer's pair in its present mode; None if no kernel can call it."""
    forward, backward = formula_of(quantizer, "F"), formula_of(quantizer, "B")
    if forward is None or backward is None:
        return None
    own = list(quantizer.values.values())
    return Pair(forward, backward, own + [quantizer.typical] * (len(NUMBERS) - len(own)))


class Making(NamedTuple):
    """How values are made of inputs, beside their thresholds."""

    scale: Tensor | None
    """beta [], which gets no gradient here."""
    quantizer: ActivationQuantizer
    pair: Pair
    border: Border
    """Around images."""
    dtype: torch.dtype
    """Of the values."""


def fused_input(x: Tensor, threshold: Tensor | None, making: Making) -> Tensor:
    """Return what `LatentInput` makes of x [N, C, H, W] or [..., C], given its thresholds [C] or None."""
    return _FusedInput.apply(x, threshold, making)


class _FusedInput(torch.autograd.Function):
    """Launches `input_forward` and `input_backward`; the gradient of thresholds takes one launch more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor | None, making: Making) -> Tensor:
        x = dense(x)
        out, constants, ctx.geometry = _values(x, threshold, making)
        ctx.save_for_backward(x, threshold, constants)
        ctx.making, ctx.padded = making, out.shape != x.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, threshold, constants = ctx.saved_tensors
        grad, by, (_, quantizer, pair, *_) = dense(grad), by_rows(x), ctx.making
        to_x = torch.empty_like(x)
        partial = torch.empty(by.grid[0], by.channels, device=x.device)
        launch(
            "input_backward",
            by.grid,
            *(grad, x, quantizer.typical if threshold is None else threshold, constants, to_x, partial),
            *(*pair.numbers, by.rows, by.channels, *ctx.geometry, by.rows_each),
            B=pair.B,
            PADDED=ctx.padded,
            SHIFTED=threshold is not None,
            **by.constants,
        )
        to_threshold = None if threshold is None else partial.sum(0)
        return to_x, to_threshold, None


def _values(x: Tensor, threshold: Tensor | None, making: Making) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Return the values, n and 1 / spread [2], and where the image is, as the kernels take it."""
    scale, quantizer, pair, border, dtype = making
    spare = quantizer.typical
    if x.dim() == 4:
        out, geometry = _bordered(x, border, dtype)
    else:
        out, geometry = torch.empty_like(x, dtype=dtype), (1, 1, 1, 1, 0, 0)
    constants = torch.empty(2, device=x.device)
    launch(
        "input_forward",
        blocks(out.numel()),
        *(x, spare if threshold is None else threshold, spare if scale is None else scale, spare),
        *(constants, out, *pair.numbers, out.numel(), channels_of(x), *geometry),
        F=pair.F,
        PAD=float(border.value),
        PADDED=out.shape != x.shape,
        SHIFTED=threshold is not None,
        MULTIPLE=quantizer.normalize or 0.0,
        LEARNED=scale is not None,
        TINY=TINY,
        GRID=GRID,
        BLOCK=BLOCK,
    )
    return out, constants, geometry


@contextmanager
def made_again(values: Tensor) -> Iterator[None]:
    """Inside the block a product keeps no copy of values from `fused_input`: its backward makes them again.

    That is a pass over the inputs, which are kept anyway, and a fourth of what a layer keeps. On a CPU only.
    """
    node = _made_by(values)
    if values.is_cuda or node is None:
        yield
        return
    storage = values.untyped_storage().data_ptr()

    def pack(tensor: Tensor) -> Any:
        if tensor.untyped_storage().data_ptr() != storage or tensor.dtype != values.dtype:
            return tensor
        return tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        x, threshold, _ = node.saved_tensors
        return _values(x, threshold, node.making)[0].as_strided(*kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _made_by(values: Tensor) -> Any:
    """Return the node of the graph that made the values, perhaps in another shape; None if none did."""
    node: Any = values.grad_fn
    if type(node).__name__ == "ViewBackward0":
        node = node.next_functions[0][0]
    return node if hasattr(node, "making") else None


def _bordered(x: Tensor, border: Border, dtype: torch.dtype) -> tuple[Tensor, tuple[int, ...]]:
    """Return an empty tensor for x and its border; height, width, with border, and where the image is."""
    n, channels, height, width = x.shape
    tall, wide = height + border.top + border.bottom, width + border.left + border.right
    size = (n, channels, tall, wide)
    out = torch.empty(size, dtype=dtype, device=x.device, memory_format=torch.channels_last)
    return out, (height, width, tall, wide, border.top, border.left)
