"""The kernels one by one, against plain NumPy in float64 and whole numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

pytest.importorskip("numba")
import numba
from refembed_numba import matmul
from refembed_numba.compiled import compiled
from refembed_numba.kernels import exp, gelu_row, quantise_row
from refembed_numba.matmul import BLOCK, ROWS, empty_matrix, multiply, pack, round_up

from refembed.reference.operations import gelu

SIZES = some.integers(1, 300)
NONE = np.empty(0, np.float32), np.empty(0, np.int32)


@compiled
def exp_of(x):
    return np.array([exp(number) for number in x])


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def quantised(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels in words of four, 128 higher, and scales, by the kernel."""
    count, size = rows.shape
    depth = round_up(size, BLOCK)
    bytes, scales = np.zeros(count * depth, np.uint8), np.zeros(count * depth // BLOCK, np.float32)
    for row in range(count):
        quantise_row(
            rows.ravel(), row * size, size, bytes, row * depth, depth, scales, row * (depth // BLOCK),
            np.zeros(16, np.float32),
        )  # fmt: skip
    return bytes, scales


def product(rows: np.ndarray, weight: np.ndarray, panel: int = 64, int8: bool = False, vnni: bool = False):
    """rows @ weight.T through the packed kernels, weight standing second among three layers."""
    count, room = len(rows), round_up(len(rows), ROWS)
    matrix = empty_matrix(3, len(weight), weight.shape[1], panel, int8)
    pack(matrix, 1, weight)
    filled = np.zeros((room, rows.shape[1]), np.float32)
    filled[:count] = rows
    bytes, scales = quantised(filled) if int8 else (np.empty(0, np.uint8), NONE[0])
    found = np.full(room * matrix.columns, np.nan, np.float32)
    for at in range(matrix.columns // panel):
        multiply(filled.ravel(), bytes.view(np.int32), scales, matrix, 1, 0, room, at, vnni, found)
    return found.reshape(room, matrix.columns)[:count, : len(weight)]


@settings(max_examples=50, deadline=None)
@given(some.integers(1, 20), SIZES, SIZES, some.sampled_from([16, 64]), some.integers(0, 99))
def test_float_product(count: int, outputs: int, inputs: int, panel: int, seed: int) -> None:
    """Wrong if a tile, a panel's end or a layer's place is; error of a chain: depth * 2^-24 * the sum of magnitudes."""
    rows, weight = random(seed, count, inputs), random(seed + 1, outputs, inputs)
    exact = rows.astype(np.float64) @ weight.T.astype(np.float64)
    bound = inputs * 2.0**-24 * (np.abs(rows).astype(np.float64) @ np.abs(weight).T) * 1.01
    assert (np.abs(product(rows, weight, panel) - exact) <= bound).all()


@settings(max_examples=50, deadline=None)
@given(some.integers(1, 20), SIZES, SIZES, some.integers(0, 99))
def test_int8_product(count: int, outputs: int, inputs: int, seed: int) -> None:
    """Wrong if whole numbers are summed wrongly, with the CPU's instruction or without, or scaled as another block."""
    rows, weight = random(seed, count, inputs), random(seed + 1, outputs, inputs)
    total = np.zeros((count, outputs))
    for start in range(0, inputs, BLOCK):
        a, b = (part[:, start : start + BLOCK].astype(np.float64) for part in (rows, weight))
        steps = [np.abs(part).max(1, keepdims=True) / 127 for part in (a, b)]
        a, b = (np.rint(part / np.where(step > 0, step, 1)) for part, step in zip((a, b), steps, strict=True))
        total += (a @ b.T) * steps[0] * steps[1].T
    portable = product(rows, weight, int8=True, vnni=False)
    np.testing.assert_array_equal(portable, product(rows, weight, int8=True, vnni=matmul.VNNI))
    # a number half-way between two levels may fall to either side in float32
    tolerance = 127 * np.abs(rows).max() / 127 * np.abs(weight).max() / 127 * 2 + 1e-5 * np.abs(total)
    assert (np.abs(portable - total) <= tolerance).all()
    assert np.abs(portable - total).mean() <= 1e-4 * max(1, np.abs(total).mean())


def test_int8_extremes() -> None:
    """Wrong if the largest sums overflow, or the one instruction saturates where plain arithmetic does not."""
    rows, weight = np.ones((6, 300), np.float32), np.ones((64, 300), np.float32)
    for sign in (1, -1):
        for vnni in {False, matmul.VNNI}:
            np.testing.assert_allclose(product(rows, sign * weight, int8=True, vnni=vnni), sign * 300, rtol=1e-6)
    assert not product(rows * 0, weight, int8=True).any()


@pytest.mark.skipif(not matmul.VNNI, reason="this CPU has no vpdpbusd: only the portable path can be tested")
def test_the_instruction_is_used() -> None:
    """Wrong if the fast path is the portable one under another name."""
    product(random(0, 6, 128), random(1, 64, 128), int8=True, vnni=True)
    signature = multiply.signatures[0]
    anew = numba.njit(multiply.py_func)  # code that came from the cache cannot be looked at
    anew.compile(signature)
    assert "vpdpbusd" in anew.inspect_asm(signature)


def test_exp() -> None:
    """Wrong if e^x is off by more than two units in the last place anywhere between its cuts, or not finite beyond."""
    x = np.concatenate([np.linspace(-87, 88, 200_001), np.linspace(-1, 1, 20_001)]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(exp_of(x) - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()
    assert exp_of(np.array([-1e30, -np.inf], np.float32)).max() < 2e-38
    assert np.isfinite(exp_of(np.array([1e30, np.inf], np.float32))).all()


def test_gelu() -> None:
    """Wrong if the activation is another (the exact form is 5e-4 away), or is on the wrong half."""
    x, up = np.linspace(-30, 30, 4001, dtype=np.float32), random(0, 4001)
    found = np.empty(4001, np.float32)
    gelu_row(np.concatenate([x, up]), 0, 4001, 4001, found, 0)
    np.testing.assert_allclose(found, gelu(x.astype(np.float64)) * up, atol=1e-6, rtol=1e-6)
