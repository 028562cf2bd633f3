"""Rounding a matrix so that its product with real inputs changes least (QNT-9).

Letters as in the paper (Frantar et al. 2022): H = sum of x x^T over inputs x, W the weights, Q what they become. Every
row of W has the same loss, (w - q) H (w - q)^T, and is rounded by itself.
"""

import numpy as np

from ..reference.quantize import Grid, Quantized, dequantize, largest_level
from ..reference.trace import Array
from .scales import least_error_scales

DAMPING = 0.01  # of H's mean diagonal, added to it (the paper's)
TRIED = (1.0, 0.92, 0.84, 0.76, 0.68)  # shares of a block's largest magnitude, as its scale
COLUMNS_AT_ONCE = 64  # of a row whose numbers share one scale


def gptq(weight: Array, hessian: Array, grid: Grid, rounds: int = 2) -> Quantized:
    """Levels and scales with a small sum over rows of (w - q) H (w - q)^T.

    weight    (rows, columns)
    hessian   (columns, columns)  symmetric, no eigenvalue below zero
    rounds    of refinement after GPTQ; none makes the loss larger

    First GPTQ: column by column in the order of H's diagonal, each one's rounding error is made good by the columns
    not rounded yet. Blocks stay together. Then, ours: scales refitted to the levels by least squares, and levels
    rounded again one at a time, each with all others as they are.
    """
    damped = damp(hessian)
    order = importance_order(np.diag(damped), grid.block)
    quantized = compensate(weight[:, order], damped[np.ix_(order, order)], grid)
    back = np.argsort(order)
    levels = quantized.levels[:, back]
    first = back.reshape(quantized.scales.shape[1], -1)[:, 0] // (grid.block or len(order))
    quantized = Quantized(levels, quantized.scales[:, first])
    damped = damped.astype(weight.dtype)
    for _ in range(rounds):
        quantized = refit(weight, damped, quantized)
        quantized = round_again(weight, damped, quantized, grid)
    return quantized


def damp(hessian: Array) -> Array:
    """H in float64, surely positive definite; the identity where it is all zeros."""
    wide = hessian.astype(np.float64)
    mean = float(np.mean(np.diag(wide)))
    return wide + (DAMPING * mean or 1.0) * np.eye(len(wide))


def importance_order(diagonal: Array, block: int | None) -> Array:
    """Columns from the largest diagonal to the smallest; blocks whole, from the largest sum to the smallest."""
    size = block or len(diagonal)
    blocks = diagonal.reshape(-1, size)  # (blocks, block)
    inside = np.argsort(-blocks, axis=1, kind="stable") + size * np.arange(len(blocks))[:, None]
    return inside[np.argsort(-blocks.sum(axis=1), kind="stable")].reshape(-1)


def compensate(weight: Array, hessian: Array, grid: Grid) -> Quantized:
    """GPTQ, columns in the order they come in; a block's scale is chosen when its columns are reached."""
    inverse = np.linalg.inv(hessian)
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(weight.dtype)  # inverse = upper^T upper
    rows, columns = weight.shape
    left = weight.copy()  # what is still to be rounded, errors so far made good
    levels = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, columns // (grid.block or columns)), np.float16)
    if grid.block is None:
        scales = least_error_scales(weight, grid, 1 / np.diag(upper) ** 2)
    size = grid.block or COLUMNS_AT_ONCE
    for start in range(0, columns, size):
        part = slice(start, min(start + size, columns))
        if grid.block:
            whole = least_error_scales(left[:, part], grid, 1 / np.diag(upper)[part] ** 2)  # (rows, 1)
            scales[:, start // size] = whole[:, 0]
        step = scales[:, start // size if grid.block else 0].astype(weight.dtype)  # (rows)
        levels[:, part], errors = compensate_part(left[:, part], upper[part, part], step, largest_level(grid.bits))
        left[:, part.stop :] -= errors @ upper[part, part.stop :]
    return Quantized(levels, scales)


def compensate_part(part: Array, upper: Array, step: Array, limit: int) -> tuple[Array, Array]:
    """The levels of some neighbouring columns, and the errors that the columns after them are to make good."""
    part = part.T.copy()  # (columns, rows): a column's numbers side by side
    inverse_step = np.where(step > 0, 1 / np.where(step > 0, step, 1), 0)
    levels, errors = np.empty(part.shape, np.int8), np.empty_like(part)
    for column in range(len(part)):
        level = np.clip(np.rint(part[column] * inverse_step), -limit, limit)
        levels[column] = level
        errors[column] = (part[column] - level * step) / upper[column, column]
        part[column + 1 :] -= upper[column, column + 1 :, None] * errors[column]
    return levels.T, errors.T


def loss(weight: Array, hessian: Array, quantized: Quantized) -> Array:
    """(w - q) H (w - q)^T of each row, (rows)."""
    lost = weight - dequantize(quantized, weight.dtype)
    return np.sum((lost @ hessian) * lost, axis=1)


def refit(weight: Array, hessian: Array, quantized: Quantized) -> Quantized:
    """The scales with the least loss for these levels; a row's old ones where rounding to float16 undoes the gain."""
    rows, blocks = quantized.scales.shape
    levels = quantized.levels.astype(weight.dtype).reshape(rows, blocks, -1)  # (rows, blocks, block)
    size = levels.shape[2]
    target = (weight @ hessian).reshape(rows, blocks, size)
    right = np.sum(levels * target, axis=-1).astype(np.float64)  # (rows, blocks)
    left = np.empty((rows, blocks, blocks))
    for block in range(blocks):
        spread = levels[:, block] @ hessian[block * size : (block + 1) * size]  # (rows, columns)
        left[:, block] = np.sum(spread.reshape(rows, blocks, size) * levels, axis=-1)
    diagonal = np.einsum("rbb->rb", left)
    diagonal += np.where(diagonal > 0, 1e-6 * diagonal, 1)  # a block of zeros has no best scale
    fitted = np.linalg.solve(left, right[..., None])[..., 0]  # (rows, blocks)
    usable = (fitted > 0) & (fitted < np.finfo(np.float16).max) & (quantized.scales > 0)
    scales = np.where(usable, fitted, quantized.scales).astype(np.float16)
    tried = Quantized(quantized.levels, np.where(scales > 0, scales, quantized.scales))
    wins = loss(weight, hessian, tried) < loss(weight, hessian, quantized)
    return Quantized(quantized.levels, np.where(wins[:, None], tried.scales, quantized.scales))


def round_again(weight: Array, hessian: Array, quantized: Quantized, grid: Grid) -> Quantized:
    """Each number's best level with all others as they are, column after column (coordinate descent)."""
    limit = largest_level(grid.bits)
    columns = weight.shape[1]
    scales = quantized.scales.astype(weight.dtype)
    pull = ((weight - dequantize(quantized, weight.dtype)) @ hessian).T.copy()  # (columns, rows)
    levels = quantized.levels.T.astype(weight.dtype)  # (columns, rows)
    size = grid.block or COLUMNS_AT_ONCE
    for start in range(0, columns, size):
        part = slice(start, min(start + size, columns))
        step = scales[:, start // size if grid.block else 0]
        inverse_step = np.where(step > 0, 1 / np.where(step > 0, step, 1), 0)
        moved = np.zeros_like(pull[part])
        for column in range(start, part.stop):
            wish = levels[column] + pull[column] / hessian[column, column] * inverse_step
            new = np.where(step > 0, np.clip(np.rint(wish), -limit, limit), 0)
            moved[column - start] = (new - levels[column]) * step
            levels[column] = new
            pull[part] -= hessian[part, column, None] * moved[column - start]
        inside = hessian[:, part] @ moved
        inside[part] = 0  # done above
        pull -= inside
    return Quantized(levels.T.astype(np.int8), quantized.scales)
