"""The kernels for binary inputs on a GPU, without one: by an interpreter, on a pretended device, compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from pretended_cuda import CUDA, pretended_cuda
from torch import nn

from binarize_cli.binarize.accumulator import AccumulatorRule
from binarize_cli.binarize.activations import LatentInput
from binarize_cli.binarize.blocks import RPReLU
from binarize_cli.binarize.float_accumulator import FloatAccumulator
from binarize_cli.binarize.fused.formulas import Formula, Unknown
from binarize_cli.binarize.fused.launch import by_rows, dense
from binarize_cli.binarize.layers import BinaryConv2d, BinaryLinear
from binarize_cli.binarize.phase import Moment
from binarize_cli.binarize.quantizer import ActivationQuantizer, WeightQuantizer
from binarize_cli.binarize.weights import LatentWeight
from binarize_cli.device import place
from binarize_cli.quantizers.methods import METHODS
from binarize_cli.quantizers.scales import SCALES

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_of(float_layer: nn.Module, mode: str, rule: AccumulatorRule | None = None, learned: bool = True):
    """Return a binary layer with binary inputs, some way into its schedule, and an input for it."""
    method = METHODS["bnn++"]
    inputs = ActivationQuantizer(method, method.schedules, method.normalize, 4.8)
    weights = WeightQuantizer(method, method.schedules, method.normalize, SCALES["channel"])
    for quantizer in (inputs, weights):
        quantizer.move_to(Moment(0.2, mode))
    kind = BinaryLinear if isinstance(float_layer, nn.Linear) else BinaryConv2d
    shape = (2, 3, 4, 150) if isinstance(float_layer, nn.Linear) else (2, float_layer.in_channels, 7, 6)
    x = draw(*shape)
    t = draw(x.shape[kind.axes[0]], seed=1) if learned else None
    made = LatentInput(inputs, kind.axes, t, torch.tensor(0.7) if learned else None, rule is not None)
    return kind(float_layer, LatentWeight(float_layer.weight, weights), made, FloatAccumulator(rule), 1), x


def gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the output and the gradients of the input and of every parameter, on the CPU."""
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 1, y.numel(), device=x.device).view(y.shape)).sum().backward()
    found = [y, x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]
    return [tensor.detach().cpu() for tensor in found]


@needs_triton
@pytest.mark.slow
def test_every_kernel_by_the_interpreter_writes_what_its_reference_does():
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE)}
    words = [sys.executable, "-W", "ignore", str(HERE / "interpreted.py")]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    from kernel_references import REFERENCES

    assert set(found) == {*REFERENCES, "elementwise"}
    assert found.pop("elementwise")[1] < 2e-4  # slopes of up to 150
    assert all(launches and worst < 2e-5 for launches, worst in found.values()), found


@needs_triton
@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu_that_is_not_there(tmp_path):
    """To machine code of compute capability 9.0, by Triton's own compiler and assembler."""
    words = [sys.executable, str(HERE / "compiled_for_gpu.py")]
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(HERE)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    from kernel_references import REFERENCES

    sizes = json.loads(done.stdout)
    assert set(sizes) == set(REFERENCES) and min(sizes.values()) > 1000, sizes


@needs_triton
def test_where_triton_fails_the_run_goes_on_without_it(monkeypatch, capsys):
    from binarize_cli.binarize.fused import launch

    def fail(*_):
        raise RuntimeError("Failed to find C compiler")

    works = launch.triton_works.__wrapped__
    with pretended_cuda():
        monkeypatch.setattr(launch, "run_kernel", fail)
        assert not works()
        monkeypatch.setattr(launch, "run_kernel", lambda *_: None)
        assert not works()
    said = capsys.readouterr().err
    assert "Failed to find C compiler" in said and "wrong sums" in said


LAYERS = {
    "linear": lambda: nn.Linear(150, 9),
    "linear without a bias": lambda: nn.Linear(150, 9, bias=False),
    "conv": lambda: nn.Conv2d(6, 5, 3, padding=1, bias=False),
    "conv, strided, with a bias": lambda: nn.Conv2d(6, 5, 3, stride=2, padding=1),
    "conv, grouped": lambda: nn.Conv2d(6, 4, 3, groups=2, bias=False),
}


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("rule", [None, AccumulatorRule("saturate"), AccumulatorRule("wrap", 1)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_on_the_device_computes_what_it_does_on_the_cpu(name, rule, mode):
    torch.manual_seed(0)
    layer, x = layer_of(LAYERS[name](), mode, rule)
    expected = gradients(layer, x)
    layer.zero_grad()
    with pretended_cuda() as gpu:
        found = gradients(layer.to("cuda"), x.to("cuda"))
    assert gpu.launches["input_forward"] == gpu.launches["input_backward"] == 1
    if rule and mode == "soft" and "grouped" in name:
        return  # real sums of tiles by cuDNN are rounded to two decimals, before they are shifted and wrapped
    for there, here in zip(found, expected, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("more", [False, True])
def test_rprelu_of_branches_on_the_device_is_that_of_the_cpu(more):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.gain = RPReLU(4), nn.Parameter(draw(4))
            for parameter in self.act.parameters():
                nn.init.normal_(parameter)

        def forward(self, x):
            return self.act.of_sum(x, self.gain, 2 * x, 3 * x if more else None)

    layer, x = Branches(), draw(2, 4, 3, 5)
    expected = gradients(layer, x)
    layer.zero_grad()
    with pretended_cuda() as gpu:
        found = gradients(layer.to("cuda"), x.to("cuda"))
    assert gpu.launches["rprelu_forward"] == gpu.launches["rprelu_backward"] == 1
    for there, here in zip(found, expected, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_a_binary_input_costs_four_launches_forward_and_five_backward_at_most(name):
    """Beside the product and its two gradients, and what computes the weights, which a bank does for all."""
    layer, x = layer_of(LAYERS[name](), "soft")
    x = x.flatten(0, 1) if name == "linear" else x
    with pretended_cuda() as gpu:
        layer, x = place(layer, CUDA), dense(x.to("cuda")).requires_grad_()
        layer.source.cache = {"signs_and_scale": tuple(t.detach() for t in layer.source.signs_and_scale())}
        gpu.forget()
        y = layer(x)
        forward = dict(gpu.launches)
        upstream = torch.ones_like(y)
        gpu.forget()
        y.backward(upstream)
    products = ("convolution", "mm", "addmm", "t", "convolution_backward")
    forward, backward = (
        {kernel: n for kernel, n in launches.items() if kernel not in products}
        for launches in (forward, gpu.launches)
    )
    assert sum(forward.values()) <= 4, forward
    assert sum(backward.values()) <= 5 + 2 * (name == "linear"), backward  # its bias takes the thresholds


def test_a_formula_that_no_kernel_knows_is_computed_operator_by_operator():
    import dataclasses

    method = dataclasses.replace(METHODS["bnn"], name="odd", backward=lambda x: torch.cumsum(x, 0))
    with pytest.raises(Unknown):
        Formula(ActivationQuantizer(method, {}, None, 4.8), "B").text  # noqa: B018
    layer, x = layer_of(nn.Linear(150, 9), "soft")
    layer.input.quantizer.method = method
    with pretended_cuda() as gpu:
        layer.to("cuda")(x.to("cuda"))
    assert not gpu.launches["input_forward"] and gpu.launches["sums_forward"] == 1


def test_rows_are_divided_so_that_none_is_left_out():
    for rows in (1, 7, 100, 5000, 2_000_000):
        for channels in (1, 16, 100, 192, 3072):
            by = by_rows(torch.empty(rows, channels, device="meta"))
            (down, across), each, tile = by.grid, by.rows_each, by.constants
            assert (by.rows, by.channels) == (rows, channels)
            assert down * each >= rows > (down - 1) * each and each % tile["ROWS"] == 0
            assert across * tile["COLUMNS"] >= channels
