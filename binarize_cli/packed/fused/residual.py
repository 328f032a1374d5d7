"""Bi-Real blocks: BatchNorm, both shortcuts and RPReLU are in the convolution's pass over its output."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from binarize_cli.binarize.blocks import BiRealBlock, RPReLU
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
        y = self._convolve("first", self.conv1, self.bn1, self.gain1, self.act1, x, past)
        return self._convolve("second", self.conv2, self.bn2, self.gain2, self.act2, y, y, past)

    def _runs_fused(self, x: Tensor) -> bool:
        convs, norms = (self.conv1, self.conv2), (self.bn1, self.bn2)
        if not all(type(conv) is PopcountConv2d for conv in convs):
            return False
        if not all(type(norm) is nn.BatchNorm2d and norm.running_var is not None for norm in norms):
            return False
        return self.conv1.takes(x) and unobserved(x, (*convs, *norms, self.act1, self.act2))

    def _convolve(
        self, name: str, conv: Any, norm: Any, gain: Tensor, act: RPReLU, x: Tensor, *addends: Tensor
    ) -> Tensor:
        """act(norm(conv(x)) + gain * past + more)."""

        def make() -> tuple[kernels.Limits, kernels.PopcountConv]:
            after = kernels.Norm(*factor_and_shift(norm), gain, act.move_in, act.slope, act.move_out)
            return conv.kernel(margins, conv.bias, after)

        margins = conv.margins(x)
        tensors = [*tensors_of(conv), *tensors_of_norm(norm), gain, act.move_in, act.slope, act.move_out]
        limits, kernel = self._made.setdefault(name, Made()).of(tensors, margins, make)
        return apply_conv(limits, kernel, x, *addends)
