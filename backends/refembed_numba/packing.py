"""Weights into the order that tiles read, by all threads: it is most of what loading a model takes."""
# mypy: disable-error-code="no-untyped-def"

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled, inner
from .forward import APART, new_counters, wait
from .instructions import BLOCK, LANES, add_to
from .kernels import ROUND
from .matmul import ZERO, Matrix
from .team import Team

f32, i32, whole = np.float32, np.int32, np.uintp


def pack(matrix: Matrix, layer: int, weight: NDArray[np.float32], team: Team) -> None:
    """Write one layer's matrix into its place, quantised where the matrix is int8.

    weight   (columns, inputs), filled up with rows of zeros; inputs at most matrix.depth
    """
    flat, inputs = weight.ravel(), weight.shape[1]
    numbers = np.empty((team.size, matrix.depth * matrix.panel if matrix.int8 else 0), np.float32)
    counters = new_counters(0)
    team.run(lambda thread: pack_panels(flat, inputs, matrix, layer, numbers[thread], counters))


@compiled
def pack_panels(weight, inputs, matrix, layer, numbers, counters):
    """Panels of a layer, those that no other thread takes."""
    depth, panel = matrix.depth, matrix.panel
    panels = matrix.columns // panel
    task = add_to(counters, 0)
    while task < panels:
        which = layer * panels + task
        if matrix.int8:
            lay_out(weight, inputs, task, panel, depth, numbers, 0)
            quantise_panel(numbers, panel, depth, matrix, which)
        else:
            lay_out(weight, inputs, task, panel, depth, matrix.numbers, which * depth * panel)
        add_to(counters, APART)
        task = add_to(counters, 0)
    wait(counters, APART, panels)


@inner
def lay_out(weight, inputs, which, panel, depth, to, start):
    """Rows of weight (columns, inputs) flat as columns: to (depth, panel) from start, zeros from `inputs` on."""
    for first in range(0, inputs, LANES):
        for j in range(panel):
            row = (which * panel + j) * inputs
            for k in range(first, min(first + LANES, inputs)):
                to[whole(start + k * panel + j)] = weight[whole(row + k)]
    for i in range(inputs * panel, depth * panel):
        to[whole(start + i)] = f32(0.0)


@inner
def quantise_panel(numbers, panel, depth, matrix, which):
    """Levels, scales and offsets of a panel: numbers (depth, panel) flat; each column's block has its scale.

    scale = largest magnitude / 127, level = number / scale, to the nearest and ties to even, as in the specification.
    """
    levels, scales, offsets = matrix.levels, matrix.scales, matrix.offsets
    for block in range(depth // BLOCK):
        at = (which * (depth // BLOCK) + block) * panel
        for j in range(panel):
            scales[whole(at + j)], offsets[whole(at + j)] = f32(0.0), i32(0)
        for k in range(block * BLOCK, (block + 1) * BLOCK):
            for j in range(panel):
                scales[whole(at + j)] = max(scales[whole(at + j)], abs(numbers[whole(k * panel + j)]))
        for j in range(panel):
            scales[whole(at + j)] /= f32(127.0)
        for word in range(block * BLOCK // 4, (block + 1) * BLOCK // 4):
            to = (which * (depth // 4) + word) * panel
            for j in range(panel):
                levels[whole(to + j)] = i32(0)
            for byte in range(4):
                for j in range(panel):
                    scale = scales[whole(at + j)]
                    number = numbers[whole((4 * word + byte) * panel + j)] / (scale if scale > f32(0.0) else f32(1.0))
                    level = i32((number + ROUND) - ROUND)
                    levels[whole(to + j)] |= (level & i32(255)) << i32(8 * byte)
                    offsets[whole(at + j)] -= i32(ZERO) * level
