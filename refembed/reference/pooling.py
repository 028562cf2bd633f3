"""From one vector a token to one vector a text. The released model takes the mean; the paper compares four ways."""

from collections.abc import Callable

import numpy as np

from .attention import merge_heads, split_heads
from .operations import linear, softmax
from .trace import Array, Parameters

POOLING_HEADS = 4  # of the attention pooler, as in the paper


def mean_pool(states: Array, parameters: Parameters) -> Array:
    """The mean over every token: BOS, EOS and the prompt are tokens like any other.

    states   (tokens, width)
    returns  (width)

    Source: POOL-1. Trap: BOS, EOS or the prompt left out, or padding counted (defects C3, D4).
    Witness: golden/twin length-two.
    """
    return np.mean(states, axis=0)  # (width)


def first_pool(states: Array, parameters: Parameters) -> Array:
    """The first token's vector, BOS.

    states   (tokens, width)
    returns  (width)

    Source: POOL-2.
    Witness: golden/gradients first-pooler.
    """
    return states[0]  # (width)


def last_pool(states: Array, parameters: Parameters) -> Array:
    """The last token's vector, EOS.

    states   (tokens, width)
    returns  (width)

    Source: POOL-3.
    Witness: golden/gradients last-pooler.
    """
    return states[-1]  # (width)


def attention_pool(states: Array, parameters: Parameters) -> Array:
    """One learned query attends to every token, in four heads.

    states   (tokens, width)
    returns  (width)

    parameters: pooling.query (1, width); pooling.key.weight and pooling.value.weight, both (width, width).
    Source: POOL-4. The paper prints softmax(Q K^T / sqrt(d_M)) V and says nothing of how heads scale; dividing by the
    square root of the head's size d_M/4, and no output projection, are our choice.
    Witness: golden/gradients attention-pooler.
    """
    head = states.shape[1] // POOLING_HEADS
    query = split_heads(parameters["pooling.query"], head)  # (4, 1, width/4)
    key = split_heads(linear(states, parameters["pooling.key.weight"]), head)  # (4, tokens, width/4)
    value = split_heads(linear(states, parameters["pooling.value.weight"]), head)  # (4, tokens, width/4)
    weights = softmax(query @ key.swapaxes(1, 2) * head**-0.5)  # (4, 1, tokens)
    return merge_heads(weights @ value)[0]  # (width)


POOLERS: dict[str, Callable[[Array, Parameters], Array]] = {
    "mean": mean_pool,
    "first": first_pool,
    "last": last_pool,
    "attention": attention_pool,
}
