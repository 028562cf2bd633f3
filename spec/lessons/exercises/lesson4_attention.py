"""Lesson 4. Attention: key and value groups, and the window.

The other part of a layer moves information between tokens. Every token asks a query; every token offers a key and a
value. How well a query fits a key is a score; the softmax of a query's scores are weights that sum to one; what the
query gets is the mean of the values by these weights.

    scores[i, j]  = query[i] . key[j] * scale               scale = 1 / sqrt(query_pre_attn_scalar)
    weights[i, :] = softmax(scores[i, :] + mask[i, :])      mask 0 where i may see j, -infinity where not
    context[i]    = sum over j of weights[i, j] value[j]

This happens in several heads side by side. The query heads share keys and values: three queries, one key, one value.
Nothing hides later tokens from earlier ones: this model reads both ways. But in most layers a token sees a window only.
config.json's sliding_window counts both sides together: of 16, a token sees 8 tokens each way, and itself.

Query and key are normed, each head by itself, before they are turned.
Read beside it: spec/05-attention-and-windows.md. Check: python spec/lessons/check.py 4
"""

import numpy as np

from .lesson2_mlp import linear, rms_norm
from .lesson3_rotary import rotate


def softmax(scores: np.ndarray) -> np.ndarray:
    """Exponentials of each row, divided by their sum.

    scores   (..., n)  some may be -infinity, never a whole row
    returns  (..., n)  each row sums to 1

    exp(1000) is too large a number. Taking the row's largest score off first changes nothing else.
    """
    raise NotImplementedError


def window_mask(tokens: int, sliding_window: int | None) -> np.ndarray:
    """What is added to the scores: query i in row i, key j in column j.

    sliding_window  config.json's number, even; None in a layer that sees the whole text
    returns         (tokens, tokens)  0 where i sees j, -infinity where not
    """
    raise NotImplementedError


def split_heads(x: np.ndarray, head: int) -> np.ndarray:
    """Cut each row into heads, and put the heads first.

    x        (tokens, count * head)
    returns  (count, tokens, head)
    """
    raise NotImplementedError


def merge_heads(x: np.ndarray) -> np.ndarray:
    """The way back: the heads of each token side by side.

    x        (count, tokens, head)
    returns  (tokens, count * head)
    """
    raise NotImplementedError


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray, scale: float) -> np.ndarray:
    """Each query's mean of the values it sees.

    query    (heads, tokens, head)
    key      (key_heads, tokens, head)  each serves heads/key_heads query heads that stand next to each other
    value    (key_heads, tokens, head)
    mask     (tokens, tokens)
    returns  (heads, tokens, head)
    """
    raise NotImplementedError


def attention(
    x: np.ndarray, weights: dict[str, np.ndarray], cos: np.ndarray, sin: np.ndarray, mask: np.ndarray, settings: dict
) -> np.ndarray:
    """The whole part: project, norm, turn, attend, project back.

    x         (tokens, width)
    weights   "self_attn.q_proj.weight", k_proj, v_proj and o_proj likewise: matrices as stored;
              "self_attn.q_norm.weight" and k_norm: (head,)
    settings  "head_dim", "rms_norm_eps", "query_pre_attn_scalar"
    returns   (tokens, width)
    """
    raise NotImplementedError
