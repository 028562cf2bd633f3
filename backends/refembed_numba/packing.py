"""Weights into the order that tiles read, by all threads: it is most of what loading a model takes."""
# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from refembed.reference.quantize import INT8_BLOCK, Quantized, quantize
from refembed.stored import QuantizedTensor, Tensor

from .compiled import compiled, inner
from .forward import APART, new_counters, wait, words_in
from .instructions import LANES, NIBBLE, add_to
from .kernels import RAISED, quantise_row, store_column
from .matmul import BYTES, FLOATS, Layout, Matrix
from .team import Team

f32, whole = np.float32, np.uintp
ABOVE, LOW = np.int32(NIBBLE * 0x01010101), np.int32(0x0F0F0F0F)  # the bit of each nibble that adds 8 to it; low halves


def layout_of(tensors: Sequence[Tensor], levels: bool) -> Layout:
    """How matrices that are multiplied with the same rows are kept.

    levels   in 8 or 4 bits: as they are stored, or floats rounded; where all are floats else, they stay
    """
    grids = {tensor.grid if isinstance(tensor, QuantizedTensor) else None for tensor in tensors}
    if grids == {None} or not levels:
        return BYTES if levels else FLOATS
    bits = max(8 if grid is None else grid.bits for grid in grids)
    shared = all(grid and grid.block is None for grid in grids)
    return Layout(bits, halves=not shared, shared=shared)


def pack(matrix: Matrix, layer: int, weight: NDArray[np.float32], team: Team) -> None:
    """Write one layer's floats into their place, rounded as rows of activations are where the matrix is of levels.

    weight   (columns, inputs), filled up with rows of zeros; inputs at most matrix.depth
    """
    flat, inputs = weight.ravel(), weight.shape[1]
    words = np.empty((team.size, words_in.py_func(matrix.depth)), np.int32)
    counters = new_counters(0)
    team.run(lambda thread: pack_panels(flat, inputs, matrix, layer, words[thread], counters))


def pack_levels(matrix: Matrix, layer: int, levels: NDArray[np.int8], scales: NDArray[np.float16], team: Team) -> None:
    """Write one layer's levels into their place as they are.

    levels   (columns, matrix.depth), filled up with zeros
    scales   (columns, 2 * blocks) or, where they are shared, (columns, 1)
    """
    flat, counters, panels = levels.view(np.int32).ravel(), new_counters(0), matrix.columns // matrix.panel
    team.run(lambda thread: pack_level_panels(flat, matrix, layer, counters))
    kept = matrix.scales if matrix.shared else matrix.scales.view(np.float16)
    place = kept.reshape(-1, panels, scales.shape[1], matrix.panel)[layer]
    place[...] = scales.reshape(panels, matrix.panel, -1).swapaxes(1, 2)


def quantized(tensor: Tensor) -> Quantized:
    """A matrix's own levels and scales, or of floats beside others that are quantised the form int8-block's."""
    return tensor.quantized() if isinstance(tensor, QuantizedTensor) else quantize(tensor.load(f32), INT8_BLOCK)


def by_halves(scales: NDArray[np.float16], blocks: int) -> NDArray[np.float16]:
    """Scales (rows, blocks of the stored form), or one for each row, as one for each of `blocks` halves."""
    if scales.shape[1] == 1:
        return np.repeat(scales, blocks, axis=1)
    return np.pad(scales, ((0, 0), (0, blocks - scales.shape[1])))


@compiled
def pack_panels(weight, inputs, matrix, layer, words, counters):
    """Panels of a layer, those that no other thread takes."""
    depth, panel = matrix.depth, matrix.panel
    panels = matrix.columns // panel
    task = add_to(counters, 0)
    while task < panels:
        which = layer * panels + task
        if matrix.bits == 32:
            lay_out(weight, inputs, task, panel, matrix.numbers, which * depth * panel)
        else:
            for column in range(panel):
                quantise_row(weight, (task * panel + column) * inputs, inputs, words, 0, depth)
                store_column(words, 0, matrix, which, column)
        add_to(counters, APART)
        task = add_to(counters, 0)
    wait(counters, APART, panels)


@inner
def lay_out(weight, inputs, which, panel, to, start):
    """Rows of weight (columns, inputs) flat as columns: to (inputs, panel) from start."""
    for first in range(0, inputs, LANES):
        for j in range(panel):
            row = (which * panel + j) * inputs
            for k in range(first, min(first + LANES, inputs)):
                to[whole(start + k * panel + j)] = weight[whole(row + k)]


@compiled
def pack_level_panels(words, matrix, layer, counters):
    """The same of levels: words (columns, depth/4) flat, each four levels of a row."""
    step, panel = matrix.depth // 4, matrix.panel
    panels, lines = matrix.columns // panel, matrix.depth * matrix.bits // 32
    task = add_to(counters, 0)
    while task < panels:
        start = (layer * panels + task) * lines * panel
        for column in range(panel):
            row = (task * panel + column) * step
            for line in range(lines):
                if matrix.bits == 8:
                    word = words[whole(row + line)] ^ RAISED
                else:
                    low, high = words[whole(row + 2 * line)] ^ ABOVE, words[whole(row + 2 * line + 1)] ^ ABOVE
                    word = (low & LOW) | (high & LOW) << np.int32(4)
                matrix.numbers[whole(start + line * panel + column)] = word
        add_to(counters, APART)
        task = add_to(counters, 0)
    wait(counters, APART, panels)
