"""The work between the matrix products, each part reading its rows once. All arrays are flat or have one row a token.

Nothing here is fast-math. Indices cast to `uintp` are known not to be negative: Numba then leaves its check for
negative ones out, which lets LLVM use vectors.
"""
# mypy: disable-error-code="no-untyped-def"
# the types of a compiled function's arguments are its caller's: docstrings say them

import math

import numpy as np

from .compiled import inner
from .instructions import (
    BLOCK,
    LANES,
    NOTE,
    ROWS,
    SPAN,
    WORDS,
    bits_of_float,
    float_of_bits,
    largest_of_row,
    quantise_block,
    sum_of_row,
    sum_of_squares,
)
from .matmul import BYTE_PANEL, PANEL, ZERO, tile, tile_of_matrix

f32, whole = np.float32, np.uintp

LOG2_E, LN2_HIGH, LN2_LOW = f32(1.44269504), f32(0.693359375), f32(-2.12194440e-4)
ROUND = f32(12582912.0)  # 1.5 * 2^23: a float32 this large has no fraction, so adding it rounds to a whole number
GELU_SCALE, GELU_CUBE = f32(2 * math.sqrt(2 / math.pi)), f32(0.044715)
RAISED = np.full(4, ZERO, np.uint8).view(np.int32)[0]  # flipped, 128's bit adds it to a level; or no bit
QUERIES = 24  # tokens in a block of attention, a multiple of ROWS


@inner
def exp(x):
    """e^x in float32, within about one unit in the last place; x is cut to -87..88, where results are normal numbers.

    2^n times a polynomial of the rest, |rest| <= ln(2)/2, coefficients of Cephes' expf (Moshier).
    """
    x = min(max(x, f32(-87.0)), f32(88.0))
    n = (x * LOG2_E + ROUND) - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    return (p * (r * r) + r + f32(1.0)) * float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))


@inner
def inverse_rms(x, start, count, epsilon):
    """1 / sqrt(mean square + epsilon) of `count` numbers of flat x."""
    even = count // LANES * LANES
    squares = sum_of_squares(x, start, even)
    for i in range(start + even, start + count):
        squares += x[i] * x[i]
    return f32(1.0) / np.sqrt(squares / f32(count) + epsilon)


@inner
def norm_row(x, start, count, weight, weight_start, epsilon, result, result_start):
    """result = the row's numbers over their root mean square, times weight; weight has its one added already."""
    scale = inverse_rms(x, start, count, epsilon)
    for i in range(count):
        result[whole(result_start + i)] = x[whole(start + i)] * scale * weight[whole(weight_start + i)]


@inner
def add_norm_row(x, start, update, update_start, count, weight, weight_start, epsilon):
    """x += norm(update): the second or fourth norm of a layer and the residual."""
    scale = inverse_rms(update, update_start, count, epsilon)
    for i in range(count):
        x[whole(start + i)] += update[whole(update_start + i)] * scale * weight[whole(weight_start + i)]


@inner
def norm_and_turn(x, start, head, weight, weight_start, epsilon, turns, turn_start):
    """Norm a head in place, then turn each pair (x_k, x_{k + head/2}); turns has head/2 cosines, then head/2 sines."""
    scale, half = inverse_rms(x, start, head, epsilon), head // 2
    for k in range(half):
        first = x[whole(start + k)] * scale * weight[whole(weight_start + k)]
        second = x[whole(start + half + k)] * scale * weight[whole(weight_start + half + k)]
        cos, sin = turns[whole(turn_start + k)], turns[whole(turn_start + half + k)]
        x[whole(start + k)] = first * cos - second * sin
        x[whole(start + half + k)] = second * cos + first * sin


@inner
def gelu_row(gate, gate_start, up_start, count, result, result_start):
    """result = gelu(gate) * up; up is in the same flat array.

    x/2 (1 + tanh(y)) is x / (1 + e^(-2y)).
    """
    for i in range(count):
        x, up = gate[whole(gate_start + i)], gate[whole(up_start + i)]
        twice = GELU_SCALE * (x * (f32(1.0) + GELU_CUBE * (x * x)))
        result[whole(result_start + i)] = x / (f32(1.0) + exp(-twice)) * up


@inner
def softmax_row(scores, start, count, scale):
    """Replace scores by e^(scale (score - largest)); returns one over their sum."""
    even = count // LANES * LANES
    largest = largest_of_row(scores, start, even)
    for i in range(start + even, start + count):
        largest = max(largest, scores[i])
    for i in range(count):
        scores[whole(start + i)] = exp((scores[whole(start + i)] - largest) * scale)
    sum = sum_of_row(scores, start, even)
    for i in range(start + even, start + count):
        sum += scores[i]
    return f32(1.0) / sum


@inner
def quantise_row(x, start, count, words, words_start, padded):
    """Levels of each block of BLOCK numbers, its scale, largest magnitude / 127, and sums: what byte_product reads.

    words    flat int32; of the numbers from `count` to `padded` the levels are 0
    """
    for block in range(count // BLOCK):
        quantise_block(x, start + block * BLOCK, words, words_start + block * SPAN)
    for block in range(count // BLOCK, padded // BLOCK):
        at, to = start + block * BLOCK, words_start + block * SPAN
        largest = f32(0.0)
        for i in range(count - block * BLOCK):
            largest = max(largest, abs(x[at + i]))
        inverse = f32(127.0) / largest if largest > f32(0.0) else f32(0.0)
        words[to] = bits_of_float(largest / f32(127.0))
        for i in range(1, SPAN):
            words[to + i] = np.int32(0)
        for i in range(count - block * BLOCK):
            level = np.int32(x[at + i] * inverse + f32(128.5)) - np.int32(128)
            words[to + 1 + i // (BLOCK // 2)] += level
            words[to + NOTE + i // 4] |= (level & np.int32(255)) << np.int32(8 * (i % 4))


@inner
def store_key(x, start, head, position, keys, keys_start):
    """Write a token's key as a column of its panel: keys (panels, head, PANEL), of one text and key head."""
    at = keys_start + (position // PANEL) * head * PANEL + position % PANEL
    for k in range(head):
        keys[whole(at + k * PANEL)] = x[whole(start + k)]


@inner
def store_column(words, words_start, matrix, panel, column):
    """A row as quantise_row left it, as a column of a matrix of 8-bit levels: weights that were floats, or a key."""
    blocks = matrix.depth // BLOCK
    for block in range(blocks):
        at = words_start + block * SPAN
        matrix.scales[whole((panel * blocks + block) * BYTE_PANEL + column)] = float_of_bits(words[whole(at)])
        to = (panel * blocks + block) * WORDS * BYTE_PANEL + column
        for word in range(WORDS):
            matrix.numbers[whole(to + word * BYTE_PANEL)] = words[whole(at + NOTE + word)] ^ RAISED


@inner
def seen(begin, end, tokens, reach, panel):
    """Of the tokens begin to end: the first panel of keys they see, and the end of those keys."""
    return max(0, begin - reach) // panel, min(tokens, end + reach)


@inner
def score(qkv, columns, first_row, query_at, begin, end, tokens, head, reach, keys, keys_start, scores, stride):
    """Products of one head's queries, tokens begin to end of a text, with the keys in their windows.

    qkv                 (rows, columns) flat; the text's first token is row first_row, its query begins at query_at
    reach               how far a token sees; at least `tokens` in a full layer
    keys, keys_start    (panels, head, PANEL) flat, from store_key
    scores, stride      (QUERIES, stride) flat; column 0 is the first seen panel's first key
    """
    first, last_key = seen(begin, end, tokens, reach, PANEL)
    for row in range(begin, end, ROWS):
        for p in range(first, (last_key + PANEL - 1) // PANEL):
            tile(qkv, (first_row + row) * columns + query_at, columns, keys, keys_start + p * head * PANEL, PANEL,
                 scores, (row - begin) * stride + (p - first) * PANEL, stride, head,
                 keys_start + (p + 1) * head * PANEL)  # fmt: skip


@inner
def score_levels(words, first_row, begin, end, tokens, reach, keys, panels_start, scores, stride):
    """The same of levels.

    words                from quantise_row; the query of the text's first token is first_row
    keys, panels_start   a Matrix, and the first panel of this text's keys, from store_column
    """
    blocks = keys.depth // BLOCK
    size, scales = blocks * WORDS * BYTE_PANEL, blocks * BYTE_PANEL
    first, last_key = seen(begin, end, tokens, reach, BYTE_PANEL)
    for row in range(begin, end, ROWS):
        for p in range(first, (last_key + BYTE_PANEL - 1) // BYTE_PANEL):
            panel, at = panels_start + p, (row - begin) * stride + (p - first) * BYTE_PANEL
            tile_of_matrix(scores, words, first_row + row, keys.numbers, panel * size, keys.scales, panel * scales,
                           BYTE_PANEL, scores, at, stride, keys.depth, (panel + 1) * size,
                           (panel + 1) * scales)  # fmt: skip


@inner
def mix(qkv, columns, first_row, value_at, begin, end, tokens, head, reach, scale, panel, scores, stride, sums, found,
        context, context_columns, context_at):  # fmt: skip
    """Softmax of the scores, and each token's mean of the values it sees.

    value_at       first column of the head's values
    panel          of keys, which the scores begin with: PANEL or BYTE_PANEL
    sums, found    scratch (QUERIES) and (ROWS, PANEL) flat
    context        (rows, context_columns) flat; the head's first column is context_at
    """
    first, last_key = seen(begin, end, tokens, reach, panel)
    base = first * panel
    for row in range(begin, end):
        at = (row - begin) * stride - base
        low, high = max(0, row - reach), min(tokens, row + reach + 1)
        sums[row - begin] = softmax_row(scores, at + low, high - low, scale)
        for i in range(at + base, at + low):
            scores[i] = f32(0.0)
        for i in range(at + high, at + last_key):
            scores[i] = f32(0.0)
    for row in range(begin, end, ROWS):
        for column in range(0, head, PANEL):
            tile(scores, (row - begin) * stride, stride, qkv, (first_row + base) * columns + value_at + column, columns,
                 found, 0, PANEL, last_key - base, (first_row + base) * columns + value_at + column)  # fmt: skip
            for i in range(min(ROWS, end - row)):
                to = (first_row + row + i) * context_columns + context_at + column
                for j in range(min(PANEL, head - column)):
                    context[whole(to + j)] = found[whole(i * PANEL + j)] * sums[row - begin + i]
