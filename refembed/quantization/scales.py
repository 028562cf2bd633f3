"""Scales that lose less than the largest magnitude's (QNT-8)."""

import numpy as np

from ..reference.quantize import Grid, Quantized, block_scales, blocks_of, dequantize, quantize
from ..reference.trace import Array

SHRUNK = {8: (1.0, 0.97, 0.94), 4: tuple(1 - 0.05 * step for step in range(11))}  # of the largest magnitude's scale
TINY = np.float16(2**-24)  # the smallest scale that is not zero


def least_error(name: str, rows: Array, grid: Grid) -> Quantized:
    """A Rounding: to the nearest level of the scale that loses least."""
    return quantize(rows, grid, least_error_scales(rows, grid))


def least_error_scales(weight: Array, grid: Grid, importance: Array | None = None) -> Array:
    """Each block's scale with the least sum of importance * (weight - weight')^2 among those tried.

    weight       (rows, columns)
    importance   (columns)       not below zero; 1 where not given
    returns      (rows, columns/block) float16

    Tried are the largest magnitude's scale (QNT-2), shares of it, and for the best of these the least-squares scale of
    its levels: sum(weight * level) / sum(level^2). Source: QNT-8. Raises ValueError as block_scales does.
    """
    counts = np.ones(weight.shape[1]) if importance is None else importance
    counts = blocks_of(counts.astype(weight.dtype)[None], grid.block)  # (1, blocks, block)
    largest = block_scales(weight, grid)  # (rows, blocks)
    best, least = largest, error(weight, grid, largest, counts)
    for share in SHRUNK[grid.bits][1:]:
        best, least = better(weight, grid, counts, shorten(largest, share), best, least)
    levels = blocks_of(quantize(weight, grid, best).levels, grid.block).astype(weight.dtype)  # (rows, blocks, block)
    square = np.sum(counts * levels * levels, axis=-1)  # (rows, blocks)
    product = np.sum(counts * levels * blocks_of(weight, grid.block), axis=-1)  # (rows, blocks)
    fitted = np.where(square > 0, product / np.where(square > 0, square, 1), 0).astype(np.float16)
    return better(weight, grid, counts, np.minimum(fitted, largest), best, least)[0]


def shorten(scales: Array, share: float) -> Array:
    """A share of each scale; one above zero stays so."""
    return np.maximum((scales.astype(np.float32) * share).astype(np.float16), np.minimum(scales, TINY))


def better(weight: Array, grid: Grid, counts: Array, tried: Array, best: Array, least: Array) -> tuple[Array, Array]:
    """The scales and their errors, with those of `tried` where they lose less."""
    found = error(weight, grid, tried, counts)
    wins = found < least
    return np.where(wins, tried, best), np.where(wins, found, least)


def error(weight: Array, grid: Grid, scales: Array, counts: Array) -> Array:
    """What each block loses, (rows, blocks)."""
    lost = blocks_of(weight - dequantize(quantize(weight, grid, scales), weight.dtype), grid.block)
    return np.sum(counts * lost * lost, axis=-1)
