"""Launching kernels: whether they take the work on a tensor, and how they divide it into programs."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from binarize_cli.binarize.fused.formulas import Formula
from binarize_cli.console import warn

BLOCK = 1024  # numbers of a program that goes over a tensor one by one
TILE = 1024  # numbers that a program of rows and columns has under way
PROGRAMS = 512  # of one launch that sums over rows: what its second step has to add up
PROGRAMS_ON_CPU = 64  # of which each core takes some
ON_CPU = (torch.float32, torch.bfloat16)


def fuses(x: Tensor) -> bool:
    """Return whether kernels take the work on x: Triton's on CUDA, and on a CPU numba's, in training.

    Not while torch.compile looks on: it makes kernels of the formulas by itself.
    """
    if x.is_cuda or torch.compiler.is_compiling():
        return fuses_on_cuda(x)
    plain = type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype in ON_CPU
    return plain and torch.is_grad_enabled()


def fuses_on_cuda(x: Tensor) -> bool:
    """Return whether Triton's kernels take the work on x."""
    return x.is_cuda and not torch.compiler.is_compiling() and triton_works()


@cache
def triton_works() -> bool:
    """Return whether Triton is here and adds up 100 + 100 and -5 + 3; warn, once, if it is here and fails.

    It needs a C compiler, for one, and compiles at first use.
    """
    if find_spec("triton") is None:
        return False
    parts = torch.tensor([[100.0, -5.0], [100.0, 3.0]], device="cuda")
    sums = torch.zeros(2, device="cuda")
    overflowed = torch.zeros(2, dtype=torch.bool, device="cuda")
    try:
        args = (parts, sums, overflowed, 2, 2)
        run_kernel("scan_tiles", (1,), args, {"WRAP": False, "SHIFT": 0, "BLOCK": BLOCK})
        found = sums.tolist(), overflowed.tolist()
        problem = "" if found == ([127.0, -2.0], [True, False]) else f"wrong sums {found}"
    except Exception as error:  # of any kind: Triton, the compiler and the driver raise their own
        problem = (str(error).splitlines() or [type(error).__name__])[0]
    if problem:
        warn(f"Triton does not work here ({problem}): binary inputs take many small kernels instead of few")
    return not problem


def launch(kernel: str, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Launch one of `triton_kernels` by name, with formulas among its constants; on a CPU, numba's twin."""
    if args[0].is_cuda:
        run_kernel(kernel, grid, args, constants)
        return
    from binarize_cli.binarize.fused import numba_kernels

    numba_kernels.run(kernel, args, constants)


def run_kernel(kernel: str, grid: tuple[int, ...], args: tuple, constants: dict[str, Any]) -> None:
    """Launch a kernel by Triton. A device that is pretended has something else in this place."""
    from binarize_cli.binarize.fused import triton_kernels

    ready = {k: v.in_triton if isinstance(v, Formula) else v for k, v in constants.items()}
    # Products are rounded before they are added, as in the formulas on a CPU.
    getattr(triton_kernels, kernel)[grid](*args, **ready, enable_fp_fusion=False)


def blocks(total: int) -> tuple[int]:
    """Return the grid of a kernel that goes over `total` numbers one by one."""
    return (-(-total // BLOCK),)


class Division(NamedTuple):
    """A tensor as a matrix of rows of channels, divided into programs that each sum over some rows."""

    rows: int
    channels: int
    grid: tuple[int, int]
    """Programs along the rows, and along the channels."""
    rows_each: int
    constants: dict[str, int]
    """ROWS and COLUMNS: what a program has under way."""


def by_rows(x: Tensor, most: int = PROGRAMS) -> Division:
    """Divide x [N, C, H, W] or [..., C] for sums over its rows, into `most` programs or not many more."""
    channels = channels_of(x)
    rows = x.numel() // channels
    columns = min(128, power_of_two(channels))
    height = TILE // columns
    across = -(-channels // columns)
    most = most if x.is_cuda else PROGRAMS_ON_CPU
    programs = min(-(-rows // height), max(1, most // across))
    each = -(-rows // (programs * height)) * height
    return Division(rows, channels, (-(-rows // each), across), each, {"ROWS": height, "COLUMNS": columns})


def power_of_two(least: int) -> int:
    """Return the smallest power of two that is not below `least`.

    >>> power_of_two(48), power_of_two(64)
    (64, 64)
    """
    return 1 << max(least - 1, 0).bit_length()


def dense(x: Tensor) -> Tensor:
    """Return images [N, C, H, W] with the channels innermost, other tensors contiguous; copied if needed."""
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)


def channels_of(x: Tensor) -> int:
    """Return the number of channels: axis 1 of images, the last one of tokens."""
    return x.shape[1 if x.dim() == 4 else -1]


def cast_to(x: Tensor) -> torch.dtype:
    """Return the type in which matrix products of x are taken: autocast's, or float32."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
