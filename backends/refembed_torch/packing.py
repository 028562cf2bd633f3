"""Texts of any lengths in one ragged matrix, a row a token, with nothing between them: there is no padding."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refembed.errors import RefembedError
from refembed.reference import FULL, SLIDING, Config
from refembed.reference.positions import rotary_angles

FIRST_POSITIONS = 2048  # of the first tables of cosines and sines: the released model's whole context


class Batch(NamedTuple):
    """Texts one after the other.

    ids        (tokens,) int64
    positions  (tokens,) int64   each token's place in its text, from 0
    starts     (texts + 1,) int32  where each text begins, and the end
    lengths    of the texts, known without asking the device
    """

    ids: Tensor
    positions: Tensor
    starts: Tensor
    lengths: tuple[int, ...]


def pack(texts: Sequence[NDArray[Any] | Tensor], device: torch.device) -> Batch:
    """Id arrays (tokens_i,) from main memory, in this order."""
    lengths = tuple(len(text) for text in texts)
    columns = np.zeros((2, sum(lengths)), np.int64)
    np.concatenate([np.asarray(text) for text in texts], out=columns[0])
    columns[1] = np.concatenate([np.arange(length) for length in lengths])
    starts = np.cumsum([0, *lengths], dtype=np.int32)
    ids, positions = torch.from_numpy(columns).to(device)
    return Batch(ids, positions, torch.from_numpy(starts).to(device), lengths)


def check_texts(texts: Sequence[NDArray[Any] | Tensor], config: Config) -> None:
    """Raise RefembedError where an id array is none that the model has an answer to.

    Asked before anything is on a device: an id without a row of the table would there end the process's use of it.
    """
    if not len(texts):
        raise RefembedError("ids-invalid", "no texts were given; a batch needs at least one")
    arrays = [np.asarray(text) for text in texts]
    for index, ids in enumerate(arrays):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            found = f"is {ids.dtype} of shape {ids.shape}"
            raise RefembedError("ids-invalid", f"{found}; token ids are whole numbers in one row", index)
        if not len(ids):
            raise RefembedError("ids-invalid", "holds no token; a text is at least BOS and EOS", index)
        if len(ids) > config.context:
            reason = f"has {len(ids)} tokens, the model's context is {config.context}; cut it, and keep EOS"
            raise RefembedError("text-too-long", reason, index)
    whole = np.concatenate(arrays)
    if whole.min() < 0 or whole.max() >= config.vocabulary:
        index = next(i for i, ids in enumerate(arrays) if ids.min() < 0 or ids.max() >= config.vocabulary)
        wrong = next(id for id in arrays[index].tolist() if not 0 <= id < config.vocabulary)
        known = (
            f"the embedding table has rows 0 to {config.vocabulary - 1}; take the tokenizer that goes with the model"
        )
        raise RefembedError("ids-invalid", f"holds token {wrong}, {known}", index)


def passes(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices of texts that go through together, longest first: at most so many tokens, or one text."""
    group: list[int] = []
    room = tokens
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if group and lengths[index] > room:
            yield group
            group, room = [], tokens
        group.append(index)
        room -= lengths[index]
    if group:
        yield group


class Turns(NamedTuple):
    """The cosine and sine by which each token's heads are turned, (tokens, 1, head/2) each."""

    cos: Tensor
    sin: Tensor


def turns(batch: Batch, config: Config, dtype: torch.dtype) -> dict[str, Turns]:
    """Those of every token by kind of layer."""
    positions = FIRST_POSITIONS
    while positions < max(batch.lengths):  # a config may allow texts that nobody has, and memory neither
        positions *= 2
    positions = min(positions, config.context)
    kinds = set(config.layer_kinds)
    tables = {kind: turn_tables(config, kind, positions, dtype, batch.ids.device) for kind in kinds}
    return {kind: Turns(*(table[batch.positions, None] for table in pair)) for kind, pair in tables.items()}


@lru_cache(maxsize=16)
def turn_tables(
    config: Config, kind: str, positions: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Of the first positions, (positions, head/2) each; the angles are float64's: float32's are 1e-4 off at 2,047."""
    base = {SLIDING: config.sliding_base, FULL: config.full_base}[kind]
    pair = rotary_angles(positions, config.head, base, np.float64)
    with torch.inference_mode(False):  # kept for whoever comes, who may want a gradient
        cos, sin = (torch.from_numpy(table).to(device, dtype) for table in pair)
    return cos, sin
