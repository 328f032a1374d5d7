"""The weights of a layer that computes on bits: the bits once, laid out as the kernels read them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from binarize_cli.packed import kernels
from binarize_cli.packed.bits import pack, unpack
from binarize_cli.packed.packed_weight import PackedWeight


class PopcountWeight(PackedWeight):
    """A `PackedWeight` without the file's bits, which it makes of the kernels' if it is asked for them."""

    blocks: Tensor

    def __init__(self, source: PackedWeight, window: kernels.Window | None):
        nn.Module.__init__(self)
        groups = window.groups if window else 1
        self.window, self.shape = window, source.shape
        self.outputs, self.length = source.shape[0] // groups, int(np.prod(source.shape[1:]))
        bits = source.bits.numpy()
        if window:
            blocks = kernels.pack_kernels(unpack(bits, source.shape), window).blocks
        else:
            blocks = kernels.matrix_of_bytes(bits, self.length).blocks
        self.register_buffer("blocks", blocks, persistent=False)
        self.register_buffer("scale", source.scale, persistent=False)
        self._kept = {}

    @property
    def matrix(self) -> kernels.PackedMatrix:
        """The bits as the kernels take them."""
        return kernels.PackedMatrix(self.blocks, self.outputs, self.length)

    @property
    def bits(self) -> Tensor:  # type: ignore[override]
        """The bits as files hold them: uint8 [out, ceil(K / 8)]."""
        return torch.from_numpy(pack(self._int8_signs()))

    def _signs(self) -> Tensor:
        return torch.from_numpy(self._int8_signs()).to(self.scale)

    def _int8_signs(self) -> np.ndarray:
        if self.window:
            return kernels.unpack_kernels(self.matrix, self.window)
        return kernels.signs_of(self.matrix).reshape(self.shape)
