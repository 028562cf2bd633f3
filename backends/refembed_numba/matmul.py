"""Matrix products: weights packed into panels at load, and the loop over tiles.

Every number of a product is summed in one order, whatever rows stand beside its own, so results do not depend on the
batch. BLAS does not promise that: OpenBLAS changes bits with the number of rows.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import binding
from numba.core import config as numba_config
from numpy.typing import NDArray

from .compiled import compiled
from .instructions import byte_tile, float_tile

ROWS = 6  # of a tile; with 64 columns its 24 sums of 16 lanes, 4 columns and one row fill AVX-512's 32 registers
WIDE, NARROW = 64, 16  # columns of a panel: with AVX-512, and where registers hold 8 or 4 numbers
BLOCK = 64  # neighbours that share a scale in int8, of a row of activations and of a column of weights


def cpu_features() -> set[str]:
    """What Numba compiles for: this CPU's features, unless Numba was told of another CPU."""
    if numba_config.CPU_NAME is None and numba_config.CPU_FEATURES is None:
        return {name for name, here in binding.get_host_cpu_features().items() if here}
    return {word[1:] for word in (numba_config.CPU_FEATURES or "").split(",") if word.startswith("+")}


FEATURES = cpu_features()
VNNI = "avx512vnni" in FEATURES  # LLVM ends the process where it meets an instruction the CPU has not

wide_tile, narrow_tile = float_tile(ROWS, WIDE // 16), float_tile(ROWS, NARROW // 16)
wide_bytes, wide_bytes_portable = byte_tile(ROWS, WIDE // 16, VNNI), byte_tile(ROWS, WIDE // 16, False)


class Matrix(NamedTuple):
    """Some layers' matrices of one kind, in the order a tile reads them. Arrays of the other precision are empty.

    numbers   (layers * panels * depth * panel) float32
    levels    (layers * panels * depth/4 * panel) int32, four signed bytes of a column each
    scales    (layers * panels * depth/BLOCK * panel) float32
    offsets   the same size, int32: -128 * the sum of the block's levels
    depth     numbers in a row of the input; in int8 a multiple of BLOCK, filled up with zeros
    columns   of the output, a multiple of panel, filled up with zeros
    panel     WIDE or NARROW
    int8      whether it is
    """

    numbers: NDArray[np.float32]
    levels: NDArray[np.int32]
    scales: NDArray[np.float32]
    offsets: NDArray[np.int32]
    depth: int
    columns: int
    panel: int
    int8: bool


def round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def empty_matrix(layers: int, outputs: int, inputs: int, panel: int, int8: bool) -> Matrix:
    """Room for `layers` matrices (outputs, inputs)."""
    depth, columns = round_up(inputs, BLOCK) if int8 else inputs, round_up(outputs, panel)
    size = layers * depth * columns
    floats, bytes = (0, size) if int8 else (size, 0)
    return Matrix(
        np.empty(floats, np.float32),
        np.empty(bytes // 4, np.int32),
        np.empty(bytes // BLOCK, np.float32),
        np.empty(bytes // BLOCK, np.int32),
        depth,
        columns,
        panel,
        int8,
    )


def pack(matrix: Matrix, layer: int, weight: NDArray[np.float32]) -> None:
    """Write one layer's matrix (outputs, inputs) into its place, quantised where the matrix is int8."""
    outputs, inputs = weight.shape
    depth, panels = matrix.depth, matrix.columns // matrix.panel
    filled = weight
    if (outputs, inputs) != (matrix.columns, depth):
        filled = np.zeros((matrix.columns, depth), np.float32)
        filled[:outputs, :inputs] = weight
    if not matrix.int8:
        place = matrix.numbers.reshape(-1, panels, depth, matrix.panel)[layer]  # (panels, depth, panel)
        place[:] = filled.reshape(panels, matrix.panel, depth).swapaxes(1, 2)
        return
    blocks = filled.reshape(panels, matrix.panel, depth // BLOCK, BLOCK)
    scales = np.abs(blocks).max(-1) / np.float32(127)  # (panels, panel, blocks)
    levels = np.rint(blocks / np.where(scales > 0, scales, 1)[..., None]).astype(np.int8)
    sums = levels.sum(-1, dtype=np.int32)
    shape = (-1, panels, depth // BLOCK, matrix.panel)
    matrix.scales.reshape(shape)[layer] = scales.swapaxes(1, 2)
    matrix.offsets.reshape(shape)[layer] = -128 * sums.swapaxes(1, 2)
    words = levels.reshape(panels, matrix.panel, depth).view("<i4")  # (panels, panel, depth/4)
    matrix.levels.reshape(-1, panels, depth // 4, matrix.panel)[layer] = words.swapaxes(1, 2)


@compiled
def tile(a, a_start, a_step, b, b_start, b_step, c, c_start, c_step, depth, panel):  # type: ignore[no-untyped-def]
    """float_tile of either width."""
    if panel == WIDE:
        wide_tile(a, a_start, a_step, b, b_start, b_step, c, c_start, c_step, depth)
    else:
        narrow_tile(a, a_start, a_step, b, b_start, b_step, c, c_start, c_step, depth)


@compiled
def multiply(a, words, word_scales, matrix, layer, first, last, panel_index, vnni, c):  # type: ignore[no-untyped-def]
    """Rows `first` to `last`, and one panel's columns, of the product of the rows with a layer's matrix.

    a             (rows, depth) flat float32, read in float32
    words         (rows, depth/4) flat int32, bytes 128 above the level meant, read in int8
    word_scales   (rows, depth/BLOCK) flat float32, read in int8
    c             (rows, columns) flat float32
    first, last   multiples of ROWS
    """
    depth, panel, columns = matrix.depth, matrix.panel, matrix.columns
    which = layer * (columns // panel) + panel_index
    for row in range(first, last, ROWS):
        at = row * columns + panel_index * panel
        if not matrix.int8:
            tile(a, row * depth, depth, matrix.numbers, which * depth * panel, panel, c, at, columns, depth, panel)
            continue
        blocks, step = depth // BLOCK, depth // 4
        levels_at, scales_at = which * step * panel, which * blocks * panel
        if vnni:
            wide_bytes(
                words, row * step, step, word_scales, matrix.levels, levels_at, matrix.scales, matrix.offsets,
                scales_at, c, at, columns, blocks, BLOCK // 4,
            )  # fmt: skip
        else:
            wide_bytes_portable(
                words, row * step, step, word_scales, matrix.levels, levels_at, matrix.scales, matrix.offsets,
                scales_at, c, at, columns, blocks, BLOCK // 4,
            )  # fmt: skip
