"""The weights of all binary layers of a network, computed together once a forward pass.

Layer by layer, quantizing asks a GPU for some thirty kernels a layer, each for a few thousand numbers: the
launches would take longer than the network. Here the latents of all layers are one vector, on which F and B,
being elementwise, work once; layers of one fan-in are rows of one matrix, of which means are taken once.
The numbers are those of `LatentWeight` by itself, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from binarize_cli.binarize.fused.formulas import computed
from binarize_cli.binarize.fused.launch import cast_to
from binarize_cli.binarize.quantizer import WeightQuantizer
from binarize_cli.binarize.weights import LatentWeight
from binarize_cli.quantizers.functions import sign
from binarize_cli.quantizers.scales import TINY, channel_magnitude


class LatentBank:
    """Computes the values of a network's latent weights before each of its forward passes.

    It is no module: the network's own modules are what they were, and a copy of the network has a copy of
    it. A layer that is called outside of the network's forward pass computes its weights by itself.
    """

    def __init__(self, weights: Iterable[LatentWeight], signs: bool, in_float32: bool = False):
        self.weights = sorted(weights, key=_fan_in)
        self.in_float32 = in_float32
        """Whether the layers take them in float32 within autocast, as an int8 accumulator does."""
        self.signs = signs
        """Whether the layers ask for signs and scales, as with binary inputs, or for the weights."""
        self.standing = False  # weights stand still: see `computed_once`
        for weight in self.weights:
            weight.bank = self

    def before_forward(self, net: nn.Module, args: tuple[Any, ...]) -> None:
        """Compute all values, unless they are known and stand still."""
        if not (self.standing and self.weights[0].cache):
            self.compute()

    def after_forward(self, net: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Forget the values, since the optimizer may move the latents."""
        if not self.standing:
            self.forget()

    def compute(self) -> None:
        """Put the values where the layers look for them."""
        latents = [weight.latent for weight in self.weights]
        dtype = torch.float32 if self.in_float32 else _type_of_products(latents[0])
        *values, size = _AllWeights.apply(self.weights[0].quantizer, self.signs, dtype, *latents)
        scales = size.split([len(latent) for latent in latents])
        for weight, value, scale in zip(self.weights, values, scales, strict=True):
            weight.cache = {"signs_and_scale": (value, scale)} if self.signs else {"weights": value}

    def forget(self) -> None:
        """Leave every layer to compute its weights by itself."""
        for weight in self.weights:
            weight.cache = None


def add_banks(net: nn.Module, weights: Iterable[LatentWeight], signs: bool, in_float32: bool = False) -> None:
    """Give a network a bank of those of its latent weights that can be computed together."""
    able = [weight for weight in weights if _shares(weight)]
    if len(able) > 1:
        bank = LatentBank(able, signs, in_float32)
        net.register_forward_pre_hook(bank.before_forward)
        net.register_forward_hook(bank.after_forward, always_call=True)


def remove_banks(net: nn.Module) -> None:
    """Take the banks out of a network, whose latents are about to be replaced."""
    for hooks in (net._forward_pre_hooks, net._forward_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(_owner(hook), LatentBank)]:
            bank = _owner(hooks.pop(key))
            net._forward_hooks_always_called.pop(key, None)
            bank.forget()


def _owner(hook: Any) -> Any:
    return getattr(hook, "__self__", None)


def _shares(weight: LatentWeight) -> bool:
    """Return whether its means are those of rows: a learned alpha has a gradient, a layer's is no row's."""
    scale = weight.quantizer.scale
    return scale.magnitude is channel_magnitude and not scale.learned


def _fan_in(weight: LatentWeight) -> int:
    return weight.latent[0].numel()


class _AllWeights(torch.autograd.Function):
    """`ForwardBackward` of all latents; returns their values, and mean |w*| of every row: [rows]."""

    @staticmethod
    def forward(
        ctx: Any, quantizer: WeightQuantizer, signs: bool, dtype: torch.dtype, *latents: Tensor
    ) -> Any:
        rows = _Rows(latents)
        flat = rows.gathered(latents)
        size = rows.means(flat.abs())
        ctx.hardening = quantizer.mode == "hard" and quantizer.has_soft_phase
        ctx.quantizer, ctx.rows = quantizer, rows
        n = None if quantizer.normalize is None else (quantizer.normalize * size).clamp_min(TINY)
        if quantizer.is_sign:  # does not see n, and its mean magnitude is 1
            value, alpha = sign(flat), None if signs or quantizer.scale.unit else size
        else:
            flat = rows.divided_(flat, n)
            value = computed(quantizer, "F", flat)
            spread = None if quantizer.scale.unit else rows.means(value.abs()).clamp_min(TINY)
            alpha = None if spread is None else (1 if signs else size) / spread
        if quantizer.is_sign and not ctx.hardening:
            flat = rows.divided_(flat, n)  # for B
        ctx.save_for_backward(None if ctx.hardening else flat, _ratio(alpha, n))
        values = rows.scattered([part.to(dtype) for part in rows.times(value, alpha)], latents)
        scale = torch.ones_like(size) if quantizer.scale.unit else size
        ctx.mark_non_differentiable(scale)
        return *values, scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        flat, ratio = ctx.saved_tensors
        rows, quantizer = ctx.rows, ctx.quantizer
        passed = rows.times(rows.gathered(grads[:-1]).float(), ratio)
        if ctx.hardening:  # B is 1, times what makes alpha / n B 1
            factor = quantizer.normalize or 1.0
            passed = [part * factor for part in passed]
        else:
            passed = [g * b for g, b in zip(passed, rows.split(computed(quantizer, "B", flat)), strict=True)]
        return None, None, None, *rows.scattered(passed, grads[:-1])


def _type_of_products(latent: Tensor) -> torch.dtype:
    """Return autocast's type on a GPU, where every layer would launch a cast of its weights."""
    eager = latent.is_cuda and not torch.compiler.is_compiling()
    return cast_to(latent) if eager else torch.float32


def _ratio(alpha: Tensor | None, n: Tensor | None) -> Tensor | None:
    if n is None:
        return alpha
    return (1 if alpha is None else alpha) / n


class _Rows:
    """Latents, in the order of their fan-in, as rows of matrices: one matrix [rows, K] for each fan-in K."""

    def __init__(self, latents: Sequence[Tensor]):
        self.last = [_channels_last(latent) for latent in latents]
        by_fan_in = groupby(latents, key=lambda latent: latent[0].numel())
        self.shapes = [(sum(len(latent) for latent in group), fan_in) for fan_in, group in by_fan_in]

    def gathered(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the tensors as one vector, each in the order in which its latent lies in memory."""
        flat = zip(tensors, self.last, strict=True)
        return torch.cat([(t.permute(0, 2, 3, 1) if last else t).reshape(-1) for t, last in flat])

    def scattered(self, parts: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """Return views of the matrices, shaped like the latents."""
        rows = [row for part in parts for row in part.split(self._lengths(like, part.shape[1]))]
        return [_shaped(row, t, last) for row, t, last in zip(rows, like, self.last, strict=True)]

    def _lengths(self, like: Sequence[Tensor], fan_in: int) -> list[int]:
        return [len(t) for t in like if t[0].numel() == fan_in]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return the matrices that a vector is made of, as views."""
        parts = flat.split([rows * fan_in for rows, fan_in in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def means(self, flat: Tensor) -> Tensor:
        """Return the mean of every row: [rows]."""
        return torch.cat([part.mean(1) for part in self.split(flat)])

    def times(self, flat: Tensor, factors: Tensor | None) -> list[Tensor]:
        """Return the matrices, every row times its factor."""
        parts = self.split(flat)
        if factors is None:
            return parts
        return [part * each for part, each in zip(parts, self._by_matrix(factors), strict=True)]

    def divided_(self, flat: Tensor, divisors: Tensor | None) -> Tensor:
        """Divide every row, in place, by its divisor."""
        if divisors is not None:
            for part, each in zip(self.split(flat), self._by_matrix(divisors), strict=True):
                part.div_(each)
        return flat

    def _by_matrix(self, numbers: Tensor) -> list[Tensor]:
        return [each.unsqueeze(1) for each in numbers.split([rows for rows, _ in self.shapes])]


def _channels_last(latent: Tensor) -> bool:
    """Return whether a convolution's latents lie tap by tap, all channels of each, as `device.place` does."""
    last = latent.dim() == 4 and latent.is_contiguous(memory_format=torch.channels_last)
    return last and not latent.is_contiguous()  # taps or channels of one may be taken for both


def _shaped(rows: Tensor, like: Tensor, last: bool) -> Tensor:
    if not last:
        return rows.view(like.shape)
    out, channels, height, width = like.shape
    return rows.view(out, height, width, channels).permute(0, 3, 1, 2)
