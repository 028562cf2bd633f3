"""Texts to calibrate with, as the model will meet them: behind its own prompts."""

import sys
from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import open_checkpoint
from ..errors import RefembedError, printable
from ..prompts import PROMPTS, prompt_of
from ..textfiles import read_texts
from ..tokenizer import Tokenizer

MOST_TOKENS = 32_768  # of all texts together; the rest of a file is not used
CONTEXT = 512  # tokens of one text at most


def calibration_texts(folder: Path, source: str) -> list[NDArray[Any]]:
    """The ids of a file's texts, each (tokens_i,), until there are MOST_TOKENS.

    folder   the checkpoint's, whose tokenizer and prompts are used
    source   .txt (a line a text) or .jsonl (key text), either with .gz

    Of each four texts one is a document, one a query, one a sentence compared, and one of another task. Raises
    RefembedError where the file cannot be read or has no usable text; texts at fault are reported and left out.
    """
    checkpoint = open_checkpoint(folder)
    rows = read_texts(source)
    readable = [row for row in rows if not row.fault and row.text.strip()]
    for row in rows:
        if row.fault:
            print(f"refembed: left out {printable(row.place)}: {row.fault.reason} [{row.fault.id}]", file=sys.stderr)
    prompted = [prompt + row.text for prompt, row in zip(prompts(checkpoint.prompts), readable, strict=False)]
    batch: list[NDArray[Any]] = []
    for row, ids in zip(readable, Tokenizer(checkpoint.tokenizer, checkpoint.config)(prompted), strict=True):
        if isinstance(ids, RefembedError):
            print(f"refembed: left out {printable(row.place)}: {ids.reason} [{ids.id}]", file=sys.stderr)
            continue
        most = min(CONTEXT, checkpoint.config.context)
        batch.append(ids if len(ids) <= most else np.append(ids[: most - 1], ids[-1]))
    if not batch:
        raise RefembedError(
            "calibration-texts",
            f"{source}: none of {len(rows)} lines is a usable text; some {MOST_TOKENS:,} tokens are needed",
        )
    count = int(np.searchsorted(np.cumsum([len(ids) for ids in batch]), MOST_TOKENS)) + 1
    return batch[:count]


def prompts(own: Mapping[str, str]) -> Iterator[str]:
    """What goes before each text, without end."""
    usual = ("document", "query", "sentence similarity")
    others = [task for task in PROMPTS if task not in usual]
    return cycle(prompt_of(task, own) for other in others for task in (*usual, other))
