"""The weights of a layer of a packed file: bits, and dense tensors of them for whoever asks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from binarize_cli.packed.bits import unpack


class PackedWeight(nn.Module):
    """Holds the bits; unpacks them to float32 when first asked, and keeps that for later.

    Unpacking anew in each forward pass was measured: a batch of one image takes 1.1 (DeiT-Tiny) to 1.5 times
    (ResNet-20) as long, one of 32 images 1.02 to 1.05 times.
    """

    bits: Tensor
    scale: Tensor

    def __init__(self, bits: Tensor, scale: Tensor, shape: tuple[int, ...]):
        super().__init__()
        # Not in the state dict: that holds what the file stores under the library's own names.
        self.register_buffer("bits", bits, persistent=False)  # uint8 [out, ceil(K / 8)]
        self.register_buffer("scale", scale, persistent=False)  # [out]
        self.shape = shape
        self._kept: dict[str, Tensor] = {}

    def signs_and_scale(self) -> tuple[Tensor, Tensor]:
        """Return the signs in float32, shaped as the weights, and the scale [out]."""
        return self._keep("signs", self._signs), self.scale

    def forward(self) -> Tensor:  # [out, ...]
        return self._keep("weights", self._weights)

    def _keep(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        if name not in self._kept or self._kept[name].device != self.scale.device:
            self._kept[name] = compute()
        return self._kept[name]

    def _signs(self) -> Tensor:
        return torch.from_numpy(unpack(self.bits.cpu().numpy(), self.shape)).to(self.scale)

    def _weights(self) -> Tensor:
        dense = self._signs() * self.scale.view(-1, *[1] * (len(self.shape) - 1))
        # The layout of all other convolutions: with another one the last bit of a sum may differ.
        # (`contiguous` leaves the strides of a single input channel as they are; `to` does not.)
        return dense.to(memory_format=torch.channels_last) if dense.dim() == 4 else dense
