"""What the page shows of a text: taken from the reference's trace as it goes by, so that no layer outlives its turn."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..embedder import Embedder, raise_first
from ..errors import RefembedError
from ..hub import is_local
from ..numpy_backend import NumpyEncoder
from ..prompts import prefixes
from ..reference import SLIDING, truncate
from ..reference.losses import LENGTHS
from ..reference.model import dense_head
from ..vectors import INT8, quantize_vectors, similarity, unit_rows

Array = NDArray[Any]

KEY_BYTES = 8_000_000  # for the keys that are kept of every token, layer and head: a place and a weight, 2 bytes each
MAP_SIDE = 96  # rows and columns of the picture of one head
PAIR_CELLS = 2**19  # pairs of tokens of all comparisons together, 2 bytes each
ROWS_AT_ONCE = 256  # whose keys are sorted together
WEIGHT_STEPS = 65_535  # a stored weight is a whole number of these
POOLED: dict[str, Callable[[int], Array]] = {  # what of each token's state is in the pooled vector (POOL-1 to POOL-3)
    "mean": lambda tokens: np.full(tokens, 1 / tokens),
    "first": lambda tokens: np.eye(1, tokens)[0],
    "last": lambda tokens: np.eye(1, tokens, tokens - 1)[0],
}


class Head(NamedTuple):
    """The attention of one head, as the page has it.

    places    (tokens, keys) uint16  the keys that each token reads most, most first
    weights   (tokens, keys) uint16  their weights, in steps of 1/65,535
    rest      (tokens,) uint16       the weight of all other keys together, in the same steps
    map       (rows, columns) uint8  255 times the square root of what a block of tokens reads of another, on average
    """

    places: Array
    weights: Array
    rest: Array
    map: Array


def strongest(weights: Array, keys: int) -> Head:
    """The keys that each token reads most, and a picture of all of them.

    weights   (tokens, n)  each row sums to 1
    keys      how many to keep of each row
    """
    places = np.empty((len(weights), keys), np.uint16)
    kept = np.empty((len(weights), keys), weights.dtype)
    for start in range(0, len(weights), ROWS_AT_ONCE):
        rows = weights[start : start + ROWS_AT_ONCE]
        largest = np.argpartition(-rows, keys - 1, axis=1)[:, :keys]
        order = np.argsort(-np.take_along_axis(rows, largest, axis=1), axis=1, kind="stable")
        largest = np.take_along_axis(largest, order, axis=1)
        places[start : start + len(rows)] = largest
        kept[start : start + len(rows)] = np.take_along_axis(rows, largest, axis=1)
    rest = np.maximum(1 - kept.sum(axis=1), 0)
    step = step_of(MAP_SIDE, len(weights))
    blocks = block_sums(weights, step)
    shares = blocks / block_sums(np.ones((len(weights), 1)), step)
    return Head(places, in_steps(kept), in_steps(rest), np.rint(255 * np.sqrt(shares)).astype(np.uint8))


def in_steps(weights: Array) -> Array:
    return np.rint(weights * WEIGHT_STEPS).astype(np.uint16)


def step_of(side: int, tokens: int) -> int:
    """How many tokens share a row of a picture that has at most `side`."""
    return -(-tokens // side)


def block_sums(table: Array, step: int) -> Array:
    """The sums of blocks of step x step numbers, fewer at the ends: (n, m) gives (n/step, m/step), rounded up."""
    down = np.add.reduceat(table, np.arange(0, table.shape[0], step), axis=0)
    return np.add.reduceat(down, np.arange(0, table.shape[1], step), axis=1)


def root_mean_square(rows: Array) -> float:
    return float(np.sqrt(np.mean(np.square(rows, dtype=np.float64))))


class Collector:
    """What is kept of one text's trace. Each layer's attention is reduced when it comes and then let go.

    keys      how many of each token's keys to keep; 0: no attention and no norms, for texts to compare with
    """

    def __init__(self, keys: int) -> None:
        self.keys = keys
        self.attention: list[list[Head]] = []  # of each layer, its heads
        self.residual: list[float] = []  # root mean square of the residual stream: embedded, then after each layer
        self.largest: list[float] = []  # its largest magnitude
        self.tokens: list[Array] = []  # each token's own root mean square, (tokens,)
        self.updates: dict[str, list[float]] = {"attention": [], "mlp": []}  # root mean square of what is added
        self.states: Array = np.empty((0, 0))
        self.embedding: Array = np.empty(0)

    def __call__(self, name: str, tensor: Array) -> None:
        match name.split("."):
            case ["final_norm"]:
                self.states = tensor
            case ["embedding"]:
                self.embedding = tensor
            case _ if not self.keys:
                return
            case ["embedded"] | ["layer", _, "out"]:
                self.residual.append(root_mean_square(tensor))
                self.largest.append(float(np.abs(tensor).max()))
                self.tokens.append(np.sqrt(np.mean(np.square(tensor), axis=1)))
            case ["layer", _, "attention" | "mlp" as part, "update"]:
                self.updates[part].append(root_mean_square(tensor))
            case ["layer", _, "attention", "weights"]:
                self.attention.append([strongest(head, self.keys) for head in tensor])


class Form(NamedTuple):
    """One way to keep a vector: how many of its numbers, and what each is kept as."""

    length: int
    quantize: str | None


def forms_of(dimensions: int) -> list[Form]:
    """The released model's lengths, or of another whole, half and quarter (MAT-1), each in floats and in int8."""
    lengths = LENGTHS if dimensions == LENGTHS[0] else (dimensions, dimensions // 2, dimensions // 4)
    return [Form(length, quantize) for length in lengths if length for quantize in (None, INT8)]


def kept_as(embedding: Array, form: Form) -> Array:
    """An embedding in one form, as `refembed embed` writes it: (dimensions,) gives (1, length)."""
    return quantize_vectors(truncate(embedding[None], form.length), form.quantize)


@dataclass
class Text:
    """One text, read.

    tokens         (tokens,) ids
    parts          (tokens, dimensions) float64: what each token puts into the vector before it gets unit length,
                   dense(state) times its weight in the pooled vector. Both matrices are linear, so the parts' sum is
                   `projected` (HEAD-1)
    vectors        one (1, length) a form
    shares         (forms, tokens): see shares_of
    opening        how many tokens, BOS counted, are the prompt's alone
    """

    text: str
    prompt: str
    tokens: Array
    parts: Array
    vectors: list[Array]
    shares: Array
    opening: int
    kept: Collector


def shares_of(parts: Array, vector: Array) -> Array:
    """What each token adds to a vector: its part's length along the vector, as a share of all tokens'. They sum to 1.

    parts    (tokens, dimensions)  of Text
    vector   (1, length)  the vector in one form; what is beyond its length does not count

    Below zero where a token pulls the other way. For a form in floats the sum before the division is the length of
    the vector's first numbers before they get unit length; for int8 it is that vector's projection on the levels'
    direction.
    """
    along = parts[:, : vector.shape[1]] @ unit_rows(vector)[0]
    return along / along.sum()


def read_text(model: Embedder, text: str, ids: Array, prompt: str, keys: int) -> Text:
    """Run the reference on one text's ids and keep what the page shows of it."""
    if not isinstance(model.encoder, NumpyEncoder):
        raise RefembedError(
            "backend-cannot-run",
            f"the page shows the reference's own numbers, which backend {model.backend.name} does not compute: "
            "name --backend numpy, or none",
        )
    kept = Collector(min(keys, len(ids)))
    with np.errstate(all="ignore"):  # what overflows is found below
        model.encoder.follow(ids, kept)
    model.check_vectors(kept.embedding[None].astype(np.float32), [0])
    weighted = kept.states.astype(np.float64) * POOLED[model.config.pooler](len(ids))[:, None]
    parts = dense_head(weighted, model.encoder.parameters)
    vectors = [kept_as(kept.embedding, form) for form in forms_of(model.config.dimensions)]
    shares = np.stack([shares_of(parts, vector) for vector in vectors])
    return Text(text, prompt, ids, parts, vectors, shares, opening_of(model, ids, prompt), kept)


def opening_of(model: Embedder, ids: Array, prompt: str) -> int:
    """How many of a text's tokens are BOS and the prompt's: those that the prompt alone has too, up to the first other.

    A prompt's last space usually goes with the text's first word, and is counted as the text's.
    """
    (alone,) = raise_first(model.tokenizer([prompt]))
    both = min(len(alone), len(ids)) - 1  # without EOS
    other = np.flatnonzero(alone[:both] != ids[:both])
    return int(other[0]) if len(other) else both


def compare(first: Text, second: Text, cells: int) -> dict[str, Any]:
    """What every pair of tokens adds to the cosine of two texts; all pairs sum to it.

    The cosine is the sum over i and j of part_i . part_j, divided by both vectors' lengths before they get unit length.

    cells     the most that are kept; beyond, square blocks of tokens are summed
    returns   step, tokens a block has on a side; scale and cells, int16 (rows, columns): scale times cell is a block's
              sum; rows (tokens,) and columns (tokens,) float32: what each token of either text adds with all the
              other's
    """
    left, right = (one.parts / np.linalg.norm(one.parts.sum(axis=0)) for one in (first, second))
    step = next(n for n in count(1) if -(-len(left) // n) * -(-len(right) // n) <= max(cells, 1))
    pairs = block_sums((left.astype(np.float32)) @ right.astype(np.float32).T, step)
    scale = float(np.abs(pairs).max()) / np.iinfo(np.int16).max or 1.0
    return {
        "step": step,
        "scale": scale,
        "cells": np.rint(pairs / scale).astype(np.int16),
        "rows": (left @ right.sum(axis=0)).astype(np.float32),
        "columns": (right @ left.sum(axis=0)).astype(np.float32),
    }


def spelled(pieces: Sequence[str]) -> list[Any]:
    """What each token spells: its text; of a token that is one byte [byte, character, which of its bytes, of how many].

    A character that the vocabulary lacks is spelled in bytes; bytes that make no character stand alone, with null.
    """
    result: list[Any] = [piece.replace("▁", " ") for piece in pieces]
    values = [int(piece[3:5], 16) if is_byte(piece) else None for piece in pieces]
    place = 0
    while place < len(pieces):
        if values[place] is None:
            place += 1
            continue
        character, size = first_character(values[place : place + 4])
        for number in range(size):
            result[place + number] = [pieces[place + number][3:5], character, number + 1, size]
        place += size
    return result


def is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def first_character(values: Sequence[int | None]) -> tuple[str | None, int]:
    """The character that the first bytes make, and how many they are; None and 1 where they make none."""
    run = bytes(takewhile(lambda value: value is not None, values))  # type: ignore[arg-type]
    for size in range(1, len(run) + 1):
        with suppress(UnicodeDecodeError):
            return run[:size].decode(), size
    return None, 1


def read_texts(
    model: Embedder,
    text: str,
    others: Sequence[str] = (),
    *,
    task: str | None = "document",
    prompt: str | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """All that the page shows, in words, numbers and arrays.

    text      the text to look into
    others    texts to compare it with: with the document prompt where the text has the query's, else with its own
    task, prompt, title   as of encode(), of the text

    Raises RefembedError for an empty text, a backend other than NumPy's, or what encode() raises it for.
    """
    for place, one in enumerate((text, *others)):
        if not one:
            name = f"text {place} to compare with" if place else "the text"
            raise RefembedError("option-input", f"{name} is empty: give one with something to look into")
    own = model.checkpoint.prompts
    titles = None if title is None else [title]
    before = prefixes(1, task, prompt, titles, own)[0]
    asked = before == prefixes(1, "query", None, None, own)[0]
    options: dict[str, Any] = {"task": "document"} if asked else {"task": task, "prompt": prompt}
    batches = [
        raise_first(model.prepare([text], task=task, prompt=prompt, titles=titles)),
        raise_first([of_comparison(ids) for ids in model.prepare(others, **options)]),
    ]
    after = prefixes(1, options["task"], options.get("prompt"), None, own)[0]
    ids = batches[0][0]
    heads = model.config.heads * len(model.config.layer_kinds)
    first = read_text(model, text, ids, before, keys=max(1, KEY_BYTES // (4 * heads * len(ids))))
    rest = [read_text(model, one, ids, after, keys=0) for one, ids in zip(others, batches[1], strict=True)]
    return describe(model, first, rest)


def of_comparison(ids: Array | RefembedError) -> Array | RefembedError:
    """What is wrong with a text to compare with, under the number that the page would give it: from 1."""
    if isinstance(ids, RefembedError) and ids.index is not None:
        return RefembedError(ids.id, f"text {ids.index + 1} to compare with: {ids.reason}")
    return ids


def describe(model: Embedder, first: Text, others: Sequence[Text]) -> dict[str, Any]:
    """What read_texts returns, of texts that were read."""
    config, kept, forms = model.config, first.kept, forms_of(model.config.dimensions)
    return {
        "version": __version__,
        "model": Path(model.name).name if is_local(model.name) else model.name,  # a folder's path stays here
        "precision": model.encoder.precision,
        "weights": model.checkpoint.weights,
        "dimensions": config.dimensions,
        "context": config.context,
        "reach": config.reach,
        "heads": config.heads,
        "pooler": config.pooler,
        "sliding": [kind == SLIDING for kind in config.layer_kinds],
        "forms": [form._asdict() for form in forms],
        "texts": [token_table(model, one) for one in (first, *others)],
        "norms": {"residual": kept.residual, "largest": kept.largest, **kept.updates, "tokens": np.stack(kept.tokens)},
        "keys": kept.keys,
        "map_step": step_of(MAP_SIDE, len(first.tokens)),
        "attention": [[head._asdict() for head in layer] for layer in kept.attention],
        "similarities": [
            [float(similarity(*pair)[0, 0]) for pair in zip(first.vectors, other.vectors, strict=True)]
            for other in others
        ],
        "comparisons": [compare(first, other, PAIR_CELLS // len(others)) for other in others],
    }


def token_table(model: Embedder, one: Text) -> dict[str, Any]:
    """A text and its tokens: ids, what each spells, which are special, and what each adds to the vector by form."""
    added = model.tokenizer.library.get_added_tokens_decoder()
    ids = one.tokens.tolist()
    return {
        "text": one.text,
        "prompt": one.prompt,
        "opening": one.opening,
        "ids": ids,
        "spelled": spelled(model.tokenizer.pieces(one.tokens)),
        "special": [place for place, id in enumerate(ids) if id in added and added[id].special],
        "shares": one.shares.astype(np.float32),
    }
