"""The texts of the golden cases, built to discriminate: each shows a family of mistakes that the others hide.

Lengths are counted in tokens with BOS and EOS and are tied to the model's own reach and context, so that one list
serves the twin (reach 8, context 64) and the real model (reach 256, context 2,048).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from refembed.conformance.mutation import Model, Text

# ordinary words, each one token with its space in both tokenizers; a generator checks the count it needs
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "for",
    "that",
    "with",
    "as",
    "on",
    "be",
    "by",
    "this",
    "from",
    "or",
    "are",
    "it",
    "an",
    "at",
    "not",
    "can",
    "use",
    "all",
]
FIRST_WORD, LAST_WORD = "Zebra", " quartz"


@dataclass(frozen=True)
class Input:
    """One golden case before it has values.

    id           a slug, never reused
    texts        what is sent to the port in one request
    why          what it shows
    dimensions   None for all
    """

    id: str
    texts: tuple[Text, ...]
    why: str
    dimensions: int | None = None


def of_length(
    model: Model, tokens: int, first: str = "", last: str = "", task: str | None = None, salt: int = 0
) -> Text:
    """A text of exactly this many tokens with its prompt, BOS and EOS, uncut."""

    def build(count: int, tail: str) -> Text:
        words = [WORDS[(salt + 7 * index + index * index // 5) % len(WORDS)] for index in range(count)]
        body = " ".join(words)
        return Text((first + (" " if first and body else "") + body + tail + last), task)

    def length(text: Text) -> int:
        pieces = model.tokenizer.library.encode(model.prompted(text), add_special_tokens=False)
        return len(pieces.ids) + 2

    count = max(0, tokens - length(build(0, "")))
    for tail in ("", "!", "?!", ".!?"):
        for words in range(max(0, count - 4), count + 3):
            text = build(words, tail)
            if length(text) == tokens:
                return text
    raise ValueError(f"no text of {tokens} tokens with {first!r} and {last!r}")


def length_inputs(model: Model) -> Iterator[Input]:
    """Every length at which something changes."""
    reach, context = model.config.reach, model.config.context
    ladder = sorted({reach // 8 + 2, reach // 4 + 2, reach // 2 + 2, max(3, reach * 5 // 64), max(4, reach // 13)})
    named = {
        "two": 2, "three": 3,
        "reach-less-one": reach - 1, "reach": reach, "reach-plus-one": reach + 1, "reach-plus-two": reach + 2,
        "reach-plus-three": reach + 3, "between-windows": reach * 5 // 4,
        "window-less-one": 2 * reach - 1, "window": 2 * reach, "window-plus-one": 2 * reach + 1,
        "beyond-window": reach * 75 // 32, "half-context-plus-one": context // 2 + 1, "long": reach * 275 // 64,
        "context-less-one": context - 1, "context": context, "context-plus-one": context + 1,
        "beyond-context": context + context // 16,
    }  # fmt: skip
    named |= {f"ladder-{index}": tokens for index, tokens in enumerate(ladder) if tokens not in named.values()}
    for salt, (name, tokens) in enumerate(sorted(named.items(), key=lambda item: item[1])):
        yield Input(f"length-{name}", (of_length(model, tokens, salt=salt),), f"{tokens} tokens")
    for name, tokens in (
        ("reach-plus-one", reach + 1),
        ("beyond-window", reach * 75 // 32),
        ("long", reach * 275 // 64),
    ):
        yield Input(
            f"distinct-first-{name}",
            (of_length(model, tokens, first=FIRST_WORD),),
            "a rare word at the start only: who sees far back",
        )
        yield Input(
            f"distinct-last-{name}",
            (of_length(model, tokens, last=LAST_WORD),),
            "a rare word at the end only: who sees far ahead",
        )


def batch_inputs(model: Model) -> Iterator[Input]:
    """Texts that share a request."""
    reach = model.config.reach
    long = [of_length(model, reach * 75 // 32, salt=salt) for salt in (3, 11)]
    yield Input(
        "batch-equal-lengths", tuple(long), "two texts of one length beyond the window: no padding, and still a window"
    )
    yield Input(
        "batch-wide-gap", (of_length(model, max(4, reach * 5 // 64)), long[0]), "a padding gap wider than the window"
    )
    yield Input(
        "batch-small-gap",
        (Text("Mars is red."), Text("Mars, known for its reddish appearance, is a planet.")),
        "a little padding",
    )
    yield Input("batch-twins", (Text("the same text"), Text("the same text")), "duplicates")


PROMPTED = {
    "query": "Which planet is known as the Red Planet?",
    "document": "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "question answering": "Who wrote Hamlet?",
    "fact checking": "The Moon is made of cheese.",
    "classification": "I still have not received my new card.",
    "clustering": "Kernel panic after the update to version 6.1",
    "sentence similarity": "A man is playing a guitar.",
    "code retrieval": "sort a list of tuples by the second element",
    "summarization": "The meeting was moved from Monday to Wednesday because the room was taken.",
}
WRITTEN = {
    "spaces-leading": "   three spaces first",
    "spaces-inside": "two  spaces   three    four",
    "spaces-trailing": "two spaces last  ",
    "tabs": "tab\tand\t\ttwo tabs",
    "newlines": "first line\nsecond line\n\n\nafter a gap",
    "newline-last": "ends in a line break\n",
    "empty": "",
    "capitals": "NASA launched the JWST in December 2021",
    "digits": "3.14159 and 1,000,000 and 0x7F",
    "code": "def f(x):\n    return {'a': [x ** 2 for x in range(10)]}\n",
    "german": "Straße, Grüße und Äpfel",
    "chinese": "火星是太阳系中的一颗行星。",
    "japanese": "火星は赤い惑星と呼ばれています。",
    "arabic": "المريخ هو الكوكب الأحمر",
    "hindi": "मंगल ग्रह को लाल ग्रह कहा जाता है",
    "emoji": "red planet 🔴🪐 family 👨‍👩‍👧‍👦 flag 🇫🇷",
    "combining": "cafe\u0301 n\u0303 versus café ñ",
    "full-width": "ｆｕｌｌ ｗｉｄｔｈ ① ﬁne",
    "byte-fallback": "rare \U0001f9ff\U00013080\u2e3a bytes",
    "special-eos": "before <eos> after",
    "special-pad": "before <pad> after",
    "special-bos": "<bos> first",
    "markup": "<b>bold</b> and <unused0> and [multimodal]",
    "url": "https://ai.google.dev/gemma/terms?x=1&y=2#top",
}
UNRELATED = ("The capital of France is Paris.", "Bananas are rich in potassium.", "git rebase --onto main topic")


def text_inputs(model: Model) -> Iterator[Input]:
    """Prompts, titles, white space, scripts, special tokens spelled in the text, unrelated texts, dimensions."""
    for task, text in PROMPTED.items():
        yield Input(f"prompt-{task.replace(' ', '-')}", (Text(text, task),), f"the {task} prompt")
    yield Input("prompt-titled", (Text("It looks red.", "document", "Mars"),), "a document with a title")
    yield Input("prompt-none", (Text("no prompt at all"),), "no prompt")
    for name, text in WRITTEN.items():
        yield Input(f"text-{name}", (Text(text),), "tokenisation")
    for index, text in enumerate(UNRELATED):
        yield Input(f"unrelated-{index}", (Text(text, "sentence similarity"),), "spread: unrelated texts lie apart")
    full = model.config.dimensions
    for dimensions in (full * 2 // 3, full // 2, full // 3, full // 6):
        yield Input(
            f"dimensions-{dimensions}",
            (Text("Shortened vectors are unit length too.", "document"),),
            "Matryoshka",
            dimensions,
        )


def inputs(model: Model) -> list[Input]:
    """Every case of a model, in order."""
    return [*text_inputs(model), *length_inputs(model), *batch_inputs(model)]
