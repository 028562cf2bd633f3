"""Lesson 5. The whole model.

A layer is attention and MLP, each between two norms, each added to what came in: the residual stream x.

    x = x + norm(attention(norm(x)))                input_layernorm, post_attention_layernorm
    x = x + norm(mlp(norm(x)))                      pre_feedforward_layernorm, post_feedforward_layernorm

All layers in turn, and one last norm, give a vector for each token. Their mean, BOS and EOS and prompt included, is the
text's vector. Two matrices follow with nothing between them, then it is divided by its length:

    embedding = unit( W3 W2 mean(x) )

The numbers of an embedding are in order of weight, by training: the first 512, 256 or 128 are a shorter embedding,
once they are divided by their own length. That is Matryoshka.

When this lesson's checks pass you have a port of EmbeddingGemma. Ask the suite that ports are held to:

    cd spec/lessons && refembed verify --call exercises.lesson5_model:embed

Read beside it: spec/06-gated-mlp.md, 07-pooling-and-dense-head.md, 08-matryoshka.md.
Check: python spec/lessons/check.py 5
"""

from collections.abc import Sequence

import given
import numpy as np

from .lesson1_tokens import embed_tokens, tokenize
from .lesson2_mlp import gated_mlp, linear, rms_norm
from .lesson3_rotary import rotary_angles
from .lesson4_attention import attention, window_mask


def l2_normalize(x: np.ndarray) -> np.ndarray:
    """Each row divided by its length.

    x        (..., n)
    returns  (..., n)
    """
    raise NotImplementedError


def layer(
    x: np.ndarray, weights: dict[str, np.ndarray], cos: np.ndarray, sin: np.ndarray, mask: np.ndarray, settings: dict
) -> np.ndarray:
    """One layer.

    x         (tokens, width)
    weights   this layer's, without the `layers.3.` of their names
    settings  "rms_norm_eps"
    returns   (tokens, width)
    """
    raise NotImplementedError


def layer_weights(parameters: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """Written for you: the parameters of layer `index`, their names without `layers.3.`."""
    prefix = f"layers.{index}."
    return {name.removeprefix(prefix): array for name, array in parameters.items() if name.startswith(prefix)}


def encode(ids: np.ndarray, parameters: dict[str, np.ndarray], settings: dict) -> np.ndarray:
    """One vector a token: the table, the layers in turn, the last norm.

    ids         (tokens,)
    parameters  the last norm is "norm.weight"
    settings    "layer_types", for each layer "sliding_attention" or "full_attention";
                sliding: base "rope_local_base_freq", window "sliding_window"; full: base "rope_theta", no window;
                "head_dim", "rms_norm_eps"
    returns     (tokens, width)
    """
    raise NotImplementedError


def mean_pool(states: np.ndarray) -> np.ndarray:
    """The mean over every token.

    states   (tokens, width)
    returns  (width,)
    """
    raise NotImplementedError


def dense_head(pooled: np.ndarray, parameters: dict[str, np.ndarray]) -> np.ndarray:
    """Two matrices, one after the other.

    pooled      (width,)
    parameters  "2_Dense.linear.weight" (dense, width), "3_Dense.linear.weight" (dimensions, dense)
    returns     (dimensions,)
    """
    raise NotImplementedError


def truncate(embedding: np.ndarray, dimensions: int) -> np.ndarray:
    """The shorter embedding: the first numbers, unit length again.

    embedding  (..., n)
    returns    (..., dimensions)
    """
    raise NotImplementedError


def embed_ids(ids: np.ndarray, parameters: dict[str, np.ndarray], settings: dict) -> np.ndarray:
    """From ids to the text's embedding.

    ids      (tokens,)
    returns  (dimensions,)  unit length
    """
    raise NotImplementedError


def embed(texts: Sequence[str]) -> np.ndarray:
    """Written for you, on your functions: the twin's embeddings of texts, (texts, dimensions)."""
    return given.embed(texts, tokenize, embed_ids)
