"""One autograd function for every pair (F, B)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ForwardBackward(torch.autograd.Function):
    """Forwards alpha F(w / n), backwards grad alpha / n B(w / n): the update of PC++ (Lu et al. 2023).

    n and alpha are constants of the step: no gradient flows through the statistics they were taken from.
    A learned alpha is a parameter and gets its gradient, the sum of grad * F over what it scales.
    Only the latents are saved: w / n is cheaper to divide again than to keep.
    """

    @staticmethod
    def forward(
        ctx: Any,
        latent: Tensor,  # [out, ...]
        normaliser: Tensor,  # broadcasts against latent
        scale: Tensor,  # broadcasts against latent
        F: Callable[[Tensor], Tensor],
        B: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(latent, normaliser, scale)
        ctx.pair = F if ctx.needs_input_grad[2] else None, B  # F may hold on to a tensor
        return scale * F(latent / normaliser)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        latent, normaliser, scale = ctx.saved_tensors
        F, B = ctx.pair
        x = latent / normaliser
        to_latent = grad * (scale / normaliser) * B(x)
        to_scale = (grad * F(x)).sum_to_size(scale.shape) if ctx.needs_input_grad[2] else None
        return to_latent, None, to_scale, None, None
