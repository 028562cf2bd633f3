"""The derivative of every operation, pooler and head, each by hand.

A function that ends in _gradient or _gradients stands for the forward of the name before it. It takes `upstream`, the
derivative of the loss with respect to what the forward returned, and gives that with respect to what the forward was
given: _gradient one array, _gradients the input's and every parameter's. d_x is the derivative of the loss with
respect to x, and has x's shape (GRD-1).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .attention import merge_heads, split_heads
from .config import Config
from .operations import linear, softmax
from .pooling import POOLING_HEADS
from .positions import rotate
from .trace import Array, Parameters


class Gradients(NamedTuple):
    """What a part of the model that has parameters hands back."""

    x: Array  # with respect to its input, and of its shape
    parameters: dict[str, Array]  # with respect to each parameter, by the checkpoint's own name


# Operations -----------------------------------------------------------------------------------------------------------


def linear_gradient(upstream: Array, weight: Array) -> Array:
    """Of operations.linear, with respect to x.

    upstream  (..., m)
    weight    (m, n)    stored (out, in), so it is used as it is stored: the transpose of the forward's
    returns   (..., n)

    Source: GRD-2.
    Witness: golden/gradients two-texts.
    """
    return upstream @ weight  # (..., n)


def linear_weight_gradient(upstream: Array, x: Array) -> Array:
    """Of operations.linear, with respect to the stored matrix: every row's outer product, summed.

    upstream  (..., m)
    x         (..., n)
    returns   (m, n)

    Source: GRD-2. Trap: transposed, which a square matrix does not notice; the mean over rows in place of the sum.
    Witness: golden/gradients two-texts.
    """
    return upstream.reshape(-1, upstream.shape[-1]).T @ x.reshape(-1, x.shape[-1])  # (m, n)


def linear_gradients(upstream: Array, x: Array, name: str, parameters: Parameters) -> Gradients:
    """Of operations.linear with the parameter of this name.

    upstream  (..., m)
    x         (..., n)
    returns   x (..., n), parameters that one

    Source: GRD-2.
    Witness: golden/gradients two-texts.
    """
    d_weight = linear_weight_gradient(upstream, x)  # (m, n)
    return Gradients(linear_gradient(upstream, parameters[name]), {name: d_weight})  # x (..., n)


def rms_norm_gradient(upstream: Array, x: Array, weight: Array, epsilon: float) -> Array:
    """Of operations.rms_norm, with respect to x, which comes in twice: as the row, and in the row's size.

    upstream  (..., n)
    x         (..., n)
    weight    (n,)
    epsilon   scalar
    returns   (..., n)

    Source: GRD-3. Trap: only the first way in; the stored weight without its one.
    Witness: golden/gradients two-texts.
    """
    scale = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + epsilon)  # (..., 1)
    d_scaled = upstream * (1 + weight)  # (..., n)
    along = np.mean(d_scaled * x * scale, axis=-1, keepdims=True)  # (..., 1)
    return scale * (d_scaled - along * x * scale)  # (..., n)


def rms_norm_weight_gradient(upstream: Array, x: Array, epsilon: float) -> Array:
    """Of operations.rms_norm, with respect to its weight: summed over every row, and in attention over every head.

    upstream  (..., n)
    x         (..., n)
    epsilon   scalar
    returns   (n,)

    Source: GRD-3. The one that is added to the weight has no derivative.
    Witness: golden/gradients two-texts.
    """
    scale = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + epsilon)  # (..., 1)
    return np.sum((upstream * x * scale).reshape(-1, x.shape[-1]), axis=0)  # (n)


def rms_norm_gradients(upstream: Array, x: Array, name: str, parameters: Parameters, epsilon: float) -> Gradients:
    """Of operations.rms_norm with the parameter of this name.

    upstream  (..., n)
    x         (..., n)
    epsilon   scalar
    returns   x (..., n), parameters that one

    Source: GRD-3.
    Witness: golden/gradients two-texts.
    """
    d_weight = rms_norm_weight_gradient(upstream, x, epsilon)  # (n)
    return Gradients(rms_norm_gradient(upstream, x, parameters[name], epsilon), {name: d_weight})  # x (..., n)


def gelu_gradient(upstream: Array, x: Array) -> Array:
    """Of operations.gelu, the tanh form, whose own derivative it is and not the exact form's.

    upstream  (..., n)
    x         (..., n)
    returns   (..., n)

    Source: GRD-4.
    Witness: golden/gradients two-texts.
    """
    curve = np.tanh(math.sqrt(2 / math.pi) * (x * (1 + 0.044715 * (x * x))))  # (..., n)
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * (x * x)) * (1 - curve * curve)  # (..., n)
    return upstream * 0.5 * (1 + curve + x * slope)  # (..., n)


def softmax_gradient(upstream: Array, weights: Array) -> Array:
    """Of operations.softmax, with respect to the scores, from the weights it returned.

    upstream  (..., n)
    weights   (..., n)  each row sums to 1
    returns   (..., n)  each row sums to 0

    Source: GRD-5. A key that is not seen has weight 0 and so gets 0: the mask needs no line of its own here.
    Trap: the row's sum left out, as if no weight lived at the cost of the others.
    Witness: golden/gradients two-texts.
    """
    along = np.sum(upstream * weights, axis=-1, keepdims=True)  # (..., 1)
    return weights * (upstream - along)  # (..., n)


def l2_normalize_gradient(upstream: Array, x: Array) -> Array:
    """Of operations.l2_normalize: what is left of upstream at right angles to the row, over the row's length.

    upstream  (..., n)  with respect to the unit rows
    x         (..., n)  the raw rows
    returns   (..., n)  with respect to the raw rows

    Source: GRD-6. Trap: the division alone, though a step along the row changes no unit vector.
    Witness: golden/gradients two-texts.
    """
    length = np.sqrt(np.sum(np.square(x), axis=-1, keepdims=True))  # (..., 1)
    unit = x / length  # (..., n)
    along = np.sum(upstream * unit, axis=-1, keepdims=True)  # (..., 1)
    return (upstream - along * unit) / length  # (..., n)


def rotate_gradient(upstream: Array, cos: Array, sin: Array) -> Array:
    """Of positions.rotate: the same turn, backwards.

    upstream  (..., tokens, head)
    cos       (tokens, head/2)
    sin       (tokens, head/2)
    returns   (..., tokens, head)

    Source: GRD-7. Trap: turned forwards again.
    Witness: golden/gradients two-texts.
    """
    return rotate(upstream, cos, -sin)  # (..., tokens, head)


def truncate_gradient(upstream: Array, embedding: Array) -> Array:
    """Of model.truncate: nothing for the numbers cut off, and the normalisation's for those kept.

    upstream   (..., m)  with respect to the m numbers kept
    embedding  (..., n)  before the cut
    returns    (..., n)

    Source: GRD-6. Trap: the length of the whole row in place of that of its first part.
    Witness: tests/reference/test_reference_gradients.py test_derivatives_are_finite_differences.
    """
    kept = upstream.shape[-1]
    d_kept = l2_normalize_gradient(upstream, embedding[..., :kept])  # (..., m)
    return np.concatenate([d_kept, np.zeros_like(embedding[..., kept:])], axis=-1)  # (..., n)


def embed_tokens_gradient(upstream: Array, ids: Array, config: Config) -> Array:
    """Of model.embed_tokens, with respect to the whole table: rows of tokens that are not in the text get 0.

    upstream  (tokens, width)
    ids       (tokens,)
    returns   (vocabulary, width)

    Source: GRD-10. Trap: a token that comes twice gets both gradients, where table[ids] += ... keeps the last only;
    the square root of the width left out.
    Witness: golden/gradients two-texts.
    """
    table = np.zeros((config.vocabulary, config.width), upstream.dtype)  # (vocabulary, width)
    np.add.at(table, ids, upstream * math.sqrt(config.width))
    return table  # (vocabulary, width)


# Poolers and head -----------------------------------------------------------------------------------------------------


def mean_pool_gradients(upstream: Array, states: Array, parameters: Parameters) -> Gradients:
    """Of pooling.mean_pool: every token gets the same share.

    upstream  (width)
    states    (tokens, width)
    returns   x (tokens, width), parameters none

    Source: GRD-11. Trap: shared among the tokens of a padded row, or of the whole batch.
    Witness: golden/gradients two-texts.
    """
    return Gradients(np.zeros_like(states) + upstream / len(states), {})  # x (tokens, width)


def first_pool_gradients(upstream: Array, states: Array, parameters: Parameters) -> Gradients:
    """Of pooling.first_pool: the first token gets everything.

    upstream  (width)
    states    (tokens, width)
    returns   x (tokens, width), parameters none

    Source: GRD-11.
    Witness: golden/gradients first-pooler.
    """
    return Gradients(np.concatenate([upstream[None], np.zeros_like(states[1:])]), {})  # x (tokens, width)


def last_pool_gradients(upstream: Array, states: Array, parameters: Parameters) -> Gradients:
    """Of pooling.last_pool: the last token gets everything.

    upstream  (width)
    states    (tokens, width)
    returns   x (tokens, width), parameters none

    Source: GRD-11.
    Witness: golden/gradients last-pooler.
    """
    return Gradients(np.concatenate([np.zeros_like(states[1:]), upstream[None]]), {})  # x (tokens, width)


def attention_pool_gradients(upstream: Array, states: Array, parameters: Parameters) -> Gradients:
    """Of pooling.attention_pool: the states are keys and values, and get the gradients of both.

    upstream  (width)
    states    (tokens, width)
    returns   x (tokens, width), parameters pooling.query, pooling.key.weight and pooling.value.weight

    Source: GRD-5, GRD-11.
    Witness: golden/gradients attention-pooler.
    """
    head = states.shape[1] // POOLING_HEADS
    query = split_heads(parameters["pooling.query"], head)  # (4, 1, width/4)
    key = split_heads(linear(states, parameters["pooling.key.weight"]), head)  # (4, tokens, width/4)
    value = split_heads(linear(states, parameters["pooling.value.weight"]), head)  # (4, tokens, width/4)
    weights = softmax(query @ key.swapaxes(1, 2) * head**-0.5)  # (4, 1, tokens)
    d_context = split_heads(upstream[None], head)  # (4, 1, width/4)
    d_scores = softmax_gradient(d_context @ value.swapaxes(1, 2), weights) * head**-0.5  # (4, 1, tokens)
    d_query = merge_heads(d_scores @ key)  # (1, width)
    d_key = merge_heads(d_scores.swapaxes(1, 2) @ query)  # (tokens, width)
    d_value = merge_heads(weights.swapaxes(1, 2) @ d_context)  # (tokens, width)
    of_key = linear_gradients(d_key, states, "pooling.key.weight", parameters)  # x (tokens, width)
    of_value = linear_gradients(d_value, states, "pooling.value.weight", parameters)  # x (tokens, width)
    gradients = {"pooling.query": d_query} | of_key.parameters | of_value.parameters
    return Gradients(of_key.x + of_value.x, gradients)  # x (tokens, width)


POOLER_GRADIENTS: dict[str, Callable[[Array, Array, Parameters], Gradients]] = {
    "mean": mean_pool_gradients,
    "first": first_pool_gradients,
    "last": last_pool_gradients,
    "attention": attention_pool_gradients,
}


def dense_head_gradients(upstream: Array, pooled: Array, parameters: Parameters) -> Gradients:
    """Of model.dense_head: the matrices in the other order, each transposed.

    upstream  (..., dimensions)
    pooled    (..., width)
    returns   x (..., width), parameters both matrices

    Source: GRD-12.
    Witness: golden/gradients two-texts.
    """
    projected_up = linear(pooled, parameters["2_Dense.linear.weight"])  # (..., dense)
    down = linear_gradients(upstream, projected_up, "3_Dense.linear.weight", parameters)  # x (..., dense)
    up = linear_gradients(down.x, pooled, "2_Dense.linear.weight", parameters)  # x (..., width)
    return Gradients(up.x, up.parameters | down.parameters)  # x (..., width)
