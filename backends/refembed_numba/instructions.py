"""What Numba has no words for: vector registers, fused multiply-add, atomic counters. Each is a few lines of LLVM IR.

Sums run in an order fixed here (chains of CHAIN for each number of a product, sixteen lanes for a sum along a row), so
that their bits depend on the numbers alone: not on the row's place, its neighbours, or the width of the registers.
"""
# mypy: disable-error-code="untyped-decorator"
# Numba's decorators have no types that hold for every version

import os
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

ROWS = 6  # of a tile, on every CPU
LANES = 16  # of a sum along a row
CHAIN = 384  # additions after which a sum is put aside: rounding errors grow with the length of the chain
BLOCK = 64  # neighbours of a row that share a scale in int8; and of a column of weights that were floats
WORDS = BLOCK // 4  # of a block, each four bytes
NOTE = 3  # words before them: the scale, and the sum of each half's levels
SPAN = NOTE + WORDS
NIBBLE = 8  # a level of 4 bits is stored so much above what it means
LINE = 16  # numbers of 32 bits in a cache line
TRIPLE, CPU, LISTED = cpu_target.target_context.codegen().magic_tuple()  # what Numba compiles for
# The next panel is fetched in PARTS, one with each of a panel's first tiles; in float32 FETCHED cache lines with every
# step of a product, of bytes one. More at once hold up what is needed now (tests/bench/LOG.md, 2026-11-23 and -29).
FETCHED, PARTS = (1, 4) if CPU == "znver4" else (2, 3)
BYTE, SHORT, INT, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
HALF, FLOAT = ir.HalfType(), ir.FloatType()
FLOATS = ir.VectorType(FLOAT, LANES)


# ------------------------------------------------------------------------------------------------------- words of LLVM
def data_of(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """The address of an array's first number."""
    return context.make_array(kind)(context, builder, array).data


def call(builder: Any, name: str, result: Any, *given: Any) -> Any:
    """One of LLVM's own functions, by its full name."""
    function = ir.FunctionType(result, [value.type for value in given])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), given)


def load(builder: Any, base: Any, index: Any, kind: Any, align: int = 4) -> Any:
    """The vector that starts at number `index`, which need not be aligned."""
    return builder.load(builder.bitcast(builder.gep(base, [index]), kind.as_pointer()), align=align)


def store(builder: Any, value: Any, base: Any, index: Any, align: int = 4) -> None:
    builder.store(value, builder.bitcast(builder.gep(base, [index]), value.type.as_pointer()), align=align)


def splat(builder: Any, number: Any, lanes: int) -> Any:
    """A vector whose every lane is this number."""
    undefined = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
    one = builder.insert_element(undefined, number, INT(0))
    return builder.shuffle_vector(one, undefined, every(0, ir.VectorType(INT, lanes)))


def every(value: float, kind: Any) -> Any:
    """A constant vector of this type, the same in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def of_type(number: Any, vector: Any) -> Any:
    """The type of a vector of such numbers, as long as this one."""
    return ir.VectorType(number, vector.type.count)


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c in every lane, rounded once where the CPU has an instruction for it, else twice."""
    return call(builder, f"llvm.fmuladd.v{c.type.count}f32", c.type, a, b, c)


def fetch(builder: Any, base: Any, index: Any) -> None:
    """Ask for the cache line of number `index`."""
    place = builder.bitcast(builder.gep(base, [index]), BYTE.as_pointer())
    call(builder, "llvm.prefetch.p0i8", ir.VoidType(), place, INT(0), INT(3), INT(1))


def registers(builder: Any, kind: Any, rows: int, vectors: int) -> Any:
    """Places for rows x vectors sums, which LLVM keeps in registers."""
    return [[cgutils.alloca_once(builder, kind) for _ in range(vectors)] for _ in range(rows)]


# ---------------------------------------------------------------------------------------------- what CPUs multiply with
class Path(NamedTuple):
    """The instructions that a tile is made of. Whichever they are, sums of bytes are the same integers.

    needs     features the CPU must have: LLVM ends the process where it meets an instruction without them
    lanes     numbers of 32 bits in a register
    columns   of a tile: all its sums, one row of columns and a row's number fit the CPU's registers
    add       (builder, sums, row, columns) -> sums + row * columns in every lane; of bytes, the four of a word
    zero      bytes of columns are stored so much above what they mean; nibbles are NIBBLE above on every path
    widen     (builder, halves) -> float16 as float32
    unrolled  a block of bytes is written out word for word: faster where its totals fit the registers as well
    rows      of a tile
    """

    name: str
    needs: frozenset[str]
    lanes: int
    columns: int
    add: Callable[[Any, Any, Any, Any], Any]
    zero: int = 0
    widen: Callable[[Any, Any], Any] = lambda builder, halves: builder.fpext(halves, of_type(FLOAT, halves))
    unrolled: bool = False
    rows: int = ROWS


def choose(paths: Sequence[Path], features: set[str]) -> Path:
    """The first path whose needs the CPU meets."""
    return next(path for path in paths if path.needs <= features)


def add_float(builder: Any, sums: Any, row: Any, columns: Any) -> Any:
    return multiply_add(builder, row, columns, sums)


def add_vnni(builder: Any, sums: Any, row: Any, columns: Any) -> Any:
    """Four unsigned bytes of columns times four signed ones in one instruction, which does not saturate."""
    name = f"llvm.x86.avx512.vpdpbusd.{32 * sums.type.count}"  # with 256 bits AVX-VNNI's own form, if that is there
    return call(builder, name, sums.type, sums, columns, row)


def add_avx2(builder: Any, sums: Any, row: Any, columns: Any) -> Any:
    """|columns| times the row with the columns' signs, in pairs to 16 bits, pairs of these to 32.

    The first step saturates beyond 32767, which is not reached: rows are -127 to 127, so a pair's sum is at most
    2 * 128 * 127 = 32512.
    """
    bytes, shorts = ir.VectorType(BYTE, 32), ir.VectorType(SHORT, 16)
    row, columns = builder.bitcast(row, bytes), builder.bitcast(columns, bytes)
    size = call(builder, "llvm.abs.v32i8", bytes, columns, ir.IntType(1)(0))
    signed = call(builder, "llvm.x86.avx2.psign.b", bytes, row, columns)
    pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, size, signed)
    return builder.add(sums, call(builder, "llvm.x86.avx2.pmadd.wd", sums.type, pairs, every(1, shorts)))


def add_dotprod(builder: Any, sums: Any, row: Any, columns: Any) -> Any:
    """Four signed bytes times four in one instruction."""
    row, columns = (builder.bitcast(words, ir.VectorType(BYTE, 16)) for words in (row, columns))
    return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", sums.type, sums, row, columns)


def add_bytes(builder: Any, sums: Any, row: Any, columns: Any) -> Any:
    """Unsigned bytes of columns times signed ones, one after another, by shifts and multiplications of 32 bits."""
    kind = sums.type
    for byte in range(4):
        unsigned = builder.and_(builder.lshr(columns, every(8 * byte, kind)), every(255, kind))
        signed = builder.ashr(builder.shl(row, every(24 - 8 * byte, kind)), every(24, kind))
        sums = builder.add(sums, builder.mul(unsigned, signed))
    return sums


def widen_bits(builder: Any, halves: Any) -> Any:
    """float16 to float32 where no instruction does it: the bits 13 places up, times 2^112, which is between the
    exponents' zeros; what float16 holds below its normal numbers comes out right too.
    """
    bits = builder.sext(builder.bitcast(halves, of_type(SHORT, halves)), of_type(INT, halves))
    placed = builder.and_(builder.shl(bits, every(13, bits.type)), every(~0x70000000, bits.type))  # sign, then the rest
    number = builder.bitcast(placed, of_type(FLOAT, halves))
    return builder.fmul(number, every(2.0**112, number.type))


FLOAT_PATHS = (  # best first, as below
    Path("avx512f", frozenset({"avx512f"}), 16, 64, add_float),  # 24 sums, 4 columns and a row's number in 32 registers
    Path("avx", frozenset({"avx"}), 8, 16, add_float),  # 12, 2 and 1 in 16
    Path("neon", frozenset({"neon"}), 4, 16, add_float),  # 24, 4 and 1 in 32
    Path("portable", frozenset(), 4, 8, add_float),  # 12, 2 and 1
)
BYTE_PATHS = (
    Path("avx512vnni", frozenset({"avx512vnni"}), 16, 32, add_vnni, zero=128, unrolled=True),  # 12 sums, 12 totals
    Path("avxvnni", frozenset({"avxvnni", "f16c"}), 8, 16, add_vnni, zero=128),  # here and below totals go to memory
    Path("avx2", frozenset({"avx2", "f16c"}), 8, 16, add_avx2),
    Path("dotprod", frozenset({"dotprod"}), 4, 16, add_dotprod),
    Path("portable", frozenset(), 4, 8, add_bytes, zero=128, widen=widen_bits),
)


# ------------------------------------------------------------------------------------------------------------ products
def sum_products(
    builder: Any,
    path: Path,
    a: Any,
    rows: Sequence[Any],
    b: Any,
    b_start: Any,
    b_step: Any,
    count: Any,
    sums: Any,
    ahead: Any,
) -> None:
    """sums[i][v] += the sum over k < count of a[rows[i] + k] * the v-th register of b[b_start + k * b_step].

    Meanwhile FETCHED cache lines of b are asked for with every k, from `ahead` on.
    """
    kind = sums[0][0].type.pointee
    with cgutils.for_range(builder, count) as loop:
        start = builder.add(b_start, builder.mul(b_step, loop.index))
        columns = [load(builder, b, builder.add(start, LONG(path.lanes * v)), kind) for v in range(len(sums[0]))]
        near = builder.add(ahead, builder.mul(loop.index, LONG(FETCHED * LINE)))
        for line in range(FETCHED):
            fetch(builder, b, builder.add(near, LONG(line * LINE)))
        for begin, row in zip(rows, sums, strict=True):
            each = splat(builder, builder.load(builder.gep(a, [builder.add(begin, loop.index)])), path.lanes)
            for place, column in zip(row, columns, strict=True):
                builder.store(path.add(builder, builder.load(place), each, column), place)


def row_starts(builder: Any, path: Path, start: Any, step: Any) -> list[Any]:
    return [builder.add(start, builder.mul(step, LONG(row))) for row in range(path.rows)]


def float_product(builder: Any, path: Path, a: Any, a_start: Any, a_step: Any, b: Any, b_start: Any, b_step: Any,
                  c: Any, c_start: Any, c_step: Any, depth: Any, ahead: Any) -> None:  # fmt: skip
    """c[i, j] = the sum over k < depth of a[i, k] * b[k, j], in chains of CHAIN additions, k rising.

    a, a_start, a_step   float32 in a flat array, where its first number is, and how far it is to the next row
    b, b_start, b_step   the same of b
    c, c_start, c_step   the same of c, path.rows x path.columns
    ahead                where in b those numbers are that are needed soon
    """
    kind, places = ir.VectorType(FLOAT, path.lanes), [LONG(at) for at in range(0, path.columns, path.lanes)]
    sums = registers(builder, kind, path.rows, len(places))
    a_rows, c_rows = row_starts(builder, path, a_start, a_step), row_starts(builder, path, c_start, c_step)
    with cgutils.for_range_slice(builder, LONG(0), depth, LONG(CHAIN)) as (first, _):
        for place in (place for row in sums for place in row):
            builder.store(every(0.0, kind), place)
        left = builder.sub(depth, first)
        count = builder.select(builder.icmp_signed("<", left, LONG(CHAIN)), left, LONG(CHAIN))
        rows = [builder.add(start, first) for start in a_rows]
        soon = builder.add(ahead, builder.mul(first, LONG(FETCHED * LINE)))
        sum_products(builder, path, a, rows, b, builder.add(b_start, builder.mul(first, b_step)), b_step, count, sums,
                     soon)  # fmt: skip
        begun = builder.icmp_signed(">", first, LONG(0))
        for start, row in zip(c_rows, sums, strict=True):
            for at, place in zip(places, row, strict=True):
                total = cgutils.alloca_once_value(builder, builder.load(place))
                with builder.if_then(begun):
                    before = load(builder, c, builder.add(start, at), kind)
                    builder.store(builder.fadd(before, builder.load(total)), total)
                store(builder, builder.load(total), c, builder.add(start, at))


def byte_product(builder: Any, path: Path, bits: int, halves: bool, a: Any, a_start: Any, a_step: Any, b: Any,
                 b_start: Any, b_scales: Any, b_scales_start: Any, b_scales_step: Any, c: Any, c_start: Any,
                 c_step: Any, blocks: Any, ahead: Any, scales_ahead: Any) -> None:  # fmt: skip
    """float_product's twin for 8-bit rows and columns of 8 or 4 bits: 32-bit sums of what shares a scale, then float32.

    c[i, j] = the sum over blocks of a_scale * (b_scale * the sum of a * b), for each half of a block where halves is.

    a, a_start, a_step   int32, of each block of a row: its scale's bits, the sums of both halves' levels, WORDS words
                         of four signed bytes, -127 to 127
    b, b_start           int32 (blocks * WORDS, path.columns), each four bytes of a column; nibbles: half as many rows,
                         the low halves before the high ones; all are stored above what they mean (path.zero, NIBBLE)
    b_scales             float32 (blocks, path.columns) from b_scales_start, rows apart by b_scales_step, which is 0
                         where all blocks have the same; where halves is, float16 (2 * blocks, path.columns)
    c, c_start, c_step   float32
    ahead, scales_ahead  where in b and b_scales that is which is needed soon
    """
    floats, ints = (ir.VectorType(kind, path.lanes) for kind in (FLOAT, INT))
    places = [LONG(path.lanes * v) for v in range(path.columns // path.lanes)]
    sums, parts, totals = (registers(builder, kind, path.rows, len(places)) for kind in (ints, floats, floats))
    a_rows, c_rows = row_starts(builder, path, a_start, a_step), row_starts(builder, path, c_start, c_step)
    zero, shares = NIBBLE if bits == 4 else path.zero, 2 if halves else 1
    half_scales = builder.bitcast(b_scales, HALF.as_pointer())
    lines = WORDS * bits // 8  # rows of b in a block
    for place in (place for row in totals for place in row):
        builder.store(every(0.0, floats), place)
    with cgutils.for_range(builder, blocks) as block:
        rows = [builder.add(start, builder.mul(block.index, LONG(SPAN))) for start in a_rows]
        first = builder.mul(block.index, LONG(lines))
        start = builder.add(b_start, builder.mul(first, LONG(path.columns)))
        near = builder.add(ahead, builder.mul(first, LONG(LINE)))
        scales_on = builder.mul(block.index, b_scales_step)
        scales_at = builder.add(b_scales_start, scales_on)
        for share in range(shares):
            for begin, row in zip(rows, sums, strict=True):
                begin_sums(builder, a, begin, share if halves else None, zero, row)
            for line in steps(builder, lines * share // shares, lines // shares, path.unrolled):
                at = builder.add(start, builder.mul(line, LONG(path.columns)))
                columns = [load(builder, b, builder.add(at, place), ints) for place in places]
                fetch(builder, b, builder.add(near, builder.mul(line, LONG(LINE))))
                word = builder.add(builder.mul(line, LONG(8 // bits)), LONG(NOTE))
                for one, four in enumerate(fours(builder, bits, columns)):
                    words = [builder.add(builder.add(begin, word), LONG(one)) for begin in rows]
                    add_words(builder, path, a, words, four, sums)
            scales = []
            for place in places:
                if halves:
                    where = builder.add(builder.mul(scales_at, LONG(2)), LONG(path.columns * share + place.constant))
                    stored = load(builder, half_scales, where, ir.VectorType(HALF, path.lanes), align=2)
                    scales.append(path.widen(builder, stored))
                else:
                    scales.append(load(builder, b_scales, builder.add(scales_at, place), floats))
            for sum_row, part_row in zip(sums, parts, strict=True):
                for scale, sum, part in zip(scales, sum_row, part_row, strict=True):
                    number = builder.sitofp(builder.load(sum), floats)
                    more = multiply_add(builder, number, scale, builder.load(part)) if share else None
                    builder.store(more or builder.fmul(number, scale), part)
        for at in range(0, 0 if halves else path.columns, LINE):  # of half the size they come in time by themselves
            fetch(builder, b_scales, builder.add(builder.add(scales_ahead, scales_on), LONG(at)))
        for begin, part_row, total_row in zip(rows, parts, totals, strict=True):
            scale = splat(builder, builder.bitcast(builder.load(builder.gep(a, [begin])), FLOAT), path.lanes)
            for part, total in zip(part_row, total_row, strict=True):
                builder.store(multiply_add(builder, builder.load(part), scale, builder.load(total)), total)
    for c_row, total_row in zip(c_rows, totals, strict=True):
        for place, total in zip(places, total_row, strict=True):
            store(builder, builder.load(total), c, builder.add(c_row, place))


def steps(builder: Any, first: int, count: int, unrolled: bool) -> Iterator[Any]:
    """The numbers from `first` on: constants, for code written out for each, or one that a loop counts up."""
    if unrolled:
        yield from (LONG(at) for at in range(first, first + count))
    else:
        with cgutils.for_range(builder, LONG(count)) as loop:
            yield builder.add(loop.index, LONG(first))


def begin_sums(builder: Any, a: Any, begin: Any, half: int | None, zero: int, sums: Any) -> None:
    """What a block's sums begin with: less what columns stored higher than meant will add, of one half or of both."""
    counts = [builder.load(builder.gep(a, [builder.add(begin, LONG(1 + one))])) for one in (0, 1)]
    count = builder.add(*counts) if half is None else counts[half]
    for place in sums:
        kind = place.type.pointee
        builder.store(splat(builder, builder.mul(count, INT(-zero)), kind.count), place)


def fours(builder: Any, bits: int, columns: Any) -> Any:
    """Words of four bytes each out of words of four bytes, or of eight nibbles: one, or two one after another."""
    if bits == 8:
        return [columns]
    mask = every(0x0F0F0F0F, columns[0].type)
    high = [builder.lshr(column, every(4, column.type)) for column in columns]
    return [[builder.and_(column, mask) for column in both] for both in (columns, high)]


def add_words(builder: Any, path: Path, a: Any, words: Any, columns: Any, sums: Any) -> None:
    """One word of each row times one of each column."""
    for word, row in zip(words, sums, strict=True):
        each = splat(builder, builder.load(builder.gep(a, [word])), path.lanes)
        for place, column in zip(row, columns, strict=True):
            builder.store(path.add(builder, builder.load(place), each, column), place)


def float_tile(path: Path) -> Any:
    """float_product as a Numba function."""

    @intrinsic
    def product(typing: Any, a: Any, a_start: Any, a_step: Any, b: Any, b_start: Any, b_step: Any,
                c: Any, c_start: Any, c_step: Any, depth: Any, ahead: Any) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            float_product(builder, path, *addresses(context, builder, signature, given))
            return context.get_dummy_value()

        n = types.intp
        return types.void(a, n, n, b, n, n, c, n, n, n, n), generate

    return product


def matrix_tile(floats: Path, bytes: Path) -> Any:
    """float_product or byte_product as a Numba function, whichever the types of a Matrix say.

    So a model is compiled with those tiles alone that it computes with: all of them take five seconds more.

    a, words, row   the float32 rows, or what byte_product reads of them, and the tile's first row
    depth           numbers in a row; of levels a multiple of BLOCK
    """

    @intrinsic
    def product(typing: Any, a: Any, words: Any, row: Any, b: Any, b_start: Any, b_scales: Any, b_scales_start: Any,
                b_scales_step: Any, c: Any, c_start: Any, c_step: Any, depth: Any, ahead: Any,
                scales_ahead: Any) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            values = addresses(context, builder, signature, given)
            a, words, row, b, b_at, scales, scales_at, scales_step, c, c_at, c_step, depth, soon, scales_soon = values
            kind, halves = signature.args[3].dtype, signature.args[5].dtype == types.uint16
            if kind == types.float32:
                float_product(builder, floats, a, builder.mul(row, depth), depth, b, b_at, LONG(floats.columns),
                              c, c_at, c_step, depth, soon)  # fmt: skip
            else:
                blocks = builder.sdiv(depth, LONG(BLOCK))
                step = builder.mul(blocks, LONG(SPAN))
                byte_product(builder, bytes, 4 if kind == types.uint32 else 8, halves, words, builder.mul(row, step),
                             step, b, b_at, scales, scales_at, scales_step, c, c_at, c_step, blocks, soon,
                             scales_soon)  # fmt: skip
            return context.get_dummy_value()

        n = types.intp
        return types.void(a, words, n, b, n, b_scales, n, n, c, n, n, n, n, n), generate

    return product


def addresses(context: Any, builder: Any, signature: Any, given: Any) -> list[Any]:
    """An intrinsic's arguments, arrays by the address of their first number."""
    return [
        data_of(context, builder, kind, value) if isinstance(kind, types.Array) else value
        for kind, value in zip(signature.args, given, strict=True)
    ]


# --------------------------------------------------------------------------------------------------- sums along a row
def joined(builder: Any, lanes: Any, join: Any) -> Any:
    """One number of all lanes, halves onto halves."""
    while lanes.type.count > 1:
        half = lanes.type.count // 2
        low, high = (
            builder.shuffle_vector(lanes, lanes, ir.Constant(ir.VectorType(INT, half), list(range(at, at + half))))
            for at in (0, half)
        )
        lanes = join(builder, low, high)
    return builder.extract_element(lanes, INT(0))


def along_row(start_value: float, step: Any, join: Any) -> Any:
    """A function that goes along numbers of a flat array sixteen lanes at a time, and then joins the lanes."""

    @intrinsic
    def row(typing: Any, x: Any, start: Any, count: Any) -> Any:
        """One number of `count` from `start`, a multiple of 16: lanes by step, then halves onto halves by join."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            x, place = data_of(context, builder, signature.args[0], given[0]), cgutils.alloca_once(builder, FLOATS)
            builder.store(every(start_value, FLOATS), place)
            with cgutils.for_range_slice(builder, LONG(0), given[2], LONG(LANES)) as (index, _):
                number = load(builder, x, builder.add(given[1], index), FLOATS)
                builder.store(step(builder, builder.load(place), number), place)
            return joined(builder, builder.load(place), join)

        return types.float32(x, types.intp, types.intp), generate

    return row


def add(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


def greater(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", b, a), b, a)


def magnitude(builder: Any, number: Any) -> Any:
    return call(builder, "llvm.fabs.v16f32", FLOATS, number)


sum_of_squares = along_row(0.0, lambda builder, lanes, number: multiply_add(builder, number, number, lanes), add)
sum_of_row = along_row(0.0, add, add)
largest_of_row = along_row(-np.inf, greater, greater)


@intrinsic
def quantise_block(typing: Any, x: Any, start: Any, words: Any, place: Any) -> Any:
    """BLOCK numbers of flat float32 x as SPAN words: their scale, largest magnitude / 127, two sums, the levels.

    Written here because LLVM does not use vectors in so short a loop of unknown arrays.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x, words = (data_of(context, builder, signature.args[i], given[i]) for i in (0, 2))
        _, start, _, place = given
        ints = ir.VectorType(INT, LANES)
        numbers = [load(builder, x, builder.add(start, LONG(at)), FLOATS) for at in range(0, BLOCK, LANES)]
        lanes = every(0.0, FLOATS)
        for number in numbers:
            lanes = greater(builder, lanes, magnitude(builder, number))
        largest = joined(builder, lanes, greater)
        scale = builder.bitcast(builder.fdiv(largest, FLOAT(127.0)), INT)
        inverse = builder.select(
            builder.fcmp_ordered(">", largest, FLOAT(0.0)), builder.fdiv(FLOAT(127.0), largest), FLOAT(0.0)
        )
        levels = []
        for number in numbers:
            scaled = builder.fmul(number, splat(builder, inverse, LANES))
            raised = builder.fptosi(builder.fadd(scaled, every(128.5, FLOATS)), ints)  # positive: cut off is rounded
            levels.append(builder.sub(raised, every(128, ints)))
        halves = [levels[: len(levels) // 2], levels[len(levels) // 2 :]]
        sums = [joined(builder, reduce(builder.add, half), lambda builder, a, b: builder.add(a, b)) for half in halves]
        for at, number in enumerate([scale, *sums]):
            builder.store(number, builder.gep(words, [builder.add(place, LONG(at))]))
        parts = [builder.trunc(level, ir.VectorType(BYTE, LANES)) for level in levels]
        while len(parts) > 1:
            both = ir.Constant(ir.VectorType(INT, 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
            parts = [builder.shuffle_vector(*pair, both) for pair in zip(parts[::2], parts[1::2], strict=True)]
        store(builder, parts[0], words, builder.add(place, LONG(NOTE)))
        return context.get_dummy_value()

    n = types.intp
    return types.void(x, n, words, n), generate


@intrinsic
def float_of_bits(typing: Any, bits: Any) -> Any:
    """The float32 whose bits are those of an int32."""
    return types.float32(types.int32), lambda _, builder, __, given: builder.bitcast(given[0], FLOAT)


@intrinsic
def bits_of_float(typing: Any, number: Any) -> Any:
    """The int32 that has the bits of a float32."""
    return types.int32(types.float32), lambda _, builder, __, given: builder.bitcast(given[0], INT)


# ------------------------------------------------------------------------------------------------------------- threads
@intrinsic
def add_to(typing: Any, counters: Any, index: Any) -> Any:
    """Add one to an int64 that threads share; what it was before."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = builder.gep(data_of(context, builder, signature.args[0], given[0]), [given[1]])
        return builder.atomic_rmw("add", place, LONG(1), "seq_cst")

    return types.int64(counters, types.intp), generate


@intrinsic
def look_at(typing: Any, counters: Any, index: Any) -> Any:
    """An int64 that threads share."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = builder.gep(data_of(context, builder, signature.args[0], given[0]), [given[1]])
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(counters, types.intp), generate


if os.name == "posix":
    give_way = types.ExternalFunction("sched_yield", types.int32())
else:

    @numba.njit(nogil=True)
    def give_way() -> int:
        return 0
