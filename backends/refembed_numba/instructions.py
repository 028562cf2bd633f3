"""What Numba has no words for: vector registers, fused multiply-add, atomic counters. Each is a few lines of LLVM IR.

Sums run in an order fixed here (one chain for each number of a product, sixteen lanes for a sum along a row), so that
their bits depend on nothing but the numbers: not on the row's place, its neighbours, or the width of the registers.
"""
# mypy: disable-error-code="untyped-decorator"
# Numba's decorators have no types that hold for every version

import os
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
BYTE, INT, LONG, FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, INTS, BYTES = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES), ir.VectorType(BYTE, 4 * LANES)
ZEROS = ir.Constant(FLOATS, [0.0] * LANES)


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


def store(builder: Any, value: Any, base: Any, index: Any) -> None:
    builder.store(value, builder.bitcast(builder.gep(base, [index]), value.type.as_pointer()), align=4)


def splat(builder: Any, scalar: Any) -> Any:
    """A vector whose every lane is this scalar."""
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    one = builder.insert_element(undefined, scalar, INT(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(INTS, [0] * LANES))


def fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c in every lane, rounded once."""
    return call(builder, "llvm.fma.v16f32", FLOATS, a, b, c)


def registers(builder: Any, kind: Any, rows: int, vectors: int) -> Any:
    """Places for rows x vectors sums, which LLVM keeps in registers."""
    return [[cgutils.alloca_once(builder, kind) for _ in range(vectors)] for _ in range(rows)]


# ------------------------------------------------------------------------------------------------------------ products
def float_tile(rows: int, vectors: int) -> Any:
    """The product of `rows` rows with 16 * `vectors` columns, all of it held in registers while it is summed."""

    @intrinsic
    def product(
        typing: Any, a: Any, a_start: Any, a_step: Any, b: Any, b_start: Any, b_step: Any,
        c: Any, c_start: Any, c_step: Any, depth: Any,
    ) -> Any:  # fmt: skip
        """c[i, j] = the sum over k < depth of a[i, k] * b[k, j], each one chain of fused multiply-adds, k rising.

        a, a_start, a_step   float32 in a flat array, where its first number is, and how far it is to the next row
        b, b_start, b_step   the same of b
        c, c_start, c_step   the same of c
        """

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            a, a_start, a_step, b, b_start, b_step, c, c_start, c_step, depth = given
            a, b, c = (data_of(context, builder, signature.args[at], given[at]) for at in (0, 3, 6))
            sums = registers(builder, FLOATS, rows, vectors)
            for place in (place for row in sums for place in row):
                builder.store(ZEROS, place)
            starts = [builder.add(a_start, builder.mul(a_step, LONG(row))) for row in range(rows)]
            with cgutils.for_range(builder, depth) as loop:
                start = builder.add(b_start, builder.mul(b_step, loop.index))
                columns = [load(builder, b, builder.add(start, LONG(LANES * v)), FLOATS) for v in range(vectors)]
                for row, begin in zip(sums, starts, strict=True):
                    each = splat(builder, builder.load(builder.gep(a, [builder.add(begin, loop.index)])))
                    for place, column in zip(row, columns, strict=True):
                        builder.store(fused(builder, each, column, builder.load(place)), place)
            for i, row in enumerate(sums):
                start = builder.add(c_start, builder.mul(c_step, LONG(i)))
                for v, place in enumerate(row):
                    store(builder, builder.load(place), c, builder.add(start, LONG(LANES * v)))
            return context.get_dummy_value()

        whole = types.intp
        return types.void(a, whole, whole, b, whole, whole, c, whole, whole, whole), generate

    return product


def dot_bytes(builder: Any, sums: Any, each: Any, weights: Any, vnni: bool) -> Any:
    """sums + the dot product of four unsigned bytes with four signed ones, in each of 16 lanes of 32 bits.

    The one instruction for it and the shifts that stand in for it give the same whole numbers.
    """
    if vnni:
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, sums, each, weights)
    for byte in range(4):
        low = ir.Constant(INTS, [24] * LANES)
        up = ir.Constant(INTS, [24 - 8 * byte] * LANES)
        signed = builder.ashr(builder.shl(weights, up), low)
        unsigned = builder.lshr(builder.shl(each, up), low)
        sums = builder.add(sums, builder.mul(signed, unsigned))
    return sums


def byte_tile(rows: int, vectors: int, vnni: bool) -> Any:
    """float_tile's twin for 8-bit numbers: 32-bit sums within a block, scaled and added as float32 between blocks."""

    @intrinsic
    def product(
        typing: Any, a: Any, a_start: Any, a_step: Any, a_scales: Any, b: Any, b_start: Any, b_scales: Any,
        b_offsets: Any, b_scales_start: Any, c: Any, c_start: Any, c_step: Any, blocks: Any, words: Any,
    ) -> Any:  # fmt: skip
        """c[i, j] = the sum over blocks of a_scale * b_scale * (offset + the sum of a * b within the block).

        a, a_start, a_step   int32, each four unsigned bytes of a row, 128 above the number meant; a_step = words a row
        a_scales             float32, one a block of a row, rows apart by `blocks`; where row a_start/a_step begins
        b, b_start           int32, each four signed bytes of a column; (blocks * words, columns) of the panel
        b_scales, b_offsets  float32 and int32 (blocks, columns) from b_scales_start; offset = -128 * the sum of b
        c, c_start, c_step   float32
        words                words in a block
        """

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            a, a_start, a_step, a_scales, b, b_start, b_scales = given[:7]
            b_offsets, b_scales_start, c, c_start, c_step, blocks, words = given[7:]
            a, a_scales, b, b_scales, b_offsets, c = (
                data_of(context, builder, signature.args[at], given[at]) for at in (0, 3, 4, 6, 7, 9)
            )
            columns = LONG(LANES * vectors)
            first_row = builder.sdiv(a_start, a_step)
            totals, sums = registers(builder, FLOATS, rows, vectors), registers(builder, INTS, rows, vectors)
            for place in (place for row in totals for place in row):
                builder.store(ZEROS, place)
            with cgutils.for_range(builder, blocks) as block:
                scales_at = builder.add(b_scales_start, builder.mul(block.index, columns))
                for v in range(vectors):
                    offset = load(builder, b_offsets, builder.add(scales_at, LONG(LANES * v)), INTS)
                    for row in sums:
                        builder.store(offset, row[v])
                base = builder.mul(block.index, words)
                with cgutils.for_range(builder, words) as loop:
                    k = builder.add(base, loop.index)
                    start = builder.add(b_start, builder.mul(k, columns))
                    weights = [load(builder, b, builder.add(start, LONG(LANES * v)), INTS) for v in range(vectors)]
                    for i, row in enumerate(sums):
                        begin = builder.add(a_start, builder.mul(a_step, LONG(i)))
                        each = splat(builder, builder.load(builder.gep(a, [builder.add(begin, k)])))
                        for place, weight in zip(row, weights, strict=True):
                            builder.store(dot_bytes(builder, builder.load(place), each, weight, vnni), place)
                for i in range(rows):
                    at = builder.add(builder.mul(builder.add(first_row, LONG(i)), blocks), block.index)
                    each = splat(builder, builder.load(builder.gep(a_scales, [at])))
                    for v in range(vectors):
                        scale = load(builder, b_scales, builder.add(scales_at, LONG(LANES * v)), FLOATS)
                        whole = builder.sitofp(builder.load(sums[i][v]), FLOATS)
                        total = fused(builder, whole, builder.fmul(each, scale), builder.load(totals[i][v]))
                        builder.store(total, totals[i][v])
            for i, row in enumerate(totals):
                start = builder.add(c_start, builder.mul(c_step, LONG(i)))
                for v, place in enumerate(row):
                    store(builder, builder.load(place), c, builder.add(start, LONG(LANES * v)))
            return context.get_dummy_value()

        n = types.intp
        return types.void(a, n, n, a_scales, b, n, b_scales, b_offsets, n, c, n, n, n, n), generate

    return product


# --------------------------------------------------------------------------------------------------- sums along a row
def along_row(start_value: float, step: Any) -> Any:
    """A function that goes along numbers of a flat array sixteen lanes at a time, and leaves the lanes in another."""

    @intrinsic
    def lanes(typing: Any, x: Any, start: Any, count: Any, result: Any) -> Any:
        """result[0:16] = the lanes after `count` numbers from `start`; count a multiple of 16."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            x, result = (data_of(context, builder, signature.args[at], given[at]) for at in (0, 3))
            place = cgutils.alloca_once(builder, FLOATS)
            builder.store(ir.Constant(FLOATS, [start_value] * LANES), place)
            with cgutils.for_range_slice(builder, LONG(0), given[2], LONG(LANES)) as (index, _):
                number = load(builder, x, builder.add(given[1], index), FLOATS)
                builder.store(step(builder, builder.load(place), number), place)
            store(builder, builder.load(place), result, LONG(0))
            return context.get_dummy_value()

        return types.void(x, types.intp, types.intp, result), generate

    return lanes


def greater(builder: Any, lanes: Any, number: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", number, lanes), number, lanes)


square_lanes = along_row(0.0, lambda builder, lanes, number: fused(builder, number, number, lanes))
sum_lanes = along_row(0.0, lambda builder, lanes, number: builder.fadd(lanes, number))
largest_lanes = along_row(-np.inf, greater)
magnitude_lanes = along_row(
    0.0, lambda builder, lanes, number: greater(builder, lanes, call(builder, "llvm.fabs.v16f32", FLOATS, number))
)


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
