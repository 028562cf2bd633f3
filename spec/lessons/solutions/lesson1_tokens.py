"""Lesson 1, solved."""

from itertools import pairwise

import given
import numpy as np


def with_prompt(text: str, prompts: dict[str, str], task: str | None = None, title: str | None = None) -> str:
    """A prompt is put before the text as characters, and both are tokenized together."""
    if task is None:
        return text
    if title:
        return f"title: {title} | text: {text}"
    return prompts[task] + text


def merge(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """The lowest rank first, until no pair has one."""
    while True:
        ranked = [(ranks[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not ranked:
            return pieces
        _, at = min(ranked)
        pieces = [*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]]


def with_ends(ids: list[int], settings: dict) -> np.ndarray:
    """BOS and EOS are always there, so two fewer ids fit."""
    kept = ids[: settings["max_position_embeddings"] - 2]
    return np.array([settings["bos_token_id"], *kept, settings["eos_token_id"]])  # (tokens)


def embed_tokens(ids: np.ndarray, parameters: dict[str, np.ndarray], settings: dict) -> np.ndarray:
    """A table is a matrix with a row an id."""
    return parameters["embed_tokens.weight"][ids] * np.sqrt(settings["hidden_size"])  # (tokens, width)


def tokenize(prompted: str, tokenizer: given.Tokenizer, settings: dict) -> np.ndarray:
    """A text with its prompt to ids, (tokens,)."""
    return with_ends(given.pieces(prompted, tokenizer, merge), settings)
