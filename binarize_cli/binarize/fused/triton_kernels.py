"""The kernels themselves, in Triton. Tensors are rows of channels, dense, with the channels innermost.

Every sum over rows is taken in two steps, so that it comes out the same every time: a program writes the sum
of its rows, and one more launch adds those up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from binarize_cli.binarize.fused.triton_math import at_least, block_of, columns_of, rows_of


@triton.jit
def elementwise(x, out, p0, p1, p2, p3, FORMULA: tl.constexpr, BLOCK: tl.constexpr):
    """Write a formula of one block of numbers: for tests."""
    at = tl.arange(0, BLOCK)
    v0, v1, v2, v3 = tl.load(p0), tl.load(p1), tl.load(p2), tl.load(p3)
    tl.store(out + at, FORMULA(tl.load(x + at), v0, v1, v2, v3))


@triton.jit
def units(
    scale,
    typical,
    p0,
    p1,
    p2,
    p3,
    F: tl.constexpr,
    MULTIPLE: tl.constexpr,
    LEARNED: tl.constexpr,
    TINY: tl.constexpr,
    GRID: tl.constexpr,
):
    """Return n and 1 / mean |F| of Gaussian inputs; see ActivationQuantizer."""
    beta = tl.full([], 1.0, tl.float32)
    if LEARNED:
        beta = tl.load(scale).to(tl.float32)
    n = tl.full([], 1.0, tl.float32)
    if MULTIPLE > 0:
        n = beta * MULTIPLE
    per_sign = tl.full([], 1.0, tl.float32)
    if LEARNED:
        grid = tl.load(typical + tl.arange(0, GRID)) * (beta / n)
        spread = tl.sum(tl.abs(F(grid, p0, p1, p2, p3)), 0) / GRID
        per_sign = 1 / at_least(spread, TINY)
    return n, per_sign


@triton.jit
def input_forward(
    x,
    threshold,
    scale,
    typical,
    constants,  # [2], written: n and 1 / spread
    out,
    p0,
    p1,
    p2,
    p3,
    total,
    channels,
    height,
    width,
    out_height,
    out_width,
    top,
    left,
    F: tl.constexpr,
    PAD: tl.constexpr,
    PADDED: tl.constexpr,
    SHIFTED: tl.constexpr,
    MULTIPLE: tl.constexpr,
    LEARNED: tl.constexpr,
    TINY: tl.constexpr,
    GRID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write F((x - t) / n) / spread, with a border around every image."""
    v0, v1, v2, v3 = tl.load(p0), tl.load(p1), tl.load(p2), tl.load(p3)
    n, per_sign = units(scale, typical, v0, v1, v2, v3, F, MULTIPLE, LEARNED, TINY, GRID)
    if tl.program_id(0) == 0:
        tl.store(constants, n)
        tl.store(constants + 1, per_sign)
    at, there = block_of(total, BLOCK)
    inside = there
    source = at
    channel = at % channels
    if PADDED:
        pixel = at // channels
        down = (pixel // out_width) % out_height - top
        across = pixel % out_width - left
        image = pixel // (out_width * out_height)
        inside = there & (down >= 0) & (down < height) & (across >= 0) & (across < width)
        source = ((image * height + down) * width + across) * channels + channel
    value = tl.load(x + source, mask=inside, other=0.0).to(tl.float32)
    if SHIFTED:
        value -= tl.load(threshold + channel, mask=there, other=0.0)
    value = per_sign * F(value / n, v0, v1, v2, v3)
    value = tl.where(inside, value, PAD)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=there)


@triton.jit
def input_backward(
    grad,
    x,
    threshold,
    constants,
    to_x,
    partial,  # [programs, channels], written: minus the sums of to_x over rows
    p0,
    p1,
    p2,
    p3,
    rows,
    channels,
    height,
    width,
    out_height,
    out_width,
    top,
    left,
    rows_each,
    B: tl.constexpr,
    PADDED: tl.constexpr,
    SHIFTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write grad (1 / spread) / n B((x - t) / n), and its sums over the rows of this program."""
    v0, v1, v2, v3 = tl.load(p0), tl.load(p1), tl.load(p2), tl.load(p3)
    n, per_sign = tl.load(constants), tl.load(constants + 1)
    channel, exists = columns_of(channels, COLUMNS)
    t = tl.zeros([1, COLUMNS], tl.float32)
    if SHIFTED:
        t += tl.load(threshold + channel, mask=exists, other=0.0)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, rows_each, ROWS):
        row, inside = rows_of(start, rows, rows_each, ROWS)
        there = inside & exists
        source = row
        if PADDED:
            down = (row // width) % height + top
            across = row % width + left
            source = (row // (width * height) * out_height + down) * out_width + across
        g = tl.load(grad + source * channels + channel, mask=there, other=0.0).to(tl.float32)
        value = tl.load(x + row * channels + channel, mask=there, other=0.0).to(tl.float32)
        d = g * (per_sign / n) * B((value - t) / n, v0, v1, v2, v3)
        d = tl.where(there, d, 0.0)
        tl.store(to_x + row * channels + channel, d.to(to_x.dtype.element_ty), mask=there)
        total += d
    sums = tl.sum(total, 0)[None, :]
    tl.store(partial + tl.program_id(0) * channels + channel, -sums, mask=exists)


@triton.jit
def sums_forward(
    y,
    alpha,
    scale,
    bias,
    out,
    total,
    channels,
    BIASED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write y alpha beta + bias."""
    at, there = block_of(total, BLOCK)
    channel = at % channels
    beta = tl.load(scale).to(tl.float32)
    factor = tl.load(alpha + channel, mask=there, other=0.0) * beta
    value = tl.load(y + at, mask=there, other=0.0).to(tl.float32) * factor
    if BIASED:
        value += tl.load(bias + channel, mask=there, other=0.0)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=there)


@triton.jit
def sums_backward(
    grad,
    y,
    alpha,
    scale,
    to_y,
    partial,  # [programs, 2, channels], written: sums over rows of grad, and of grad y
    rows,
    channels,
    rows_each,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write grad alpha beta, and what `sums_finish` adds up."""
    channel, exists = columns_of(channels, COLUMNS)
    beta = tl.load(scale).to(tl.float32)
    factor = tl.load(alpha + channel, mask=exists, other=0.0) * beta
    to_bias = tl.zeros([ROWS, COLUMNS], tl.float32)
    to_alpha = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, rows_each, ROWS):
        row, inside = rows_of(start, rows, rows_each, ROWS)
        there = inside & exists
        at = row * channels + channel
        g = tl.load(grad + at, mask=there, other=0.0).to(tl.float32)
        value = tl.load(y + at, mask=there, other=0.0).to(tl.float32)
        tl.store(to_y + at, (g * factor).to(to_y.dtype.element_ty), mask=there)
        to_bias += g
        to_alpha += g * value
    own = partial + tl.program_id(0) * 2 * channels + channel
    tl.store(own, tl.sum(to_bias, 0)[None, :], mask=exists)
    tl.store(own + channels, tl.sum(to_alpha, 0)[None, :], mask=exists)


@triton.jit
def sums_finish(
    partial,
    alpha,
    scale,
    to_bias,
    to_alpha,
    to_scale,
    programs,
    channels,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the gradients of bias and alpha [channels] and of beta []; one program does it all."""
    beta = tl.load(scale).to(tl.float32)
    whole = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, channels, COLUMNS):
        channel = start + tl.arange(0, COLUMNS)
        exists = channel < channels
        of_grad = tl.zeros([ROWS, COLUMNS], tl.float32)
        of_product = tl.zeros([ROWS, COLUMNS], tl.float32)
        for begin in range(0, programs, ROWS):
            row = begin + tl.arange(0, ROWS)
            there = (row < programs)[:, None] & exists[None, :]
            own = partial + row[:, None] * 2 * channels + channel[None, :]
            of_grad += tl.load(own, mask=there, other=0.0)
            of_product += tl.load(own + channels, mask=there, other=0.0)
        product = tl.sum(of_product, 0)
        tl.store(to_bias + channel, tl.sum(of_grad, 0), mask=exists)
        tl.store(to_alpha + channel, product * beta, mask=exists)
        whole += product * tl.load(alpha + channel, mask=exists, other=0.0)
    tl.store(to_scale, tl.sum(whole, 0))


@triton.jit
def shift_forward(
    weights,
    threshold,
    alpha,
    bias,
    taken,  # [outputs], written: weights times threshold
    out,
    outputs,
    inputs,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write bias + alpha (weights threshold), for weights [outputs, inputs]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = row < outputs
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, inputs, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        there = exists[:, None] & (column < inputs)[None, :]
        w = tl.load(weights + row[:, None] * inputs + column[None, :], mask=there, other=0.0)
        t = tl.load(threshold + column, mask=column < inputs, other=0.0)
        products += w.to(tl.float32) * t[None, :]
    product = tl.sum(products, 1)
    tl.store(taken + row, product, mask=exists)
    value = product * tl.load(alpha + row, mask=exists, other=0.0)
    if BIASED:
        value += tl.load(bias + row, mask=exists, other=0.0)
    tl.store(out + row, value, mask=exists)


@triton.jit
def shift_backward(
    grad,
    weights,
    threshold,
    alpha,
    to_weights,
    to_threshold,
    outputs,
    inputs,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the gradients of weights, grad alpha times threshold, and of threshold."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    exists = column < inputs
    t = tl.load(threshold + column, mask=exists, other=0.0)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, outputs, ROWS):
        row = start + tl.arange(0, ROWS)
        g = tl.load(grad + row, mask=row < outputs, other=0.0)
        g *= tl.load(alpha + row, mask=row < outputs, other=0.0)
        there = (row < outputs)[:, None] & exists[None, :]
        at = row[:, None] * inputs + column[None, :]
        total += g[:, None] * tl.load(weights + at, mask=there, other=0.0).to(tl.float32)
        tl.store(to_weights + at, (g[:, None] * t[None, :]).to(to_weights.dtype.element_ty), mask=there)
    tl.store(to_threshold + column, tl.sum(total, 0), mask=exists)


@triton.jit
def rprelu_forward(
    x,
    gain,
    past,
    more,
    move_in,
    slope,
    move_out,
    out,
    total,
    channels,
    MORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write RPReLU(x + gain past + more)."""
    at, there = block_of(total, BLOCK)
    channel = at % channels
    z = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    before = tl.load(past + at, mask=there, other=0.0).to(tl.float32)
    z += tl.load(gain + channel, mask=there, other=0.0) * before
    if MORE:
        z += tl.load(more + at, mask=there, other=0.0).to(tl.float32)
    z -= tl.load(move_in + channel, mask=there, other=0.0)
    z = tl.where(z > 0, z, z * tl.load(slope + channel, mask=there, other=0.0))
    z += tl.load(move_out + channel, mask=there, other=0.0)
    tl.store(out + at, z.to(out.dtype.element_ty), mask=there)


@triton.jit
def rprelu_backward(
    grad,
    x,
    gain,
    past,
    more,
    move_in,
    slope,
    to_x,
    to_past,
    partial,  # [programs, 4, channels], written: sums for gain, move_in, slope, move_out
    rows,
    channels,
    rows_each,
    MORE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the gradients of x (and of `more`) and of past, and their sums over rows for the parameters."""
    channel, exists = columns_of(channels, COLUMNS)
    c_gain = tl.load(gain + channel, mask=exists, other=0.0)
    c_in = tl.load(move_in + channel, mask=exists, other=0.0)
    c_slope = tl.load(slope + channel, mask=exists, other=0.0)
    to_gain = tl.zeros([ROWS, COLUMNS], tl.float32)
    to_in = tl.zeros([ROWS, COLUMNS], tl.float32)
    to_slope = tl.zeros([ROWS, COLUMNS], tl.float32)
    to_out = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, rows_each, ROWS):
        row, inside = rows_of(start, rows, rows_each, ROWS)
        there = inside & exists
        at = row * channels + channel
        g = tl.load(grad + at, mask=there, other=0.0).to(tl.float32)
        before = tl.load(past + at, mask=there, other=0.0).to(tl.float32)
        z = tl.load(x + at, mask=there, other=0.0).to(tl.float32) + c_gain * before
        if MORE:
            z += tl.load(more + at, mask=there, other=0.0).to(tl.float32)
        z -= c_in
        d = tl.where(z > 0, g, g * c_slope)
        tl.store(to_x + at, d.to(to_x.dtype.element_ty), mask=there)
        tl.store(to_past + at, (c_gain * d).to(to_past.dtype.element_ty), mask=there)
        to_gain += d * before
        to_in -= d
        to_slope += tl.where(z > 0, 0.0, g * z)
        to_out += g
    own = partial + tl.program_id(0) * 4 * channels + channel
    tl.store(own, tl.sum(to_gain, 0)[None, :], mask=exists)
    tl.store(own + channels, tl.sum(to_in, 0)[None, :], mask=exists)
    tl.store(own + 2 * channels, tl.sum(to_slope, 0)[None, :], mask=exists)
    tl.store(own + 3 * channels, tl.sum(to_out, 0)[None, :], mask=exists)


@triton.jit
def scan_tiles(
    parts,  # [tiles, total]
    sums,
    overflowed,
    total,
    tiles,
    WRAP: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up tiles as `accumulate` does."""
    at, there = block_of(total, BLOCK)
    whole = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK], tl.int32)
    own = parts + at
    for _ in range(0, tiles):
        part = tl.load(own, mask=there, other=0.0).to(tl.float32)
        own += total
        if SHIFT > 0:
            part = tl.floor((part + 2 ** (SHIFT - 1)) * (1.0 / 2**SHIFT))
        whole += part
        beyond = (whole < -128) | (whole > 127)
        out = tl.where(beyond, 1, out)
        if WRAP:
            wrapped = whole + 128
            wrapped = wrapped - 256 * tl.floor(wrapped / 256) - 128
            whole = tl.where(beyond, wrapped, whole)
        else:
            whole = tl.where(beyond, tl.where(whole < 0, -128.0, 127.0), whole)
    if SHIFT > 0:
        whole *= 2**SHIFT
    tl.store(sums + at, whole, mask=there)
    tl.store(overflowed + at, out.to(tl.int1), mask=there)
