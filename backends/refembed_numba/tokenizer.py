"""The tokenizer, compiled: tokenizer.json as tables that are mapped from disk, and loops over a text's characters.

The tokenizers library takes about a second to read the released model's 33 MB, and more memory at its peak than the
int8 model. Here that is done once. For a file of another form than Gemma's the library is used as in every backend.
"""
# mypy: disable-error-code="no-untyped-def"

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refembed.reference import Config
from refembed.tokenizer import LARGEST_FILE, Tokenizer

from .compiled import compiled, inner
from .kept import Arrays, kept

RANK_BITS, PLACE_BITS, ID_BITS = 21, 22, 20  # of a merge on the heap, one int64; a character has up to four places
EMPTY = -1
SPACE, LOW_LINE = ord(" "), ord("▁")
TABLES = ("merges", "spelled", "tokens", "characters", "bytes", "known")
FORM = {  # what tokenizer.json must say besides vocabulary, merges and added tokens
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    # splits at spaces, of which the normalizer leaves none
    "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
}
MODEL_FORM = {
    "type": "BPE",
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "byte_fallback": True,
    "ignore_merges": False,
}
PLAIN = ("single_word", "lstrip", "rstrip", "normalized")  # settings that no added token may have


class CompiledTokenizer(Tokenizer):
    """refembed's tokenizer, reading the tables; the library itself is loaded only to write out tokens."""

    def __init__(self, file: Path, config: Config, tables: Arrays) -> None:
        self.tables = tables
        super().__init__(file, config)

    def known(self) -> tuple[int | None, int | None, int]:
        bos, eos, pieces = self.tables["known"].tolist()
        return None if bos == EMPTY else bos, None if eos == EMPTY else eos, pieces

    def split(self, texts: list[str]) -> Iterator[NDArray[Any]]:
        merges, spelled, tokens, characters, bytes = (self.tables[name] for name in TABLES[:-1])
        for text in texts:
            points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            room = 4 * len(points) + 1  # bytes of a character
            symbols, before, after = (np.empty(room, np.int32) for _ in range(3))
            heap = np.empty(3 * room, np.int64)
            count = tokenize(points, merges, spelled, tokens, characters, bytes, symbols, heap, before, after)
            yield symbols[:count]


def open_tokenizer(file: Path, config: Config) -> Tokenizer:
    """The compiled tokenizer where the file's form allows it, else the library's."""
    tables = None
    with suppress(OSError):  # the library's loader says what is wrong with the file
        if file.stat().st_size <= LARGEST_FILE:
            with file.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            tables = kept("tokenizers", digest, __file__, TABLES, lambda: compile_tables(file))
    return CompiledTokenizer(file, config, tables) if tables else Tokenizer(file, config)


# -------------------------------------------------------------------------------------------------------- compile
def compile_tables(file: Path) -> dict[str, NDArray[Any]] | None:
    """The tables of a tokenizer.json of Gemma's form; None for any other.

    merges      (slots, 4) int32, a hash table: left id, right id -> rank, id of both together
    spelled     (slots, 4) int32, a hash table of added tokens' letters: node, code point -> next node; the root is 0
    tokens      (nodes) the added token that ends in a node, or EMPTY
    characters  (0x110000) int32: the id of a code point, or EMPTY
    bytes       (256) int32: the ids of <0x00> .. <0xFF>
    known       ids of BOS and EOS (EMPTY where there is none), number of pieces
    """
    try:
        content = json.loads(file.read_bytes())
        model, added = content["model"], content["added_tokens"]
        vocabulary, merges = model["vocab"], [split_merge(merge) for merge in model["merges"]]
        if any(content[name] != form for name, form in FORM.items()):
            return None
        if any(model[name] != form for name, form in MODEL_FORM.items()):
            return None
        if any(token[setting] for token in added for setting in PLAIN):
            return None
        numbers = [*vocabulary.values(), *(token["id"] for token in added)]
        if len(merges) >= 2**RANK_BITS or any(type(id) is not int or not 0 <= id < 2**ID_BITS for id in numbers):
            return None
        pairs = np.array(
            [(vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in merges], np.int32
        ).reshape(-1, 3)
        bytes = np.array([vocabulary[f"<0x{byte:02X}>"] for byte in range(256)], np.int32)
        ids = {token["content"]: token["id"] for token in added}
        outside = iter(range(len(vocabulary), len(vocabulary) + len(ids)))  # as the library numbers them itself
        if any(id != (vocabulary[one] if one in vocabulary else next(outside)) for one, id in ids.items()):
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # the library will say what is wrong with it
        return None
    if len(np.unique(pairs[:, 0].astype(np.int64) << ID_BITS | pairs[:, 1])) < len(pairs):
        return None
    characters = np.full(sys.maxunicode + 1, EMPTY, np.int32)
    for piece, id in vocabulary.items():
        if len(piece) == 1:
            characters[ord(piece)] = id
    ranks = np.arange(len(pairs), dtype=np.int32)
    spelled, tokens = letter_tree(ids)
    known = vocabulary | ids
    return {
        "merges": hash_table(np.column_stack([pairs[:, :2], ranks, pairs[:, 2]])),
        "spelled": hash_table(spelled),
        "tokens": tokens,
        "characters": characters,
        "bytes": bytes,
        "known": np.array([known.get("<bos>", EMPTY), known.get("<eos>", EMPTY), len(vocabulary)], np.int32),
    }


def split_merge(merge: list[str] | str) -> tuple[str, str]:
    """A merge as a pair, also from older files, which have a space between."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def letter_tree(ids: dict[str, int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The added tokens as a tree of their letters: rows of node, code point, next node, 0; and each node's token."""
    nodes: dict[tuple[int, int], int] = {}
    ends = [EMPTY]
    for content, id in ids.items():
        node = 0
        for letter in content:
            node = nodes.setdefault((node, ord(letter)), len(ends))
            if node == len(ends):
                ends.append(EMPTY)
        if node:
            ends[node] = id
    rows = [(node, letter, after, 0) for (node, letter), after in nodes.items()]
    return np.array(rows, np.int32).reshape(-1, 4), np.array(ends, np.int32)


def hash_table(rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """Rows put where `find` looks for their first two numbers; at most half of the slots are taken."""
    table = np.full((1 << max(1, 2 * len(rows) - 1).bit_length(), 4), EMPTY, np.int32)
    fill(table, np.ascontiguousarray(rows, np.int32))
    return table


@compiled
def fill(table, rows):
    for row in range(len(rows)):
        slot = slot_of(table, rows[row, 0], rows[row, 1])
        for column in range(4):
            table[slot, column] = rows[row, column]


# ------------------------------------------------------------------------------------------------------- tokenize
@inner
def slot_of(table, first, second):
    """The slot that has this pair, or the empty one where it would be. Slots are a power of two, never all taken."""
    key = np.uint64(first) << np.uint64(32) | np.uint64(second)
    last = np.uint64(len(table) - 1)
    slot = (key * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) & last
    while table[slot, 0] != EMPTY and (table[slot, 0] != first or table[slot, 1] != second):
        slot = (slot + np.uint64(1)) & last
    return slot


@inner
def spelled_here(points, start, spelled, tokens):
    """The longest added token that is spelled at `start`: its id and where it ends; EMPTY where none is."""
    node, found, end = 0, EMPTY, start
    for at in range(start, len(points)):
        slot = slot_of(spelled, node, np.int32(points[at]))
        if spelled[slot, 0] == EMPTY:
            break
        node = spelled[slot, 2]
        if tokens[node] != EMPTY:
            found, end = tokens[node], at + 1
    return found, end


@inner
def write_character(point, characters, bytes, symbols, count):
    """The character's id, or those of its UTF-8 bytes, from symbols[count]; the new count."""
    point = np.int32(LOW_LINE if point == SPACE else point)
    if characters[point] != EMPTY:
        symbols[count] = characters[point]
        return count + 1
    more = 0 if point < 0x80 else 1 if point < 0x800 else 2 if point < 0x10000 else 3
    lead = np.int32(0xFF00 >> (more + 1) & 0xFF if more else 0)  # 110....., 1110...., 11110...
    symbols[count] = bytes[lead | point >> np.int32(6 * more)]
    for left in range(more - 1, -1, -1):
        count += 1
        symbols[count] = bytes[np.int32(0x80) | (point >> np.int32(6 * left)) & np.int32(0x3F)]
    return count + 1


@inner
def push(heap, count, key):
    """Add a key to a binary heap of `count`, least first."""
    at = count
    while at > 0 and heap[(at - 1) >> 1] > key:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = key


@inner
def pop(heap, count):
    """The least key of `count`; the rest stays a heap."""
    least, key, last = heap[0], heap[count - 1], count - 1
    at = 0
    while 2 * at + 1 < last:
        child = 2 * at + 1
        if child + 1 < last and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = key
    return least


@inner
def offer(heap, count, merges, left, right, place):
    """Put the merge of two neighbours on the heap, if there is one; the new count. Keys: rank, place, id of both."""
    slot = slot_of(merges, left, right)
    if merges[slot, 0] == EMPTY:
        return count
    push(heap, count, (np.int64(merges[slot, 2]) << PLACE_BITS | place) << ID_BITS | merges[slot, 3])
    return count + 1


@inner
def merge_symbols(symbols, start, end, merges, heap, before, after):
    """Merge neighbours within symbols[start:end], lowest rank first and then leftmost, in place; the new end.

    A symbol that went into its left neighbour becomes EMPTY. A merge on the heap may be out of date: it is done where
    its neighbours still make the same piece, as in the tokenizers library.
    """
    size = end - start
    waiting = 0
    for i in range(size):
        before[i], after[i] = i - 1, i + 1
        if i + 1 < size:
            waiting = offer(heap, waiting, merges, symbols[start + i], symbols[start + i + 1], i)
    while waiting:
        key = pop(heap, waiting)
        waiting -= 1
        i, made = (key >> ID_BITS) & (2**PLACE_BITS - 1), np.int32(key & (2**ID_BITS - 1))
        left, j = symbols[start + i], after[i]
        if left == EMPTY or j >= size:
            continue
        slot = slot_of(merges, left, symbols[start + j])
        if merges[slot, 0] == EMPTY or merges[slot, 3] != made:
            continue
        symbols[start + i], symbols[start + j] = made, EMPTY
        k = after[i] = after[j]
        if k < size:
            before[k] = i
            waiting = offer(heap, waiting, merges, made, symbols[start + k], i)
        if before[i] >= 0:
            waiting = offer(heap, waiting, merges, symbols[start + before[i]], made, before[i])
    to = start
    for at in range(start, end):
        if symbols[at] != EMPTY:
            symbols[to] = symbols[at]
            to += 1
    return to


@compiled
def tokenize(points, merges, spelled, tokens, characters, bytes, symbols, heap, before, after):
    """Code points (n) uint32 to ids: added tokens where they are spelled, the longest first, and pieces between.

    symbols        room for 4 n + 1 int32: the ids
    heap           room for 12 n + 1 int64: a merge offers at most two others
    before, after  room for 4 n + 1 int32
    returns        how many ids there are
    """
    count = start = at = np.int64(0)  # a plain 0 is a type of its own, for which all that is called is compiled too
    while at < len(points):
        token, end = spelled_here(points, at, spelled, tokens)
        if token == EMPTY:
            count = write_character(points[at], characters, bytes, symbols, count)
            at += 1
            continue
        count = start = merge_symbols(symbols, start, count, merges, heap, before, after)
        symbols[count] = token
        count = start = count + 1
        at = end
    return merge_symbols(symbols, start, count, merges, heap, before, after)
