"""The kernels of packed networks against plain NumPy, to the bit."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from binarize_cli.packed import kernels
from binarize_cli.packed.kernels.geometry import plan
from binarize_cli.packed.kernels.softmax import exponentials, maximum
from binarize_cli.threads import in_parts

QUICK = settings(max_examples=60, deadline=None)

RULES = st.one_of(
    st.none(), st.builds(kernels.Int8, st.sampled_from(["saturate", "wrap"]), st.integers(0, 6))
)
# Of inputs and of weights: signs that are random, mostly or all alike (so that sums overflow at once, upwards
# if both lean to one side, else downwards), or in long runs (sums that go from one end to the other).
LEANINGS = st.tuples(*[st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0, "runs"])] * 2)


def signs(rng: np.random.Generator, shape: tuple[int, ...], leaning: float | str) -> np.ndarray:
    """+-1 as int64."""
    if leaning == "runs":
        period = int(rng.integers(40, 200))
        return np.where(np.arange(math.prod(shape)).reshape(shape) // period % 2, 1, -1)
    return np.where(rng.random(shape) < leaning, 1, -1)


def accumulated(products: np.ndarray, rule: kernels.Int8 | None) -> np.ndarray:
    """Sum the last axis as the accumulator does, tile by tile, in plain integers."""
    if rule is None:
        return products.sum(-1)
    total = np.zeros(products.shape[:-1], np.int64)
    for start in range(0, products.shape[-1], 64):
        part = products[..., start : start + 64].sum(-1)
        total = total + ((part + (2**rule.shift) // 2) >> rule.shift)
        total = total.clip(-128, 127) if rule.overflow == "saturate" else (total + 128) % 256 - 128
    return total * 2**rule.shift


def no_limits(*shape: int) -> kernels.Limits:
    return kernels.Limits.of_threshold(torch.zeros(shape))


def packed(values: np.ndarray) -> torch.Tensor:
    """+-1 [..., K] -> int64 [rows, words]."""
    return kernels.pack_signs(torch.from_numpy(values.astype(np.float32)), no_limits(values.shape[-1]))


def unpacked(bits: torch.Tensor, length: int) -> np.ndarray:
    """int64 [..., words] -> bool [..., length]; the padding must be 0."""
    every = np.unpackbits(bits.numpy().view(np.uint8), axis=-1, bitorder="little").astype(bool)
    assert not every[..., length:].any()
    return every[..., :length]


@QUICK
@given(st.integers(1, 9), st.integers(1, 210), st.integers(0, 2**32 - 1))
def test_packing_is_the_sign_of_the_difference(rows, length, seed):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, length)) * 10.0 ** rng.integers(-44, 3, (rows, length))).astype(
        np.float32
    )
    t = np.where(rng.random(length) < 0.5, x[0], rng.standard_normal(length)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = -0.0
    x = torch.from_numpy(x)
    bits = kernels.pack_signs(x, kernels.Limits.of_threshold(torch.from_numpy(t)))
    assert (unpacked(bits, length) == (x - torch.from_numpy(t) >= 0).numpy()).all()


@QUICK
@given(
    st.integers(1, 3),
    *[st.integers(1, 6)] * 2,
    st.integers(1, 140),
    st.permutations(range(4)),
    st.integers(1, 3),
)
def test_packing_reads_numbers_wherever_they_lie(n, heads, rows, depth, order, step):
    torch.manual_seed(depth)
    sizes = torch.tensor([n, heads, rows, step * depth])[list(order)].tolist()
    x = torch.randn(sizes).permute(*np.argsort(order).tolist())[..., ::step]  # [n, heads, rows, depth]
    t = torch.randn(heads, depth)
    expected = (x - t[:, None] >= 0).numpy()
    assert (unpacked(kernels.pack_heads(x, kernels.Limits.of_threshold(t)), depth) == expected).all()
    one = kernels.pack_signs(x[:, 0], kernels.Limits.of_threshold(t[0]))
    assert (unpacked(one, depth).reshape(n, rows, depth) == expected[:, 0]).all()
    image = x.permute(0, 3, 2, 1)  # [n, depth, rows, heads]
    bits = kernels.pack_image(image, kernels.Limits.of_threshold(t[0]), kernels.Window(depth, (1, 1)))
    assert (unpacked(bits, depth) == (image.permute(0, 2, 3, 1) - t[0] >= 0).numpy()).all()


@QUICK
@given(
    st.integers(1, 11), st.integers(1, 300), st.integers(1, 75), LEANINGS, RULES, st.integers(0, 2**32 - 1)
)
def test_linear(rows, length, outputs, leaning, rule, seed):
    rng = np.random.default_rng(seed)
    x, w = signs(rng, (rows, length), leaning[0]), signs(rng, (outputs, length), leaning[1])
    sums = accumulated(x[:, None] * w, rule)
    scale, bias = rng.standard_normal((2, outputs)).astype(np.float32)
    past = rng.standard_normal((rows, outputs)).astype(np.float32)
    expected = sums.astype(np.float32) * scale + bias
    layer = kernels.PopcountLinear(kernels.pack_matrix(w), *map(torch.from_numpy, (scale, bias)), rule)
    assert (layer(packed(x)).numpy() == expected).all()
    assert (layer(packed(x), torch.from_numpy(past)).numpy() == expected + past).all()
    limits = kernels.Limits(torch.full((outputs,), 1.0), torch.full((outputs,), -2.0))
    signed = kernels.PopcountLinear(layer.matrix, *map(torch.from_numpy, (scale, bias)), rule, limits)
    assert (unpacked(signed(packed(x)), outputs) == ((expected >= 1) | (expected <= -2))).all()


def patches(x: np.ndarray, window: kernels.Window) -> np.ndarray:
    """Padded [N, C, H, W] -> [N, H', W', groups, products], in the order of the window; plain loops."""
    (kh, kw), (sy, sx), (dy, dx) = window.kernel, window.stride, window.dilation
    count, _, height, width = x.shape
    high, wide = (height - dy * (kh - 1) - 1) // sy + 1, (width - dx * (kw - 1) - 1) // sx + 1
    out = np.empty((count, high, wide, window.groups, window.length), x.dtype)
    for row in range(high):
        for column in range(wide):
            top, left = row * sy, column * sx
            seen = x[:, :, top : top + dy * kh : dy, left : left + dx * kw : dx][:, :, :kh, :kw]
            seen = seen.reshape(count, window.groups, -1, kh, kw)
            seen = seen.transpose(0, 1, 3, 4, 2) if window.order == "pixel" else seen
            out[:, row, column] = seen.reshape(count, window.groups, -1)
    return out


@st.composite
def windows(draw) -> tuple[kernels.Window, tuple[int, int]]:
    """A window and the size of an image that it fits."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    groups, depth = draw(
        st.sampled_from([(1, 3), (1, 16), (1, 32), (1, 64), (1, 70), (2, 8), (3, 64), (5, 1)])
    )
    margins = draw(st.tuples(*[st.integers(0, 2)] * 4))
    low = [max(1, d * (k - 1) + 1) for k, d in zip(kernel, dilation, strict=True)]
    size = tuple(draw(st.integers(least, least + 5)) for least in low)
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pad, order = draw(st.sampled_from([0, 1, -1])), draw(st.sampled_from(["pixel", "channel"]))
    return kernels.Window(groups * depth, kernel, stride, dilation, groups, margins, pad, order), size


@settings(max_examples=120, deadline=None)
@given(
    windows(),
    st.integers(1, 3),
    st.integers(1, 20),
    LEANINGS,
    RULES,
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_convolution(case, count, each, leaning, rule, last, seed):
    window, size = case
    rng = np.random.default_rng(seed)
    outputs = each * window.groups
    x = signs(rng, (count, window.channels, *size), leaning[0])
    w = signs(rng, (outputs, window.depth, *window.kernel), leaning[1])
    scale, bias = rng.standard_normal((2, outputs)).astype(np.float32)
    conv = kernels.PopcountConv(
        window, kernels.pack_kernels(w, window), *map(torch.from_numpy, (scale, bias)), rule
    )
    image = torch.from_numpy(x.astype(np.float32))
    image = image.to(memory_format=torch.channels_last) if last else image
    y = conv(kernels.pack_image(image, no_limits(window.channels), window), size)

    left, right, top, bottom = window.margins
    around = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=window.pad)
    rows = w.transpose(0, 2, 3, 1) if window.order == "pixel" else w
    rows = rows.reshape(window.groups, each, window.length)
    sums = accumulated(patches(around, window)[..., None, :] * rows, rule)  # [N, H', W', groups, each]
    expected = sums.reshape(*sums.shape[:3], -1).astype(np.float32) * scale + bias
    assert (y.permute(0, 2, 3, 1).numpy() == expected).all()


def test_a_convolution_goes_on_with_batchnorm_shortcut_and_rprelu():
    torch.manual_seed(0)
    window = kernels.Window(16, (3, 3), margins=(1, 1, 1, 1))
    x, past = torch.randn(2, 16, 6, 7), torch.randn(2, 12, 6, 7)
    w = torch.randn(12, 16, 3, 3).sign()
    scale, norm_scale, shift, gain, move_in, slope, move_out = torch.randn(7, 12)
    after = kernels.Norm(norm_scale, shift, gain, move_in, slope, move_out)
    conv = kernels.PopcountConv(window, kernels.pack_kernels(w.numpy(), window), scale, None, None, after)
    y = conv(kernels.pack_image(x, no_limits(16), window), (6, 7), past)

    def channels(t):
        return t.view(-1, 1, 1)

    expected = F.conv2d(torch.where(x >= 0, 1.0, -1.0), w, padding=1) * channels(scale)
    expected = expected * channels(norm_scale) + channels(shift) + channels(gain) * past
    expected = F.prelu(expected - channels(move_in), slope) + channels(move_out)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-5)


@QUICK
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70), st.integers(1, 140), LEANINGS, RULES)
def test_pairs(count, rows, columns, length, leaning, rule):
    rng = np.random.default_rng(rows * columns * length)
    left = signs(rng, (count, rows, length), leaning[0])
    right = signs(rng, (count, columns, length), leaning[1])
    bias = rng.standard_normal((count, columns)).astype(np.float32)
    sides = packed(left).view(count, rows, -1), packed(right).view(count, columns, -1)
    factor = kernels.PackedColumns(sides[1], length, 0.5, torch.from_numpy(bias), rule)
    expected = accumulated(left[:, :, None] * right[:, None], rule).astype(np.float32)
    assert (
        kernels.popcount_pairs(sides[0], factor).numpy() == expected * np.float32(0.5) + bias[:, None]
    ).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2), st.integers(20, 140), st.integers(8, 70), LEANINGS, RULES, RULES)
def test_attention_of_signs(n, length, depth, leaning, of_scores, of_values):
    torch.manual_seed(depth)
    heads = 3
    rng = np.random.default_rng(length)
    q, k = (torch.from_numpy(signs(rng, (n, heads, length, depth), one)).float() for one in leaning)
    v = torch.randn(n, heads, length, depth)
    t = torch.tensor([0.913, 1.037, 1.171]) / length
    limits = no_limits(heads, depth)
    bits = [kernels.pack_heads(x, limits) for x in (q, k, v)]
    turned = kernels.transposed_bits(bits[2].flatten(0, 1), depth)
    columns = kernels.PackedColumns(bits[1].flatten(0, 1), depth, 1.0, None, of_scores)
    values = kernels.PackedColumns(turned, length, 1.0, None, of_values)
    weights, doubts = kernels.weigh_signs(bits[0], columns, depth**-0.5, t)
    addend = torch.randn(heads, depth)
    y = kernels.mix_values(weights, values, heads, addend)

    q, k, v = (torch.where(x >= 0, 1, -1).numpy() for x in (q, k, v))
    scores = accumulated(q[..., :, None, :] * k[..., None, :, :], of_scores) * depth**-0.5
    p = torch.from_numpy(scores).softmax(-1) - t.view(-1, 1, 1)
    sure = (p.abs() > 1e-7).all(-1).numpy()
    near = (p.abs() < 1e-6 * t.view(-1, 1, 1)).any(-1).flatten(0, 1)
    assert doubts[near].all(), "whoever is near the threshold is in doubt"
    if leaning == (0.5, 0.5) and depth >= 64 and of_scores is None:
        assert doubts.float().mean() < 0.05 and sure.mean() > 0.9
    mixed = accumulated(
        np.where(p >= 0, 1, -1)[..., :, None, :] * v.swapaxes(2, 3)[..., None, :, :], of_values
    )
    mixed = mixed.astype(np.float32) + addend[:, None].numpy()
    rows = sure.swapaxes(1, 2).repeat(depth, axis=-1)  # [n, length, heads * depth]
    assert (y.numpy() == mixed.swapaxes(1, 2).reshape(n, length, -1))[rows].all()


def test_sums_of_signs_by_factors():
    torch.manual_seed(0)
    x, factors = torch.randn(2, 3, 5, 70), torch.randn(3, 70)
    sums = kernels.sign_sums(kernels.pack_heads(x, no_limits(3, 70)), factors)
    expected = (torch.where(x >= 0, 1.0, -1.0) * factors[:, None]).sum(-1)
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)


def test_exponentials_are_exact_to_a_unit_in_the_last_place():
    x = np.linspace(-80, 0, 10_001, dtype=np.float32)
    e = x.copy()
    total = exponentials(e, np.float32(1))
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(e - exact) / exact).max() < 2e-7
    assert total == pytest.approx(exact.sum(), rel=1e-6)


@QUICK
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=70))
def test_the_largest_number_of_a_row(numbers):
    assert maximum(np.array(numbers, np.float32)) == max(numbers)


@QUICK
@given(st.integers(1, 9), st.integers(2, 150), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_int8_inputs(rows, length, outputs, seed):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((rows, length)).astype(np.float32))
    x[rng.integers(rows)] = 0
    w, scale = signs(rng, (outputs, length), 0.5), torch.rand(outputs)
    numbers, steps = kernels.quantize(x)
    assert numbers.abs().amax() <= 127
    assert ((numbers * steps[:, None] - x).abs() <= steps[:, None] * 0.5001).all()
    bits = torch.from_numpy(np.packbits(w > 0, axis=1, bitorder="little"))
    assert (kernels.expand_signs(bits, length).numpy() == w).all()
    y = kernels.Int8Linear(bits, length, scale)(x)
    sums = numbers.numpy().astype(np.int64) @ w.T
    expected = sums.astype(np.float32) * steps.numpy()[:, None] * scale.numpy()
    assert (y.numpy() == expected).all()


def test_threads_share_the_rows(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    parts: list[tuple[int, int]] = []
    in_parts(lambda first, last: parts.append((first, last)), 22, 10**9, 4)
    assert sorted(parts) == [(0, 8), (8, 16), (16, 22)]
    parts.clear()
    in_parts(lambda first, last: parts.append((first, last)), 22, 10, 4)
    assert parts == [(0, 22)]


@pytest.mark.parametrize("count", [1, 4])
def test_results_do_not_depend_on_threads(monkeypatch, count):
    rng = np.random.default_rng(0)
    window = kernels.Window(64, (3, 3), margins=(1, 1, 1, 1))
    w, x = signs(rng, (64, 64, 3, 3), 0.5), torch.randn(count, 64, 33, 31)
    conv = kernels.PopcountConv(window, kernels.pack_kernels(w, window), torch.ones(64))

    def result(threads: int) -> torch.Tensor:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        return conv(kernels.pack_image(x, no_limits(64), window), (33, 31))

    assert (result(1) == result(3)).all()


def test_a_plan_is_made_once_for_a_size():
    window = kernels.Window(16, (3, 3), margins=(1, 1, 1, 1))
    assert plan(window, 8, 8) is plan(kernels.Window(16, (3, 3), margins=(1, 1, 1, 1)), 8, 8)


def run_alone(**environment: str) -> subprocess.CompletedProcess:
    """Pack in a process of its own; it says `compiling` on stderr if it compiles."""
    program = (
        "import sys, torch; from binarize_cli.packed import kernels as k;"
        "k.when_compiling(lambda: print('compiling', file=sys.stderr));"
        "print(int(k.pack_signs(torch.ones(1, 3), k.Limits.of_threshold(torch.zeros(3)))))"
    )
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True
    )


def test_compiled_code_is_found_again_on_disk(tmp_path):
    first, second = (run_alone(NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert (first.stdout, first.stderr.count("compiling")) == ("7\n", 1)
    assert (second.stdout, second.stderr.count("compiling")) == ("7\n", 0)


def test_no_place_for_compiled_code_is_no_obstacle(tmp_path):
    (tmp_path / "file").touch()
    done = run_alone(NUMBA_CACHE_DIR=str(tmp_path / "file"))
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr
