"""Gemma 3 as a causal language model, and as a decoder that looks at an encoder's states: on packed batches.

The steps of refembed.reference.decoder, with the pieces of ..forward. Parameters are named as there: the encoder's and
the causal model's as in a checkpoint, the decoder's with `decoder.` before them, one embedding table for all and for
the output.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refembed.checkpoint import TABLE
from refembed.errors import RefembedError
from refembed.reference import FULL, Config
from refembed.reference.decoder import origins

from ..attention import BLOCK, QUERIES, Attend, Tile, by_library, each_for, mask_of
from ..forward import Setup, Weights, embed_tokens, encode_tokens, gather, normed, wide
from ..model import Trained
from ..packing import Batch, check_texts, pack, turns
from ..products import product
from .chance import generator
from .gemma_folder import causal_shapes

PREFIX = "decoder."
LOGITS = 2**26  # numbers of a chunk's logits, 256 MB in float32: 256 targets of the released vocabulary
Texts = Sequence[NDArray[Any]]


# ---------------------------------------------------------------------------------------------------------- parameters
def paired_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Of encoder and decoder, without a dense head."""
    causal = causal_shapes(config)
    return {name: causal[origin] for name, origin in origins(config).items()}


def fresh(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """A random matrix that keeps a row's size, or a norm that leaves a row as it is: a function of seed and name."""
    if len(shape) == 1:
        return torch.zeros(shape)
    numbers = generator(seed, "parameter", name).standard_normal(shape, np.float32)
    return torch.from_numpy(numbers * np.float32(shape[1] ** -0.5))


@torch.no_grad()
def fill(module: nn.Module, source: Callable[[str], Tensor]) -> None:
    """Give every parameter its first value, one after the other: the whole is never in memory twice."""
    for name, parameter in module.named_parameters():
        parameter.copy_(source(name))


# ----------------------------------------------------------------------------------------------------------- attention
class Group(NamedTuple):
    """Neighbouring texts that share tiles. queries and keys: how many tokens of each side they have."""

    queries: int
    keys: int
    tiles: list[Tile]


def cut_groups(
    queries: Sequence[int], keys: Sequence[int], window: int | None, size: int, device: torch.device, dtype: torch.dtype
) -> list[Group]:
    """Texts in groups of about a tile, or one text in as many tiles as it needs.

    queries, keys   tokens of each text on either side
    window          causal, both sides the same tokens: query i sees keys j with 0 <= i - j < window. None: query and
                    key are two sequences, and every query sees all keys of its text
    """
    bounds, held = [0], 0
    for index, most in enumerate(map(max, queries, keys)):
        if held and held + most > size:
            bounds.append(index)
            held = 0
        held += most
    found = []
    for first, last in pairwise([*bounds, len(queries)]):
        seen = ranges(np.array(queries[first:last]), np.array(keys[first:last]), window)
        tiles = list(cut_tiles(seen, size, device, dtype))
        found.append(Group(seen.shape[1], sum(keys[first:last]), tiles))
    return found


def ranges(queries: NDArray[Any], keys: NDArray[Any], window: int | None) -> NDArray[Any]:
    """The first key that each query sees, and the first beyond: (2, query tokens), both rising along the queries."""
    ends = np.cumsum(keys)
    seen = np.repeat(np.stack([ends - keys, ends]), queries, 1)  # (2, query tokens)
    if window is not None:
        seen[1] = np.arange(1, seen.shape[1] + 1)
        seen[0] = np.maximum(seen[0], seen[1] - window)
    return seen


def cut_tiles(seen: NDArray[Any], size: int, device: torch.device, dtype: torch.dtype) -> Iterator[Tile]:
    """seen: (2, query tokens), see ranges. Masks are made where they are used, see attention.cut_tiles."""
    edges = torch.from_numpy(seen).to(device)
    for first in range(0, seen.shape[1], size):
        rows = slice(first, min(first + size, seen.shape[1]))
        keys = slice(int(seen[0, rows][0]), int(seen[1, rows][-1]))
        if seen[0, rows][-1] == keys.start and seen[1, rows][0] == keys.stop:
            yield Tile(rows, keys, None)
            continue
        begin, end = edges[:, rows, None]  # (queries, 1) each
        place = torch.arange(keys.start, keys.stop, device=device)  # (keys)
        yield Tile(rows, keys, mask_of((begin <= place) & (place < end), dtype))


def grouped(groups: Sequence[Group], config: Config) -> Attend:
    """Attention tile by tile. Groups are split off and put together once, so that their gradients are too."""
    scale, shared = config.query_scalar**-0.5, config.heads // config.key_heads

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = each_for(shared, key), each_for(shared, value)  # for all tiles at once
        queries = query.split([group.queries for group in groups])
        keys, values = (side.split([group.keys for group in groups]) for side in (key, value))
        found = [
            by_library(q[tile.queries], k[tile.keys], v[tile.keys], tile.mask, scale)
            for group, q, k, v in zip(groups, queries, keys, values, strict=True)
            for tile in group.tiles
        ]
        return torch.cat(found)

    return attend


def causal(batch: Batch, config: Config, dtype: torch.dtype) -> dict[str, Attend]:
    """Each kind of layer's. A sliding layer sees 2 * reach tokens, itself included: the window of a decoder's config,
    whose half its bidirectional twin reaches to either side.
    """
    device = batch.ids.device
    windows = {kind: max(batch.lengths) if kind == FULL else 2 * config.reach for kind in set(config.layer_kinds)}
    size = QUERIES.get(device.type, BLOCK)
    return {
        kind: grouped(cut_groups(batch.lengths, batch.lengths, window, size, device, dtype), config)
        for kind, window in windows.items()
    }


# ------------------------------------------------------------------------------------------------------------- forward
class CrossWeights(NamedTuple):
    """One layer's cross-attention. Norms have their one added."""

    before: Tensor
    query: Tensor  # (heads*head, width)
    key_value: Tensor  # (2*key_heads*head, width)
    query_norm: Tensor
    key_norm: Tensor
    output: Tensor
    after: Tensor


class Memory(NamedTuple):
    """What the decoder looks at.

    states   (source tokens, width)  the encoder's, after its last norm
    attend   of targets over their own sources
    weights  by layer
    """

    states: Tensor
    attend: Attend
    weights: tuple[CrossWeights, ...]


def weights_of(parameters: Mapping[str, Tensor], config: Config, dtype: torch.dtype, prefix: str = "") -> Weights:
    """The layers' weights, without a dense head."""
    table = parameters[TABLE]
    none = {f"{name}.linear.weight": table.new_empty(0, 0) for name in ("2_Dense", "3_Dense")}
    own = {name.removeprefix(prefix): tensor for name, tensor in parameters.items() if name.startswith(prefix)}
    return gather({TABLE: table, **none, **own}, config, dtype, table.device)


def cross_weights(parameters: Mapping[str, Tensor], config: Config, dtype: torch.dtype) -> tuple[CrossWeights, ...]:
    def layer(index: int) -> CrossWeights:
        def own(name: str) -> Tensor:
            return parameters[f"{PREFIX}layers.{index}.{name}.weight"]

        def norm(name: str) -> Tensor:
            return own(name).to(wide(dtype)) + 1

        return CrossWeights(
            norm("pre_cross_attention_layernorm"),
            own("cross_attn.q_proj").to(dtype),
            torch.cat([own("cross_attn.k_proj"), own("cross_attn.v_proj")]).to(dtype),
            norm("cross_attn.q_norm"),
            norm("cross_attn.k_norm"),
            own("cross_attn.o_proj").to(dtype),
            norm("post_cross_attention_layernorm"),
        )

    return tuple(layer(index) for index in range(len(config.layer_kinds)))


def look(x: Tensor, states: Tensor, weights: CrossWeights, attend: Attend, config: Config) -> Tensor:
    """Cross-attention, from the residual stream to its heads' contexts. Nothing is rotated: the places of two sequences
    have no distance.

    x        (tokens, width)
    states   (source tokens, width)
    returns  (tokens, heads, head)
    """
    dtype = weights.query.dtype
    rows = normed(x, weights.before, config.epsilon).to(dtype)  # (tokens, width)
    query = product(rows, weights.query).unflatten(1, (-1, config.head))  # (tokens, heads, head)
    heads = product(states.to(dtype), weights.key_value).unflatten(1, (-1, config.head))
    key, value = heads.chunk(2, 1)  # (source tokens, key_heads, head)
    query = normed(query, weights.query_norm, config.epsilon).to(dtype)
    key = normed(key, weights.key_norm, config.epsilon).to(dtype)
    return attend(query, key, value)


def decode_tokens(batch: Batch, weights: Weights, setup: Setup, memory: Memory | None = None) -> Tensor:
    """One vector a token, of which the next is told: (tokens, width).

    memory   none: a causal model alone
    """
    config, engine = setup.config, setup.engine
    x = embed_tokens(batch, weights, config)  # (tokens, width)
    turned = turns(batch, config, x.dtype)
    attend = causal(batch, config, setup.dtype)

    def layer(x: Tensor, states: Tensor | None, index: int) -> Tensor:
        kind, own = config.layer_kinds[index], weights.layers[index]
        context = attend[kind](*engine.project(x, own, turned[kind], config))  # (tokens, heads, head)
        if memory is None or states is None:
            return engine.finish(x, context, own, config)
        x = x + normed(product(context.flatten(1), own.output), own.after_attention, config.epsilon)  # (tokens, width)
        cross = memory.weights[index]
        context = look(x, states, cross, memory.attend, config)  # (tokens, heads, head)
        # what is left is as after self-attention, with the other's projection and norm
        own = own._replace(output=cross.output, after_attention=cross.after)
        return engine.finish(x, context, own, config)

    states = None if memory is None else memory.states
    for index in range(len(config.layer_kinds)):
        again = setup.checkpointing and torch.is_grad_enabled()
        x = checkpoint(layer, x, states, index, use_reentrant=False) if again else layer(x, states, index)
    return normed(x, weights.final_norm, config.epsilon)  # (tokens, width)


# ---------------------------------------------------------------------------------------------------------------- loss
def cross_entropy(states: Tensor, table: Tensor, targets: Tensor, dtype: torch.dtype, chunk: int = LOGITS) -> Tensor:
    """The sum over tokens of -log p(target), where the logits are the products with the table's rows.

    states   (tokens, width)
    table    (vocabulary, width)
    targets  (tokens,)  ids
    dtype    what the matrices multiply in; the logits are float32 (float64 where that is the states' type)
    chunk    logits in memory at once, whatever the number of tokens
    """
    found: Tensor = ChunkedCrossEntropy.apply(states, table, targets, dtype, chunk, torch.is_grad_enabled())
    return found


class ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient is made with the loss, while a chunk's logits are there: keeping all, or making them twice, would
    cost more than it.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, table: Tensor, targets: Tensor, dtype: torch.dtype, chunk: int, training: bool
    ) -> Tensor:
        low = table.to(states.device, dtype)  # (vocabulary, width)
        d_states = torch.empty_like(states) if training else None
        d_table = torch.zeros_like(low, dtype=states.dtype) if training else None
        total = states.new_zeros(())
        rows = max(chunk // len(table), 1)
        for first in range(0, len(states), rows):
            some, wanted = states[first : first + rows].to(dtype), targets[first : first + rows]
            logits = product_in(states.dtype, some, low)  # (rows, vocabulary)
            chosen = logits.gather(1, wanted[:, None])  # (rows, 1)
            totals = torch.logsumexp(logits, 1, keepdim=True)  # (rows, 1)
            total += (totals - chosen).sum()
            if d_states is not None and d_table is not None:
                logits.sub_(totals).exp_()
                logits[torch.arange(len(wanted), device=wanted.device), wanted] -= 1
                d_logits = logits.to(dtype)  # (rows, vocabulary), the softmax less one at the target
                d_states[first : first + rows] = product(d_logits, low.t())
                d_table += product(d_logits.t(), some.t())
        ctx.save_for_backward(d_states, d_table)
        ctx.table = table.device, table.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        d_states, d_table = ctx.saved_tensors
        return d_states * upstream[0], (d_table * upstream[0]).to(*ctx.table), None, None, None, None


def product_in(dtype: torch.dtype, x: Tensor, weight: Tensor) -> Tensor:
    """A product whose numbers are not rounded to the operands' type: a softmax over 262,144 of them would show it."""
    if x.dtype == dtype:
        return product(x, weight)
    if x.is_cuda and "dtype" in torch.ops.aten.mm.overloads():  # since PyTorch 2.8
        found: Tensor = torch.ops.aten.mm.dtype(x, weight.t(), dtype)
        return found
    return product(x.to(dtype), weight.to(dtype))


# -------------------------------------------------------------------------------------------------------------- modules
class CausalModel(Trained):
    """A decoder-only Gemma 3."""

    def __init__(self, config: Config, **options: Any) -> None:
        super().__init__(config, causal_shapes(config), **options)

    def states(self, texts: Texts) -> Tensor:
        """After the last norm, (tokens, width), of id arrays (tokens_i,)."""
        check_texts(texts, self.config)
        parameters = dict(self.named_parameters())
        device = parameters[TABLE].device
        weights = weights_of(parameters, self.config, self.dtype)
        return decode_tokens(pack(texts, device), weights, self.setup())

    def forward(self, texts: Texts) -> Tensor:
        """The sum of the cross-entropies of each token after the first, given those before it: a number.

        texts    id arrays of at least two tokens, BOS first
        """
        check_texts(texts, self.config)  # the last token too, which is only a target
        states = self.states([text[:-1] for text in texts])
        targets = torch.from_numpy(np.concatenate([text[1:] for text in texts])).to(states.device)
        return cross_entropy(states, self.get_parameter(TABLE), targets, self.dtype)


def check_pairs(sources: Texts, others: Texts, config: Config) -> None:
    """Raise RefembedError where an id array is none of this model's, or there are not as many on both sides."""
    for texts in (sources, others):
        check_texts(texts, config)
    if len(sources) != len(others):
        raise RefembedError(
            "ids-invalid", f"{len(sources)} sources and {len(others)} texts of the decoder; as many of both needed"
        )


class EncoderDecoder(Trained):
    """A bidirectional encoder, and a causal decoder that looks at what it makes of another text."""

    def __init__(self, config: Config, **options: Any) -> None:
        super().__init__(config, paired_shapes(config), **options)

    def states(self, sources: Texts, inputs: Texts) -> Tensor:
        """The decoder's after its last norm, (input tokens, width).

        sources   what the encoder reads, id arrays
        inputs    what the decoder reads, one for each source
        """
        check_pairs(sources, inputs, self.config)
        parameters = dict(self.named_parameters())
        device, config = parameters[TABLE].device, self.config
        setup = self.setup()
        source, target = pack(sources, device), pack(inputs, device)
        encoder = weights_of({k: v for k, v in parameters.items() if not k.startswith(PREFIX)}, config, self.dtype)
        size = QUERIES.get(device.type, BLOCK)
        groups = cut_groups(target.lengths, source.lengths, None, size, device, self.dtype)
        memory = Memory(
            encode_tokens(source, encoder, setup),
            grouped(groups, config),
            cross_weights(parameters, config, self.dtype),
        )
        return decode_tokens(target, weights_of(parameters, config, self.dtype, PREFIX), setup, memory)

    def forward(self, sources: Texts, targets: Texts) -> Tensor:
        """The sum of the cross-entropies of every target token, EOS included, given its source and those before it.

        sources, targets   id arrays; the decoder reads BOS and then the target without its last
        """
        check_pairs(sources, targets, self.config)
        states = self.states(sources, [np.concatenate([[self.config.bos], target[:-1]]) for target in targets])
        wanted = torch.from_numpy(np.concatenate(targets)).to(states.device)
        return cross_entropy(states, self.get_parameter(TABLE), wanted, self.dtype)
