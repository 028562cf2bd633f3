"""The quantised weight forms: half a step at most, exact products, and gradients as defined."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference_strategies import LAW, normal, seeds

from refembed.reference import Config, parameter_shapes
from refembed.reference.quantize import (
    BLOCK,
    FORMS,
    INT4_BLOCK,
    INT4_ROW,
    INT8_BLOCK,
    INT8_ROW,
    Grid,
    Quantized,
    block_scales,
    blocks_of,
    dequantize,
    fake_quantize,
    fake_quantize_gradient,
    grid_of,
    largest_level,
    pack_int4,
    quantize,
    unpack_int4,
)

GRIDS = {"int8-block": INT8_BLOCK, "int4-block": INT4_BLOCK, "int8-row": INT8_ROW, "int4-row": INT4_ROW}
LARGEST = {8: 127, 4: 7}
grids = st.sampled_from(list(GRIDS.values()))
dtypes = st.sampled_from([np.float32, np.float64])
SMALLEST_NORMAL, SMALLEST = 2.0**-14, 2.0**-24  # of float16


@st.composite
def matrices(draw: st.DrawFn, low: int = -60, high: int = 12) -> NDArray[Any]:
    """Rows of one to three blocks whose numbers are of one size or of many, from far below float16's to 7 * 2^13.

    Some numbers are zeros, some blocks only zeros, some numbers alike or near half-way between levels.
    """
    rng = np.random.default_rng(draw(seeds))
    shape = draw(st.integers(1, 3)), BLOCK * draw(st.integers(1, 3))
    exponent = rng.integers(low, high + 1, shape) if draw(st.booleans()) else draw(st.integers(low, high))
    numbers = rng.uniform(-1, 1, shape) * 2.0**exponent
    if draw(st.booleans()):
        numbers = np.round(numbers * 2.0**-exponent * 14) / 14 * 2.0**exponent
    numbers[rng.random(shape) < draw(st.sampled_from([0.0, 0.5]))] = 0
    if draw(st.booleans()):
        numbers[0, :BLOCK] = 0
    return numbers.astype(draw(dtypes))


def by_block(x: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    return x.astype(np.float64).reshape(len(x), -1, grid.block or x.shape[1])


@LAW
@given(matrices(), grids)
def test_every_error_is_at_most_half_a_step(weight: NDArray[Any], grid: Grid) -> None:
    """If this failed, quantising would lose more than rounding to the nearest level does.

    The quotient of at most 127 steps rounds by 127 u before it is rounded to a level, u half its type's spacing at 1.
    """
    levels, scales = quantize(weight, grid)
    assert (levels.dtype, scales.dtype) == (np.int8, np.float16)
    assert np.abs(levels.astype(int)).max() <= LARGEST[grid.bits]
    steps = scales.astype(np.float64)[..., None]
    error = np.abs(by_block(weight, grid) - by_block(levels, grid) * steps)
    half = (0.5 + 128 * float(np.finfo(weight.dtype).eps) / 2) * steps
    assert (error <= half).all()


@LAW
@given(matrices(), grids)
def test_the_step_is_the_smallest_float16_that_reaches_the_largest_number(weight: NDArray[Any], grid: Grid) -> None:
    """If this failed, a block's scale would cut its largest number or be wider than it must."""
    scales = block_scales(weight, grid)
    top = np.abs(by_block(weight, grid)).max(axis=-1)
    limit, rounding = LARGEST[grid.bits], 1 + float(np.finfo(weight.dtype).eps)
    assert ((scales == 0) == (top == 0)).all()
    assert (scales.astype(np.float64) * limit * rounding >= top).all()
    below = np.nextafter(scales, np.float16(-np.inf)).astype(np.float64)
    assert (below * limit < top * rounding)[top > 0].all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_smallest_numbers_have_a_step(grid: Grid, dtype: type) -> None:
    """If this failed, a number too small to divide by the largest level would have an error and no step."""
    weight = np.zeros((1, BLOCK), dtype)
    weight[0, 3] = np.finfo(dtype).smallest_subnormal
    levels, scales = quantize(weight, grid)
    assert scales[0, 0] == SMALLEST
    assert levels[0, 3] == 0


@LAW
@given(matrices(), grids)
def test_dequantising_is_exact(weight: NDArray[Any], grid: Grid) -> None:
    """If this failed, a float32 runtime would not reproduce level times scale to the bit."""
    quantized = quantize(weight, grid)
    found, wide = dequantize(quantized), dequantize(quantized, np.float64)
    assert (found.dtype, wide.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(found.astype(np.float64), wide)
    width = grid.block or weight.shape[1]
    for row, numbers in enumerate(found):
        for column, number in enumerate(numbers):
            product = int(quantized.levels[row, column]) * Fraction(float(quantized.scales[row, column // width]))
            assert Fraction(float(number)) == product


@LAW
@given(matrices(low=0, high=12), grids)
def test_quantising_again_changes_nothing(weight: NDArray[Any], grid: Grid) -> None:
    """If this failed, saving a quantised model twice would change it.

    The largest number of a block has the last level where its scale is a normal float16, so the same scale comes back.
    """
    once = quantize(weight, grid)
    for dtype in (np.float32, np.float64):
        again = quantize(dequantize(once, dtype), grid)
        np.testing.assert_array_equal(again.levels, once.levels)
        np.testing.assert_array_equal(again.scales, once.scales)


@LAW
@given(matrices(), grids)
def test_quantising_again_with_the_same_scales_changes_nothing(weight: NDArray[Any], grid: Grid) -> None:
    """If this failed, a level would not be its own nearest one, in float16's subnormal range too."""
    once = quantize(weight, grid)
    again = quantize(dequantize(once, weight.dtype.type), grid, once.scales)
    np.testing.assert_array_equal(again.levels, once.levels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_ties_go_to_the_even_level_and_signs_are_alike(grid: Grid, dtype: type) -> None:
    """If this failed, halves would be rounded up, or zero would not be in the middle."""
    limit = LARGEST[grid.bits]
    steps = np.zeros(BLOCK)
    steps[:8] = [limit, 0.5, 1.5, 2.5, 3.5, 4.5, 0.49, 0.51]
    expected = np.zeros(BLOCK, int)
    expected[:8] = [limit, 0, 2, 2, 4, 4, 0, 1]
    for sign in (1, -1):
        levels, scales = quantize((sign * 0.125 * steps)[None].astype(dtype), grid)
        assert scales.tolist() == [[0.125]]
        np.testing.assert_array_equal(levels[0], sign * expected)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_zeros_stay_zeros(grid: Grid) -> None:
    """If this failed, a block of zeros would divide by its scale of zero."""
    weight = np.zeros((2, 2 * BLOCK), np.float32)
    weight[1, -1] = 1
    with np.errstate(all="raise"):
        levels, scales = quantize(weight, grid)
        found = dequantize(Quantized(levels, scales))
    np.testing.assert_array_equal(levels[0], 0)
    np.testing.assert_array_equal(scales[0], 0)
    np.testing.assert_array_equal(found[:, :-1], 0)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_blocks_do_not_share_and_rows_do(grid: Grid) -> None:
    """If this failed, a large number would coarsen the block beside it, or a scale would belong to other numbers."""
    weight = np.full((2, 3 * BLOCK), 0.5)
    weight[1, BLOCK] = 1000.0
    scales, level = quantize(weight, grid).scales, LARGEST[grid.bits]
    assert scales.shape == ((2, 3) if grid.block else (2, 1))
    coarse = scales > 1
    np.testing.assert_array_equal(coarse, [[False] * 3, [False, True, False]] if grid.block else [[False], [True]])
    np.testing.assert_allclose(scales[~coarse].astype(float), 0.5 / level, rtol=2.0**-10)


@LAW
@given(matrices(low=-3, high=3), grids, seeds)
def test_numbers_beyond_a_scale_of_ones_own_are_cut(weight: NDArray[Any], grid: Grid, seed: int) -> None:
    """If this failed, a level would wrap around or an int4 would hold 8."""
    rng, limit = np.random.default_rng(seed), LARGEST[grid.bits]
    scales = (block_scales(weight, grid) * rng.choice([0.0, 0.25, 0.5, 1.0, 2.0])).astype(np.float16)
    levels, kept = quantize(weight, grid, scales)
    np.testing.assert_array_equal(kept, scales)
    steps = scales.astype(np.float64)[..., None]
    beyond = np.abs(by_block(weight, grid)) > limit * steps
    sign = np.sign(by_block(weight, grid)) * (steps > 0)
    found = by_block(levels, grid)
    np.testing.assert_array_equal(found[beyond], (limit * sign)[beyond])
    error = np.abs(by_block(weight, grid) - found * steps)
    assert (error <= (0.5 + 2.0**-16) * steps)[~beyond].all()


@LAW
@given(matrices(), grids)
def test_fake_quantising_is_quantising_and_back(weight: NDArray[Any], grid: Grid) -> None:
    """If this failed, training would see other numbers than the quantised model has."""
    found = fake_quantize(weight, grid)
    assert found.dtype == weight.dtype
    np.testing.assert_array_equal(found, dequantize(quantize(weight, grid)).astype(weight.dtype))
    scales = (block_scales(weight, grid) / 2).astype(np.float16)
    expected = dequantize(quantize(weight, grid, scales)).astype(weight.dtype)
    np.testing.assert_array_equal(fake_quantize(weight, grid, scales), expected)


@LAW
@given(matrices(low=-3, high=3), grids, st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]), seeds)
def test_gradient_of_fake_quantising(weight: NDArray[Any], grid: Grid, factor: float, seed: int) -> None:
    """If this failed, a cut number would be pushed on, or one that is not cut be held.

    By the definition: with rounding taken for the identity, the derivative of clip(w, -c, c), where c is half a step
    beyond the last level: what rounds to a level of the grid. Measured as a difference on both sides of w.
    """
    upstream = normal(seed, *weight.shape)
    np.testing.assert_array_equal(fake_quantize_gradient(upstream, weight, grid), upstream)
    scales = (block_scales(weight, grid) * factor).astype(np.float16)
    cut = (LARGEST[grid.bits] + 0.5) * scales.astype(np.float64)[..., None]
    wide, tiny = by_block(weight, grid), 2.0**-30
    slope = (np.clip(wide + tiny, -cut, cut) - np.clip(wide - tiny, -cut, cut)) / (2 * tiny)
    clear = np.abs(np.abs(wide) - cut) > 2 * tiny
    found = by_block(fake_quantize_gradient(upstream, weight, grid, scales), grid)
    expected = by_block(upstream, grid) * np.round(slope)
    np.testing.assert_array_equal(found[clear], expected[clear])


@pytest.mark.parametrize("step", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_gradient_at_cut_numbers(grid: Grid, step: float) -> None:
    """If this failed, the gradient would stop at another place than where the forward pass begins to cut."""
    edge = np.float32((LARGEST[grid.bits] + 0.5) * step)
    beyond = np.nextafter(edge, np.float32(np.inf))
    weight = np.zeros((1, BLOCK), np.float32)
    weight[0, :6] = [edge, beyond, -edge, -beyond, 0.3 * step, 10 * edge]
    upstream = np.arange(1.0, BLOCK + 1)[None]
    found = fake_quantize_gradient(upstream, weight, grid, np.full((1, 1), step, np.float16))
    np.testing.assert_array_equal(found[0, :6], [1, 0, 3, 0, 5, 0])
    np.testing.assert_array_equal(found[0, 6:], upstream[0, 6:])


# Bytes ----------------------------------------------------------------------------------------------------------------


def test_every_pair_of_int4_has_its_byte() -> None:
    """If this failed, a byte's halves would be exchanged, or a negative level lose its sign."""
    pairs = np.array([[low, high] for low in range(-8, 8) for high in range(-8, 8)], np.int8)
    packed = pack_int4(pairs)
    expected = [[(low % 16) + 16 * (high % 16)] for low, high in pairs.tolist()]
    assert packed.dtype == np.uint8
    assert packed.tolist() == expected
    unpacked = unpack_int4(packed)
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, pairs)
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(pack_int4(unpack_int4(every)), every)


@LAW
@given(st.integers(0, 3), st.integers(1, 9), seeds)
def test_packing_keeps_rows_and_order(leading: int, half: int, seed: int) -> None:
    """If this failed, packed rows would run into each other."""
    levels = np.random.default_rng(seed).integers(-8, 8, (*range(2, 2 + leading), 2 * half)).astype(np.int8)
    packed = pack_int4(levels)
    assert packed.shape == (*levels.shape[:-1], half)
    np.testing.assert_array_equal(unpack_int4(packed), levels)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_an_odd_row_of_int4_is_refused(n: int) -> None:
    """If this failed, three levels would pack into two bytes of which one is wrong, and nobody would be told."""
    with pytest.raises(ValueError, match=str(n)):
        pack_int4(np.ones((2, n), np.int8))


# Names and errors -----------------------------------------------------------------------------------------------------


def test_grids_of_every_parameter() -> None:
    """If this failed, a form would quantise a norm, or mixed precision give attention 4 bits.

    Expected, from the paper's words: int4 for embedding, feed-forward and projection layers, int8 for attention, per
    channel; the norms stay float.
    """
    seen = {form: set() for form in FORMS}
    for name, shape in parameter_shapes(Config(layer_kinds=("full_attention",) * 2)).items():
        by_form = {form: grid_of(form, name) for form in FORMS}
        if len(shape) == 1:
            assert set(by_form.values()) == {None}, name
            continue
        attention = any(part in name for part in ("q_proj", "k_proj", "v_proj", "o_proj"))
        assert by_form["int8-block"] == (8, 32)
        assert by_form["int4-block"] == (4, 32)
        assert by_form["mixed-channel"] == ((8, None) if attention else (4, None)), name
        for form, grid in by_form.items():
            seen[form].add(grid)
    assert {form: len(grids) for form, grids in seen.items()} == {"int8-block": 1, "int4-block": 1, "mixed-channel": 2}


def test_levels_are_symmetric() -> None:
    """If this failed, int8 would use -128 or int4 -8, and zero would be off the middle."""
    assert (largest_level(8), largest_level(4)) == (127, 7)


def test_blocks_are_neighbours_of_a_row() -> None:
    """If this failed, a block would run down a column or over a row's end."""
    weight = np.arange(2 * 96).reshape(2, 96)
    assert blocks_of(weight, 32)[1, 2].tolist() == list(range(96 + 64, 96 + 96))
    assert blocks_of(weight, None).shape == (2, 1, 96)


@pytest.mark.parametrize("columns", [1, 31, 33, 95])
@pytest.mark.parametrize("grid", [INT8_BLOCK, INT4_BLOCK])
def test_a_row_that_is_not_whole_blocks_is_refused(grid: Grid, columns: int) -> None:
    """If this failed, the last numbers of a row would be dropped or borrow another row's scale."""
    weight = np.ones((32, columns), np.float32)
    for act in (blocks_of, block_scales, quantize, fake_quantize):
        with pytest.raises(ValueError, match=f"{columns}.*32"):
            act(weight, grid.block if act is blocks_of else grid)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, "large"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_that_have_no_scale_are_refused(grid: Grid, bad: float | str, dtype: type) -> None:
    """If this failed, one bad weight would turn a block into zeros or infinities without a word."""
    largest = 65_504.0 * LARGEST[grid.bits]
    weight = np.ones((2, 2 * BLOCK), dtype)
    weight[1, 40] = np.nextafter(dtype(largest), dtype(np.inf)) if bad == "large" else bad
    with pytest.raises(ValueError, match="not finite or too large"):
        quantize(weight, grid)
    weight[1, 40] = largest
    with np.errstate(all="raise"):
        assert np.max(quantize(weight, grid).scales) == 65_504
