"""Break it: a model with one known mistake in it. Which?

  python spec/lessons/break_it.py 3                       what puzzle 3's model does to a dozen texts
  python spec/lessons/break_it.py 3 --stages              where inside it the numbers leave the truth
  python spec/lessons/break_it.py 3 --text "a b c"        what it does to a text of your own (also --task, --title)
  python spec/lessons/break_it.py 3 --answer ID           your answer, and why it is right or cannot be

Exit status: 0 shown, or the answer is right; 1 the answer is wrong; 2 wrong use.
"""

import argparse
import random
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import given
import numpy as np

from refembed.checkpoint import open_checkpoint
from refembed.conformance.defects import DEFECTS
from refembed.conformance.mutation import RIGHT, Model, Mutation, Text
from refembed.reference import collector, encode_tokens, l2_normalize
from refembed.tokenizer import Tokenizer

Array = np.ndarray
KNOWN = {defect.id: defect for defect in DEFECTS}
# Puzzles come in two halves: the first can be told from cosines, the second wants a look inside. What stands in which
# place within its half is shuffled, so that no number gives an answer away.
FROM_COSINES = (
    "dense-missing",
    "eos-missing",
    "lower-cased",
    "pads-attended",
    "prompt-missing",
    "rotary-missing",
    "truncated-not-normalised",
    "window-not-halved",
)
FROM_STAGES = (
    "causal",
    "norm-offset-missing",
    "pads-pooled",
    "pool-last",
    "pool-without-prompt",
    "rotary-bases-swapped",
    "window-one-short",
)
CANDIDATES = tuple(sorted(FROM_COSINES + FROM_STAGES))


class Reason(NamedTuple):
    """Why an answer is right: what points at it, and the mistakes it is easily taken for."""

    words: str
    neighbours: tuple[str, ...]


REASONS = {
    "causal": Reason(
        "Look at the 8 tokens inside: in layer 0 every token's weights are wrong but the last one's, which has "
        "nothing after it to miss. Even the empty text is wrong, since BOS cannot see EOS, so it is no window; and "
        "as far as the rotated query all is right, so it is neither a norm nor a position.",
        ("pool-last", "norm-offset-missing"),
    ),
    "dense-missing": Reason(
        "Every text is wrong, and cosines lie about zero: these are not worse vectors but vectors of another space. "
        "Inside, everything is right as far as `pooled`. What follows is the dense head.",
        ("pool-last", "norm-offset-missing"),
    ),
    "eos-missing": Reason(
        "Every text has one token too few, with a prompt or without, the empty one too: it is a token that every "
        "text has. The longer the text, the less one token matters in the mean.",
        ("prompt-missing", "pool-last"),
    ),
    "lower-cased": Reason(
        "Only the text with capitals is wrong. Arithmetic cannot know of capitals: the mistake lies before the ids.",
        ("prompt-missing",),
    ),
    "norm-offset-missing": Reason(
        "Inside, `embedded` is right, and everything is wrong from the first norm on, at every token. Cosines about "
        "zero look like another space, as with a missing head; but then all would be right as far as `pooled`.",
        ("causal", "dense-missing"),
    ),
    "pads-attended": Reason(
        "The same word is right alone and wrong in a batch, so it is padding. Inside, what goes wrong first are the "
        "weights in layer 0: pads take a share of attention. If they counted in the mean alone, all would be right "
        "as far as the last norm.",
        ("pads-pooled",),
    ),
    "pads-pooled": Reason(
        "The same word is right alone and wrong in a batch, so it is padding. Inside, every token's vector is right "
        "to the last norm: attention does not see the pads. `pooled` is wrong, so the mean counts them.",
        ("pads-attended",),
    ),
    "pool-last": Reason(
        "Inside, all is right to the last norm, at every token, and `pooled` is wrong: the mean. A mean that leaves "
        "out a part is nearly right for long texts; this one is far off.",
        ("pool-without-prompt", "dense-missing"),
    ),
    "pool-without-prompt": Reason(
        "Inside, all is right to the last norm, at every token, and `pooled` is wrong: the mean. Without a prompt "
        "all but the shortest texts are nearly right, so little is left out: BOS, which goes with the prompt. With "
        "a prompt they are further off than others of their length. The ids are right, so the prompt is there.",
        ("prompt-missing", "pool-last"),
    ),
    "prompt-missing": Reason(
        "Texts without a prompt are right. With one they are wrong, and their tokens are fewer by the prompt's. A "
        "mean that leaves the prompt out would leave the ids alone.",
        ("pool-without-prompt", "eos-missing"),
    ),
    "rotary-bases-swapped": Reason(
        "Wrong at 8 tokens already, so it is no window; and hardly at 2 or 3: the error grows with the distance "
        "between tokens. Inside, the rotated query is the first to be wrong, at every token but token 0, whose "
        "angle is 0. It is turned, but by other angles: if nothing were turned, the order of words would not "
        "matter.",
        ("rotary-missing", "window-not-halved"),
    ),
    "rotary-missing": Reason(
        "The same words in another order have the same vector: within a window nothing is left to tell order by. "
        "Inside, the rotated query is the first to be wrong, at every token but token 0, which is not turned "
        "anyway.",
        ("rotary-bases-swapped", "causal"),
    ),
    "truncated-not-normalised": Reason(
        "Every cosine is right, since a cosine does not see length. The length of the 16 kept numbers is not 1.",
        ("dense-missing",),
    ),
    "window-not-halved": Reason(
        "All is right to 9 tokens, where a reach of 8 still sees every pair, and wrong from 10. A reach of one less "
        "would show at 9.",
        ("window-one-short", "rotary-bases-swapped"),
    ),
    "window-one-short": Reason(
        "All is right to 8 tokens and wrong from 9, the first length with a pair 8 apart: it should be seen and is "
        "not. A window too wide would show from 10.",
        ("window-not-halved", "rotary-bases-swapped"),
    ),
}


class Case(NamedTuple):
    """What one line of the table shows."""

    words: str
    texts: tuple[Text, ...]  # the first is looked at; the others stand in its batch
    dimensions: int | None = None
    other: Text | None = None  # compare the first with this one, in place of with the truth


LONG = "the red planet and the blue planet are near to the sun and the moon of it"
ORDERED, DISORDERED = Text("is by at to or can"), Text("is or to can by at")
CASES = (
    Case("the empty text", (Text(""),)),
    Case("a word", (Text("red"),)),
    Case("6 words", (ORDERED,)),
    Case("7 words", (Text("for this not in this use"),)),
    Case("7 other words", (Text("that from can is from all"),)),
    Case("17 words", (Text(LONG),)),
    Case("a word, beside 17 words in a batch", (Text("red"), Text(LONG))),
    Case("capitals", (Text("NASA and ESA"),)),
    Case("a query", (Text("which planet is red", "query"),)),
    Case("a document", (Text("mars is red", "document"),)),
    Case("a document with a title", (Text("it is red", "document", "mars"),)),
    Case("the same, 16 numbers kept", (Text("it is red", "document", "mars"),), 16),
    Case("6 words against themselves in another order", (ORDERED,), None, DISORDERED),
)
STAGES = (
    "embedded",
    "layer.00.attention.norm",
    "layer.00.attention.query_rotated",
    "layer.00.attention.weights",
    "layer.00.attention.context",
    "layer.00.out",
    "layer.01.out",
    "layer.02.attention.query_rotated",
    "layer.02.out",
    "layer.05.out",
    "final_norm",
    "pooled",
    "embedding",
)
# Looked at inside, each beside a longer text: one that a window holds, and one that it does not.
INSIDE = (
    Case("8 tokens, beside 29 in a batch", (ORDERED, Text(LONG))),
    Case("21 tokens, beside 29 in a batch", (Text("all of this is for you and not for us", "query"), Text(LONG))),
)
ERROR = 1e-9  # in float64: anything above is a mistake, not rounding


def answer_of(puzzle: int) -> str:
    """The defect in this puzzle's model."""
    shuffled = [random.Random(7).sample(half, len(half)) for half in (FROM_COSINES, FROM_STAGES)]  # noqa: S311
    return [*shuffled[0], *shuffled[1]][puzzle - 1]


@cache
def twin() -> Model:
    """The twin in float64."""
    checkpoint = open_checkpoint(given.GOLDEN / "twin" / "checkpoint")
    tokenizer = Tokenizer(checkpoint.folder / "tokenizer.json", checkpoint.config)
    return Model(checkpoint.config, checkpoint.parameters(np.float64), tokenizer, checkpoint.prompts)


# Evidence from outside ------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """What a model gives for a case: tokens of the text, a cosine, and the vector's length."""

    tokens: int
    cosine: float
    length: float


def row_of(case: Case, mutation: Mutation) -> Row:
    """The first text's vector against the right one; or against the other text's, by the same model."""
    model = twin()
    found = model.embed(case.texts, case.dimensions, mutation)[0]  # (dimensions)
    if case.other:
        goal = model.embed([case.other], case.dimensions, mutation)[0]
    else:
        goal = model.embed(case.texts, case.dimensions)[0]
    tokens = len(model.tokens(model.prompted(case.texts[0], mutation), mutation))
    return Row(tokens, float(l2_normalize(found) @ l2_normalize(goal)), float(np.linalg.norm(found)))


@cache
def rows(defect: str) -> tuple[Row, ...]:
    """Every case's row, of a model with this defect."""
    return tuple(row_of(case, KNOWN[defect].mutation) for case in CASES)


@cache
def right_rows() -> tuple[Row, ...]:
    return tuple(row_of(case, RIGHT) for case in CASES)


def table(found: tuple[Row, ...]) -> str:
    """The cases, and this model's tokens, cosine and length; what they should be where that is not plain."""
    lines = [f"  {'':46}{'tokens':>8}{'cosine':>11}{'length':>9}"]
    for case, row, right in zip(CASES, found, right_rows(), strict=True):
        should = [f"{right.tokens} tokens"] if row.tokens != right.tokens else []
        should += [f"cosine {right.cosine:.6f}"] if case.other else []
        note = f"   should be {', '.join(should)}" if should else ""
        lines.append(f"  {case.words:46}{row.tokens:8}{row.cosine:11.6f}{row.length:9.4f}{note}")
    return "\n".join(lines)


def unlike(one: tuple[Row, ...], other: tuple[Row, ...], most: int = 2) -> list[str]:
    """The cases that tell two models apart best, in words."""

    def apart(index: int) -> float:
        tokens, cosine, length = np.abs(np.subtract(one[index], other[index]))
        return float(cosine + length + tokens)

    def said(row: Row) -> str:
        return f"{row.tokens} tokens, cosine {row.cosine:.6f}, length {row.length:.4f}"

    chosen = sorted((index for index in range(len(CASES)) if apart(index) > 1e-5), key=apart, reverse=True)[:most]
    return [f"{CASES[index].words}: {said(one[index])} here; {said(other[index])} there" for index in sorted(chosen)]


# Evidence from inside -------------------------------------------------------------------------------------------------


def inside(mutation: Mutation, case: Case) -> dict[str, Array]:
    """Tokens and stages of a case's first text in its batch, what belongs to pads cut off."""
    model = twin()
    batch = [model.tokens(model.prompted(text, mutation), mutation) for text in case.texts]
    prompt = len(model.tokens(model.prompted(replace(case.texts[0], text="")))) - 1
    kept: dict[str, Array] = {}

    def encode(ids: Array, parameters: Any, config: Any) -> Array:
        return encode_tokens(ids, parameters, config, collector(kept))

    def head(pooled: Array, parameters: Any) -> Array:
        kept["pooled"] = pooled
        return right_head(pooled, parameters)

    right_head = mutation.functions.get("dense_head", given_head)
    watched = replace(mutation, functions={**mutation.functions, "encode_tokens": encode, "dense_head": head})
    raw = model.raw(batch[0], [len(ids) for ids in batch], prompt, watched)
    tokens = len(batch[0])
    cut = {
        name: tensor[:, :tokens, :tokens] if name.endswith("weights") else tensor[:, :tokens] if tensor.ndim == 3
        else tensor[:tokens] if tensor.ndim == 2 else tensor
        for name, tensor in kept.items()
    }  # fmt: skip
    return cut | {"tokens": batch[0], "embedding": l2_normalize(raw)}


def given_head(pooled: Array, parameters: Any) -> Array:
    """The right dense head."""
    return pooled @ parameters["2_Dense.linear.weight"].T @ parameters["3_Dense.linear.weight"].T


def wrong_tokens(found: Array, right: Array) -> list[int]:
    """Which tokens' numbers of a stage are wrong; the tokens are its rows, below any heads."""
    rows = np.abs(found - right).max(axis=-1)  # (tokens) or (heads, tokens)
    rows = rows.max(axis=0) if rows.ndim == 2 else rows  # (tokens)
    return [int(index) for index in np.flatnonzero(~(rows <= ERROR * np.abs(right).max()))]


def stages(found: Mapping[str, Array], right: Mapping[str, Array]) -> str:
    """Stage by stage, how far off and at which tokens."""
    if not np.array_equal(found["tokens"], right["tokens"]):
        told = [f"  ids       {' '.join(map(str, ids['tokens']))}" for ids in (found, right)]
        return "\n".join(["  the ids are wrong already:", told[0], told[1].replace("ids  ", "right")])
    lines = [f"  {'stage':36}{'off by, of the largest':>24}   at tokens, of 0 to {len(right['tokens']) - 1}"]
    for name in STAGES:
        if found[name].shape != right[name].shape:
            lines.append(f"  {name:36}{'another shape':>24}")
            continue
        off = np.abs(found[name] - right[name]).max() / np.abs(right[name]).max()
        where = spans(wrong_tokens(found[name], right[name])) if found[name].ndim > 1 and off > ERROR else ""
        lines.append(f"  {name:36}{'right' if off <= ERROR else f'{off:.3g}':>24}   {where}".rstrip())
    return "\n".join(lines)


def spans(places: list[int]) -> str:
    """[0, 1, 2, 5] as 0-2, 5."""
    parts: list[list[int]] = []
    for place in places:
        if parts and place == parts[-1][-1] + 1:
            parts[-1].append(place)
        else:
            parts.append([place])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


# The command ----------------------------------------------------------------------------------------------------------


def judged(puzzle: int, answer: str) -> str:
    """What is said of an answer."""
    truth = answer_of(puzzle)
    found = rows(truth)
    if answer != truth:
        lines = [f"No, this is not {answer} ({KNOWN[answer].title}). Compare it there:"]
        lines += [f"  {line}" for line in unlike(found, rows(answer))]
        return "\n".join([*lines, "Try --stages, which shows where inside the numbers leave the truth."])
    reason, defect = REASONS[truth], KNOWN[truth]
    lines = [f"Right: {truth}. {defect.title[0].upper()}{defect.title[1:]}.", *textwrap.wrap(reason.words, 100)]
    for other in reason.neighbours:
        lines += [f"Not {other}:", *(f"  {line}" for line in unlike(found, rows(other), 1))]
    seen = "no port that we know of" if defect.reported == "-" else defect.reported
    lines += [f"Seen in: {seen}.", f"What is right: spec/{defect.chapter}; the mistake: spec/defects.md#{truth}"]
    return "\n".join(lines)


def shown(puzzle: int) -> str:
    """The puzzle: what its model does, and what may be wrong with it."""
    width = max(map(len, CANDIDATES)) + 2
    return "\n".join(
        [
            f"Puzzle {puzzle}. The cosine of this model's vector with the right one, and its length. The window of",
            "this small model reaches 8 tokens each way. BOS and EOS are tokens. Only queries and documents have",
            "a prompt.",
            "",
            table(rows(answer_of(puzzle))),
            "",
            "Which of these is it? (lengths as in the released model, whose window reaches 256)",
            *(f"  {id:{width}}{KNOWN[id].title}" for id in CANDIDATES),
        ]
    )


def puzzle_number(word: str) -> int:
    if word not in map(str, range(1, len(CANDIDATES) + 1)):
        raise argparse.ArgumentTypeError(f"there is no puzzle {word!r}; there are 1 to {len(CANDIDATES)}")
    return int(word)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("puzzle", type=puzzle_number, help=f"1 to {len(CANDIDATES)}")
    parser.add_argument("--answer", choices=CANDIDATES, metavar="ID", help="which mistake it is")
    parser.add_argument("--stages", action="store_true", help="show where inside the numbers leave the truth")
    parser.add_argument("--text", help="try a text of your own")
    parser.add_argument("--task", choices=list(twin().prompts), metavar="TASK", help="the text's task, like query")
    parser.add_argument("--title", help="the text's title, of a document")
    asked = parser.parse_args(arguments)
    mutation = KNOWN[answer_of(asked.puzzle)].mutation
    if asked.title is not None and asked.task != "document":
        parser.error("--title goes with --task document")
    if asked.answer:
        print(judged(asked.puzzle, asked.answer))
        return 0 if asked.answer == answer_of(asked.puzzle) else 1
    if asked.stages:
        for case in INSIDE:
            print(f"{case.words}\n\n{stages(inside(mutation, case), inside(RIGHT, case))}\n")
    elif asked.text is not None:
        row = row_of(Case("", (Text(asked.text, asked.task, asked.title),)), mutation)
        print(f"{row.tokens} tokens, cosine {row.cosine:.6f}, length {row.length:.4f}")
    else:
        print(shown(asked.puzzle))
    return 0


if __name__ == "__main__":
    sys.exit(main())
