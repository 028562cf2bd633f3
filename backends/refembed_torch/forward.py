"""The model on a packed batch: refembed.reference's steps, for all tokens of all texts at once.

Matrices multiply in one float type, float32 or bfloat16. The residual stream, norms, rotation, pooling and the dense
head are float32 in both (float64 where that is what the matrices are): they cost little, and bfloat16 would lose most
there.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from refembed.reference import Config
from refembed.reference.pooling import POOLING_HEADS

from .attention import prepare
from .packing import Batch, Turns, turns
from .products import product

Trace = Callable[[str, Tensor], None]
Parameters = Mapping[str, Tensor]


class LayerWeights(NamedTuple):
    """One layer's. Matrices that share their input are one matrix; norms have their one added."""

    input_norm: Tensor
    qkv: Tensor  # (heads*head + 2*key_heads*head, width)
    query_norm: Tensor
    key_norm: Tensor
    output: Tensor
    after_attention: Tensor
    before_mlp: Tensor
    gate_up: Tensor  # (2*mlp, width)
    down: Tensor
    after_mlp: Tensor


class Weights(NamedTuple):
    """All of them, ready to compute with."""

    table: Tensor  # (vocabulary, width)
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    up: Tensor  # (dense, width)
    down: Tensor  # (dimensions, dense)
    pooling: tuple[Tensor, ...]  # of the attention pooler: query, key, value
    of_rows: Callable[[Tensor], Tensor] | None = None  # what the table's rows go through once taken: rounding


class Engine(NamedTuple):
    """How a layer's two halves are computed: as they stand here, or compiled."""

    project: Callable[..., tuple[Tensor, Tensor, Tensor]]
    finish: Callable[..., Tensor]


def wide(dtype: torch.dtype) -> torch.dtype:
    """What is computed in beside products of this type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gather(parameters: Parameters, config: Config, dtype: torch.dtype, device: torch.device) -> Weights:
    """Weights from parameters by the checkpoint's names. Gradients find their way back to the parameters.

    dtype    what matrices multiply in
    """

    def matrix(*names: str) -> Tensor:
        parts = [parameters[f"{name}.weight"].to(device, dtype) for name in names]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def norm(name: str) -> Tensor:
        return parameters[f"{name}.weight"].to(device, wide(dtype)) + 1

    def layer(name: str) -> LayerWeights:
        return LayerWeights(
            norm(f"{name}.input_layernorm"),
            matrix(*(f"{name}.self_attn.{which}_proj" for which in "qkv")),
            norm(f"{name}.self_attn.q_norm"),
            norm(f"{name}.self_attn.k_norm"),
            matrix(f"{name}.self_attn.o_proj"),
            norm(f"{name}.post_attention_layernorm"),
            norm(f"{name}.pre_feedforward_layernorm"),
            matrix(f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"),
            matrix(f"{name}.mlp.down_proj"),
            norm(f"{name}.post_feedforward_layernorm"),
        )

    up, down = (parameters[f"{name}.linear.weight"].to(device, wide(dtype)) for name in ("2_Dense", "3_Dense"))
    pooler = ("pooling.query", "pooling.key.weight", "pooling.value.weight") if config.pooler == "attention" else ()
    return Weights(
        parameters["embed_tokens.weight"],
        tuple(layer(f"layers.{index}") for index in range(len(config.layer_kinds))),
        norm("norm"),
        up,
        down,
        tuple(parameters[name].to(device, wide(dtype)) for name in pooler),
    )


def silent(name: str, tensor: Tensor) -> None:
    """The collector that keeps nothing."""


def normed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Each row at unit root mean square, times the weight that has its one already, in the weight's float type."""
    return functional.rms_norm(x.to(weight.dtype), weight.shape, weight, epsilon)


def rotate(x: Tensor, by: Turns) -> Tensor:
    """Turn the pairs (x_k, x_{k + head/2}) of every head; x (tokens, heads, head)."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * by.cos - second * by.sin, second * by.cos + first * by.sin], -1)


def project(
    x: Tensor, weights: LayerWeights, by: Turns, config: Config, trace: Trace = silent
) -> tuple[Tensor, Tensor, Tensor]:
    """The first half of a layer, up to attention.

    x        (tokens, width)  the residual stream
    returns  query (tokens, heads, head), key and value (tokens, key_heads, head)
    """
    dtype, head = weights.qkv.dtype, config.head
    rows = normed(x, weights.input_norm, config.epsilon)  # (tokens, width)
    trace("attention.norm", rows)
    heads = product(rows.to(dtype), weights.qkv).unflatten(1, (-1, head))  # (tokens, all heads, head)
    query, key, value = heads.split([config.heads, config.key_heads, config.key_heads], 1)  # (tokens, heads, head)
    for name, tensor in zip(("query", "key", "value"), (query, key, value), strict=True):
        trace(f"attention.{name}", tensor)
    query = normed(query, weights.query_norm, config.epsilon)  # (tokens, heads, head)
    key = normed(key, weights.key_norm, config.epsilon)  # (tokens, key_heads, head)
    trace("attention.query_norm", query)
    trace("attention.key_norm", key)
    query, key = rotate(query, by), rotate(key, by)  # (tokens, heads, head)
    trace("attention.query_rotated", query)
    trace("attention.key_rotated", key)
    return query.to(dtype), key.to(dtype), value


def finish(x: Tensor, context: Tensor, weights: LayerWeights, config: Config, trace: Trace = silent) -> Tensor:
    """The second half: attention's projection, then the gated MLP, each added to the residual stream.

    x        (tokens, width)
    context  (tokens, heads, head)
    returns  (tokens, width)
    """
    dtype = weights.qkv.dtype
    trace("attention.context", context)
    output = product(context.flatten(1), weights.output)  # (tokens, width)
    trace("attention.output", output)
    update = normed(output, weights.after_attention, config.epsilon)  # (tokens, width)
    trace("attention.update", update)
    x = x + update  # (tokens, width)
    rows = normed(x, weights.before_mlp, config.epsilon)  # (tokens, width)
    trace("mlp.norm", rows)
    gate, up = product(rows.to(dtype), weights.gate_up).chunk(2, 1)  # (tokens, mlp)
    gated = functional.gelu(gate, approximate="tanh") * up  # (tokens, mlp)
    output = product(gated, weights.down)  # (tokens, width)
    for name, tensor in zip(("gate", "up", "gated", "output"), (gate, up, gated, output), strict=True):
        trace(f"mlp.{name}", tensor)
    update = normed(output, weights.after_mlp, config.epsilon)  # (tokens, width)
    trace("mlp.update", update)
    x = x + update  # (tokens, width)
    trace("out", x)
    return x


PLAIN = Engine(project, finish)


def embed_tokens(batch: Batch, weights: Weights, config: Config) -> Tensor:
    """The table's rows of all tokens, times the square root of the width: (tokens, width)."""
    rows = functional.embedding(batch.ids.to(weights.table.device), weights.table)
    rows = rows if weights.of_rows is None else weights.of_rows(rows)
    return rows.to(weights.final_norm.device, weights.final_norm.dtype) * math.sqrt(config.width)


def pool(states: Tensor, batch: Batch, weights: Weights, config: Config) -> Tensor:
    """One vector a text: states (tokens, width) to (texts, width)."""
    if config.pooler == "first":
        return states[batch.starts[:-1].long()]
    if config.pooler == "last":
        return states[batch.starts[1:].long() - 1]
    lengths = (batch.starts[1:] - batch.starts[:-1]).long()
    if config.pooler == "mean":
        return torch.segment_reduce(states, "mean", lengths=lengths, axis=0, unsafe=True)
    return attention_pool(states, lengths, *weights.pooling)


def attention_pool(states: Tensor, lengths: Tensor, query: Tensor, key_matrix: Tensor, value_matrix: Tensor) -> Tensor:
    """One learned query attends to every token of a text, in four heads: (texts, width)."""

    def in_heads(x: Tensor) -> Tensor:
        return x.view(len(x), POOLING_HEADS, -1)  # (rows, 4, width/4)

    def sums(x: Tensor) -> Tensor:
        return torch.segment_reduce(x, "sum", lengths=lengths, axis=0, unsafe=True)

    key, value = in_heads(product(states, key_matrix)), in_heads(product(states, value_matrix))  # (tokens, 4, width/4)
    scores = (key * in_heads(query)).sum(-1) * key.shape[2] ** -0.5  # (tokens, 4)
    largest = torch.segment_reduce(scores.detach(), "max", lengths=lengths, axis=0, unsafe=True)  # (texts, 4)
    exponentials = torch.exp(scores - largest.repeat_interleave(lengths, 0))  # (tokens, 4)
    weighted = sums((exponentials[..., None] * value).flatten(1))  # (texts, width)
    return (in_heads(weighted) / sums(exponentials)[..., None]).flatten(1)  # (texts, width)


def dense_head(pooled: Tensor, weights: Weights, trace: Trace = silent) -> Tensor:
    """Two matrices with nothing between them: (texts, width) to (texts, dimensions)."""
    up = product(pooled, weights.up)  # (texts, dense)
    trace("projected_up", up)
    return product(up, weights.down)  # (texts, dimensions)


def unit(vectors: Tensor, dimensions: int | None = None) -> Tensor:
    """The first numbers of each vector, at unit length."""
    return functional.normalize(vectors[..., :dimensions], dim=-1, eps=0.0)


class Setup(NamedTuple):
    """What is computed, in what and how.

    dtype           what matrices multiply in
    way             of attention, a key of attention.WAYS
    checkpointing   keep a layer's input only, and compute the layer again for its gradient
    """

    config: Config
    dtype: torch.dtype
    way: str = "tiles"
    engine: Engine = PLAIN
    checkpointing: bool = False


def encode_tokens(batch: Batch, weights: Weights, setup: Setup, trace: Trace = silent) -> Tensor:
    """One vector a token: (tokens, width)."""
    config, engine = setup.config, setup.engine
    x = embed_tokens(batch, weights, config)  # (tokens, width)
    trace("embedded", x)
    turned = turns(batch, config, x.dtype)
    attend = prepare(setup.way, batch, config, setup.dtype)
    for index, kind in enumerate(config.layer_kinds):

        def layer(x: Tensor, index: int = index, kind: str = kind) -> Tensor:
            of_layer, name = weights.layers[index], f"layer.{index:02d}"
            tell = silent if trace is silent else lambda what, tensor: trace(f"{name}.{what}", tensor)
            query, key, value = engine.project(x, of_layer, turned[kind], config, tell)
            context = attend[kind](query, key, value)  # (tokens, heads, head)
            return engine.finish(x, context, of_layer, config, tell)

        again = setup.checkpointing and torch.is_grad_enabled()
        x = checkpoint(layer, x, use_reentrant=False) if again else layer(x)  # (tokens, width)
    states = normed(x, weights.final_norm, config.epsilon)  # (tokens, width)
    trace("final_norm", states)
    return states


def embed(batch: Batch, weights: Weights, setup: Setup, trace: Trace = silent) -> Tensor:
    """One vector a text, as it leaves the dense head: (texts, dimensions), of any length."""
    states = encode_tokens(batch, weights, setup, trace)  # (tokens, width)
    pooled = pool(states, batch, weights, setup.config)  # (texts, width)
    trace("pooled", pooled)
    projected = dense_head(pooled, weights, trace)  # (texts, dimensions)
    trace("projected", projected)
    return projected


@cache
def compiled_engine() -> Engine:
    """Both halves of a layer as torch.compile makes them: one graph each for all layers and any number of tokens."""

    def any_number_of_rows(half: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Any = torch.compile(half)

        def run(x: Tensor, *others: Any) -> Any:
            rows = [one for one in (x, *others) if isinstance(one, Tensor)]
            rows += [one for turn in others if isinstance(turn, Turns) for one in turn]
            for tensor in rows:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
            return compiled(x, *others)

        return run

    return Engine(any_number_of_rows(project), any_number_of_rows(finish))
