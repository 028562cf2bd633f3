"""Attention over a packed batch, by the fastest way that works here. Each way gives every token what its text says.

varlen   flash attention that is told where texts begin: CUDA, bfloat16, nothing to compile
flex     a kernel compiled for the batch's pattern of blocks: CUDA, where compiling is wanted
tiles    a product for each short stretch of queries and the keys that they can see: anywhere
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from refembed.reference import FULL, Config

from .packing import Batch, pack
from .products import onednn, product

# query (tokens, heads, head), key and value (tokens, key_heads, head) -> context (tokens, heads, head)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
QUERIES = {"cpu": 128, "cuda": 1024}  # tokens of a tile: what a cache holds, what makes a launch worth it
BLOCK = 128  # rows and columns of a block of flex attention's mask


def prepare(way: str, batch: Batch, config: Config, dtype: torch.dtype) -> dict[str, Attend]:
    """Attention for each kind of layer, with all that the layers of a kind share for this batch."""
    reaches = {kind: max(batch.lengths) if kind == FULL else config.reach for kind in set(config.layer_kinds)}
    return {kind: WAYS[way](batch, config, reach, dtype) for kind, reach in reaches.items()}


# --------------------------------------------------------------------------------------------------------------- tiles
class Tile(NamedTuple):
    """A stretch of queries and what they see, as rows within a run.

    mask   (queries, keys), 0 where seen and -inf where not; None where all is seen
    """

    queries: slice
    keys: slice
    mask: NDArray[Any] | None


class Run(NamedTuple):
    """Neighbouring texts that share tiles: one longer than a tile, or as many short ones as fill one."""

    tokens: int
    tiles: list[Tile]


def cut_runs(lengths: Sequence[int], reach: int, size: int) -> list[Run]:
    """The batch in runs, each in tiles of at most `size` queries. Long texts' tiles touch only keys within reach."""
    groups: list[list[int]] = []
    for length in lengths:
        if not groups or sum(groups[-1]) + length > size:
            groups.append([])
        groups[-1].append(length)
    return [Run(sum(group), cut_tiles(group, reach, size)) for group in groups]


def cut_tiles(group: Sequence[int], reach: int, size: int) -> list[Tile]:
    tokens = sum(group)
    text = np.repeat(np.arange(len(group)), group)  # (tokens)
    place = np.arange(tokens)  # (tokens)
    tiles = []
    for first in range(0, tokens, size):
        queries = slice(first, min(first + size, tokens))
        keys = slice(max(first - reach, 0), min(queries.stop + reach, tokens))
        near = np.abs(place[queries, None] - place[None, keys]) <= reach  # (queries, keys)
        seen = near & (text[queries, None] == text[None, keys])  # (queries, keys)
        tiles.append(Tile(queries, keys, None if seen.all() else np.where(seen, 0.0, -np.inf)))
    return tiles


def tiled(batch: Batch, config: Config, reach: int, dtype: torch.dtype) -> Attend:
    """Attention tile by tile; runs and tiles are split off and put together once, so that gradients are too."""
    device = batch.ids.device
    runs = cut_runs(batch.lengths, reach, QUERIES.get(device.type, BLOCK))
    scale, heads = config.query_scalar**-0.5, config.heads
    by_product = device.type == "cpu" and dtype == torch.float32 and config.key_heads == 1 and onednn()
    one_tile = by_heads_in_rows if by_product else by_library
    rows = heads if by_product else 1
    masks = [
        [None if t.mask is None else torch.from_numpy(t.mask.repeat(rows, 0)).to(device, dtype) for t in run.tiles]
        for run in runs
    ]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = [tensor.split([run.tokens for run in runs]) for tensor in (query, key, value)]
        found = []
        for run, of_run, q, k, v in zip(runs, masks, *parts, strict=True):
            stretches = q.split([tile.queries.stop - tile.queries.start for tile in run.tiles])
            for tile, mask, stretch in zip(run.tiles, of_run, stretches, strict=True):
                found.append(one_tile(stretch, k[tile.keys], v[tile.keys], mask, scale))
        return torch.cat(found)

    return attend


def by_heads_in_rows(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """One key and value head serves all query heads, so these are just more rows of one product: nothing is moved."""
    queries, heads, head = query.shape
    scores = product(query.reshape(queries * heads, head), key[:, 0])  # (queries*heads, keys)
    scores = scores * scale if mask is None else torch.add(mask, scores, alpha=scale)  # (queries*heads, keys)
    context = product(torch.softmax(scores, -1), value[:, 0].t())  # (queries*heads, head)
    return context.view(queries, heads, head)


def by_library(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    q = query.transpose(0, 1)[None]  # (1, heads, queries, head)
    k, v = (tensor.repeat_interleave(shared, 1).transpose(0, 1)[None] for tensor in (key, value))
    context = functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)  # (1, heads, queries, head)
    return context[0].transpose(0, 1)


# -------------------------------------------------------------------------------------------------------------- varlen
def varlen(batch: Batch, config: Config, reach: int, dtype: torch.dtype) -> Attend:
    """Flash attention over texts of any lengths; public since PyTorch 2.10."""
    from torch.nn.attention.varlen import varlen_attn

    longest = max(batch.lengths)
    window = (-1, -1) if reach >= longest - 1 else (reach, reach)
    attention: Any = partial(
        varlen_attn,
        cu_seq_q=batch.starts, cu_seq_k=batch.starts, max_q=longest, max_k=longest,
        scale=config.query_scalar**-0.5, window_size=window, enable_gqa=True,
    )  # fmt: skip
    return cast(Attend, attention)


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
    """What keeps a way from being right here, if anything."""
    batch = pack([np.zeros(length, np.int64) for length in (3, 2 * config.reach + 40, 1, config.reach + 2)], device)
    generator = torch.Generator().manual_seed(0)
    counts = (config.heads, config.key_heads, config.key_heads, config.heads)
    query, key, value, upstream = (
        torch.randn(len(batch.ids), heads, config.head, generator=generator).to(device, dtype) for heads in counts
    )
    given = [tensor.requires_grad_(training) for tensor in (query, key, value)]
    results = []
    for one in (way, "tiles"):
        try:
            found = [attend(*given) for attend in prepare(one, batch, config, dtype).values()]
            if training:
                found += torch.autograd.grad(found, given, [upstream] * len(found))
        except Exception as error:  # the library's own and its compiler's are of many kinds
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
        results.append(found)
    allowed = 8 * torch.finfo(dtype).eps  # of the largest number: a few roundings
    for tensor, expected in zip(*results, strict=True):
        if not (tensor - expected).abs().max() <= allowed * expected.abs().max():
            return "its numbers are not those of the tiles"
    return None
