"""C = A W^T in 8-bit whole numbers, four times; README.md says what each changes and why.

BLOCK neighbours of a row share a scale: number = level * scale, levels from -127 to 127. Within a block the sum of
products is a whole number, exact in 32 bits, so all rungs agree on it; blocks are scaled and added in float32.

blocks    of a row: depth / BLOCK, 12 or 18
words     of a block: BLOCK / 4 = 16, each four bytes in 32 bits
rows, depth, outputs as in float_rungs.py
"""

import numpy as np
from float_rungs import backend_matrix, tiles
from numba import njit
from numpy.typing import NDArray
from refembed_numba.instructions import NOTE, ROWS, SPAN, WORDS, add_bytes, matrix_tile
from refembed_numba.kernels import RAISED
from refembed_numba.matmul import BLOCK, BYTE_PANEL, BYTE_PATH, BYTES, FLOAT_PATH, round_up
from rung import Floats, Machine, Run, Rung, aligned, f32, i32, placed, whole

SHIFTS = BYTE_PATH._replace(name="shifts", add=add_bytes, zero=128)  # the backend's tile without the CPU's instruction
shift_tile = matrix_tile(FLOAT_PATH, SHIFTS)
HIGHER = np.full(4, SHIFTS.zero, np.uint8).view(np.int32)[0]  # flipped, 128's bit of each byte adds 128


def quantise(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Levels (..., rows, blocks, BLOCK) and scales (..., rows, blocks): the largest of a block becomes 127 or -127."""
    blocks = placed(x, (*x.shape[:-1], round_up(x.shape[-1], BLOCK))).reshape(*x.shape[:-1], -1, BLOCK)
    largest = np.abs(blocks).max(-1, keepdims=True)
    inverse = f32(127) / np.where(largest > 0, largest, f32(127))
    return (np.floor(blocks * inverse + f32(128.5)) - f32(128)).astype(np.int8), largest[..., 0] / f32(127)


# ---------------------------------------------------------------------------------------------------------- the rungs
@njit
def naive(a, a_scales, w, w_scales, c):
    """As the formula is written. Whole numbers may be added in any order, so this loop the compiler does vectorise.

    a (rows, blocks, BLOCK)   w (outputs, blocks, BLOCK) int8   scales (rows or outputs, blocks)   c (rows, outputs)
    """
    for i in range(len(a)):
        for j in range(len(w)):
            total = f32(0)
            for b in range(a.shape[1]):
                dot = i32(0)
                for k in range(BLOCK):
                    dot = i32(dot + i32(a[i, b, k]) * i32(w[j, b, k]))  # i32(): Numba's sums are 64 bits wide
                total += f32(dot) * (a_scales[i, b] * w_scales[j, b])
            c[i, j] = total


@njit
def add_dot(total, four, others):
    """total + the dot product of two words' four signed bytes each; a byte is taken by shifting it up and down."""
    for up in (24, 16, 8, 0):
        total = i32(total + (i32(four << up) >> 24) * (i32(others << up) >> 24))
    return total


@njit
def packed(a, a_scales, panels, w_scales, dots, totals, c):
    """Four bytes of a column are one word, the words of a panel's columns lie side by side: a lane is a column.

    a (rows, blocks, WORDS)   panels (outputs / BYTE_PANEL, blocks, WORDS, BYTE_PANEL) int32   rows a multiple of ROWS
    a_scales (rows, blocks)   w_scales (outputs / BYTE_PANEL, blocks, BYTE_PANEL)   c (rows, outputs)
    dots, totals (ROWS, BYTE_PANEL) int32 and float32, scratch: one tile, of a block and of all blocks
    """
    for p in range(len(panels)):
        for top in range(0, len(a), ROWS):
            strip = a[top : top + ROWS]  # (ROWS, blocks, WORDS)
            strip_scales = a_scales[top : top + ROWS]  # (ROWS, blocks)
            totals[:] = 0
            for b in range(a.shape[1]):
                dots[:] = 0
                for k in range(WORDS):
                    for j in range(BYTE_PANEL):
                        four = panels[p, b, k, j]
                        for i in range(ROWS):
                            dots[i, j] = add_dot(dots[i, j], strip[i, b, k], four)
                for j in range(BYTE_PANEL):
                    for i in range(ROWS):
                        totals[i, j] += f32(dots[i, j]) * (strip_scales[i, b] * w_scales[p, b, j])
            for i in range(ROWS):
                for j in range(BYTE_PANEL):
                    c[whole(top + i), whole(p * BYTE_PANEL + j)] = totals[i, j]


@njit
def shift_tiles(words, levels, scales, layer, columns, c):
    """The backend's tile, with shifts where it has the CPU's instruction for four bytes.

    words (rows, blocks, SPAN)   c (rows, columns) flat
    levels, scales flat, as matmul.Matrix says, but for levels: bytes 128 above what they mean
    """
    (rows, blocks, _), panels = words.shape, columns // BYTE_PANEL
    for p in range(layer * panels, (layer + 1) * panels):
        start, scales_start = p * blocks * WORDS * BYTE_PANEL, p * blocks * BYTE_PANEL
        for row in range(0, rows, ROWS):
            c_start = row * columns + (p - layer * panels) * BYTE_PANEL
            shift_tile(c, words, row, levels, start, scales, scales_start, BYTE_PANEL, c, c_start, columns,
                       blocks * BLOCK, start, scales_start)  # fmt: skip


# ----------------------------------------------------------------------------------------------- what each is given
def ready_naive(a: Floats, w: Floats) -> tuple[Run, Floats]:
    (a8, a_scales), (w8, w_scales) = (map(placed, quantise(x)) for x in (a, w))
    c = aligned((len(a), w.shape[1]), f32)
    return lambda layer: naive(a8, a_scales, w8[layer], w_scales[layer], c), c


def ready_packed(a: Floats, w: Floats) -> tuple[Run, Floats]:
    matrix, rows = backend_matrix(w, BYTES), len(a)
    levels, scales = map(placed, quantise(placed(a, (round_up(rows, ROWS), a.shape[1]))))
    words, blocks = levels.view(np.int32), levels.shape[1]  # (rows, blocks, WORDS)
    panels = placed((matrix.numbers ^ RAISED).reshape(len(w), -1, blocks, WORDS, BYTE_PANEL))
    w_scales = matrix.scales.reshape(len(w), -1, blocks, BYTE_PANEL)
    dots, totals = aligned((ROWS, BYTE_PANEL), i32), aligned((ROWS, BYTE_PANEL), f32)
    c = aligned((len(levels), matrix.columns), f32)
    return (
        lambda layer: packed(words, scales, panels[layer], w_scales[layer], dots, totals, c),
        c[:rows, : w.shape[1]],
    )


def noted(a: Floats) -> NDArray[np.int32]:
    """Rows as the tile wants them, (rows, blocks, SPAN): of each block its scale, both halves' sums, the words."""
    levels, scales = quantise(placed(a, (round_up(len(a), ROWS), a.shape[1])))
    words = aligned((*scales.shape, SPAN), i32)
    words[..., 0] = scales.view(np.int32)
    words[..., 1:NOTE] = levels.reshape(*scales.shape, 2, -1).sum(-1, dtype=np.int32)
    words[..., NOTE:] = levels.view(np.int32)
    return words


def ready_shifts(a: Floats, w: Floats) -> tuple[Run, Floats]:
    matrix, words = backend_matrix(w, BYTES), noted(a)
    levels = placed(matrix.numbers ^ RAISED ^ HIGHER)
    c = aligned((len(words), matrix.columns), f32)
    return lambda layer: shift_tiles(words, levels, matrix.scales, layer, matrix.columns, c), c[: len(a), : w.shape[1]]


def ready_tile(a: Floats, w: Floats) -> tuple[Run, Floats]:
    matrix, words = backend_matrix(w, BYTES), noted(a)
    c, no_numbers = aligned((len(words), matrix.columns), f32), np.empty(0, f32)
    flat_words, flat_c = words.ravel(), c.ravel()
    return (
        lambda layer: tiles(no_numbers, flat_words, matrix, layer, len(words), flat_c),
        c[: len(a), : w.shape[1]],
    )


# ------------------------------------------------------------------------------------------------------- their limits
def read_once(machine: Machine, rows: int) -> float:
    """W is read from memory once: 2 operations a row for each byte; a block has 4 bytes more, its scale."""
    return rows * 2 / (1 + 4 / BLOCK) * machine.memory


def plain(machine: Machine, rows: int) -> float:
    """Without the instruction no more than float32's peak: widen, multiply pairs, add is two steps for 32 products."""
    return min(machine.peak, read_once(machine, rows))


def instruction(machine: Machine, rows: int) -> float:
    """Four products in the place of one; a block's end costs each sum two steps more of those units, two scales."""
    return min(4 * machine.peak * WORDS / (WORDS + 2), read_once(machine, rows), 2 * ROWS * machine.second)


FOUR_AT_ONCE = {"avx512vnni", "avxvnni", "dotprod"}  # paths of one instruction for four bytes in each lane
LADDER = [
    Rung("naive", ready_naive, plain),
    Rung("packed", ready_packed, plain),
    Rung("tile, shifts", ready_shifts, plain),
    Rung("tile", ready_tile, instruction if BYTE_PATH.name in FOUR_AT_ONCE else plain),
]
