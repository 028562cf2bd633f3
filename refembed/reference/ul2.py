"""UL2: from a text to what the encoder reads and what the decoder must write. Seven ways to remove spans of it.

Source: Tay et al. 2023, whose code removes spans by T5's rule (Raffel et al. 2020). Chance is in draw_cuts alone; all
else is a function of the text's ids and the numbers drawn, so that a port can be held to the same corruption.
"""

from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple

import numpy as np

from .config import Config
from .trace import Array

# By name, since their ids are the tokenizer's: in the released one they are not even consecutive.
MODES = {"R": "<unused0>", "S": "<unused1>", "X": "<unused2>"}
SENTINELS = tuple(f"<unused{number}>" for number in range(3, 515))  # a text of 2,045 tokens needs 341 of them


class Denoiser(NamedTuple):
    """One way to corrupt a text."""

    mode: str  # R regular, X extreme, S sequential: which token leads the encoder's input
    mean_span: float  # tokens; infinite for one span, which then is the end of the text
    rate: float  # share of the tokens that is removed


DENOISERS = {
    "r3-15": Denoiser("R", 3, 0.15),
    "r8-15": Denoiser("R", 8, 0.15),
    "x3-50": Denoiser("X", 3, 0.5),
    "x8-50": Denoiser("X", 8, 0.5),
    "x64-15": Denoiser("X", 64, 0.15),
    "x64-50": Denoiser("X", 64, 0.5),
    "s-25": Denoiser("S", np.inf, 0.25),
}


class Cuts(NamedTuple):
    """The numbers drawn for one text: where its kept tokens, side by side, are cut, and where its removed ones."""

    kept: Array  # (n)
    removed: Array  # (n)


class Corrupted(NamedTuple):
    """One example of the denoising task."""

    inputs: Array  # (source)
    targets: Array  # (target)


def pieces(ids: Array, config: Config) -> list[Array]:
    """A text cut so that each piece fits the context however it is corrupted; a last piece of one token is dropped.

    ids      (tokens,)  without BOS and EOS
    returns  texts arrays (tokens_i,)

    Source: DEN-7. BOS, mode and EOS come to it; a sentinel never stands for fewer tokens than itself.
    Witness: tests/reference/test_reference_ul2.py test_a_text_that_does_not_fit_the_context_becomes_several.
    """
    length = config.context - 3
    return [piece for piece in np.split(ids, range(length, len(ids), length)) if len(piece) > 1]


def choose(number: float, rates: Mapping[str, float]) -> str:
    """The denoiser of one text, each as often as its rate says.

    number   drawn evenly from 0 to 1, 1 left out
    rates    denoiser's name -> how often, in any unit

    Source: DEN-1.
    Witness: tests/reference/test_reference_ul2.py test_denoisers_are_chosen_by_their_rates.
    """
    shares = np.cumsum(list(rates.values()))  # (count)
    return list(rates)[np.searchsorted(shares, number * shares[-1], side="right")]


def span_counts(tokens: int, denoiser: Denoiser) -> tuple[int, int]:
    """How many tokens are removed, and in how many spans: numbers that the length decides, not chance.

    tokens   of the text without BOS and EOS, at least 2: one is kept and one removed

    Source: DEN-2. Halves are rounded to even. Trap: the product in float32 rounds some halves the other way.
    Witness: golden/ul2 s-25.
    """
    if tokens < 2:
        raise ValueError(f"a text of {tokens} tokens has nothing to keep or nothing to remove")
    removed = max(round(tokens * denoiser.rate), 1)
    return removed, max(round(removed / denoiser.mean_span), 1)


def draw_cuts(tokens: int, denoiser: Denoiser, generator: np.random.Generator) -> Cuts:
    """All that is random: one less than the spans of the places between kept tokens, and between removed ones.

    returns  kept and removed (n,)  each rising; k stands between tokens k - 1 and k

    Source: DEN-3. Every way to cut is as likely, as in T5.
    Witness: tests/reference/test_reference_ul2.py test_every_way_to_cut_is_as_likely.
    """
    removed, count = span_counts(tokens, denoiser)
    kept = generator.choice(tokens - removed - 1, count - 1, replace=False)  # (n)
    gone = generator.choice(removed - 1, count - 1, replace=False)  # (n)
    return Cuts(np.sort(kept) + 1, np.sort(gone) + 1)


def piece_lengths(total: int, cuts: Array) -> Array:
    """The lengths of a row's pieces.

    total    tokens in the row
    cuts     (n,)     rising, from 1 to total - 1
    returns  (count,)  one more than the cuts

    Source: DEN-3.
    Witness: golden/ul2 r3-15.
    """
    return np.diff(cuts, prepend=0, append=total)  # (count)


def spans(tokens: int, denoiser: Denoiser, cuts: Cuts) -> Array:
    """Where the removed spans lie: a kept piece, a span, a kept piece, a span, ..., to the end of the text.

    cuts     kept and removed (n,)
    returns  (count, 2)  start and end of each, the end left out

    Source: DEN-3. Trap: a text begins with a kept token and ends with a removed one, always: T5's rule, not an error.
    Witness: golden/ul2 x3-50.
    """
    removed, _ = span_counts(tokens, denoiser)
    kept = piece_lengths(tokens - removed, cuts.kept)  # (count)
    gone = piece_lengths(removed, cuts.removed)  # (count)
    return np.cumsum(np.stack([kept, gone], axis=1)).reshape(-1, 2)  # (count, 2)


def corrupt(ids: Array, spans: Array, mode: int, sentinels: Array, config: Config) -> Corrupted:
    """Each span gives way to a sentinel of its own; the target is every sentinel followed by what it stands for.

    ids        (tokens,)   without BOS and EOS
    spans      (count, 2)  rising, apart; none leaves the text whole
    mode       id of the denoiser's mode token
    sentinels  (n,)        ids in the order of SENTINELS; ValueError where there are fewer than spans
    returns    inputs (source,), targets (target,)

    Source: DEN-4, DEN-5, DEN-6. Trap: a sentinel closes the target in T5's paper; here, as in its code, EOS alone does.
    Witness: golden/ul2 x3-50.
    """
    parts = np.split(ids, spans.reshape(-1))  # kept, removed, kept, ..., kept: the last may be empty
    marks = sentinels[: len(spans), None]  # (count, 1)
    after = chain.from_iterable(zip(marks, parts[2::2], strict=True))
    removed = chain.from_iterable(zip(marks, parts[1::2], strict=True))
    inputs = np.concatenate([[config.bos, mode], parts[0], *after, [config.eos]])  # (source)
    targets = np.concatenate([*removed, [config.eos]])  # (target)
    return Corrupted(inputs, targets)


def denoise(
    ids: Array, name: str, modes: Mapping[str, int], sentinels: Array, config: Config, generator: np.random.Generator
) -> Corrupted:
    """One example: spans drawn for the denoiser of this name, and removed.

    ids        (tokens,)  at least 2, without BOS and EOS
    modes      mode -> id of its token
    sentinels  (n,)       ids in the order of SENTINELS
    returns    inputs (source,), targets (target,)

    Source: DEN-1.
    Witness: tests/reference/test_reference_ul2.py test_input_and_target_together_are_the_text.
    """
    denoiser = DENOISERS[name]
    found = spans(len(ids), denoiser, draw_cuts(len(ids), denoiser, generator))  # (count, 2)
    return corrupt(ids, found, modes[denoiser.mode], sentinels, config)
