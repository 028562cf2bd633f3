"""What Numba has no words for: vector registers, fused multiply-add, atomic counters. Each is a few lines of LLVM IR.

Sums run in an order fixed here (chains of CHAIN for each number of a product, sixteen lanes for a sum along a row), so
that their bits depend on the numbers alone: not on the row's place, its neighbours, or the width of the registers.
"""
# mypy: disable-error-code="untyped-decorator"
# Numba's decorators have no types that hold for every version

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS = 6  # of a tile, on every CPU
LANES = 16  # of a sum along a row
CHAIN = 384  # additions after which a sum is put aside: rounding errors grow with the length of the chain
BLOCK = 64  # neighbours that share a scale in int8, of a row of activations and of a column of weights
LINE = 16  # numbers of 32 bits in a cache line
FETCHED = 2  # cache lines asked for ahead of need with every step of a product: more at once hold up what is needed now
BYTE, SHORT, INT, LONG, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS = ir.VectorType(FLOAT, LANES)


# ------------------------------------------------------------------------------------------------------- words of LLVM
def data_of(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """The address of an array's first number."""
    return context.make_array(kind)(context, builder, array).data


def call(builder: Any, name: str, result: Any, *given: Any) -> Any:
    """One of LLVM's own functions, by its full name."""
    function = ir.FunctionType(result, [value.type for value in given])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), given)


def load(builder: Any, base: Any, index: Any, kind: Any) -> Any:
    """The vector that starts at number `index`, which need not be aligned."""
    return builder.load(builder.bitcast(builder.gep(base, [index]), kind.as_pointer()), align=4)


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
    zero      bytes of rows are stored so much above what they mean
    rows      of a tile
    """

    name: str
    needs: frozenset[str]
    lanes: int
    columns: int
    add: Callable[[Any, Any, Any, Any], Any]
    zero: int = 0
    rows: int = ROWS


def choose(paths: Sequence[Path], features: set[str]) -> Path:
    """The first path whose needs the CPU meets."""
    return next(path for path in paths if path.needs <= features)


def add_float(builder: Any, sums: Any, row: Any, columns: Any) -> Any:
    return multiply_add(builder, row, columns, sums)


def add_vnni(builder: Any, sums: Any, row: Any, columns: Any) -> Any:
    """Four unsigned bytes times four signed ones in one instruction, which does not saturate."""
    name = f"llvm.x86.avx512.vpdpbusd.{32 * sums.type.count}"  # with 256 bits AVX-VNNI's own form, if that is there
    return call(builder, name, sums.type, sums, row, columns)


def add_avx2(builder: Any, sums: Any, row: Any, columns: Any) -> Any:
    """|row| times the columns with the row's signs, in pairs to 16 bits, pairs of these to 32.

    The first step saturates beyond 32767, which is not reached: weights are -127 to 127, so a pair's sum is at most
    2 * 128 * 127 = 32512.
    """
    bytes, shorts = ir.VectorType(BYTE, 32), ir.VectorType(SHORT, 16)
    row, columns = builder.bitcast(row, bytes), builder.bitcast(columns, bytes)
    size = call(builder, "llvm.abs.v32i8", bytes, row, ir.IntType(1)(0))
    signed = call(builder, "llvm.x86.avx2.psign.b", bytes, columns, row)
    pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, size, signed)
    return builder.add(sums, call(builder, "llvm.x86.avx2.pmadd.wd", sums.type, pairs, every(1, shorts)))


def add_dotprod(builder: Any, sums: Any, row: Any, columns: Any) -> Any:
    """Four signed bytes times four in one instruction."""
    row, columns = (builder.bitcast(words, ir.VectorType(BYTE, 16)) for words in (row, columns))
    return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", sums.type, sums, row, columns)


def add_bytes(builder: Any, sums: Any, row: Any, columns: Any) -> Any:
    """Unsigned bytes times signed ones, one after another, by shifts and multiplications of 32 bits."""
    kind = sums.type
    for byte in range(4):
        unsigned = builder.and_(builder.lshr(row, every(8 * byte, kind)), every(255, kind))
        signed = builder.ashr(builder.shl(columns, every(24 - 8 * byte, kind)), every(24, kind))
        sums = builder.add(sums, builder.mul(unsigned, signed))
    return sums


FLOAT_PATHS = (  # best first, as below
    Path("avx512f", frozenset({"avx512f"}), 16, 64, add_float),  # 24 sums, 4 columns and a row's number in 32 registers
    Path("avx", frozenset({"avx"}), 8, 16, add_float),  # 12, 2 and 1 in 16
    Path("neon", frozenset({"neon"}), 4, 16, add_float),  # 24, 4 and 1 in 32
    Path("portable", frozenset(), 4, 8, add_float),  # 12, 2 and 1
)
BYTE_PATHS = (
    Path("avx512vnni", frozenset({"avx512vnni"}), 16, 64, add_vnni, zero=128),
    Path("avxvnni", frozenset({"avxvnni"}), 8, 16, add_vnni, zero=128),
    Path("avx2", frozenset({"avx2"}), 8, 16, add_avx2),
    Path("dotprod", frozenset({"dotprod"}), 4, 16, add_dotprod),
    Path("portable", frozenset(), 4, 8, add_bytes, zero=128),
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


def byte_product(builder: Any, path: Path, a: Any, a_start: Any, a_step: Any, a_scales: Any, b: Any, b_start: Any,
                 b_scales: Any, b_offsets: Any, b_scales_start: Any, c: Any, c_start: Any, c_step: Any,
                 blocks: Any, words: Any, ahead: Any) -> None:  # fmt: skip
    """float_product's twin for 8-bit numbers: 32-bit sums within a block, scaled and added as float32 between blocks.

    c[i, j] = the sum over blocks of a_scale * b_scale * (offset + the sum of a * b within the block).

    a, a_start, a_step   int32, each four bytes of a row, path.zero above the number meant; a_step = words a row
    a_scales             float32, one a block of a row, rows apart by `blocks`; where row a_start/a_step begins
    b, b_start           int32, each four signed bytes of a column; (blocks * words, path.columns)
    b_scales, b_offsets  float32 and int32 (blocks, path.columns) from b_scales_start; offset = -path.zero * sum of b
    c, c_start, c_step   float32
    words                words in a block
    ahead                where in b those words are that are needed soon
    """
    floats, ints = (ir.VectorType(kind, path.lanes) for kind in (FLOAT, INT))
    columns, places = LONG(path.columns), [LONG(path.lanes * v) for v in range(path.columns // path.lanes)]
    sums = registers(builder, ints, path.rows, len(places))
    a_rows, c_rows = row_starts(builder, path, a_start, a_step), row_starts(builder, path, c_start, c_step)
    scale_rows = row_starts(builder, path, builder.mul(builder.sdiv(a_start, a_step), blocks), blocks)
    for start in c_rows:  # c holds the sums between blocks: registers for them as well there are not
        for place in places:
            store(builder, every(0.0, floats), c, builder.add(start, place))
    with cgutils.for_range(builder, blocks) as block:
        scales_at = builder.add(b_scales_start, builder.mul(block.index, columns))
        for v, place in enumerate(places):
            offset = load(builder, b_offsets, builder.add(scales_at, place), ints)
            for row in sums:
                builder.store(offset, row[v])
        first = builder.mul(block.index, words)
        rows = [builder.add(start, first) for start in a_rows]
        start = builder.add(b_start, builder.mul(first, columns))
        soon = builder.add(ahead, builder.mul(first, LONG(FETCHED * LINE)))
        sum_products(builder, path, a, rows, b, start, columns, words, sums, soon)
        scales = [load(builder, b_scales, builder.add(scales_at, place), floats) for place in places]
        for scale_row, c_row, row in zip(scale_rows, c_rows, sums, strict=True):
            number = builder.load(builder.gep(a_scales, [builder.add(scale_row, block.index)]))
            each = splat(builder, number, path.lanes)
            for place, scale, sum in zip(places, scales, row, strict=True):
                at = builder.add(c_row, place)
                whole = builder.sitofp(builder.load(sum), floats)
                total = multiply_add(builder, whole, builder.fmul(each, scale), load(builder, c, at, floats))
                store(builder, total, c, at)


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


def byte_tile(path: Path) -> Any:
    """byte_product as a Numba function."""

    @intrinsic
    def product(typing: Any, a: Any, a_start: Any, a_step: Any, a_scales: Any, b: Any, b_start: Any, b_scales: Any,
                b_offsets: Any, b_scales_start: Any, c: Any, c_start: Any, c_step: Any, blocks: Any,
                words: Any, ahead: Any) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            byte_product(builder, path, *addresses(context, builder, signature, given))
            return context.get_dummy_value()

        n = types.intp
        return types.void(a, n, n, a_scales, b, n, b_scales, b_offsets, n, c, n, n, n, n, n), generate

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
def quantise_block(typing: Any, x: Any, start: Any, bytes: Any, bytes_start: Any, scales: Any, place: Any,
                   zero: Any) -> Any:  # fmt: skip
    """Levels of BLOCK numbers of flat float32 x, stored `zero` higher, and their scale: largest magnitude / 127.

    The sum of the levels. Written here because LLVM does not use vectors in so short a loop of unknown arrays.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x, bytes, scales = (data_of(context, builder, signature.args[i], given[i]) for i in (0, 2, 4))
        _, start, _, to, _, place, zero = given
        ints = ir.VectorType(INT, LANES)
        numbers = [load(builder, x, builder.add(start, LONG(at)), FLOATS) for at in range(0, BLOCK, LANES)]
        lanes = every(0.0, FLOATS)
        for number in numbers:
            lanes = greater(builder, lanes, magnitude(builder, number))
        largest = joined(builder, lanes, greater)
        builder.store(builder.fdiv(largest, FLOAT(127.0)), builder.gep(scales, [place]))
        inverse = builder.select(
            builder.fcmp_ordered(">", largest, FLOAT(0.0)), builder.fdiv(FLOAT(127.0), largest), FLOAT(0.0)
        )
        sums, parts = every(0, ints), []
        for number in numbers:
            scaled = builder.fmul(number, splat(builder, inverse, LANES))
            raised = builder.fptosi(builder.fadd(scaled, every(128.5, FLOATS)), ints)  # positive: cut off is rounded
            levels = builder.sub(raised, every(128, ints))
            sums = builder.add(sums, levels)
            parts.append(builder.trunc(builder.add(levels, splat(builder, zero, LANES)), ir.VectorType(BYTE, LANES)))
        while len(parts) > 1:
            both = ir.Constant(ir.VectorType(INT, 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
            parts = [builder.shuffle_vector(*pair, both) for pair in zip(parts[::2], parts[1::2], strict=True)]
        store(builder, parts[0], bytes, to, align=1)
        return joined(builder, sums, lambda builder, a, b: builder.add(a, b))

    n = types.intp
    return types.int32(x, n, bytes, n, scales, n, types.int32), generate


@intrinsic
def float_of_bits(typing: Any, bits: Any) -> Any:
    """The float32 whose bits are those of an int32."""
    return types.float32(types.int32), lambda _, builder, __, given: builder.bitcast(given[0], FLOAT)


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
