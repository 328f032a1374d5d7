"""The kernels of `binarize/fused` by Triton's interpreter, on a CPU, held to their references.

`TRITON_INTERPRET=1 python tests/interpreted.py` takes layers of several shapes forwards and backwards on a
pretended device, where every launch is done twice: by the kernel and by `kernel_references`. Prints each
kernel's launches and the largest difference, in multiples of the largest number. Apart from the other tests,
since Triton decides as it is imported whether it interprets.
"""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import product
from typing import Any

import kernel_references
import torch
from pretended_cuda import pretended_cuda
from torch import Tensor, nn

from binarize_cli.binarize.accumulator import AccumulatorRule
from binarize_cli.binarize.activations import LatentInput
from binarize_cli.binarize.blocks import RPReLU
from binarize_cli.binarize.float_accumulator import FloatAccumulator
from binarize_cli.binarize.fused import triton_kernels
from binarize_cli.binarize.fused.formulas import NUMBERS, Formula, formula_of
from binarize_cli.binarize.layers import BinaryConv2d, BinaryLinear
from binarize_cli.binarize.phase import Moment
from binarize_cli.binarize.quantizer import ActivationQuantizer, WeightQuantizer
from binarize_cli.binarize.weights import LatentWeight
from binarize_cli.quantizers.compose import compose
from binarize_cli.quantizers.methods import METHODS
from binarize_cli.quantizers.parts import MAPS, TRANSFORMS
from binarize_cli.quantizers.scales import SCALES

found: dict[str, list[float]] = defaultdict(list)
reference = kernel_references.run


def both(kernel: str, grid: tuple[int, ...], args: list, constants: dict[str, Any]) -> None:
    """Write what the reference writes; note how far the kernel, on copies, is from it."""
    copies = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
    ready = {k: v.in_triton if isinstance(v, Formula) else v for k, v in constants.items()}
    function = getattr(triton_kernels, kernel)
    function[grid](*copies, **ready)
    reference(kernel, grid, args, constants)
    for name, expected, written in zip(function.arg_names, args, copies, strict=False):
        if isinstance(expected, Tensor):
            if name == "partial":
                expected, written = expected.sum(0), written.sum(0)
            found[kernel].append(distance(written, expected))


def distance(written: Tensor, expected: Tensor, least: float = 1e-3) -> float:
    """Return the largest difference over the largest magnitude, beyond what rounding to bfloat16 explains."""
    allowed = 2**-7 if expected.dtype == torch.bfloat16 else 0.0
    written, expected = written.float(), expected.float()
    off = (written - expected).abs() - allowed * expected.abs()
    return max(float(off.max()), 0.0) / max(float(expected.abs().max()), least)


def formulas() -> None:
    """Check F and B of every method, and of every pair that can be composed."""
    trained = [method for method in METHODS.values() if method.binary and method.trains]
    trained += [compose(p, t) for p, t in product(MAPS, TRANSFORMS)]
    for method, progress, mode, which in product(trained, (0.3, 1.0), ("soft", "hard"), "FB"):
        quantizer = ActivationQuantizer(method, method.schedules, method.normalize, 4.8)
        quantizer.move_to(Moment(progress, mode))
        formula = formula_of(quantizer, which)
        assert formula, f"{which} of {method.title} is no kernel's"
        x = torch.randn(256)
        x[:3] = torch.tensor([0.0, -0.0, 1.0])
        written, numbers = torch.empty_like(x), list(quantizer.values.values())
        numbers += [torch.ones(())] * (len(NUMBERS) - len(numbers))
        triton_kernels.elementwise[(1,)](x, written, *numbers, FORMULA=formula.in_triton, BLOCK=256)
        found["elementwise"].append(distance(written, getattr(quantizer, which)(x), least=1.0))


def layers() -> None:
    """Take layers of several shapes forwards and backwards."""
    rules = (None, AccumulatorRule("saturate", 1), AccumulatorRule("wrap"))
    for rule, mode, learned, dtype in product(rules, ("soft", "hard"), (True, False), FLOATS):
        method = METHODS["bnn++"]
        inputs = ActivationQuantizer(method, method.schedules, method.normalize if learned else None, 4.8)
        weights = WeightQuantizer(method, method.schedules, method.normalize, SCALES["channel"])
        for quantizer in (inputs, weights):
            quantizer.move_to(Moment(0.2, mode))
        for float_layer, x, pad in (
            (nn.Linear(150, 9), torch.randn(2, 3, 150), 0),
            (nn.Conv2d(9, 5, 3, stride=2, padding=1, bias=False), torch.randn(2, 9, 7, 6), 1),
            (nn.Conv2d(70, 130, 1), torch.randn(2, 70, 5, 4), 0),
        ):
            kind = BinaryLinear if isinstance(float_layer, nn.Linear) else BinaryConv2d
            t = torch.randn(x.shape[kind.axes[0]]) if learned else None
            scale = torch.tensor(0.7) if learned else None
            made = LatentInput(inputs, kind.axes, t, scale, rule is not None)
            source = LatentWeight(float_layer.weight, weights)
            layer = kind(float_layer, source, made, FloatAccumulator(rule), pad)
            backward(layer, x, dtype)


FLOATS = (torch.float32, torch.bfloat16)


def backward(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    """Take a step of a layer on a pretended device."""
    with pretended_cuda():
        layer, x = layer.to("cuda"), x.to("cuda").requires_grad_()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            y = layer(x)
        y.float().square().sum().backward()


def branches() -> None:
    """Check RPReLU of sums, of images that lie in either way."""

    class Sum(nn.Module):
        def __init__(self, more: bool):
            super().__init__()
            self.act, self.gain, self.more = RPReLU(70), nn.Parameter(torch.randn(70)), more
            for parameter in self.act.parameters():
                nn.init.normal_(parameter)

        def forward(self, x: Tensor) -> Tensor:
            return self.act.of_sum(x, self.gain, x * 2, x * 3 if self.more else None)

    for more, dtype in product((False, True), FLOATS):
        backward(Sum(more), torch.randn(2, 70, 5, 3).to(dtype), dtype)


if __name__ == "__main__":
    torch.manual_seed(0)
    kernel_references.run = both
    formulas()
    layers()
    branches()
    print(json.dumps({kernel: [len(each), max(each)] for kernel, each in sorted(found.items())}))
