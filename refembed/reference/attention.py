"""Attention: three query heads on one key and value head, both directions, within the layer's mask."""

import numpy as np

from .config import Config
from .operations import linear, rms_norm, softmax
from .positions import Positions, rotate
from .trace import Array, Parameters, Trace, silent


def split_heads(x: Array, head: int) -> Array:
    """Cut each row into heads and put the heads first.

    x        (tokens, n)          n = count of heads times head size
    returns  (n/head, tokens, head)

    Source: ATT-1.
    Witness: golden/twin length-two.
    """
    return x.reshape(len(x), -1, head).swapaxes(0, 1)  # (n/head, tokens, head)


def merge_heads(x: Array) -> Array:
    """Put the heads of each token side by side again.

    x        (count, tokens, head)
    returns  (tokens, count*head)

    Source: ATT-1.
    Witness: golden/twin length-two.
    """
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)  # (tokens, count*head)


def attend(query: Array, key: Array, value: Array, mask: Array, scale: float, name: str, trace: Trace) -> Array:
    """Each query's mean of the values it sees, weighted by the softmax of its scaled scores.

    query    (heads, tokens, head)
    key      (key_heads, n, head)       each one serves heads/key_heads neighbouring query heads
    value    (key_heads, n, head)
    mask     (tokens, n)                0 where seen, -inf where not
    scale    query_scalar^(-1/2) = 1/16
    returns  (heads, tokens, head)

    Source: ATT-1, ATT-2, ATT-5. Trap: the scale is 1/sqrt(256), not 1/sqrt(768) (defect F5).
    Witness: golden/twin length-reach-plus-two.
    """
    shared = len(query) // len(key)
    key = np.repeat(key, shared, axis=0)  # (heads, n, head)
    value = np.repeat(value, shared, axis=0)  # (heads, n, head)
    scores = query @ key.swapaxes(1, 2) * scale  # (heads, tokens, n)
    trace(f"{name}.scores", scores)
    scores = scores + mask  # (heads, tokens, n)
    weights = softmax(scores)  # (heads, tokens, n)
    context = weights @ value  # (heads, tokens, head)
    trace(f"{name}.weights", weights)
    return context  # (heads, tokens, head)


def attention(
    x: Array, parameters: Parameters, index: int, config: Config, positions: Positions, trace: Trace = silent
) -> Array:
    """The attention of layer `index`, from its normed input to what its own norm will read.

    x        (tokens, width)  after input_layernorm
    returns  (tokens, width)

    Source: ATT-1, ROT-4. Trap: query and key are normed before they are turned: (1 + w) does not commute (F6).
    Witness: golden/twin length-ladder-1.
    """
    name, weight = f"layer.{index:02d}.attention", f"layers.{index}.self_attn.{{}}.weight".format
    query = split_heads(linear(x, parameters[weight("q_proj")]), config.head)  # (heads, tokens, head)
    key = split_heads(linear(x, parameters[weight("k_proj")]), config.head)  # (key_heads, tokens, head)
    value = split_heads(linear(x, parameters[weight("v_proj")]), config.head)  # (key_heads, tokens, head)
    trace(f"{name}.query", query)
    trace(f"{name}.key", key)
    trace(f"{name}.value", value)
    query = rms_norm(query, parameters[weight("q_norm")], config.epsilon)  # (heads, tokens, head)
    key = rms_norm(key, parameters[weight("k_norm")], config.epsilon)  # (key_heads, tokens, head)
    trace(f"{name}.query_norm", query)
    trace(f"{name}.key_norm", key)
    query = rotate(query, positions.cos, positions.sin)  # (heads, tokens, head)
    key = rotate(key, positions.cos, positions.sin)  # (key_heads, tokens, head)
    trace(f"{name}.query_rotated", query)
    trace(f"{name}.key_rotated", key)
    context = attend(query, key, value, positions.mask, config.query_scalar**-0.5, name, trace)  # (heads, tokens, head)
    trace(f"{name}.context", context)
    output = linear(merge_heads(context), parameters[weight("o_proj")])  # (tokens, width)
    trace(f"{name}.output", output)
    return output  # (tokens, width)
