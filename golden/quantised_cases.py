"""Write golden/quantised: matrices and what each quantised form makes of them. Run: python golden/quantised_cases.py

Expected values are computed here in exact fractions, from the words of spec/09-quantised-weights.md alone, and nothing
is written where the reference disagrees in a single bit.
"""

import hashlib
import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from refembed.reference import quantize

TARGET = Path(__file__).parent / "quantised"
GRIDS = {"int8-block": (8, 32), "int4-block": (4, 32), "int8-row": (8, None), "int4-row": (4, None)}


def matrices() -> dict[str, tuple[str, np.ndarray]]:
    """slug -> why, matrix (rows, columns) float32."""
    rng = np.random.default_rng(20_250_924)
    ordinary = (0.05 * rng.standard_normal((3, 96))).astype(np.float32)
    outlier = ordinary.copy()
    outlier[0, 5], outlier[1, 40] = 3.0, -2.5
    ties = np.zeros((2, 64), np.float32)
    ties[:, :16] = np.arange(16) / 2 - 4
    ties[:, 20], ties[:, 40] = 7, -127
    tiny = (1e-7 * rng.standard_normal((2, 64))).astype(np.float32)
    zeros = np.zeros((2, 64), np.float32)
    zeros[1, 33] = 1
    large = (1e5 * rng.standard_normal((2, 64))).astype(np.float32)
    subnormal = np.full((1, 32), 1e-42, np.float32)
    return {
        "ordinary": ("weights of the usual size", ordinary),
        "outlier": ("one large number in a block: its neighbours lose", outlier),
        "ties": ("halves between two levels go to the even one", ties),
        "tiny": ("steps in float16's subnormal range are rounded up too", tiny),
        "zeros": ("a block of zeros has scale 0 and levels 0", zeros),
        "large": ("numbers of 100,000", large),
        "subnormal": ("numbers whose step underflows still have one", subnormal),
    }


def half_up(value: Fraction) -> np.float16:
    """The smallest float16 that is at least value."""
    found = np.float16(float(value))
    while Fraction(float(found)) < value:
        found = np.nextafter(found, np.float16(np.inf))
    while found > 0 and Fraction(float(np.nextafter(found, np.float16(0)))) >= value:
        found = np.nextafter(found, np.float16(0))
    return found


def to_even(value: Fraction) -> int:
    """The nearest whole number, of two equally near the even one."""
    return round(value)  # Python's rule for fractions


def exact(matrix: np.ndarray, bits: int, block: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales, levels and what comes back, by the rule."""
    rows, columns = matrix.shape
    size, limit = block or columns, 2 ** (bits - 1) - 1
    scales = np.zeros((rows, columns // size), np.float16)
    levels, back = np.zeros((rows, columns), np.int8), np.zeros((rows, columns), np.float32)
    for row in range(rows):
        for start in range(0, columns, size):
            numbers = [Fraction(float(number)) for number in matrix[row, start : start + size]]
            scale = half_up(max(map(abs, numbers)) / limit)
            scales[row, start // size] = scale
            for place, number in enumerate(numbers, start):
                step = Fraction(float(scale))
                # The reference divides in float32, which may move a number onto a tie or off it.
                quotient = Fraction(float(matrix[row, place] / np.float32(scale))) if step else Fraction(0)
                assert not step or abs(quotient - number / step) <= abs(quotient) * Fraction(1, 2**24)
                levels[row, place] = max(-limit, min(limit, to_even(quotient)))
                back[row, place] = float(int(levels[row, place]) * step)
    return scales, levels, back


def packed(levels: np.ndarray) -> np.ndarray:
    """The even column in the low four bits, two's complement."""
    rows = [
        [(row[k] & 15) + 16 * (row[k + 1] & 15) for k in range(0, len(row), 2)] for row in levels.astype(int).tolist()
    ]
    return np.array(rows, np.uint8)


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    cases = []
    for slug, (why, matrix) in matrices().items():
        arrays[f"{slug}/weight"] = matrix
        grids = {name: grid for name, grid in GRIDS.items() if matrix.shape[1] % (grid[1] or 1) == 0}
        for name, (bits, block) in grids.items():
            scales, levels, back = exact(matrix, bits, block)
            ours = quantize.quantize(matrix, quantize.Grid(bits, block))
            same = np.array_equal(ours.levels, levels) and np.array_equal(ours.scales, scales)
            if not same or not np.array_equal(quantize.dequantize(ours), back):
                sys.exit(f"{slug} {name}: the reference disagrees, nothing written")
            arrays |= {
                f"{slug}/{name}/{part}": array
                for part, array in (("scales", scales), ("levels", levels), ("back", back))
            }
            if bits == 4:
                arrays[f"{slug}/{name}/packed"] = packed(levels)
        cases.append({"id": slug, "why": why, "grids": list(grids)})
    TARGET.mkdir(exist_ok=True)
    save_file(arrays, TARGET / "values.safetensors")
    content = (TARGET / "values.safetensors").read_bytes()
    manifest = {
        "format": 1,
        "grids": {name: {"bits": bits, "block": block} for name, (bits, block) in GRIDS.items()},
        "number_of_cases": len(cases),
        "files": {"values.safetensors": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}},
        "cases": cases,
    }
    (TARGET / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
