"""The kernels for binary inputs on a CPU: what they write, and what they keep for the backward pass."""

from __future__ import annotations

import inspect
from contextlib import contextmanager

import kernel_references
import pytest
import torch
from test_fused import LAYERS, draw, gradients, layer_of
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from binarize_cli import threads
from binarize_cli.binarize.accumulator import AccumulatorRule
from binarize_cli.binarize.blocks import RPReLU, rewrite_blocks
from binarize_cli.binarize.fused import numba_kernels
from binarize_cli.binarize.fused.formulas import Formula, formula_of
from binarize_cli.binarize.fused.numba_math import compiled_formula
from binarize_cli.binarize.phase import Moment
from binarize_cli.binarize.quantizer import ActivationQuantizer
from binarize_cli.models.cifar_resnet import BasicBlock
from binarize_cli.quantizers.compose import compose
from binarize_cli.quantizers.methods import METHODS
from binarize_cli.quantizers.parts import MAPS, TRANSFORMS


class Branches(nn.Module):
    """RPReLU of a sum of branches, none of its parameters at zero."""

    def __init__(self, more: bool):
        super().__init__()
        self.act, self.gain, self.more = RPReLU(6), nn.Parameter(draw(6)), more
        for seed, parameter in enumerate(self.act.parameters()):
            parameter.data = draw(6, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.act.of_sum(x, self.gain, 2 * x, 3 * x if self.more else None)


def cases() -> list[tuple[nn.Module, Tensor]]:
    """Return layers of several shapes, in both phases, with inputs; one of more than a row of numbers."""
    torch.manual_seed(0)
    rules = None, AccumulatorRule("wrap", 1)
    made = [
        layer_of(LAYERS[name](), mode, rule) for name in LAYERS for mode in ("soft", "hard") for rule in rules
    ]
    return [*made, (Branches(False), draw(3, 6, 9, 11)), (Branches(True), draw(1, 6, 1, 1))]


@pytest.fixture
def unfused(monkeypatch):
    """Return a context in which layers compute operator by operator, with the gradients of autograd."""

    @contextmanager
    def unfused():
        with monkeypatch.context() as patch:
            for place in ("layers", "activations", "blocks"):
                patch.setattr(f"binarize_cli.binarize.{place}.fuses", lambda x: False)
            yield

    return unfused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_what_its_operators_do_with_autograds_gradients(dtype, unfused):
    for layer, x in cases():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            found = gradients(layer, x)
            layer.zero_grad()
            with unfused():
                expected = gradients(layer, x)
        for one, other in zip(found, expected, strict=True):
            close = 1e-4 if dtype == torch.float32 else 3e-2
            torch.testing.assert_close(one, other, rtol=close, atol=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kernel_writes_what_its_reference_does(dtype, monkeypatch):
    run, seen = numba_kernels.run, set()

    def both(kernel, args, constants):
        expected = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
        kernel_references.run(kernel, (1,), expected, constants)
        run(kernel, args, constants)
        seen.add(kernel)
        names = inspect.signature(numba_kernels.KERNELS[kernel]).parameters
        for name, one, other in zip(names, args, expected, strict=False):
            if isinstance(one, Tensor):
                if name == "partial":  # the sums of programs are divided otherwise
                    one, other = one.sum(0), other.sum(0)
                close = 2e-5 if one.dtype == torch.float32 else 2**-7
                torch.testing.assert_close(one, other, rtol=close, atol=close, msg=f"{kernel} {name}")

    monkeypatch.setattr(numba_kernels, "run", both)
    for layer, x in cases():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            gradients(layer, x.to(dtype) if isinstance(layer, Branches) else x)
    assert seen == set(numba_kernels.KERNELS)


def test_sums_do_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    layer, x = Branches(True), draw(40, 6, 9, 11)
    alone = gradients(layer, x)
    layer.zero_grad()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(map(torch.equal, gradients(layer, x), alone))


def differs(method, mode: str, which: str) -> float:
    """Return how far F or B of a method, compiled, is from PyTorch's, in multiples of its largest value.

    Where that is 0, of its largest parameter, a factor of B: a saturated tanh is 1 but for a last bit.
    """
    quantizer = ActivationQuantizer(method, method.schedules, method.normalize, 4.8)
    quantizer.move_to(Moment(0.5, mode))
    formula = formula_of(quantizer, which)
    assert isinstance(formula, Formula)
    numbers = [*quantizer.values.values(), *[torch.zeros(())] * 4][:4]
    x = torch.cat([torch.linspace(-12, 12, 401), draw(300) / 3, torch.tensor([0.0, -0.0, 1e-30, -1e30])])
    function, values = compiled_formula(formula.text), [numba_kernels.f32(each) for each in numbers]
    found = torch.tensor([float(function(numba_kernels.f32(each), *values)) for each in x.tolist()])
    expected = formula(x, *numbers)
    largest = expected.abs().max()
    return float((found - expected).abs().max() / (largest if largest > 0 else max(1e-3, *numbers)))


@pytest.mark.parametrize("method", ["bnn++", "bnn", "pc"])
def test_formulas_are_those_of_pytorch(method):
    for mode in ("soft", "hard"):
        assert max(differs(METHODS[method], mode, which) for which in "FB") < 1e-5


@pytest.mark.slow
def test_all_formulas_are_those_of_pytorch():
    methods = [method for method in METHODS.values() if method.backward]
    methods += [compose(a, b) for a in MAPS for b in TRANSFORMS]
    for method in methods:
        assert max(differs(method, "soft", which) for which in "FB") < 1e-4, method.name


def saved_bytes(block: nn.Module, x: Tensor) -> int:
    """Return what a forward pass keeps for the backward pass, each memory once."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("rule,most", [(None, 1.65), (AccumulatorRule("saturate"), 2.25)])
def test_a_block_keeps_little_more_for_the_backward_pass_than_the_float_one(rule, most):
    block, x = BasicBlock(16, 16, 1), draw(4, 16, 32, 32)
    of_float = saved_bytes(block, x)
    binary = rewrite_blocks(nn.Sequential(block))[0]
    for name in ("conv1", "conv2"):
        layer, _ = layer_of(binary.get_submodule(name), "soft", rule)
        layer.pad_value = 0
        setattr(binary, name, layer)
    assert saved_bytes(binary, x.requires_grad_()) < most * of_float
