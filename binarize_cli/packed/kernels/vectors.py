"""The vector instructions that numba's own vectoriser does not find: signs to bits, and counts of bits.

LLVM turns them into what the CPU has: with AVX-512 VPOPCNTDQ a vector of eight 64-bit words is counted by one
instruction, elsewhere by several. Addresses are plain integers, as `array.ctypes.data` gives them.
"""

from __future__ import annotations

from llvmlite import ir

from binarize_cli.machine_code import Intrinsic, Later

types, cgutils = Later("numba.types"), Later("numba.core.cgutils")  # what reads machine code needs no numba

LANES = 8  # 64-bit words in a vector
ROWS = 4  # rows summed together: 4 rows by 4 vectors fill half of the 32 vector registers

_INT = ir.IntType(64)
_WORDS = ir.VectorType(_INT, LANES)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)


def _signs_of(size: int):
    """Make the intrinsic that turns `size` float32 numbers into bits: x[i] >= high[i] or x[i] <= low[i].

    A comparison with NaN is false: that is how there is no lower limit.
    """
    floats = ir.VectorType(ir.FloatType(), size) if size > 1 else ir.FloatType()

    @Intrinsic
    def signs(typing, x, high, low):
        def generate(context, builder, signature, arguments):
            x, high, low = (_load(builder, address, floats, 4) for address in arguments)
            bits = _bits(builder, x, high, low, size)
            return bits if size == 64 else builder.zext(bits, _INT)

        return types.uint64(types.int64, types.int64, types.int64), generate

    return signs


signs_of_64, signs_of_16, signs_of_1 = _signs_of(64), _signs_of(16), _signs_of(1)


@Intrinsic
def store_word(typing, address, word):
    """Write a 64-bit word to an address."""

    def generate(context, builder, signature, arguments):
        address, word = arguments
        builder.store(word, builder.inttoptr(address, ir.PointerType(_INT)), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), generate


@Intrinsic
def store_byte(typing, address, byte):
    """Write a byte to an address."""

    def generate(context, builder, signature, arguments):
        address, byte = arguments
        builder.store(byte, builder.inttoptr(address, ir.PointerType(ir.IntType(8))), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint8), generate


@Intrinsic
def as_int32(typing, number):
    """Return the bits of a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@Intrinsic
def as_float32(typing, bits):
    """Return the float32 with those 32 bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@Intrinsic
def load_float32(typing, address):
    """Return the float32 at an address."""

    def generate(context, builder, signature, arguments):
        return _load(builder, arguments[0], ir.FloatType(), 4)

    return types.float32(types.int64), generate


def block_sums(vectors: int, masked: bool, tiled: bool, ending: str):
    """Make the intrinsic that computes 4 rows by 8 x `vectors` outputs, with every sum in a register.

    Its arguments are three tuples of integers, most of them addresses:

    - words, starts: a row is at words[starts[r]:]; steps, length: and its j-th word at steps[j] behind that;
      weights [length, 8 x vectors]; masks, counts, classes: row r has masks[classes[r] + j], counts likewise.
    - shift, low, high, lost: those of the accumulator; the last sum loses `lost` bits at its top.
    - out, places, width: row r goes to out[places[r] * width:]; then eight rows of channels, past and more,
      each with its width: see below.

    Plain, the sum is counts[0] - 2 (differing bits). With `masked`, bits outside the row's mask do not count.
    With `tiled`, a word is a tile, and acc = clamp(acc + ((count - 2 differing) >> shift), low, high).

    The `ending` says what becomes of y = sum * scale + bias. "plain": it is stored. "add": y + past is.
    "block": rprelu(y * norm_scale + norm_shift + gain * past + more) is. "signs": y >= high or y <= low.
    """

    @Intrinsic
    def compute(typing, operands, accumulator, results):
        def generate(context, builder, signature, arguments):
            unpacked = [cgutils.unpack_tuple(builder, each) for each in arguments]
            sums = _sums(builder, *unpacked[:2], vectors, masked, tiled)
            _finish(builder, sums, unpacked[2], ending)
            return context.get_dummy_value()

        return types.void(operands, accumulator, results), generate

    return compute


def _sums(builder, operands, accumulator, vectors: int, masked: bool, tiled: bool) -> list:
    """Emit the loop over words; return the sums as vectors of int64, [rows][vectors]."""
    words, starts, steps, length, weights, masks, counts, classes = operands
    rows = [_at(builder, words, _item(builder, starts, r)) for r in range(ROWS)]
    kinds = [_item(builder, classes, r) for r in range(ROWS)] if masked else [ir.Constant(_INT, 0)] * ROWS
    zero = ir.Constant(_WORDS, [0] * LANES)
    cells = [[cgutils.alloca_once_value(builder, zero) for _ in range(vectors)] for _ in range(ROWS)]
    for cell in (cell for row in cells for cell in row):
        builder.store(zero, cell)
    shift, low, high, lost = (_broadcast(builder, value) for value in accumulator)
    with cgutils.for_range(builder, length) as loop:
        step = _item(builder, steps, loop.index)
        row_of_weights = _at(builder, weights, loop.index, 8 * LANES * vectors)
        w = [_load(builder, _at(builder, row_of_weights, v, 8 * LANES), _WORDS, 8) for v in range(vectors)]
        for r in range(ROWS):
            a = _broadcast(builder, _item(builder, rows[r], step))
            if masked:
                m = _broadcast(builder, _item(builder, masks, builder.add(kinds[r], loop.index)))
            if tiled:
                c = _broadcast(builder, _item(builder, counts, builder.add(kinds[r], loop.index)))
            for v in range(vectors):
                differing = builder.xor(a, w[v])
                differing = builder.and_(differing, m) if masked else differing
                number = _call(builder, "ctpop", _WORDS, differing)
                total = builder.load(cells[r][v])
                if tiled:
                    part = builder.ashr(builder.sub(c, builder.add(number, number)), shift)
                    total = _call(builder, "smax", _WORDS, builder.add(total, part), low)
                    total = _call(builder, "smin", _WORDS, total, high)
                else:
                    total = builder.add(total, number)
                builder.store(total, cells[r][v])
    sums = [[builder.load(cell) for cell in row] for row in cells]
    if tiled:
        return [[builder.ashr(builder.shl(each, lost), lost) for each in row] for row in sums]
    for r in range(ROWS):
        k = _broadcast(builder, _item(builder, counts, kinds[r]))
        sums[r] = [builder.sub(k, builder.add(each, each)) for each in sums[r]]
    return sums


def _finish(builder, sums: list, results, ending: str) -> None:
    """Emit what `block_sums` says of endings, row by row."""
    out, places, width, scale, bias, *rest = results
    for r, row in enumerate(sums):
        place = _item(builder, places, r)
        for v, total in enumerate(row):

            def channels(address, v=v):
                return _load(builder, _at(builder, address, v, 4 * LANES), _FLOATS, 4)

            y = builder.sitofp(total, _FLOATS)
            y = builder.fadd(builder.fmul(y, channels(scale)), channels(bias))
            if ending == "signs":
                y = _bits(builder, y, channels(rest[0]), channels(rest[1]), LANES)
                at = _at(builder, builder.add(out, builder.mul(place, width)), v, 1)
            else:
                past, past_width, more, more_width = rest[6:]
                if ending in ("add", "block"):
                    old = channels(_at(builder, past, builder.mul(place, past_width), 4))
                if ending == "add":
                    y = builder.fadd(y, old)
                if ending == "block":
                    new = channels(_at(builder, more, builder.mul(place, more_width), 4))
                    y = _block(builder, y, old, new, rest[:6], channels)
                at = _at(builder, _at(builder, out, builder.mul(place, width), 4), v, 4 * LANES)
            builder.store(y, builder.inttoptr(at, ir.PointerType(y.type)), align=1)


def _block(builder, y, old, new, tables, channels):
    """Emit BatchNorm, shortcuts and RPReLU, each rounded as torch rounds it."""
    norm_scale, norm_shift, gain, move_in, slope, move_out = tables
    y = _call(builder, "fma", _FLOATS, y, channels(norm_scale), channels(norm_shift))
    y = builder.fadd(builder.fadd(y, builder.fmul(channels(gain), old)), new)
    y = builder.fsub(y, channels(move_in))
    positive = builder.fcmp_ordered(">", y, ir.Constant(_FLOATS, [0.0] * LANES))
    y = builder.select(positive, y, builder.fmul(y, channels(slope)))
    return builder.fadd(y, channels(move_out))


def _bits(builder, x, high, low, size: int):
    """Emit x >= high or x <= low of vectors of floats, as an integer of `size` bits."""
    above, below = builder.fcmp_ordered(">=", x, high), builder.fcmp_ordered("<=", x, low)
    return builder.bitcast(builder.or_(above, below), ir.IntType(size))


def _load(builder, address, kind, align: int):
    """Load a value of that type from an integer address."""
    return builder.load(builder.inttoptr(address, ir.PointerType(kind)), align=align)


def _at(builder, address, index, size: int = 8):
    """Return address + size * index, for an index known now or at run time."""
    index = ir.Constant(_INT, index) if isinstance(index, int) else index
    return builder.add(address, builder.mul(index, ir.Constant(_INT, size)))


def _item(builder, address, index):
    """Return the 64-bit integer at that index."""
    return _load(builder, _at(builder, address, index), _INT, 8)


def _broadcast(builder, value):
    """Return a vector whose lanes all hold `value`."""
    nothing = ir.Constant(_WORDS, ir.Undefined)
    vector = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        vector, nothing, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    )


def _call(builder, name: str, kind, *vectors):
    """Call one of LLVM's operations on vectors, such as ctpop."""
    suffix = "v8i64" if kind is _WORDS else "v8f32"
    function = ir.FunctionType(kind, [kind] * len(vectors))
    found = cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}.{suffix}")
    return builder.call(found, vectors)
