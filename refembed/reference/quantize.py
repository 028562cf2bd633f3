"""The three quantised weight forms: symmetric whole numbers with one 16-bit scale a block, or one a row; then vectors.

Source: QNT-1 to QNT-6. The paper names the forms (int8 per block, int4 per block, and mixed per channel) and nothing
more; block size, scale and rounding are our choice, said here and in spec/09-quantised-weights.md. Embeddings in 8
bits and in one: MAT-5, MAT-6 and MAT-8.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from .trace import Array

BLOCK = 32


class Grid(NamedTuple):
    """How a matrix is quantised: bits a number, and how many neighbours of a row share a scale (None: the row)."""

    bits: int
    block: int | None


class Quantized(NamedTuple):
    """A matrix as whole numbers and scales: weight = level * scale."""

    levels: Array  # (rows, columns) int8
    scales: Array  # (rows, columns/block) float16


INT8_BLOCK, INT4_BLOCK = Grid(8, BLOCK), Grid(4, BLOCK)
INT8_ROW, INT4_ROW = Grid(8, None), Grid(4, None)
FORMS = ("int8-block", "int4-block", "mixed-channel")


def grid_of(form: str, name: str) -> Grid | None:
    """How a form stores the parameter of this name; None for norm weights, which stay float.

    form     one of FORMS; ValueError otherwise
    name     a checkpoint's tensor name

    Source: QNT-1. Mixed is 8 bits for attention, 4 for embedding, feed-forward and projection, one scale a row.
    Witness: golden/quantised zeros.
    """
    if form not in FORMS:
        raise ValueError(f"no form {form!r}; the forms are {', '.join(FORMS)}")
    if name.endswith("norm.weight"):
        return None
    mixed = INT8_ROW if ".self_attn." in name else INT4_ROW
    return {"int8-block": INT8_BLOCK, "int4-block": INT4_BLOCK, "mixed-channel": mixed}[form]


def largest_level(bits: int) -> int:
    """127 for 8 bits and 7 for 4: the same on both sides of zero.

    Source: QNT-2, QNT-3.
    Witness: golden/quantised ordinary.
    """
    return int(2 ** (bits - 1) - 1)


def blocks_of(weight: Array, block: int | None) -> Array:
    """A matrix seen as blocks of neighbours within each row.

    weight   (rows, columns)
    returns  (rows, columns/block, block)  a view where it can be

    Source: QNT-1. Raises ValueError where a row is not a whole number of blocks.
    Witness: golden/quantised tiny.
    """
    rows, columns = weight.shape
    size = block or columns
    if columns % size:
        raise ValueError(f"rows of {columns} numbers are not whole blocks of {size}")
    return weight.reshape(rows, columns // size, size)


def block_scales(weight: Array, grid: Grid) -> Array:
    """The step of each block: its largest magnitude over the largest level, rounded up to a float16.

    weight   (rows, columns)
    returns  (rows, columns/block) float16; 0 for a block of zeros

    Source: QNT-2. Rounded up, so that no number lies beyond the last level and every error is at most half a step, in
    float16's subnormal range too. Raises ValueError where a step would pass 65,504 or is not a number.
    Witness: golden/quantised ties.
    """
    largest = np.max(np.abs(blocks_of(weight, grid.block)), axis=-1)  # (rows, blocks)
    limit = largest_level(grid.bits)
    if not np.all(largest / limit <= np.finfo(np.float16).max):
        raise ValueError("a weight is not finite or too large for a float16 scale")
    nearest = (largest / limit).astype(np.float16)  # (rows, blocks)
    short = nearest.astype(weight.dtype) * limit < largest  # (rows, blocks)
    return np.nextafter(nearest, np.where(short, np.float16(np.inf), nearest))  # (rows, blocks)


def quantize(weight: Array, grid: Grid, scales: Array | None = None) -> Quantized:
    """The nearest level of every number, ties to the even one.

    weight   (rows, columns)         float32 or float64
    scales   (rows, columns/block)   float16; block_scales(weight, grid) where not given
    returns  levels (rows, columns) int8, scales (rows, columns/block) float16

    Source: QNT-3. With scales of one's own, numbers beyond the last level are cut to it.
    Witness: golden/quantised zeros.
    """
    if scales is None:
        scales = block_scales(weight, grid)  # (rows, blocks)
    step = np.where(scales > 0, scales, 1).astype(weight.dtype)[..., None]  # (rows, blocks, 1)
    limit = largest_level(grid.bits)
    levels = np.clip(np.rint(blocks_of(weight, grid.block) / step), -limit, limit)  # (rows, blocks, block)
    levels = np.where(scales[..., None] > 0, levels, 0)  # (rows, blocks, block)
    return Quantized(levels.reshape(weight.shape).astype(np.int8), scales)


def dequantize(quantized: Quantized, dtype: DTypeLike = np.float32) -> Array:
    """Level times scale: exact in float32, whose 24 bits hold the 7 of a level and the 11 of a scale.

    returns  (rows, columns)

    Source: QNT-4.
    Witness: golden/quantised tiny.
    """
    rows, columns = quantized.levels.shape
    blocks: Array = quantized.levels.reshape(rows, quantized.scales.shape[1], -1).astype(dtype)  # (rows, blocks, block)
    return (blocks * quantized.scales.astype(dtype)[..., None]).reshape(rows, columns)  # (rows, columns)


def fake_quantize(weight: Array, grid: Grid, scales: Array | None = None) -> Array:
    """What is left of a float matrix after quantising: the forward pass of quantisation-aware training.

    weight   (rows, columns)
    scales   (rows, columns/block)  as in quantize
    returns  (rows, columns)        in weight's float type

    Source: QNT-5.
    Witness: golden/quantised subnormal.
    """
    return dequantize(quantize(weight, grid, scales), weight.dtype)  # (rows, columns)


def fake_quantize_gradient(upstream: Array, weight: Array, grid: Grid, scales: Array | None = None) -> Array:
    """The straight-through gradient of fake_quantize with respect to weight.

    upstream  (rows, columns)        the gradient with respect to fake_quantize's result
    weight    (rows, columns)
    scales    (rows, columns/block)  as in quantize
    returns   (rows, columns)

    Source: QNT-5, Bengio et al. 2013. Rounding counts as the identity; a number more than half a step beyond the last
    level is cut to it and gets nothing. With scales taken from the weight itself nothing is cut: all of it passes.
    Witness: tests/reference/test_reference_quantize.py test_gradient_at_cut_numbers.
    """
    if scales is None:
        return upstream  # (rows, columns)
    blocks = np.abs(blocks_of(weight, grid.block))  # (rows, blocks, block)
    cut = (largest_level(grid.bits) + 0.5) * scales.astype(weight.dtype)  # (rows, blocks)
    inside = blocks <= cut[..., None]  # (rows, blocks, block)
    return np.where(inside.reshape(weight.shape), upstream, 0)  # (rows, columns)


def pack_int4(levels: Array) -> Array:
    """Two 4-bit numbers in a byte: the even column in the low half, two's complement.

    levels   (..., n)  int8 from -8 to 7, n even
    returns  (..., n/2)  uint8

    Source: QNT-6. Raises ValueError where n is odd.
    Witness: golden/quantised tiny.
    """
    if levels.shape[-1] % 2:
        raise ValueError(f"a row of {levels.shape[-1]} numbers does not fill whole bytes")
    halves = levels.astype(np.uint8) & 0x0F  # (..., n)
    return halves[..., 0::2] | halves[..., 1::2] << 4  # (..., n/2)


def unpack_int4(packed: Array) -> Array:
    """The 4-bit numbers of each byte, low half first.

    packed   (..., n)  uint8
    returns  (..., 2*n)  int8 from -8 to 7

    Source: QNT-6.
    Witness: golden/quantised large.
    """
    high = np.stack([packed << 4, packed], axis=-1).view(np.int8)  # (..., n, 2), in the upper half of a byte
    signed: Array = np.right_shift(high, 4, out=high)  # (..., n, 2)
    return signed.reshape(*packed.shape[:-1], -1)  # (..., 2*n)


def int8_vectors(embedding: Array) -> Array:
    """Whole numbers that point the embedding's way: its largest magnitude becomes 127.

    embedding   (..., n)
    returns     (..., n)  int8 from -127 to 127, ties to even

    Source: MAT-5. No scale is kept, since a cosine needs none. Trap: a dot product of levels, or their distance,
    ranks by a length that says nothing.
    Witness: golden/vectors largest-is-below-zero.
    """
    largest = np.max(np.abs(embedding), axis=-1, keepdims=True)  # (..., 1)
    step = np.where(largest > 0, largest, 1) / largest_level(8)  # (..., 1)
    return np.rint(embedding / step).astype(np.int8)  # (..., n)


def binary_vectors(embedding: Array) -> Array:
    """A bit for each number: whether it is above zero. The first number is the highest bit of the first byte.

    embedding   (..., n)
    returns     (..., n/8)  uint8

    Source: MAT-6, the bits of numpy.packbits, of FAISS and of sentence-transformers' ubinary. Trap: the lowest bit
    first. Raises ValueError where n is no multiple of 8.
    Witness: golden/vectors largest-is-below-zero.
    """
    if embedding.shape[-1] % 8:
        raise ValueError(f"{embedding.shape[-1]} numbers do not fill whole bytes")
    return np.packbits(embedding > 0, axis=-1)  # (..., n/8)


def signs(packed: Array) -> Array:
    """What a binary embedding is as a vector: 1 for a bit that is set and -1 for one that is not.

    packed    (..., n)  uint8
    returns   (..., 8*n)  int8

    Source: MAT-6. Trap: 0 for a bit that is not set, which loses half of what it says.
    Witness: golden/vectors ordinary.
    """
    bits = np.unpackbits(packed, axis=-1).astype(np.int8)  # (..., 8*n)
    return 2 * bits - 1  # (..., 8*n)


def binary_similarity(first: Array, second: Array) -> Array:
    """The cosine of every pair of binary embeddings, from the number of bits that differ.

    first    (count, n)  uint8
    second   (texts, n)  uint8
    returns  (count, texts)  float64

    Source: MAT-8. The cosine of two vectors of 1 and -1 is 1 - 2 * different/bits.
    Witness: golden/vectors two-bytes.
    """
    different = np.bitwise_count(first[:, None] ^ second)  # (count, texts, n)
    return 1 - different.sum(axis=-1, dtype=np.int64) / (4 * first.shape[-1])  # (count, texts)
