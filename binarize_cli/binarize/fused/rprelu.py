"""RPReLU of a sum of branches in one kernel each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from binarize_cli.binarize.fused.launch import BLOCK, blocks, by_rows, channels_of, dense, launch


def fused_rprelu(
    x: Tensor,
    gain: Tensor,
    past: Tensor,
    more: Tensor | None,
    move_in: Tensor,
    slope: Tensor,
    move_out: Tensor,
) -> Tensor:
    """Return RPReLU(x + gain past + more) of images [N, C, H, W], in the type of x; parameters are [C].

    It is computed in float32, whatever the types of the images.
    """
    return _FusedRPReLU.apply(x, gain, past, more, move_in, slope, move_out)


class _FusedRPReLU(torch.autograd.Function):
    """Launches `rprelu_forward` and `rprelu_backward`; the parameters' gradients take one launch more."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, past: Tensor, more: Tensor | None, *moves: Tensor
    ) -> Tensor:
        x, past = dense(x), dense(past)
        more = None if more is None else dense(more)
        out = torch.empty_like(x)
        launch(
            "rprelu_forward",
            blocks(x.numel()),
            *(x, gain, past, x if more is None else more, *moves, out, x.numel(), channels_of(x)),
            MORE=more is not None,
            BLOCK=BLOCK,
        )
        ctx.save_for_backward(x, gain, past, more, *moves[:2])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gain, past, more, move_in, slope = ctx.saved_tensors
        grad, by = dense(grad), by_rows(x)
        to_x, to_past = torch.empty_like(x), torch.empty_like(past)
        partial = torch.empty(by.grid[0], 4, by.channels, device=x.device)
        launch(
            "rprelu_backward",
            by.grid,
            *(grad, x, gain, past, x if more is None else more, move_in, slope, to_x, to_past, partial),
            *(by.rows, by.channels, by.rows_each),
            MORE=more is not None,
            **by.constants,
        )
        to_gain, to_in, to_slope, to_out = partial.sum(0).unbind()
        return to_x, to_gain, to_past, None if more is None else to_x.to(more.dtype), to_in, to_slope, to_out
