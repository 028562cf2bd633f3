"""The kernels one by one, against plain NumPy in float64 and whole numbers, on every CPU's instructions."""

import ctypes
import os
import re
import subprocess
import sys
from itertools import product as product_of
from pathlib import Path as File

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

pytest.importorskip("numba")
from llvmlite import binding, ir
from refembed_numba.compiled import compiled
from refembed_numba.forward import quantise_rows
from refembed_numba.instructions import (
    BLOCK,
    BYTE_PATHS,
    FLOAT,
    FLOAT_PATHS,
    INT,
    LONG,
    NIBBLE,
    NOTE,
    ROWS,
    SPAN,
    TRIPLE,
    WORDS,
    Path,
    byte_product,
    choose,
    float_product,
)
from refembed_numba.kernels import exp, gelu_row
from refembed_numba.matmul import (
    BYTE_PANEL,
    BYTE_PATH,
    BYTES,
    FEATURES,
    FLOAT_PATH,
    FLOATS,
    PANEL,
    Layout,
    Matrix,
    cpu_features,
    empty_matrix,
    multiply,
    round_up,
)
from refembed_numba.packing import by_halves, pack, pack_levels
from refembed_numba.team import Team

import refembed
from refembed.reference.operations import gelu

SIZES = some.integers(1, 300)
ROOT = File(__file__).parents[3]
MODELS = (
    ROOT / "golden" / "twin" / "checkpoint",
    *(ROOT / "tests/gguf" / f"small-{one}.gguf" for one in ("q8_0", "q4_0")),
)
X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"


@compiled
def exp_of(x, result):
    for i in range(len(x)):
        result[i] = exp(x[i])


@compiled
def gelu_of(gate_up, result):
    gelu_row(gate_up, 0, len(result), len(result), result, 0)


@compiled
def multiply_all(a, words, matrix, layer, rows, c):
    for panel in range(matrix.columns // matrix.panel):
        multiply(a, words, matrix, layer, 0, rows, panel, 1, c, panel * matrix.panel, matrix.columns)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def product(rows: np.ndarray, weight: np.ndarray, int8: bool = False) -> np.ndarray:
    """rows @ weight.T through the packed kernels, weight standing second among three layers."""
    matrix = empty_matrix(3, *weight.shape, BYTES if int8 else FLOATS)
    pack(matrix, 1, np.pad(weight, ((0, matrix.columns - len(weight)), (0, 0))), Team(2))
    return times(rows, matrix)[:, : len(weight)]


def product_of_levels(rows: np.ndarray, levels: np.ndarray, scales: np.ndarray, layout: Layout) -> np.ndarray:
    """rows @ (levels * scales).T, weights as they are stored: levels int8, scales float16 (outputs, blocks or 1)."""
    matrix = empty_matrix(3, *levels.shape, layout)
    more, room = matrix.columns - len(levels), matrix.depth - levels.shape[1]
    scales = np.pad(scales if layout.shared else by_halves(scales, 2 * matrix.depth // BLOCK), ((0, more), (0, 0)))
    pack_levels(matrix, 1, np.pad(levels, ((0, more), (0, room))), scales, Team(2))
    return times(rows, matrix)[:, : len(levels)]


def times(rows: np.ndarray, matrix: Matrix) -> np.ndarray:
    """rows times the second layer's matrix."""
    count, room = len(rows), round_up(len(rows), ROWS)
    filled = np.zeros((room, matrix.depth), np.float32)
    filled[:count, : rows.shape[1]] = rows
    words = np.empty(0 if matrix.bits == 32 else filled.size // BLOCK * SPAN, np.int32)
    if len(words):
        quantise_rows(filled.ravel(), matrix.depth, words)
    found = np.full(room * matrix.columns, np.nan, np.float32)
    multiply_all(filled.ravel(), words, matrix, 1, room, found)
    return found.reshape(room, matrix.columns)[:count]


def rounded(rows: np.ndarray) -> np.ndarray:
    """rows (n, inputs) as levels of blocks of BLOCK times their scales, in float64, by rounding of the test's own."""
    filled = np.pad(rows, ((0, 0), (0, -rows.shape[1] % BLOCK))).astype(np.float64).reshape(len(rows), -1, BLOCK)
    steps = np.maximum(np.abs(filled).max(-1, keepdims=True) / 127, 1e-300)
    return (np.rint(filled / steps) * steps).reshape(len(rows), -1)[:, : rows.shape[1]]


# ------------------------------------------------------------------------------------- products on this CPU's own path
@settings(max_examples=50)
@given(some.integers(1, 20), SIZES, SIZES, some.integers(0, 99))
def test_float_product(count: int, outputs: int, inputs: int, seed: int) -> None:
    """Wrong if a tile, a panel's end or a layer's place is; error of a chain: depth * 2^-23 * the sum of magnitudes.

    Half of that where the CPU rounds a multiplication and an addition together.
    """
    rows, weight = random(seed, count, inputs), random(seed + 1, outputs, inputs)
    exact = rows.astype(np.float64) @ weight.T.astype(np.float64)
    bound = inputs * 2.0**-23 * (np.abs(rows).astype(np.float64) @ np.abs(weight).T) * 1.01
    assert (np.abs(product(rows, weight) - exact) <= bound).all()


@settings(max_examples=50)
@given(some.integers(1, 20), SIZES, SIZES, some.integers(0, 99))
def test_int8_product(count: int, outputs: int, inputs: int, seed: int) -> None:
    """Wrong if a block is scaled as another, or levels are rounded otherwise than to the nearest.

    A number half-way between two levels may fall to either side in float32.
    """
    rows, weight = random(seed, count, inputs), random(seed + 1, outputs, inputs)
    total, bound = np.zeros((count, outputs)), np.full((count, outputs), 1e-12)
    for start in range(0, inputs, BLOCK):
        parts = [part[:, start : start + BLOCK].astype(np.float64) for part in (rows, weight)]
        steps = [np.abs(part).max(1, keepdims=True) / 127 for part in parts]
        a, b = (step * np.rint(part / step) for part, step in zip(parts, steps, strict=True))
        half_a, half_b = (
            step * (np.abs(part / step % 1 - 0.5) < 1e-4) for part, step in zip(parts, steps, strict=True)
        )
        total += a @ b.T
        bound += half_a @ (np.abs(b) + half_b).T + np.abs(a) @ half_b.T + 2.0**-20 * np.abs(a) @ np.abs(b).T
    assert (np.abs(product(rows, weight, int8=True) - total) <= bound).all()


@settings(max_examples=50)
@given(some.integers(1, 20), SIZES, some.integers(1, 5), some.integers(0, 99))
def test_int8_integers(count: int, outputs: int, blocks: int, seed: int) -> None:
    """Wrong if one of the integers is: with 127 in every block all scales are one, and NumPy has the same sums."""
    draw = np.random.default_rng(seed)
    rows, weight = (draw.integers(-127, 128, (size, blocks * BLOCK)) for size in (count, outputs))
    for levels in (rows, weight):
        levels[:, ::BLOCK] = 127
    found = product(rows.astype(np.float32), weight.astype(np.float32), int8=True)
    np.testing.assert_array_equal(found, rows @ weight.T)


LAYOUTS = {  # bits, neighbours that share a scale: how they are kept
    (8, 32): Layout(8, halves=True),
    (4, 32): Layout(4, halves=True),
    (8, None): Layout(8, shared=True),
    (4, None): Layout(4, shared=True),
}


@settings(max_examples=60)
@given(
    some.sampled_from(list(LAYOUTS)), some.integers(1, 20), some.integers(1, 90), some.integers(1, 9),
    some.integers(0, 99),
)  # fmt: skip
def test_stored_levels_product(grid: tuple[int, int | None], count: int, outputs: int, blocks: int, seed: int) -> None:
    """Wrong if a stored level, its sign or its block's scale is taken for another: in GGUF the lowest levels occur, and
    scales below zero.

    Rows are whole numbers with 127 in every block of BLOCK, so they have levels of their own, and scales are powers of
    two, so that little has to be rounded: all sums are exact.
    """
    draw, (bits, block), inputs = np.random.default_rng(seed), grid, 32 * blocks
    levels = draw.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (outputs, inputs))
    scales = draw.choice([-1, 1], (outputs, inputs // (block or inputs))) * 2.0 ** draw.integers(-3, 3)
    rows = draw.integers(-127, 128, (count, inputs))
    rows[:, ::BLOCK] = 127
    found = product_of_levels(rows, levels.astype(np.int8), scales.astype(np.float16), LAYOUTS[grid])
    np.testing.assert_array_equal(found, rows @ (levels * np.repeat(scales, block or inputs, axis=1)).T)


def test_stored_scales() -> None:
    """Wrong if a float16 scale becomes another float32: the smallest and the largest, between and below normal ones."""
    scales = np.array([[6e-8, 1e-6], [6.1e-5, 6.2e-5], [0.1, -3.3], [65504, 0]], np.float16)
    found = product_of_levels(np.repeat([[127.0] * 64], 6, axis=0), np.ones((4, 64), np.int8), scales, LAYOUTS[4, 32])
    np.testing.assert_allclose(found, np.repeat([127 * 32 * scales.astype(np.float64).sum(1)], 6, axis=0), rtol=1e-6)


def test_stored_levels_at_random() -> None:
    """Wrong if rows of any numbers are rounded otherwise than to the nearest level of their block of BLOCK."""
    rows, draw = random(0, 20, 320), np.random.default_rng(1)
    for (bits, block), layout in LAYOUTS.items():
        levels = draw.integers(1 - 2 ** (bits - 1), 2 ** (bits - 1), (70, 320)).astype(np.int8)
        scales = draw.uniform(0.01, 0.1, (70, 320 // (block or 320))).astype(np.float16)
        weight = levels * np.repeat(scales.astype(np.float64), block or 320, axis=1)
        bound = 1e-5 * np.abs(rows).astype(np.float64) @ np.abs(weight).T
        assert (np.abs(product_of_levels(rows, levels, scales, layout) - rounded(rows) @ weight.T) <= bound).all()


def test_int8_extremes() -> None:
    """Wrong if the largest sums overflow or saturate, or a block of zeros has no scale."""
    rows, weight = np.ones((6, 300), np.float32), np.ones((64, 300), np.float32)
    for sign in (1, -1):
        np.testing.assert_allclose(product(rows, sign * weight, int8=True), sign * 300, rtol=1e-6)
    assert not product(rows * 0, weight, int8=True).any()


# ------------------------------------------------------------------------------------- the instructions of other CPUs
Kind = tuple[int, bool]  # of a tile of bytes: bits, whether each half of a block has its scale
KINDS = {"bytes": (8, False), "bytes by halves": (8, True), "nibbles": (4, False), "nibbles by halves": (4, True)}


def machine_code(path: Path, kind: Kind, triple: str, cpu: str = "", features: str = "", jit: bool = False):
    """A path's tile as a function, compiled for any CPU: LLVM's module and target machine."""
    try:
        target = binding.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip(f"this build of llvmlite does not compile for {triple}")
    floats, words, number = FLOAT.as_pointer(), INT.as_pointer(), LONG
    emit, first = (float_product, ()) if path in FLOAT_PATHS else (byte_product, kind)
    module = ir.Module("tile")
    module.triple = triple
    kinds = [floats, number, number] * 3 + [number] * 2
    if path in BYTE_PATHS:
        kinds = [words, number, number, words, number, floats, number, number, floats, *[number] * 5]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    emit(builder, path, *first, *function.args)
    builder.ret_void()
    machine = target.create_target_machine(cpu=cpu, features=features, opt=3, jit=jit)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    return parsed, machine


def run_tile(path: Path, kind: Kind, *arguments: object) -> None:
    """A path's tile on this CPU, whatever Numba compiles for."""
    parsed, machine = machine_code(path, kind, TRIPLE, features=",".join(f"+{name}" for name in path.needs), jit=True)
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    kinds = [ctypes.c_void_p if isinstance(value, np.ndarray) else ctypes.c_int64 for value in arguments]
    given = [value.ctypes.data if isinstance(value, np.ndarray) else value for value in arguments]
    ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address("tile"))(*given)


def need(path: Path) -> None:
    if not path.needs <= FEATURES:
        pytest.skip(f"this CPU has no {', '.join(sorted(path.needs - FEATURES))}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", BYTE_PATHS, ids=lambda path: path.name)
def test_byte_tile(path: Path, kind: str) -> None:
    """Wrong if a path gives other integers than NumPy, saturates at the largest, or writes beside its tile."""
    need(path)
    bits, halves = KINDS[kind]
    blocks, columns, stride = 3, path.columns, path.columns + 5
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    draw, ones = np.random.default_rng(0), np.ones((2 * blocks, columns), np.float16 if halves else np.float32)
    for extreme in (False, True):
        rows = draw.integers(-127, 128, (2 * ROWS, blocks * BLOCK))
        weights = draw.integers(least, most + 1, (columns, blocks * BLOCK))
        if extreme:
            rows, weights = np.where(rows > 0, 127, -127), np.where(weights > 0, most, least)
            rows[ROWS], weights[0], weights[1] = -127, most, least  # whole rows, so that no sums are larger
        noted = np.empty((2 * ROWS, blocks, SPAN), np.int32)
        noted[..., 0] = np.ones(1, np.float32).view(np.int32)
        noted[..., 1:NOTE] = rows.reshape(2 * ROWS, blocks, 2, -1).sum(-1)
        noted[..., NOTE:] = rows.astype(np.int8).view("<i4").reshape(2 * ROWS, blocks, -1)
        raised = weights + (NIBBLE if bits == 4 else path.zero)
        packed = raised.astype(np.uint8).view("<u4").T.copy()  # (blocks * WORDS, columns)
        packed = packed if bits == 8 else packed[::2] | packed[1::2] << 4
        found = np.full((ROWS + 1, stride), np.nan, np.float32)
        run_tile(path, (bits, halves), noted, ROWS * blocks * SPAN, blocks * SPAN, packed, 0, ones, 0, columns,
                 found, 2, stride, blocks, 0, 0)  # fmt: skip
        np.testing.assert_array_equal(found[:ROWS, 2 : 2 + columns], rows[ROWS:] @ weights.T)
        assert np.isfinite(found).sum() == ROWS * columns


@pytest.mark.parametrize("path", FLOAT_PATHS, ids=lambda path: path.name)
def test_float_tile(path: Path) -> None:
    """Wrong if a path multiplies other numbers, or writes beside its tile; small integers need no rounding."""
    need(path)
    depth, columns, stride = 37, path.columns, path.columns + 5
    draw = np.random.default_rng(0)
    rows, weights = draw.integers(-99, 100, (ROWS + 1, depth)), draw.integers(-99, 100, (depth, columns + 3))
    found = np.full((ROWS + 1, stride), np.nan, np.float32)
    run_tile(path, (32, False), rows.astype(np.float32), depth, depth, weights.astype(np.float32), 3, columns + 3,
             found, 2, stride, depth, 3)  # fmt: skip
    np.testing.assert_array_equal(found[:ROWS, 2 : 2 + columns], rows[1:] @ weights[:, 3:])
    assert np.isfinite(found).sum() == ROWS * columns


def inner_loop(assembly: str) -> list[str]:
    """The instructions of the longest loop without another inside: from a label to a jump back to it."""
    lines = [line.strip() for line in assembly.splitlines()]
    labels = {line[:-1]: at for at, line in enumerate(lines) if re.fullmatch(r"\.L\w+:", line)}
    loops = []
    for at, line in enumerate(lines):
        jump = re.match(r"(?:j\w+|b\.\w+)\s+(\.L\w+)", line)
        start = labels.get(jump[1], at) if jump else at
        if start < at and not any(start < label < at for label in labels.values()):
            loops.append(lines[start + 1 : at])
    return max(loops, key=len)


@pytest.mark.parametrize(
    ("kind", "name", "triple", "cpu", "instruction", "spills"),
    [
        ("floats", "avx512f", X86, "skylake-avx512", r"vfmadd231ps\s.*zmm", 2),
        ("floats", "avx", X86, "haswell", r"vfmadd231ps\s.*ymm", 2),
        ("floats", "avx", X86, "sandybridge", r"vmulps\s.*ymm", 2),
        ("floats", "neon", ARM, "cortex-a72", r"fmla\s.*4s", 2),
        ("floats", "portable", X86, "x86-64", r"mulps\s.*xmm", 2),
        ("bytes", "avx512vnni", X86, "cascadelake", r"vpdpbusd\s.*zmm", 16),  # 12 totals, once a block
        ("nibbles by halves", "avx512vnni", X86, "cascadelake", r"vpdpbusd\s.*zmm", 20),  # 12 parts, once a block
        ("bytes", "avxvnni", X86, "alderlake", r"\{vex\}\s+vpdpbusd\s.*ymm", 2),
        ("bytes", "avx2", X86, "haswell", r"vpmaddubsw\s.*ymm", 4),  # it wants 17 registers of 16
        ("nibbles by halves", "avx2", X86, "haswell", r"vpmaddubsw\s.*ymm", 12),  # two words
        ("bytes", "dotprod", ARM, "neoverse-n1", r"sdot\s.*4s", 2),  # LLVM 15 loads rows too early on Arm
        ("bytes", "dotprod", ARM, "apple-m1", r"sdot(\.4s|\s.*4s)", 2),
        ("nibbles by halves", "dotprod", ARM, "neoverse-n1", r"sdot\s.*4s", 6),
        ("bytes", "portable", ARM, "cortex-a72", r"mla\s.*4s", 2),
    ],
)
def test_assembly(kind: str, name: str, triple: str, cpu: str, instruction: str, spills: int) -> None:
    """Wrong if a CPU's fast instruction is not what its path is made of, or more sums leave the registers than must."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    paths = FLOAT_PATHS if kind == "floats" else BYTE_PATHS
    (path,) = (path for path in paths if path.name == name)
    parsed, machine = machine_code(path, KINDS.get(kind, (32, False)), triple, cpu)
    listed = "" if triple == ARM else ",".join(f"+{name}" for name in path.needs)
    assert choose(paths, cpu_features(triple, cpu, listed)) == path
    loop = inner_loop(machine.emit_assembly(parsed))
    sums = ROWS * path.columns // path.lanes * (4 if instruction.startswith("mla") else 1)  # it takes bytes one by one
    found = sum(bool(re.match(instruction, line)) for line in loop)
    words = WORDS if path.unrolled else 2 if kind.startswith("nibbles") else 1
    assert found in (words * sums, 2 * words * sums), loop  # LLVM may put two steps into one turn of the loop
    spilled = [line for line in loop if re.match(r"v?mov\w+\s+%[xyz]mm\d+, .*%r[sb]p|st[rp]\s+q.*\[sp", line)]
    assert len(spilled) <= spills, spilled


def test_arm_features() -> None:
    """Wrong if an Arm CPU that has the dot product is taken for one without, or the reverse."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    for triple in (ARM, "arm64-apple-darwin24.0.0", "aarch64-pc-windows-msvc"):
        for cpu, has in (("neoverse-n1", True), ("apple-m1", True), ("cortex-a72", False), ("generic", False)):
            try:
                assert cpu_features(triple, cpu, "") == ({"neon", "dotprod"} if has else {"neon"})
            except RuntimeError:
                pytest.skip("this build of llvmlite does not compile for Arm")
    assert "dotprod" in cpu_features(ARM, "generic", "+neon,+dotprod")


def test_choice() -> None:
    """Wrong if a slower path is taken than the CPU has, one it lacks a feature for, or none."""
    taken = {
        "": ("portable", "portable"),
        "sse4.2": ("portable", "portable"),
        "avx": ("avx", "portable"),
        "avx avx2 fma": ("avx", "portable"),
        "avx avx2 fma f16c": ("avx", "avx2"),
        "avx avx2 fma f16c avxvnni": ("avx", "avxvnni"),
        "avx avx2 fma f16c avx512f avx512bw": ("avx512f", "avx2"),
        "avx avx2 fma avx512f avx512bw avx512vnni": ("avx512f", "avx512vnni"),
        "avx avx2 fma avx512f avx512vnni avxvnni": ("avx512f", "avx512vnni"),
        "neon": ("neon", "portable"),
        "neon dotprod": ("neon", "dotprod"),
    }
    for features, names in taken.items():
        assert tuple(choose(paths, set(features.split())).name for paths in (FLOAT_PATHS, BYTE_PATHS)) == names
    assert cpu_features(X86, "haswell", "+avx,-avx2,+fma,-avx512f") == {"avx", "fma"}


def test_what_numba_compiles_for_is_what_counts() -> None:
    """Wrong if features that Numba was told to leave alone are used, which would end the process."""
    assert choose(FLOAT_PATHS, FEATURES) == FLOAT_PATH
    assert choose(BYTE_PATHS, FEATURES) == BYTE_PATH
    assert (FLOAT_PATH.columns, BYTE_PATH.columns) == (PANEL, BYTE_PANEL)
    code = "from refembed_numba.matmul import *; print(FLOAT_PATH.name, BYTE_PATH.name)"
    environment = {**os.environ, "NUMBA_ENABLE_AVX": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "avx" not in done.stdout


# -------------------------------------------------------------------------------------------- forced, through Numba
FORCED = {  # float32, int8: CPU, features
    ("avx", "avxvnni"): ("haswell", "+avx,+avx2,+fma,+f16c,+avxvnni"),
    ("avx", "avx2"): ("haswell", "+avx,+avx2,+fma,+f16c"),
    ("portable", "portable"): ("generic" if ARM.startswith(TRIPLE[:5]) else "x86-64", ""),
}
CHILD = """
import sys
import numpy as np
import pytest
import refembed
from refembed.cli import main
from refembed_numba.matmul import BYTE_PATH, FLOAT_PATH

float_name, byte_name, tests, *models, result = sys.argv[1:]
assert (FLOAT_PATH.name, BYTE_PATH.name) == (float_name, byte_name)
assert not pytest.main(["-q", "-p", "no:cacheprovider", "-k", "product or integers or extremes or stored", tests])
vectors = []
for precision in ("float32", "int8"):
    assert main(["verify", "--backend", "numba", "--precision", precision]) == 0
for model in models:
    for precision in ("float32", "int8"):
        encoder = refembed.load(model, backend="numba", precision=precision).encoder
        vectors.append(encoder.encode([np.arange(1, 20), np.arange(7, 60)])[:, :48])
np.save(result, vectors)
"""


@pytest.mark.long  # all kernels are compiled once more, a minute for each
@pytest.mark.parametrize("names", FORCED, ids="-".join)
def test_forced(names: tuple[str, str], tmp_path: File) -> None:
    """Wrong if a CPU without this one's instructions gets wrong integers, a failing golden suite, or other vectors.

    Bits are the same with registers of any width; without fused multiply-add, sums are rounded more often.
    """
    for path, name in zip((FLOAT_PATHS, BYTE_PATHS), names, strict=True):
        need(next(one for one in path if one.name == name))
    cpu, features = FORCED[names]
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    result = tmp_path / "vectors.npy"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *names, __file__, *map(str, MODELS), str(result)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = np.load(result)
    for (model, precision), vectors in zip(product_of(MODELS, ("float32", "int8")), found, strict=True):
        encoder = refembed.load(model, backend="numba", precision=precision).encoder
        expected = encoder.encode([np.arange(1, 20), np.arange(7, 60)])[:, :48]
        if "fma" in features and "fma" in FEATURES:
            np.testing.assert_array_equal(vectors, expected)
        elif precision == "float32":
            np.testing.assert_allclose(vectors, expected, atol=1e-6, rtol=0)


# --------------------------------------------------------------------------------------------------- along a row
def test_exp() -> None:
    """Wrong if e^x is off by more than two units in the last place anywhere between its cuts, or not finite beyond."""
    x = np.concatenate([np.linspace(-87, 88, 200_001), np.linspace(-1, 1, 20_001)]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    found = np.empty_like(x)
    exp_of(x, found)
    assert (np.abs(found - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()
    far = np.array([-1e30, -np.inf, 1e30, np.inf], np.float32)
    exp_of(far, far)
    assert far[:2].max() < 2e-38
    assert np.isfinite(far[2:]).all()


def test_gelu() -> None:
    """Wrong if the activation is another (the exact form is 5e-4 away), or is on the wrong half."""
    x, up = np.linspace(-30, 30, 4001, dtype=np.float32), random(0, 4001)
    found = np.empty(4001, np.float32)
    gelu_of(np.concatenate([x, up]), found)
    np.testing.assert_allclose(found, gelu(x.astype(np.float64)) * up, atol=1e-6, rtol=1e-6)
