"""Matrix products: weights packed into panels at load, and the loop over tiles.

Every number of a product is summed in one order, whatever rows stand beside its own, so results do not depend on the
batch. BLAS does not promise that: OpenBLAS changes bits with the number of rows.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import binding
from numba.core.registry import cpu_target
from numpy.typing import NDArray

from .compiled import inner
from .instructions import BLOCK, BYTE_PATHS, FLOAT_PATHS, ROWS, byte_tile, choose, float_tile

PARTS = 3  # the next panel is fetched while this many tiles of a panel are computed
DOT_OF_BYTES = """
declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)
define i32 @dot(<16 x i8> %a, <16 x i8> %b) {
    %wide_a = sext <16 x i8> %a to <16 x i32>
    %wide_b = sext <16 x i8> %b to <16 x i32>
    %products = mul <16 x i32> %wide_a, %wide_b
    %sum = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %products)
    ret i32 %sum
}"""


def cpu_features(triple: str, cpu: str, listed: str) -> set[str]:
    """The features that code for this CPU may use: those listed (+one,-another,...), and of Arm's what LLVM knows.

    LLVM knows an Arm CPU's instructions by its name, and leaves dotprod out of the list (all, on macOS and Windows);
    whether it would use that one, its answer to a dot product tells.
    """
    features = {word[1:] for word in listed.split(",") if word.startswith("+")}
    if triple.startswith(("aarch64", "arm64")):
        machine = binding.Target.from_triple(triple).create_target_machine(cpu=cpu, features=listed)
        dotprod = "sdot" in machine.emit_assembly(binding.parse_assembly(DOT_OF_BYTES))
        features |= {"neon", "dotprod"} if dotprod else {"neon"}
    return features


TRIPLE, CPU, LISTED = cpu_target.target_context.codegen().magic_tuple()  # what Numba compiles for
FEATURES = cpu_features(TRIPLE, CPU, LISTED)
FLOAT_PATH, BYTE_PATH = choose(FLOAT_PATHS, FEATURES), choose(BYTE_PATHS, FEATURES)
PANEL, BYTE_PANEL, ZERO = FLOAT_PATH.columns, BYTE_PATH.columns, BYTE_PATH.zero
tile, bytes_tile = float_tile(FLOAT_PATH), byte_tile(BYTE_PATH)


class Matrix(NamedTuple):
    """Some layers' matrices of one kind, in the order a tile reads them. Arrays of the other precision are empty.

    numbers   (layers * panels * depth * panel) float32
    levels    (layers * panels * depth/4 * panel) int32, four signed bytes of a column each
    scales    (layers * panels * depth/BLOCK * panel) float32
    offsets   the same size, int32: -ZERO * the sum of the block's levels
    depth     numbers in a row of the input; in int8 a multiple of BLOCK, filled up with zeros
    columns   of the output, a multiple of panel, filled up with zeros
    panel     columns that stand together: PANEL, or BYTE_PANEL
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


@inner
def multiply(a, words, word_scales, matrix, layer, first, last, panel_index, ahead, c, c_start, c_step):  # type: ignore[no-untyped-def]
    """Rows `first` to `last`, and one panel's columns, of the product of the rows with a layer's matrix.

    a                (rows, depth) flat float32, read in float32
    words            (rows, depth/4) flat int32, bytes ZERO above the level meant, read in int8
    word_scales      (rows, depth/BLOCK) flat float32, read in int8
    ahead            how many panels on the one is that this thread is likely to take next: meanwhile it is fetched
    c, c_start, c_step   float32, where the first row's first column goes, and how far it is to the next row
    first, last      multiples of ROWS
    """
    depth, panel = matrix.depth, matrix.panel
    which = layer * (matrix.columns // panel) + panel_index
    blocks, step = depth // BLOCK, depth // 4
    for row in range(first, last, ROWS):
        at = c_start + (row - first) * c_step
        part = (row - first) // ROWS
        if not matrix.int8:
            start = which * depth * panel
            soon = start + (ahead * PARTS + part) * depth * panel // PARTS if part < PARTS else start
            tile(a, row * depth, depth, matrix.numbers, start, panel, c, at, c_step, depth, soon)
        else:
            start = which * step * panel
            soon = start + (ahead * PARTS + part) * step * panel // PARTS if part < PARTS else start
            bytes_tile(words, row * step, step, word_scales, matrix.levels, start, matrix.scales, matrix.offsets,
                       which * blocks * panel, c, at, c_step, blocks, BLOCK // 4, soon)  # fmt: skip
