"""Attention over a packed batch, by the fastest way that works here. Each way gives every token what its text says.

varlen   flash attention that is told where texts begin: CUDA, bfloat16, nothing to compile
flex     a kernel compiled for the batch's pattern of blocks: CUDA, where compiling is wanted
tiles    a product for each short stretch of queries and the keys that they can see: anywhere
"""

from collections.abc import Callable
from functools import lru_cache, partial
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from refembed.reference import FULL, Config

from .packing import Batch, pack
from .precision import exact_products
from .products import onednn, product

# query (tokens, heads, head), key and value (tokens, key_heads, head) -> context (tokens, heads, head)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
QUERIES = {"cpu": 128, "cuda": 512}  # tokens of a tile: what a cache holds, what makes a launch worth it
BLOCK = 128  # rows and columns of a block of flex attention's mask


def prepare(way: str, batch: Batch, config: Config, dtype: torch.dtype) -> dict[str, Attend]:
    """Attention for each kind of layer, with all that the layers of a kind share for this batch."""
    # not the longest text's tokens: a number that changes with the batch would have flex attention compiled anew
    reaches = {kind: config.context if kind == FULL else config.reach for kind in set(config.layer_kinds)}
    return {kind: WAYS[way](batch, config, reach, dtype) for kind, reach in reaches.items()}


# --------------------------------------------------------------------------------------------------------------- tiles
class Tile(NamedTuple):
    """A stretch of queries and what they see, as rows within a run.

    mask   (queries, keys), 0 where seen and -inf where not; None where all is seen
    """

    queries: slice
    keys: slice
    mask: Any


class Run(NamedTuple):
    """Neighbouring texts that share tiles: one longer than a tile, or as many short ones as fill one."""

    tokens: int
    tiles: list[Tile]


def cut_runs(batch: Batch, reach: int, size: int, dtype: torch.dtype) -> list[Run]:
    """The batch in runs, each in tiles of at most `size` queries. Long texts' tiles touch only keys within reach."""
    groups: list[list[int]] = []
    for length in batch.lengths:
        if not groups or sum(groups[-1]) + length > size:
            groups.append([])
        groups[-1].append(length)
    firsts = torch.arange(len(batch.ids), device=batch.ids.device) - batch.positions  # (tokens), the same within a text
    parts = firsts.split([sum(group) for group in groups])
    return [
        Run(len(part), cut_tiles(part, len(group) == 1, reach, size, dtype))
        for part, group in zip(parts, groups, strict=True)
    ]


def cut_tiles(firsts: Tensor, alone: bool, reach: int, size: int, dtype: torch.dtype) -> list[Tile]:
    """A run's. Masks are made where they are used: as tables on the host they would be most of a pass.

    firsts   (tokens) what tells texts apart
    alone    whether they are one text
    """
    tokens, tiles = len(firsts), []
    place = torch.arange(tokens, device=firsts.device)  # (tokens)
    for first in range(0, tokens, size):
        queries = slice(first, min(first + size, tokens))
        keys = slice(max(first - reach, 0), min(queries.stop + reach, tokens))
        if alone and max(queries.stop - keys.start, keys.stop - queries.start) - 1 <= reach:
            tiles.append(Tile(queries, keys, None))
            continue
        seen = (place[queries, None] - place[keys]).abs() <= reach  # (queries, keys)
        seen &= firsts[queries, None] == firsts[keys]  # (queries, keys)
        tiles.append(Tile(queries, keys, mask_of(seen, dtype)))
    return tiles


def mask_of(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where seen, -inf where not. Rows start at multiples of 16, or CUDA's kernel would copy it in every layer."""
    rows, columns = seen.shape
    mask = torch.full((rows, -(-columns // 16) * 16), -torch.inf, dtype=dtype, device=seen.device)[:, :columns]
    return mask.masked_fill_(seen, 0)


def tiled(batch: Batch, config: Config, reach: int, dtype: torch.dtype) -> Attend:
    """Attention tile by tile; runs and tiles are split off and put together once, so that gradients are too."""
    device = batch.ids.device
    runs = cut_runs(batch, reach, QUERIES.get(device.type, BLOCK), dtype)
    scale, shared = config.query_scalar**-0.5, config.heads // config.key_heads
    by_product = device.type == "cpu" and dtype == torch.float32 and config.key_heads == 1 and onednn()
    one_tile = by_heads_in_rows if by_product else by_library

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not by_product:
            key, value = each_for(shared, key), each_for(shared, value)  # for all tiles at once
        parts = [tensor.split([run.tokens for run in runs]) for tensor in (query, key, value)]
        found = []
        for run, q, k, v in zip(runs, *parts, strict=True):
            stretches = q.split([tile.queries.stop - tile.queries.start for tile in run.tiles])
            for tile, stretch in zip(run.tiles, stretches, strict=True):
                found.append(one_tile(stretch, k[tile.keys], v[tile.keys], tile.mask, scale))
        return torch.cat(found)

    return attend


def by_heads_in_rows(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """One key and value head serves all query heads, so these are just more rows of one product: nothing is moved."""
    queries, heads, head = query.shape
    scores = product(query.reshape(queries * heads, head), key[:, 0]).view(queries, heads, -1)  # (queries, heads, keys)
    scores = scores * scale if mask is None else torch.add(mask[:, None], scores, alpha=scale)  # (queries, heads, keys)
    context = product(torch.softmax(scores, -1).flatten(0, 1), value[:, 0].t())  # (queries*heads, head)
    return context.view(queries, heads, head)


def by_library(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    q, k, v = (x.transpose(0, 1)[None] for x in (query, each_for(shared, key), each_for(shared, value)))
    context = functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)  # (1, heads, queries, head)
    return context[0].transpose(0, 1)


def each_for(shared: int, x: Tensor) -> Tensor:
    """A key or value head for each of so many query heads: (tokens, shared*key_heads, head)."""
    return x if shared == 1 else x.repeat_interleave(shared, 1)


# -------------------------------------------------------------------------------------------------------------- varlen
def varlen(batch: Batch, config: Config, reach: int, dtype: torch.dtype) -> Attend:
    """Flash attention over texts of any lengths; with windows since PyTorch 2.11, with shared heads since 2.12."""
    from torch.nn.attention import varlen as library

    longest = max(batch.lengths)
    grouped = "enable_gqa" in signature(library.varlen_attn).parameters
    window = (-1, -1) if reach >= longest - 1 else (reach, reach)
    attention: Any = partial(
        library.varlen_attn,
        cu_seq_q=batch.starts, cu_seq_k=batch.starts, max_q=longest, max_k=longest,
        scale=config.query_scalar**-0.5, window_size=window,
    )  # fmt: skip
    if grouped:
        attention = partial(attention, enable_gqa=True)
    shared = 1 if grouped else config.heads // config.key_heads
    return lambda query, key, value: attention(query, each_for(shared, key), each_for(shared, value))


# ---------------------------------------------------------------------------------------------------------------- flex
def flex(batch: Batch, config: Config, reach: int, dtype: torch.dtype) -> Attend:
    """Flex attention, which skips blocks where nothing is seen."""
    mask = block_mask(batch, reach)
    attention = compiled_flex()

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))  # (1, heads, tokens, head)
        context: Tensor = attention(q, k, v, block_mask=mask, scale=config.query_scalar**-0.5, enable_gqa=True)
        return context[0].transpose(0, 1)

    return attend


@lru_cache(maxsize=1)
def compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def block_mask(batch: Batch, reach: int) -> Any:
    """Which blocks of keys each block of queries sees. Texts are neighbours, so these are a range, and no table of all
    pairs of tokens is needed to find them.
    """
    from torch.nn.attention.flex_attention import BlockMask

    lengths = np.array(batch.lengths)
    tokens = int(lengths.sum())
    first, last = (np.repeat(edge, lengths) for edge in (np.cumsum(lengths) - lengths, np.cumsum(lengths) - 1))
    place = np.arange(tokens)
    least, most = np.maximum(first, place - reach), np.minimum(last, place + reach)  # the keys a query sees, (tokens)
    starts = np.arange(0, tokens, BLOCK)
    stops = np.minimum(starts + BLOCK, tokens) - 1
    begin, end = least[starts] // BLOCK, most[stops] // BLOCK  # both grow with the query
    full_begin = -(-least[stops] // BLOCK)  # blocks that every query of the block sees whole
    full_end = (most[starts] + 1) // BLOCK  # one past the last
    some, whole = ranges(begin, end + 1, full_begin, full_end)
    device = batch.ids.device
    text = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device)

    def seen(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (text[query] == text[key]) & ((query - key).abs() <= reach)

    tables = [torch.from_numpy(table)[None, None].to(device) for table in (*some, *whole)]
    make: Any = BlockMask.from_kv_blocks
    return make(*tables, BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=(tokens, tokens))


def ranges(begin: NDArray[Any], end: NDArray[Any], full_begin: NDArray[Any], full_end: NDArray[Any]) -> Any:
    """For each block of queries the number and the list of the blocks it sees in part, and of those it sees whole."""
    count = len(begin)
    block = np.arange(count)
    whole = (block >= full_begin[:, None]) & (block < full_end[:, None])  # (blocks, blocks)
    some = (block >= begin[:, None]) & (block < end[:, None]) & ~whole  # (blocks, blocks)
    return [
        (table.sum(1).astype(np.int32), np.argsort(~table, axis=1, kind="stable").astype(np.int32))
        for table in (some, whole)
    ]


WAYS: dict[str, Callable[[Batch, Config, int, torch.dtype], Attend]] = {"varlen": varlen, "flex": flex, "tiles": tiled}


# ------------------------------------------------------------------------------------------------------------ choosing
# How far a way may be from the tiles in float32: each row of the context, and each gradient as a whole. At the released
# shape kernels that are right are 0.003 and 0.005 off in bfloat16 (3e-6, 7e-7 in float32), a window of one key more or
# less 0.5 and 0.03, TF32 3e-4.
ALLOWED = {torch.bfloat16: (0.05, 0.015), torch.float32: (2e-5, 1e-5)}


def choose_way(
    config: Config, device: torch.device, dtype: torch.dtype, compiling: bool, training: bool
) -> tuple[str, str]:
    """The fastest way that works here, and why the faster ones do not.

    Each is tried on a few ragged texts, forward and for training backward, and held against the tiles.
    """
    wanted = ["varlen"] if dtype == torch.bfloat16 else []
    wanted += ["flex"] if compiling else []
    refused: list[str] = []
    for way in wanted if device.type == "cuda" else []:
        fault = fault_of(way, config, device, dtype, training)
        if fault is None:
            return way, "; ".join(refused)
        refused.append(f"{way}: {fault}")
    return "tiles", "; ".join(refused)


def fault_of(way: str, config: Config, device: torch.device, dtype: torch.dtype, training: bool) -> str | None:
    """What keeps a way from being right here, if anything: whatever mode the caller is in, who asks once for all."""
    with torch.inference_mode(False), torch.set_grad_enabled(training), exact_products():
        try:
            found = trial(way, config, device, dtype, dtype, training)
            expected = trial("tiles", config, device, dtype, torch.float32, training)
        except Exception as error:  # the library's own and its compiler's are of many kinds
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
    by_row, by_whole = ALLOWED[dtype]
    for one, other in zip(found, expected, strict=True):
        (context, *gradients), (right, *right_gradients) = ([x.float() for x in tensors] for tensors in (one, other))
        if not ((context - right).norm(dim=-1) <= by_row * right.norm(dim=-1)).all():
            return "its numbers are not those of the tiles"
        for gradient, right in zip(gradients, right_gradients, strict=True):
            if not (gradient - right).norm() <= by_whole * right.norm():
                return "its gradients are not those of the tiles"
    return None


def trial(
    way: str, config: Config, device: torch.device, dtype: torch.dtype, computed_in: torch.dtype, training: bool
) -> list[list[Tensor]]:
    """For each kind of layer the context of a few ragged texts, and for training the gradients.

    dtype   what the numbers are rounded to before anything is computed
    """
    batch = pack([np.zeros(length, np.int64) for length in (3, 2 * config.reach + 40, 1, config.reach + 2)], device)
    generator = torch.Generator().manual_seed(0)
    counts = (config.heads, config.key_heads, config.key_heads, config.heads)
    query, key, value, upstream = (
        torch.randn(len(batch.ids), heads, config.head, generator=generator).to(device, dtype).to(computed_in)
        for heads in counts
    )
    given = [tensor.requires_grad_(training) for tensor in (query, key, value)]
    contexts = [attend(*given) for attend in prepare(way, batch, config, computed_in).values()]
    return [[one, *(torch.autograd.grad(one, given, upstream) if training else ())] for one in contexts]
