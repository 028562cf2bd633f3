"""The whole model, from token ids to a unit vector. Read this first, then follow the calls."""

import math
from collections.abc import Sequence

import numpy as np

from .config import Config
from .layer import layer
from .operations import l2_normalize, linear, rms_norm
from .pooling import POOLERS
from .positions import positions_of
from .trace import Array, Parameters, Trace, silent


def embed_tokens(ids: Array, parameters: Parameters, config: Config) -> Array:
    """The table's rows of these ids, times the square root of the width.

    ids      (tokens,)        whole numbers below the vocabulary
    returns  (tokens, width)

    Source: EMB-1, EMB-2, EMB-3. Trap: sqrt(768) = 27.712813, not bfloat16's 27.75 (defect F3).
    Witness: golden/twin length-two.
    """
    return parameters["embed_tokens.weight"][ids] * math.sqrt(config.width)  # (tokens, width)


def encode_tokens(ids: Array, parameters: Parameters, config: Config, trace: Trace = silent) -> Array:
    """One vector a token: the stack of layers and the last norm.

    ids      (tokens,)        at least one, at most config.context
    returns  (tokens, width)

    Source: LAY-2, ATT-6. No padding and no batch: a text is computed alone, so nothing beside it can change it.
    Witness: golden/twin length-ladder-1.
    """
    x = embed_tokens(ids, parameters, config)  # (tokens, width)
    trace("tokens", ids)
    trace("embedded", x)
    positions = {kind: positions_of(kind, len(ids), config, x.dtype) for kind in set(config.layer_kinds)}
    for index, kind in enumerate(config.layer_kinds):
        x = layer(x, parameters, index, config, positions[kind], trace)  # (tokens, width)
    states = rms_norm(x, parameters["norm.weight"], config.epsilon)  # (tokens, width)
    trace("final_norm", states)
    return states  # (tokens, width)


def dense_head(pooled: Array, parameters: Parameters, trace: Trace = silent) -> Array:
    """Two matrices with nothing between them: width -> dense -> dimensions, no bias, no activation.

    pooled   (..., width)
    returns  (..., dimensions)

    Source: HEAD-1. Trap: left out, which gives vectors nearly orthogonal to the right ones (defects D1, D2).
    Witness: golden/twin length-ladder-1.
    """
    projected_up = linear(pooled, parameters["2_Dense.linear.weight"])  # (..., dense)
    projected = linear(projected_up, parameters["3_Dense.linear.weight"])  # (..., dimensions)
    trace("projected_up", projected_up)
    trace("projected", projected)
    return projected  # (..., dimensions)


def truncate(embedding: Array, dimensions: int) -> Array:
    """Keep the first numbers of an embedding and make it unit length again (Matryoshka).

    embedding    (..., n)           any n of at least `dimensions`
    dimensions   768, 512, 256 or 128 were trained
    returns      (..., dimensions)  unit length

    Source: MAT-1, MAT-2, Kusupati et al. 2022. Trap: not normalised again (defect D5).
    Witness: golden/twin dimensions-16.
    """
    return l2_normalize(embedding[..., :dimensions])  # (..., dimensions)


def embed(ids: Array, parameters: Parameters, config: Config, trace: Trace = silent) -> Array:
    """The embedding of one text: tokens, encoder, pooler, dense head, unit length.

    ids          (tokens,)      BOS, the text's ids, EOS
    parameters   by the checkpoint's names, all of one float type, which is the type computed in
    returns      (dimensions,)  unit length

    Source: HEAD-2.
    Witness: golden/twin length-two.
    """
    states = encode_tokens(ids, parameters, config, trace)  # (tokens, width)
    pooled = POOLERS[config.pooler](states, parameters)  # (width)
    trace("pooled", pooled)
    embedding = l2_normalize(dense_head(pooled, parameters, trace))  # (dimensions)
    trace("embedding", embedding)
    return embedding  # (dimensions)


def embed_batch(batch: Sequence[Array], parameters: Parameters, config: Config) -> Array:
    """The embeddings of several texts of any lengths, each computed as if alone.

    batch    texts arrays (tokens_i,)
    returns  (texts, dimensions)

    Source: LAY-2, ATT-6.
    Witness: golden/twin batch-small-gap.
    """
    return np.stack([embed(ids, parameters, config) for ids in batch])  # (texts, dimensions)
