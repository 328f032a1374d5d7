"""What a binary layer makes of its sums, in one kernel: y alpha beta + bias; and its bias with thresholds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from binarize_cli.binarize.fused.launch import (
    BLOCK,
    blocks,
    by_rows,
    channels_of,
    dense,
    launch,
    power_of_two,
)

FEW_PROGRAMS = 128  # whose sums one program adds up


def fused_scaling(y: Tensor, alpha: Tensor, beta: Tensor, bias: Tensor | None) -> Tensor:
    """Return y alpha beta + bias in the type of y [N, C, H, W] or [..., C]; alpha and bias [C], beta []."""
    return _FusedScaling.apply(y, alpha, beta, bias)


class _FusedScaling(torch.autograd.Function):
    """Launches `sums_forward`, `sums_backward` and `sums_finish`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, alpha: Tensor, beta: Tensor, bias: Tensor | None) -> Tensor:
        y, alpha = dense(y), alpha.contiguous()
        out = torch.empty_like(y)
        launch(
            "sums_forward",
            blocks(y.numel()),
            *(y, alpha, beta, alpha if bias is None else bias, out, y.numel(), channels_of(y)),
            BIASED=bias is not None,
            BLOCK=BLOCK,
        )
        ctx.save_for_backward(y, alpha, beta)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, alpha, beta = ctx.saved_tensors
        grad, by = dense(grad), by_rows(y, FEW_PROGRAMS)
        to_y = torch.empty_like(y)
        partial = torch.empty(by.grid[0], 2, by.channels, device=y.device)
        launch(
            "sums_backward",
            by.grid,
            *(grad, y, alpha, beta, to_y, partial, by.rows, by.channels, by.rows_each),
            **by.constants,
        )
        to_bias, to_alpha = torch.empty_like(partial[0]).unbind()
        to_beta = torch.empty((), device=y.device)
        launch(
            "sums_finish",
            (1,),
            *(partial, alpha, beta, to_bias, to_alpha, to_beta, by.grid[0], by.channels),
            ROWS=16,
            COLUMNS=min(128, power_of_two(by.channels)),
        )
        gradients = (to_y, to_alpha, to_beta, to_bias)
        return tuple(g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad, strict=True))


def fused_shift(weights: Tensor, threshold: Tensor, alpha: Tensor, bias: Tensor | None) -> Tensor:
    """Return bias + alpha (weights threshold): weights [out, in], threshold [in], alpha and bias [out]."""
    return _FusedShift.apply(weights, threshold, alpha, bias)


class _FusedShift(torch.autograd.Function):
    """Launches `shift_forward` and `shift_backward`."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, threshold: Tensor, alpha: Tensor, bias: Tensor | None) -> Tensor:
        weights, alpha = weights.contiguous(), alpha.contiguous()
        outputs, inputs = weights.shape
        taken, out = torch.empty_like(alpha), torch.empty_like(alpha)
        launch(
            "shift_forward",
            (-(-outputs // 4),),
            *(weights, threshold, alpha, alpha if bias is None else bias, taken, out, outputs, inputs),
            BIASED=bias is not None,
            ROWS=4,
            COLUMNS=256,
        )
        ctx.save_for_backward(weights, threshold, alpha, taken)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        weights, threshold, alpha, taken = ctx.saved_tensors
        outputs, inputs = weights.shape
        to_weights, to_threshold = torch.empty_like(weights), torch.empty_like(threshold)
        launch(
            "shift_backward",
            (-(-inputs // 32),),
            *(grad.contiguous(), weights, threshold, alpha, to_weights, to_threshold, outputs, inputs),
            ROWS=32,
            COLUMNS=32,
        )
        to_alpha = grad * taken if ctx.needs_input_grad[2] else None
        return to_weights, to_threshold, to_alpha, grad if ctx.needs_input_grad[3] else None
