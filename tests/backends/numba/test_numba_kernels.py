"""The kernels one by one, against plain NumPy in float64 and whole numbers, on every CPU's instructions."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path as File

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

pytest.importorskip("numba")
from llvmlite import binding, ir
from refembed_numba.compiled import compiled
from refembed_numba.instructions import (
    BLOCK,
    BYTE_PATHS,
    FLOAT,
    FLOAT_PATHS,
    INT,
    LONG,
    ROWS,
    Path,
    byte_product,
    choose,
    float_product,
)
from refembed_numba.kernels import exp, gelu_row, quantise_row
from refembed_numba.matmul import (
    BYTE_PANEL,
    BYTE_PATH,
    FEATURES,
    FLOAT_PATH,
    PANEL,
    TRIPLE,
    ZERO,
    cpu_features,
    empty_matrix,
    multiply,
    round_up,
)
from refembed_numba.packing import pack
from refembed_numba.team import Team

import refembed
from refembed.reference.operations import gelu

SIZES = some.integers(1, 300)
TWIN = File(__file__).parents[3] / "golden" / "twin" / "checkpoint"
X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"


@compiled
def exp_of(x, result):
    for i in range(len(x)):
        result[i] = exp(x[i])


@compiled
def gelu_of(gate_up, result):
    gelu_row(gate_up, 0, len(result), len(result), result, 0)


@compiled
def quantise(rows, size, bytes, depth, scales):
    for row in range(len(rows) // size):
        quantise_row(rows, row * size, size, bytes, row * depth, depth, scales, row * (depth // BLOCK), np.int32(ZERO))


@compiled
def multiply_all(a, words, word_scales, matrix, layer, rows, c):
    for panel in range(matrix.columns // matrix.panel):
        at = panel * matrix.panel
        multiply(a, words, word_scales, matrix, layer, 0, rows, panel, 1, c, at, matrix.columns)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def quantised(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels in words of four and scales, by the kernel."""
    count, size = rows.shape
    depth = round_up(size, BLOCK)
    bytes, scales = np.zeros(count * depth, np.uint8), np.zeros(count * depth // BLOCK, np.float32)
    quantise(rows.ravel(), size, bytes, depth, scales)
    return bytes, scales


def product(rows: np.ndarray, weight: np.ndarray, int8: bool = False) -> np.ndarray:
    """rows @ weight.T through the packed kernels, weight standing second among three layers."""
    count, room = len(rows), round_up(len(rows), ROWS)
    matrix = empty_matrix(3, len(weight), weight.shape[1], BYTE_PANEL if int8 else PANEL, int8)
    room_for = np.zeros((matrix.columns, weight.shape[1]), np.float32)
    room_for[: len(weight)] = weight
    pack(matrix, 1, room_for, Team(2))
    filled = np.zeros((room, rows.shape[1]), np.float32)
    filled[:count] = rows
    bytes, scales = quantised(filled) if int8 else (np.empty(0, np.uint8), np.empty(0, np.float32))
    found = np.full(room * matrix.columns, np.nan, np.float32)
    multiply_all(filled.ravel(), bytes.view(np.int32), scales, matrix, 1, room, found)
    return found.reshape(room, matrix.columns)[:count, : len(weight)]


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


def test_int8_extremes() -> None:
    """Wrong if the largest sums overflow or saturate, or a block of zeros has no scale."""
    rows, weight = np.ones((6, 300), np.float32), np.ones((64, 300), np.float32)
    for sign in (1, -1):
        np.testing.assert_allclose(product(rows, sign * weight, int8=True), sign * 300, rtol=1e-6)
    assert not product(rows * 0, weight, int8=True).any()


# ------------------------------------------------------------------------------------- the instructions of other CPUs
def machine_code(path: Path, triple: str, cpu: str = "", features: str = "", jit: bool = False):
    """A path's tile as a function, compiled for any CPU: LLVM's module and target machine."""
    try:
        target = binding.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip(f"this build of llvmlite does not compile for {triple}")
    floats, words, number = FLOAT.as_pointer(), INT.as_pointer(), LONG
    module = ir.Module("tile")
    module.triple = triple
    if path in FLOAT_PATHS:
        emit, kinds = float_product, [floats, number, number] * 3 + [number] * 2
    else:
        kinds = [words, number, number, floats, words, number, floats, words, number, floats, *[number] * 5]
        emit = byte_product
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    emit(builder, path, *function.args)
    builder.ret_void()
    machine = target.create_target_machine(cpu=cpu, features=features, opt=3, jit=jit)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    return parsed, machine


def run_tile(path: Path, *arguments: object) -> None:
    """A path's tile on this CPU, whatever Numba compiles for."""
    parsed, machine = machine_code(path, TRIPLE, features=",".join(f"+{name}" for name in path.needs), jit=True)
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    kinds = [ctypes.c_void_p if isinstance(value, np.ndarray) else ctypes.c_int64 for value in arguments]
    given = [value.ctypes.data if isinstance(value, np.ndarray) else value for value in arguments]
    ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address("tile"))(*given)


def need(path: Path) -> None:
    if not path.needs <= FEATURES:
        pytest.skip(f"this CPU has no {', '.join(sorted(path.needs - FEATURES))}")


@pytest.mark.parametrize("path", BYTE_PATHS, ids=lambda path: path.name)
def test_byte_tile(path: Path) -> None:
    """Wrong if a path gives other integers than NumPy, saturates at the largest, or writes beside its tile."""
    need(path)
    blocks, words, columns, stride = 3, BLOCK // 4, path.columns, path.columns + 5
    draw, ones = np.random.default_rng(0), np.ones(blocks * max(columns, 2 * ROWS), np.float32)
    for extreme in (False, True):
        rows, weights = (draw.integers(-127, 128, (size, blocks * BLOCK)) for size in (2 * ROWS, columns))
        if extreme:
            rows, weights = np.where(rows > 0, 127, -128), np.where(weights > 0, 127, -127)
            rows[ROWS], weights[0], weights[1] = -128, 127, -127  # whole rows, so that no sums are larger
        stored = (rows + path.zero).astype(np.uint8)
        packed = weights.astype(np.int8).view("<i4").T.copy()  # (blocks * words, columns)
        offsets = -path.zero * weights.reshape(columns, blocks, BLOCK).sum(2).T  # (blocks, columns)
        found = np.full((ROWS + 1, stride), np.nan, np.float32)
        run_tile(path, stored, ROWS * blocks * words, blocks * words, ones, packed, 0, ones,
                 offsets.astype(np.int32).copy(), 0, found, 2, stride, blocks, words, 0)  # fmt: skip
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
    run_tile(path, rows.astype(np.float32), depth, depth, weights.astype(np.float32), 3, columns + 3,
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
    ("paths", "name", "triple", "cpu", "instruction"),
    [
        (FLOAT_PATHS, "avx512f", X86, "skylake-avx512", r"vfmadd231ps\s.*zmm"),
        (FLOAT_PATHS, "avx", X86, "haswell", r"vfmadd231ps\s.*ymm"),
        (FLOAT_PATHS, "avx", X86, "sandybridge", r"vmulps\s.*ymm"),
        (FLOAT_PATHS, "neon", ARM, "cortex-a72", r"fmla\s.*4s"),
        (FLOAT_PATHS, "portable", X86, "x86-64", r"mulps\s.*xmm"),
        (BYTE_PATHS, "avx512vnni", X86, "cascadelake", r"vpdpbusd\s.*zmm"),
        (BYTE_PATHS, "avxvnni", X86, "alderlake", r"\{vex\}\s+vpdpbusd\s.*ymm"),
        (BYTE_PATHS, "avx2", X86, "haswell", r"vpmaddubsw\s.*ymm"),
        (BYTE_PATHS, "dotprod", ARM, "neoverse-n1", r"sdot\s.*4s"),
        (BYTE_PATHS, "dotprod", ARM, "apple-m1", r"sdot(\.4s|\s.*4s)"),
        (BYTE_PATHS, "portable", ARM, "cortex-a72", r"mla\s.*4s"),
    ],
)
def test_assembly(paths: tuple[Path, ...], name: str, triple: str, cpu: str, instruction: str) -> None:
    """Wrong if a CPU's fast instruction is not what its path is made of, or more than two sums leave the registers."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    (path,) = (path for path in paths if path.name == name)
    parsed, machine = machine_code(path, triple, cpu)
    listed = "" if triple == ARM else ",".join(f"+{name}" for name in path.needs)
    assert choose(paths, cpu_features(triple, cpu, listed)) == path
    loop = inner_loop(machine.emit_assembly(parsed))
    sums = ROWS * path.columns // path.lanes * (4 if instruction.startswith("mla") else 1)  # it takes bytes one by one
    found = sum(bool(re.match(instruction, line)) for line in loop)
    assert found in (sums, 2 * sums), loop  # LLVM may put two steps into one turn of the loop
    spilled = [line for line in loop if re.match(r"v?mov\w+\s+%[xyz]mm\d+, .*%r[sb]p|st[rp]\s+q.*\[sp", line)]
    assert len(spilled) <= 2, spilled  # int8 by avx2 wants 17 registers of 16; LLVM 15 loads rows too early on Arm


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
        "avx avx2 fma": ("avx", "avx2"),
        "avx avx2 fma avxvnni": ("avx", "avxvnni"),
        "avx avx2 fma avx512f avx512bw": ("avx512f", "avx2"),
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
    ("avx", "avxvnni"): ("haswell", "+avx,+avx2,+fma,+avxvnni"),
    ("avx", "avx2"): ("haswell", "+avx,+avx2,+fma"),
    ("portable", "portable"): ("generic" if ARM.startswith(TRIPLE[:5]) else "x86-64", ""),
}
CHILD = """
import sys
import numpy as np
import pytest
import refembed
from refembed.cli import main
from refembed_numba.matmul import BYTE_PATH, FLOAT_PATH

float_name, byte_name, tests, twin, result = sys.argv[1:]
assert (FLOAT_PATH.name, BYTE_PATH.name) == (float_name, byte_name)
assert not pytest.main(["-q", "-p", "no:cacheprovider", "-k", "product or integers or extremes", tests])
vectors = []
for precision in ("float32", "int8"):
    assert main(["verify", "--backend", "numba", "--precision", precision]) == 0
    model = refembed.load(twin, backend="numba", precision=precision)
    vectors.append(model.encode(["Mars looks red.", "", "Venus is hot."]))
np.save(result, vectors)
"""


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
        [sys.executable, "-c", CHILD, *names, __file__, str(TWIN), str(result)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = np.load(result)
    for precision, vectors in zip(("float32", "int8"), found, strict=True):
        model = refembed.load(TWIN, backend="numba", precision=precision)
        expected = model.encode(["Mars looks red.", "", "Venus is hot."])
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
