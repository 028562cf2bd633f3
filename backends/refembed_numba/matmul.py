"""Matrix products: weights packed into panels at load, and the loop over tiles.

Every number of a product is summed in one order, whatever rows stand beside its own, so results do not depend on the
batch. BLAS does not promise that: OpenBLAS changes bits with the number of rows.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding
from numpy.typing import NDArray

from .compiled import inner
from .instructions import (
    BLOCK,
    BYTE_PATHS,
    CPU,
    FLOAT_PATHS,
    LISTED,
    PARTS,
    ROWS,
    TRIPLE,
    choose,
    float_tile,
    matrix_tile,
)

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


FEATURES = cpu_features(TRIPLE, CPU, LISTED)
FLOAT_PATH, BYTE_PATH = choose(FLOAT_PATHS, FEATURES), choose(BYTE_PATHS, FEATURES)
PANEL, BYTE_PANEL, ZERO = FLOAT_PATH.columns, BYTE_PATH.columns, BYTE_PATH.zero
tile, tile_of_matrix = float_tile(FLOAT_PATH), matrix_tile(FLOAT_PATH, BYTE_PATH)


class Layout(NamedTuple):
    """How numbers of a matrix are kept.

    bits     32 float32, else levels: 8 or 4
    halves   levels: float16 scales, of half a block each, in place of float32 ones
    shared   levels: all blocks of a column have one scale
    """

    bits: int
    halves: bool = False
    shared: bool = False

    @property
    def panel(self) -> int:
        """Columns that stand together."""
        return PANEL if self.bits == 32 else BYTE_PANEL


FLOATS, BYTES = Layout(32), Layout(8)


class Matrix(NamedTuple):
    """Some layers' matrices of one kind, in the order a tile reads them. Its Layout shows in its types.

    numbers   (layers * panels * depth * bits/32 * panel) float32; or of a column's levels, as byte_product says, four
              bytes as int32, eight nibbles as uint32
    scales    of levels (layers * panels * depth/BLOCK * panel) float32; halves: twice as many float16, whose bits are
              uint16, since Numba has no such floats on CPUs; shared: one a column
    depth     numbers in a row of the input; of levels a multiple of BLOCK, filled up with zeros
    columns   of the output, a multiple of panel, filled up with zeros
    panel     columns that stand together: PANEL, or BYTE_PANEL
    bits, shared   of its Layout, whose halves show in the type of scales
    """

    numbers: NDArray[Any]
    scales: NDArray[Any]
    depth: int
    columns: int
    panel: int
    bits: int
    shared: bool


def round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def empty_matrix(layers: int, outputs: int, inputs: int, layout: Layout, panel: int | None = None) -> Matrix:
    """Room for `layers` matrices (outputs, inputs); panel is what this CPU's tile takes, or that of another tile."""
    floats, panel = layout.bits == 32, panel or layout.panel
    depth, columns = inputs if floats else round_up(inputs, BLOCK), round_up(outputs, panel)
    kind = {32: np.float32, 8: np.int32, 4: np.uint32}[layout.bits]
    scales = 0 if floats else 1 if layout.shared else depth // BLOCK * (1 + layout.halves)
    return Matrix(
        np.empty(layers * depth * columns * layout.bits // 32, kind),
        np.empty(layers * columns * scales, np.uint16 if layout.halves else np.float32),
        depth,
        columns,
        panel,
        layout.bits,
        layout.shared,
    )


@inner
def multiply(a, words, matrix, layer, first, last, panel_index, ahead, c, c_start, c_step):  # type: ignore[no-untyped-def]
    """Rows `first` to `last`, and one panel's columns, of the product of the rows with a layer's matrix.

    a                (rows, depth) flat float32, read where the matrix is float32
    words            (rows, depth/BLOCK * SPAN) flat int32, as byte_product says, read where it is of levels
    ahead            how many panels on the one is that this thread is likely to take next: meanwhile it is fetched
    c, c_start, c_step   float32, where the first row's first column goes, and how far it is to the next row
    first, last      multiples of ROWS
    """
    depth, panel = matrix.depth, matrix.panel
    which = layer * (matrix.columns // panel) + panel_index
    size, blocks = depth * panel * matrix.bits // 32, depth // BLOCK
    start, scales_step = which * size, 0 if matrix.shared else panel
    scales = panel * (1 if matrix.shared else blocks)
    scales_start, scales_soon = which * scales, (which + ahead) * scales
    for row in range(first, last, ROWS):
        at, part = c_start + (row - first) * c_step, (row - first) // ROWS
        soon = start + (ahead * PARTS + part) * size // PARTS if part < PARTS else start
        tile_of_matrix(a, words, row, matrix.numbers, start, matrix.scales, scales_start, scales_step,
                       c, at, c_step, depth, soon, scales_soon)  # fmt: skip
