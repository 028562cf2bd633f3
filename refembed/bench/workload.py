"""The texts that are timed: short queries, documents and a long text, each of a known number of tokens.

The built-in ones are cut from texts.txt, written for this in twelve languages, code and markup.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from math import exp
from pathlib import Path
from statistics import NormalDist
from typing import Any

from ..errors import RefembedError
from ..prompts import prompt_of

TEXTS = Path(__file__).with_name("texts.txt")
# kind of text -> whose prompt it gets, how many there are, their tokens on average
KINDS = {"queries": ("query", 40, 18), "documents": ("document", 128, 122), "long": ("document", 1, 2000)}
PROMPT_TOKENS = 10  # BOS, prompt and EOS of the real model; the spread is that of the text alone
SPREAD = 0.6  # standard deviation of the logarithm of lengths, as found in passages of manuals in many languages
MOST_CHARACTERS = 16  # of texts.txt that any cut takes for a token, so that trying does not count all of it
FILLERS = (" a", "a")
Count = Callable[[str], int]


def read_workload(file: str) -> dict[str, list[str]]:
    """The texts of a JSON file {"queries": [...], "docs": [...], "long": [...]}, without prompts.

    Raises RefembedError where it is none.
    """
    try:
        found = json.loads(Path(file).read_bytes())
    except OSError as error:
        raise RefembedError("input-missing", f"{file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RefembedError("input-format", f"{file} is not JSON: {error}") from error
    for key in ("queries", "docs", "long"):
        texts = found.get(key) if isinstance(found, dict) else None
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise RefembedError("input-format", f"{file}: {key!r} must be a list of texts, at least one")
    return {"queries": found["queries"], "documents": found["docs"][: KINDS["documents"][1]], "long": found["long"][:1]}


def make_workload(
    given: Mapping[str, list[str]] | None, prompts: Mapping[str, str], context: int, count: Count
) -> dict[str, Any]:
    """Texts by kind behind the model's prompts, and under "tokens" how many each has, BOS and EOS counted.

    given     from read_workload; None: the built-in ones
    prompts   the checkpoint's own
    context   the model's longest text; what is longer is cut by whoever embeds it
    count     the number of tokens of a text
    """
    draw = random.Random(0)  # noqa: S311  nothing secret
    sources = cycle(long_texts(draw))
    work: dict[str, Any] = {}
    for kind, (task, number, mean) in KINDS.items():
        before = prompt_of(task, prompts)
        sizes = lengths(number, mean)
        draw.shuffle(sizes)
        made = (cut(before, next(sources), min(size, context), count) for size in sizes)
        work[kind] = [before + text for text in given[kind]] if given else list(made)
    return work | {"tokens": {kind: [min(count(text), context) for text in work[kind]] for kind in KINDS}}


def lengths(number: int, mean: int) -> list[int]:
    """Numbers of tokens, spread like a log-normal distribution's quantiles, of exactly this mean."""
    spread = [exp(SPREAD * NormalDist().inv_cdf((place + 0.5) / number)) for place in range(number)]
    scale = (mean - PROMPT_TOKENS) * number / sum(spread)
    sizes = [PROMPT_TOKENS + round(scale * size) for size in spread]
    sizes[number // 2] += mean * number - sum(sizes)  # what rounding took or gave
    return sizes


def long_texts(draw: random.Random) -> list[str]:
    """texts.txt from each paragraph on, and round to that paragraph again, in a random order."""
    paragraphs = TEXTS.read_text(encoding="utf-8").split("\n\n")
    found = ["\n\n".join(paragraphs[first:] + paragraphs[:first]) for first in range(len(paragraphs))]
    draw.shuffle(found)
    return found


def cut(before: str, text: str, tokens: int, count: Count) -> str:
    """`before` and as much of `text` as makes this many tokens; where no cut gives exactly these, filled up."""
    low, high = 0, min(len(text), MOST_CHARACTERS * tokens)
    while low < high:
        middle = (low + high + 1) // 2
        if count(before + text[:middle]) <= tokens:
            low = middle
        else:
            high = middle - 1
    found = before + text[:low]
    for filler in FILLERS:
        while count(found) < tokens and count(found + filler) == count(found) + 1:
            found += filler
    return found


def numbered(texts: Sequence[str], number: int) -> list[str]:
    """So many texts: these over and over, each with a number behind it."""
    return [f"{text} {place}" for place, text in zip(range(number), cycle(texts), strict=False)]


def about(tokens: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """How many texts of each kind there are, and of how many tokens."""
    return {
        kind: {"texts": len(sizes), "mean_tokens": sum(sizes) / len(sizes), "least": min(sizes), "most": max(sizes)}
        for kind, sizes in tokens.items()
    }
