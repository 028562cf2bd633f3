"""Lesson 4, solved."""

import numpy as np

from .lesson2_mlp import linear, rms_norm
from .lesson3_rotary import rotate


def softmax(scores: np.ndarray) -> np.ndarray:
    """A constant on every score of a row divides out."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))  # (..., n)
    return powers / powers.sum(axis=-1, keepdims=True)  # (..., n)


def window_mask(tokens: int, sliding_window: int | None) -> np.ndarray:
    """Half the window each way."""
    reach = tokens if sliding_window is None else sliding_window // 2
    position = np.arange(tokens)  # (tokens)
    distance = np.abs(position[:, None] - position)  # (tokens, tokens)
    return np.where(distance <= reach, 0.0, -np.inf)  # (tokens, tokens)


def split_heads(x: np.ndarray, head: int) -> np.ndarray:
    """Cut the last axis first: a reshape to (count, tokens, head) would mix tokens."""
    return x.reshape(len(x), -1, head).swapaxes(0, 1)  # (count, tokens, head)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """The same two steps, backwards."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)  # (tokens, count*head)


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray, scale: float) -> np.ndarray:
    """Neighbouring query heads share a key and a value."""
    shared = len(query) // len(key)
    key, value = np.repeat(key, shared, axis=0), np.repeat(value, shared, axis=0)  # (heads, tokens, head) each
    scores = query @ key.swapaxes(1, 2) * scale  # (heads, tokens, tokens)
    return softmax(scores + mask) @ value  # (heads, tokens, head)


def attention(
    x: np.ndarray, weights: dict[str, np.ndarray], cos: np.ndarray, sin: np.ndarray, mask: np.ndarray, settings: dict
) -> np.ndarray:
    """Normed, then turned: the other order gives other numbers, since a norm's weights differ within a pair."""

    def heads(which: str) -> np.ndarray:
        return split_heads(linear(x, weights[f"self_attn.{which}_proj.weight"]), settings["head_dim"])

    def turned(which: str) -> np.ndarray:
        normed = rms_norm(heads(which), weights[f"self_attn.{which}_norm.weight"], settings["rms_norm_eps"])
        return rotate(normed, cos, sin)

    scale = 1 / np.sqrt(settings["query_pre_attn_scalar"])
    context = attend(turned("q"), turned("k"), heads("v"), mask, scale)  # (heads, tokens, head)
    return linear(merge_heads(context), weights["self_attn.o_proj.weight"])  # (tokens, width)
