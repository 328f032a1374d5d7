"""Kernels for packed inputs by packed weights: XNOR and popcount, compiled at first use.

Importing this imports llvmlite, in a twentieth of a second; import it when a packed network is built.
"""

from binarize_cli.machine_code import when_compiling
from binarize_cli.packed.kernels.accumulator import Int8
from binarize_cli.packed.kernels.attention import (
    PackedColumns,
    mix_values,
    popcount_pairs,
    sign_sums,
    transposed_bits,
    weigh_signs,
)
from binarize_cli.packed.kernels.conv import PopcountConv, pack_kernels, unpack_kernels
from binarize_cli.packed.kernels.cpu import arithmetic
from binarize_cli.packed.kernels.geometry import Window
from binarize_cli.packed.kernels.int8 import Int8Linear, expand_signs, quantize
from binarize_cli.packed.kernels.linear import PopcountLinear
from binarize_cli.packed.kernels.matrix import Norm, PackedMatrix, matrix_of_bytes, pack_matrix, signs_of
from binarize_cli.packed.kernels.pack import Limits, pack_heads, pack_image, pack_signs

__all__ = [
    "Int8",
    "Int8Linear",
    "Limits",
    "Norm",
    "PackedColumns",
    "PackedMatrix",
    "PopcountConv",
    "PopcountLinear",
    "Window",
    "arithmetic",
    "expand_signs",
    "matrix_of_bytes",
    "mix_values",
    "pack_heads",
    "pack_image",
    "pack_kernels",
    "pack_matrix",
    "pack_signs",
    "popcount_pairs",
    "quantize",
    "sign_sums",
    "signs_of",
    "transposed_bits",
    "unpack_kernels",
    "weigh_signs",
    "when_compiling",
]
