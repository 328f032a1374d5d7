"""Bi-Real blocks: BatchNorm, both shortcuts and RPReLU are in the convolution's pass over its output."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from binarize_cli.binarize.blocks import BiRealBlock
from binarize_cli.packed import kernels
from binarize_cli.packed.fused.batchnorm import factor_and_shift, tensors_of_norm
from binarize_cli.packed.fused.conditions import unobserved
from binarize_cli.packed.popcount_layers import Made, PopcountConv2d, apply_conv, tensors_of


class FusedBiRealBlock(BiRealBlock):
    """BiRealBlock in two passes over each of its images of signs and two over its outputs."""

    _made: dict[str, Made]

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C', H', W']
        if not self._runs_fused(x):
            return super().forward(x)
        past = x if self.downsample is None else self.downsample(x)
        y = self._convolve("1", x, past)
        return self._convolve("2", y, y, past)

    def _runs_fused(self, x: Tensor) -> bool:
        inside: dict[str, Any] = self._modules  # `self.conv1` takes longer
        convs, norms = (inside["conv1"], inside["conv2"]), (inside["bn1"], inside["bn2"])
        if not all(type(conv) is PopcountConv2d for conv in convs):
            return False
        if not all(type(norm) is nn.BatchNorm2d and norm.running_var is not None for norm in norms):
            return False
        acts = inside["act1"], inside["act2"]
        return self.conv1.takes(x) and unobserved(x, (*convs, *norms, *acts))

    def _convolve(self, name: str, x: Tensor, *addends: Tensor) -> Tensor:
        """Compute act(norm(conv(x)) + gain * past + more), of the layers with that name."""
        inside: dict[str, Any] = self._modules
        conv, norm, act = inside[f"conv{name}"], inside[f"bn{name}"], inside[f"act{name}"]
        gain = self._parameters[f"gain{name}"]

        def make() -> tuple[kernels.Limits, kernels.PopcountConv]:
            after = kernels.Norm(*factor_and_shift(norm), gain, act.move_in, act.slope, act.move_out)
            return conv.kernel(margins, conv.bias, after)

        margins = conv.margins(x)
        moves = (act._parameters[each] for each in ("move_in", "slope", "move_out"))
        tensors = [*tensors_of(conv), *tensors_of_norm(norm), gain, *moves]
        limits, kernel = self._made.setdefault(name, Made()).of(tensors, margins, make)
        return apply_conv(limits, kernel, x, *addends)
