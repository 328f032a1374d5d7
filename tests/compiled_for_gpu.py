"""The kernels of `binarize/fused` compiled for a GPU of compute capability 9.0, which need not be there.

`python tests/compiled_for_gpu.py` takes the layers of `interpreted` forwards and backwards on a pretended
device and compiles every kernel for the arguments that it is launched with. Prints the bytes of machine code.
"""

from __future__ import annotations

import json
from typing import Any

import interpreted
import kernel_references
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from binarize_cli.binarize.fused import triton_kernels
from binarize_cli.binarize.fused.formulas import Formula

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.bool: "*i1"}
reference = kernel_references.run
sizes: dict[str, int] = {}
known: set[str] = set()


def compile_too(kernel: str, grid: tuple[int, ...], args: list, constants: dict[str, Any]) -> None:
    """Compile a kernel for these arguments; write what its reference writes."""
    function = getattr(triton_kernels, kernel)
    ready = {k: v.in_triton if isinstance(v, Formula) else v for k, v in constants.items()}
    types = [TYPES[arg.dtype] if isinstance(arg, Tensor) else "i32" for arg in args]
    if f"{kernel} {types}" not in known:
        known.add(f"{kernel} {types}")
        signature = dict(zip(function.arg_names, types, strict=False)) | dict.fromkeys(ready, "constexpr")
        values = {(function.arg_names.index(name),): value for name, value in ready.items()}
        source = ASTSource(function, signature, constexprs=values)
        options = {"enable_fp_fusion": False}
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        sizes[kernel] = len(made.asm["cubin"])
    reference(kernel, grid, args, constants)


if __name__ == "__main__":
    kernel_references.run = compile_too
    interpreted.layers()
    interpreted.branches()
    print(json.dumps(sizes))
