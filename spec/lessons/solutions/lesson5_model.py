"""Lesson 5, solved."""

from collections.abc import Sequence

import given
import numpy as np

from .lesson1_tokens import embed_tokens, tokenize
from .lesson2_mlp import gated_mlp, linear, rms_norm
from .lesson3_rotary import rotary_angles
from .lesson4_attention import attention, window_mask


def l2_normalize(x: np.ndarray) -> np.ndarray:
    """Unit length, whatever came in."""
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True))  # (..., n)


def layer(
    x: np.ndarray, weights: dict[str, np.ndarray], cos: np.ndarray, sin: np.ndarray, mask: np.ndarray, settings: dict
) -> np.ndarray:
    """Each part is normed before it is added."""

    def norm(rows: np.ndarray, which: str) -> np.ndarray:
        return rms_norm(rows, weights[f"{which}_layernorm.weight"], settings["rms_norm_eps"])

    x = x + norm(attention(norm(x, "input"), weights, cos, sin, mask, settings), "post_attention")  # (tokens, width)
    return x + norm(gated_mlp(norm(x, "pre_feedforward"), weights), "post_feedforward")  # (tokens, width)


def layer_weights(parameters: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """The parameters of layer `index`, their names without `layers.3.`."""
    prefix = f"layers.{index}."
    return {name.removeprefix(prefix): array for name, array in parameters.items() if name.startswith(prefix)}


def encode(ids: np.ndarray, parameters: dict[str, np.ndarray], settings: dict) -> np.ndarray:
    """A layer's kind decides its base and its window, and nothing else."""
    x = embed_tokens(ids, parameters, settings)  # (tokens, width)
    for index, kind in enumerate(settings["layer_types"]):
        sliding = kind == "sliding_attention"
        base = settings["rope_local_base_freq"] if sliding else settings["rope_theta"]
        cos, sin = rotary_angles(len(ids), settings["head_dim"], base)  # (tokens, head/2) each
        mask = window_mask(len(ids), settings["sliding_window"] if sliding else None)  # (tokens, tokens)
        x = layer(x, layer_weights(parameters, index), cos, sin, mask, settings)  # (tokens, width)
    return rms_norm(x, parameters["norm.weight"], settings["rms_norm_eps"])  # (tokens, width)


def mean_pool(states: np.ndarray) -> np.ndarray:
    """BOS and EOS are tokens like any other."""
    return states.mean(axis=0)  # (width)


def dense_head(pooled: np.ndarray, parameters: dict[str, np.ndarray]) -> np.ndarray:
    """Nothing stands between the two."""
    return linear(linear(pooled, parameters["2_Dense.linear.weight"]), parameters["3_Dense.linear.weight"])


def truncate(embedding: np.ndarray, dimensions: int) -> np.ndarray:
    """Part of a unit vector is shorter than one."""
    return l2_normalize(embedding[..., :dimensions])  # (..., dimensions)


def embed_ids(ids: np.ndarray, parameters: dict[str, np.ndarray], settings: dict) -> np.ndarray:
    """The whole, in a line."""
    return l2_normalize(dense_head(mean_pool(encode(ids, parameters, settings)), parameters))  # (dimensions)


def embed(texts: Sequence[str]) -> np.ndarray:
    """The twin's embeddings of texts, (texts, dimensions)."""
    return given.embed(texts, tokenize, embed_ids)
