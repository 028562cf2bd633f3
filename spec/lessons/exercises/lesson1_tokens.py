"""Lesson 1. Tokens, prompts and the table.

The model reads whole numbers, not letters. A text gets a prompt that says what it is for; the whole is cut into pieces
that the tokenizer knows, each with an id; and each id picks a row of a table, the first vector of that token:

    prompt + text  ->  ids = [BOS, pieces, EOS]  ->  x = table[ids] * sqrt(width)          x (tokens, width)

Each layer adds to x; without the square root the first additions would drown the token.
Read beside it: spec/01-tokens-and-prompts.md, spec/02-embedding.md. Check: python spec/lessons/check.py 1
"""

import given
import numpy as np


def with_prompt(text: str, prompts: dict[str, str], task: str | None = None, title: str | None = None) -> str:
    """The text with its task's prompt before it.

    prompts  task -> what stands before the text, {"query": "task: search result | query: ", ...}
    task     None: nothing stands before the text
    title    of a document: it stands where the document's prompt says `none`

    Nothing is stripped, from the prompt's end neither: its last space belongs to the text's first word.
    """
    raise NotImplementedError


def merge(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding: join neighbours until no pair is left that has a rank.

    pieces   of a text, at first its characters: ["t", "h", "e", "t"]
    ranks    pair -> rank: {("t", "h"): 0, ("th", "e"): 1}
    returns  ["the", "t"]

    Each time, of all pairs of neighbours the one of the lowest rank is joined, where it stands first.
    """
    raise NotImplementedError


def with_ends(ids: list[int], settings: dict) -> np.ndarray:
    """BOS, the ids, EOS; ids that do not fit are cut at their end.

    settings  "bos_token_id", "eos_token_id", and "max_position_embeddings", the most tokens there may be in all
    returns   (tokens,)
    """
    raise NotImplementedError


def embed_tokens(ids: np.ndarray, parameters: dict[str, np.ndarray], settings: dict) -> np.ndarray:
    """The table's row of each id, times the square root of the width.

    ids         (tokens,)
    parameters  "embed_tokens.weight" (vocabulary, width)
    settings    "hidden_size" is the width
    returns     (tokens, width)
    """
    raise NotImplementedError


def tokenize(prompted: str, tokenizer: given.Tokenizer, settings: dict) -> np.ndarray:
    """Written for you, on your functions: (tokens,)."""
    return with_ends(given.pieces(prompted, tokenizer, merge), settings)
