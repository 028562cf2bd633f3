"""The backward pass: from the derivative of a loss with respect to an embedding to that of every parameter.

The forward names every intermediate tensor to its collector. What that kept, `tape`, is all the backward reads, and
each function takes the steps of its forward from the last to the first. Read gradients.py before this.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from .attention import merge_heads, split_heads
from .config import Config
from .gradients import (
    POOLER_GRADIENTS,
    Gradients,
    dense_head_gradients,
    embed_tokens_gradient,
    gelu_gradient,
    l2_normalize_gradient,
    linear_gradients,
    rms_norm_gradients,
    rotate_gradient,
    softmax_gradient,
)
from .model import embed
from .operations import gelu
from .positions import Positions, positions_of
from .trace import Array, Parameters, collector


class HeadGradients(NamedTuple):
    """What attend hands back."""

    query: Array  # (heads, tokens, head)
    key: Array  # (key_heads, tokens, head)
    value: Array  # (key_heads, tokens, head)


def attend_gradients(
    upstream: Array, query: Array, key: Array, value: Array, weights: Array, scale: float
) -> HeadGradients:
    """Of attention.attend.

    upstream  (heads, tokens, head)
    query     (heads, tokens, head)
    key       (key_heads, tokens, head)
    value     (key_heads, tokens, head)
    weights   (heads, tokens, tokens)  as the forward traced them: 0 where a key is not seen, which is the whole mask
    scale     query_scalar^(-1/2)
    returns   query (heads, tokens, head), key (key_heads, tokens, head), value (key_heads, tokens, head)

    Source: GRD-5, GRD-8. Trap: the key and value that several query heads share get the sum over those heads, not the
    mean; the scale is a factor of the query's gradient and of the key's.
    Witness: golden/gradients two-texts.
    """
    count, tokens, head = key.shape
    shared = len(query) // count
    d_weights = upstream @ np.repeat(value, shared, axis=0).swapaxes(1, 2)  # (heads, tokens, tokens)
    d_scores = softmax_gradient(d_weights, weights) * scale  # (heads, tokens, tokens)
    d_query = d_scores @ np.repeat(key, shared, axis=0)  # (heads, tokens, head)
    d_key = d_scores.swapaxes(1, 2) @ query  # (heads, tokens, head)
    d_value = weights.swapaxes(1, 2) @ upstream  # (heads, tokens, head)
    d_key = np.sum(d_key.reshape(count, shared, tokens, head), axis=1)  # (key_heads, tokens, head)
    d_value = np.sum(d_value.reshape(count, shared, tokens, head), axis=1)  # (key_heads, tokens, head)
    return HeadGradients(d_query, d_key, d_value)


def attention_gradients(
    upstream: Array, tape: Parameters, parameters: Parameters, index: int, config: Config, positions: Positions
) -> Gradients:
    """Of attention.attention, for layer `index`.

    upstream  (tokens, width)
    tape      what the forward traced, by name
    returns   x (tokens, width), parameters four matrices and the norms of query and key

    Source: GRD-8. Trap: the rotation comes off before the norm; the one input gets the gradients of all three.
    Witness: golden/gradients two-texts.
    """
    name, weight = f"layer.{index:02d}.attention", f"layers.{index}.self_attn.{{}}.weight".format

    def kept(which: str) -> Array:
        return tape[f"{name}.{which}"]  # (...)

    def matrix(d_heads: Array, which: str) -> Gradients:
        return linear_gradients(merge_heads(d_heads), kept("norm"), weight(which), parameters)  # x (tokens, width)

    def norm(d_rows: Array, rows: Array, which: str) -> Gradients:
        return rms_norm_gradients(d_rows, rows, weight(which), parameters, config.epsilon)  # x (..., head)

    context = merge_heads(kept("context"))  # (tokens, heads*head)
    output = linear_gradients(upstream, context, weight("o_proj"), parameters)  # x (tokens, heads*head)
    d_context = split_heads(output.x, config.head)  # (heads, tokens, head)
    rotated = attend_gradients(
        d_context, kept("query_rotated"), kept("key_rotated"), kept("value"), kept("weights"), config.query_scalar**-0.5
    )
    d_query = rotate_gradient(rotated.query, positions.cos, positions.sin)  # (heads, tokens, head)
    d_key = rotate_gradient(rotated.key, positions.cos, positions.sin)  # (key_heads, tokens, head)
    query = norm(d_query, kept("query"), "q_norm")  # x (heads, tokens, head)
    key = norm(d_key, kept("key"), "k_norm")  # x (key_heads, tokens, head)
    q = matrix(query.x, "q_proj")  # x (tokens, width)
    k = matrix(key.x, "k_proj")  # x (tokens, width)
    v = matrix(rotated.value, "v_proj")  # x (tokens, width)
    gradients = output.parameters | query.parameters | key.parameters | q.parameters | k.parameters | v.parameters
    return Gradients(q.x + k.x + v.x, gradients)  # x (tokens, width)


def gated_mlp_gradients(upstream: Array, tape: Parameters, parameters: Parameters, index: int) -> Gradients:
    """Of layer.gated_mlp, for layer `index`.

    upstream  (tokens, width)
    tape      what the forward traced, by name
    returns   x (tokens, width), parameters three matrices

    Source: GRD-9. Trap: each factor of the product gets the other one.
    Witness: golden/gradients two-texts.
    """
    name, weight = f"layer.{index:02d}.mlp", f"layers.{index}.mlp.{{}}.weight".format
    x = tape[f"{name}.norm"]  # (tokens, width)
    gate = tape[f"{name}.gate"]  # (tokens, mlp)
    down = linear_gradients(upstream, tape[f"{name}.gated"], weight("down_proj"), parameters)  # x (tokens, mlp)
    d_gate = gelu_gradient(down.x * tape[f"{name}.up"], gate)  # (tokens, mlp)
    d_up = down.x * gelu(gate)  # (tokens, mlp)
    of_gate = linear_gradients(d_gate, x, weight("gate_proj"), parameters)  # x (tokens, width)
    of_up = linear_gradients(d_up, x, weight("up_proj"), parameters)  # x (tokens, width)
    gradients = down.parameters | of_gate.parameters | of_up.parameters
    return Gradients(of_gate.x + of_up.x, gradients)  # x (tokens, width)


def layer_gradients(
    upstream: Array,
    x: Array,
    tape: Parameters,
    parameters: Parameters,
    index: int,
    config: Config,
    positions: Positions,
) -> Gradients:
    """Of layer.layer, layer `index` (from 0).

    upstream  (tokens, width)  with respect to the stream that leaves it
    x         (tokens, width)  the stream that entered it
    tape      what the forward traced, by name
    returns   x (tokens, width), parameters the layer's thirteen

    Source: GRD-9. Each addition passes the gradient on as it is, and adds to it what comes back through the update.
    Witness: golden/gradients two-texts.
    """

    def norm(upstream: Array, rows: Array, which: str) -> Gradients:
        return rms_norm_gradients(
            upstream, rows, f"layers.{index}.{which}.weight", parameters, config.epsilon
        )  # x (tokens, width)

    name = f"layer.{index:02d}"
    middle = x + tape[f"{name}.attention.update"]  # (tokens, width)
    after = norm(upstream, tape[f"{name}.mlp.output"], "post_feedforward_layernorm")  # x (tokens, width)
    mlp = gated_mlp_gradients(after.x, tape, parameters, index)  # x (tokens, width)
    before = norm(mlp.x, middle, "pre_feedforward_layernorm")  # x (tokens, width)
    d_middle = upstream + before.x  # (tokens, width)
    gradients = after.parameters | mlp.parameters | before.parameters
    after = norm(d_middle, tape[f"{name}.attention.output"], "post_attention_layernorm")  # x (tokens, width)
    attention = attention_gradients(after.x, tape, parameters, index, config, positions)  # x (tokens, width)
    before = norm(attention.x, x, "input_layernorm")  # x (tokens, width)
    gradients |= after.parameters | attention.parameters | before.parameters
    return Gradients(d_middle + before.x, gradients)  # x (tokens, width)


def encode_tokens_gradients(upstream: Array, tape: Parameters, parameters: Parameters, config: Config) -> Gradients:
    """Of model.encode_tokens, for all but the table, whose rows several texts may share.

    upstream  (tokens, width)  with respect to the state of each token
    tape      what the forward traced, by name
    returns   x (tokens, width)  with respect to the embedded tokens, parameters every layer's and the last norm

    Source: GRD-9. Trap: layers in order, each with the stream that left it in place of the one that entered.
    Witness: golden/gradients two-texts.
    """
    kinds = config.layer_kinds
    streams = [tape["embedded"], *(tape[f"layer.{index:02d}.out"] for index in range(len(kinds)))]
    positions = {kind: positions_of(kind, len(upstream), config, upstream.dtype) for kind in set(kinds)}
    d_x, gradients = rms_norm_gradients(upstream, streams[-1], "norm.weight", parameters, config.epsilon)
    for index in reversed(range(len(kinds))):
        of_layer = layer_gradients(d_x, streams[index], tape, parameters, index, config, positions[kinds[index]])
        d_x = of_layer.x  # (tokens, width)
        gradients |= of_layer.parameters
    return Gradients(d_x, gradients)  # x (tokens, width)


def text_gradients(upstream: Array, ids: Array, parameters: Parameters, config: Config) -> Gradients:
    """Of model.embed, for all but the table: one text led back as far as its embedded tokens.

    upstream  (dimensions)  with respect to the embedding
    ids       (tokens,)
    returns   x (tokens, width)  with respect to the embedded tokens, parameters all others

    Source: GRD-1, GRD-6. Runs the forward for its tape, and so needs nothing kept from an earlier one.
    Witness: golden/gradients attention-pooler.
    """
    tape: dict[str, Array] = {}
    embed(ids, parameters, config, collector(tape))
    d_projected = l2_normalize_gradient(upstream, tape["projected"])  # (dimensions)
    head = dense_head_gradients(d_projected, tape["pooled"], parameters)  # x (width)
    pooler = POOLER_GRADIENTS[config.pooler](head.x, tape["final_norm"], parameters)  # x (tokens, width)
    encoder = encode_tokens_gradients(pooler.x, tape, parameters, config)  # x (tokens, width)
    return Gradients(encoder.x, encoder.parameters | pooler.parameters | head.parameters)  # x (tokens, width)


def embed_gradients(upstream: Array, ids: Array, parameters: Parameters, config: Config) -> dict[str, Array]:
    """Of model.embed: the derivative of the loss with respect to every parameter, by the checkpoint's names.

    upstream     (dimensions)  with respect to the embedding, in the parameters' float type
    ids          (tokens,)
    parameters   as in embed; the attention pooler's three as well where config.pooler names it
    returns      each of its parameter's shape

    Source: GRD-13. A batch of one.
    Witness: tests/reference/test_reference_backward.py test_rows_of_other_tokens_get_nothing.
    """
    return embed_batch_gradients(upstream[None], [ids], parameters, config)


def embed_batch_gradients(
    upstream: Array, batch: Sequence[Array], parameters: Parameters, config: Config
) -> dict[str, Array]:
    """Of model.embed_batch: a parameter's derivative is the sum of what each text's would be alone.

    upstream  (texts, dimensions)
    batch     texts arrays (tokens_i,)
    returns   each of its parameter's shape

    Source: GRD-10, GRD-13. With the gradient of a loss with respect to the embeddings, a training step's gradient: one
    text's tape is held at a time, and the table, most of a model, is made once, from all texts' rows. Trap: the mean
    over texts; whatever mean there is belongs to the loss.
    Witness: golden/gradients two-texts.
    """

    def add(first: Gradients, second: Gradients) -> Gradients:
        parameters = {name: first.parameters[name] + second.parameters[name] for name in first.parameters}
        return Gradients(np.concatenate([first.x, second.x]), parameters)  # x (rows, width)

    each = (text_gradients(row, ids, parameters, config) for row, ids in zip(upstream, batch, strict=True))
    whole = reduce(add, each)  # x (rows, width)
    table = embed_tokens_gradient(whole.x, np.concatenate(batch), config)  # (vocabulary, width)
    return whole.parameters | {"embed_tokens.weight": table}
