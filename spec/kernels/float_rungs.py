"""C = A W^T in float32, five times; README.md says what each changes and why.

rows      of A and C: tokens, 18 of a query, 512 of a full pass
depth     of A and W, what is summed over: 768, or 1,152 in a layer's last product
outputs   of C, the rows of W as the checkpoint stores it: 1,280, 2,304 or 768

Each number of C is summed in the same order in all of them, depth rising, so the first four give the same bits.
"""

import numpy as np
from numba import njit
from refembed_numba.forward import ROWS_A_TASK
from refembed_numba.instructions import ROWS
from refembed_numba.matmul import FLOATS, PANEL, Layout, Matrix, empty_matrix, multiply, round_up
from refembed_numba.packing import pack
from refembed_numba.team import Team
from rung import Floats, Machine, Run, Rung, aligned, f32, placed, whole

BLOCK_DEPTH, BLOCK_COLUMNS = 8, 1024  # of W^T: 32 KiB, which the nearest cache holds; few rows, so that they are long


# ---------------------------------------------------------------------------------------------------------- the rungs
@njit
def naive(a, w, c):
    """One number of C after the other, as the formula is written.

    a (rows, depth)   w (outputs, depth)   c (rows, outputs)
    """
    for i in range(len(a)):
        for j in range(len(w)):
            total = f32(0)
            for k in range(a.shape[1]):
                total += a[i, k] * w[j, k]  # each addition waits for the one before
            c[i, j] = total


@njit
def reordered(a, wt, c):
    """The same additions with the loops in another order: a row of C grows by one row of W^T after the other.

    a (rows, depth)   wt (depth, outputs)   c (rows, outputs)
    """
    depth, outputs = wt.shape
    for i in range(len(a)):
        c[i] = 0
        for k in range(depth):
            number = a[i, k]
            for j in range(outputs):
                c[i, j] += number * wt[k, j]  # no addition waits for its neighbour: 16 at once


@njit
def blocked(a, wt, c):
    """A block of W^T serves all rows while it is in the nearest cache.

    a (rows, depth)   wt (depth, outputs)   c (rows, outputs)
    """
    depth, outputs = wt.shape
    c[:] = 0
    for left in range(0, outputs, BLOCK_COLUMNS):
        for top in range(0, depth, BLOCK_DEPTH):
            for i in range(len(a)):
                for k in range(top, min(top + BLOCK_DEPTH, depth)):
                    number = a[i, k]
                    for j in range(min(BLOCK_COLUMNS, outputs - left)):
                        c[i, whole(left + j)] += number * wt[k, whole(left + j)]


@njit
def packed(a, panels, sums, c):
    """W lies in the order it is read, and each of its numbers, once read, serves six rows.

    a (rows, depth)   panels (outputs / PANEL, depth, PANEL)   c (rows, outputs)   rows a multiple of ROWS
    sums (ROWS, PANEL) scratch: one tile of C
    """
    for p in range(len(panels)):
        for top in range(0, len(a), ROWS):
            strip = a[top : top + ROWS]  # (ROWS, depth)
            sums[:] = 0
            for k in range(a.shape[1]):
                for j in range(PANEL):
                    for i in range(ROWS):
                        sums[i, j] += strip[i, k] * panels[p, k, j]  # sums is in memory: read, added to, written back
            for i in range(ROWS):
                for j in range(PANEL):
                    c[whole(top + i), whole(p * PANEL + j)] = sums[i, j]


@njit
def tiles(a, words, matrix, layer, rows, c):
    """The backend's product: its tile keeps the sums in registers. forward.py does the same on all threads.

    a (rows, depth) flat, in float32; words in int8   matrix as matmul.Matrix says   c (rows, columns) flat
    """
    for first in range(0, rows, ROWS_A_TASK):
        last = min(first + ROWS_A_TASK, rows)
        for p in range(matrix.columns // matrix.panel):
            c_start = first * matrix.columns + p * matrix.panel
            multiply(a, words, matrix, layer, first, last, p, 1, c, c_start, matrix.columns)


# ----------------------------------------------------------------------------------------------- what each is given
def blas(a: Floats, w: Floats) -> tuple[Run, Floats]:
    a, w, c = placed(a), placed(w), aligned((len(a), w.shape[1]), f32)
    return lambda layer: np.matmul(a, w[layer].T, out=c), c


def ready_naive(a: Floats, w: Floats) -> tuple[Run, Floats]:
    a, w, c = placed(a), placed(w), aligned((len(a), w.shape[1]), f32)
    return lambda layer: naive(a, w[layer], c), c


def ready_reordered(a: Floats, w: Floats) -> tuple[Run, Floats]:
    a, wt, c = placed(a), placed(w.swapaxes(1, 2)), aligned((len(a), w.shape[1]), f32)
    return lambda layer: reordered(a, wt[layer], c), c


def ready_blocked(a: Floats, w: Floats) -> tuple[Run, Floats]:
    a, wt, c = placed(a), placed(w.swapaxes(1, 2)), aligned((len(a), w.shape[1]), f32)
    return lambda layer: blocked(a, wt[layer], c), c


def backend_matrix(w: Floats, layout: Layout, panel: int | None = None) -> Matrix:
    """W (layers, outputs, depth) as the backend packs it at load."""
    layers, outputs, depth = w.shape
    matrix = empty_matrix(layers, outputs, depth, layout, panel)
    for layer in range(layers):
        pack(matrix, layer, placed(w[layer], (matrix.columns, depth)), Team(1))
    return matrix._replace(numbers=placed(matrix.numbers), scales=placed(matrix.scales))


def ready_packed(a: Floats, w: Floats) -> tuple[Run, Floats]:
    matrix, (rows, depth) = backend_matrix(w, FLOATS), a.shape
    a = placed(a, (round_up(rows, ROWS), depth))
    panels = matrix.numbers.reshape(len(w), -1, depth, PANEL)
    sums, c = aligned((ROWS, PANEL), f32), aligned((len(a), matrix.columns), f32)
    return lambda layer: packed(a, panels[layer], sums, c), c[:rows, : w.shape[1]]


def ready_tile(a: Floats, w: Floats) -> tuple[Run, Floats]:
    matrix, (rows, depth) = backend_matrix(w, FLOATS), a.shape
    a = placed(a, (round_up(rows, ROWS), depth))
    c, no_words = aligned((len(a), matrix.columns), f32), np.empty(0, np.int32)
    flat_a, flat_c = a.ravel(), c.ravel()
    return (
        lambda layer: tiles(flat_a, no_words, matrix, layer, len(a), flat_c),
        c[:rows, : w.shape[1]],
    )


# ------------------------------------------------------------------------------------------------------- their limits
def read_once(machine: Machine, rows: int) -> float:
    """W is read from memory once: 2 operations a row for each 4 bytes."""
    return rows * 2 / 4 * machine.memory


def sums_in_memory(machine: Machine, rows: int) -> float:
    """Each multiply-add, 2 operations, brings 4 bytes of sums from the nearest cache and takes them back."""
    return min(2 / 4 * machine.update, read_once(machine, rows))


def in_registers(machine: Machine, rows: int) -> float:
    """A panel comes from the second cache, once for ROWS rows; from memory, once for all."""
    return min(machine.peak, ROWS * 2 / 4 * machine.second, read_once(machine, rows))


LADDER = [
    Rung("BLAS", blas, lambda machine, rows: min(machine.peak, read_once(machine, rows))),
    Rung("naive", ready_naive, lambda machine, rows: 2 / machine.add),
    Rung("reordered", ready_reordered, lambda machine, rows: 2 / 4 * min(machine.update, machine.third)),
    Rung("blocked", ready_blocked, sums_in_memory),
    Rung("packed", ready_packed, sums_in_memory),
    Rung("tile", ready_tile, in_registers),
]
