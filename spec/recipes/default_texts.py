"""What the built-in model learns from: short texts of the allowed data, everyday sentences made here of their words,
and texts recombined with words that its teacher knows.

Every set is a file of rows {"query", "positive"}. In the sets whose name begins with `pair` the one answers the other;
in the others they are two texts by chance, and only the teacher's vector of each is learned.
"""

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

SEED = 20_250_924
SENTENCE = re.compile(r"(?<=[.!?;:])\s+")
LONGER = re.compile(r"\b[a-z]{3,}\b")
EMPTY = 200  # so many of the commonest words mean little by themselves
LEARNED = {  # file -> how many of its pairs, drawn by chance, are learned as pairs, and words of an answer
    "afriqa": (4_000, 120),
    "wordnet_sense": (25_000, 40),
    "wordnet_gloss": (25_000, 40),
    "debian_synopsis_en": (12_000, 80),
    "doc_sections_en": (4_000, 120),
    "libreoffice_help": (3_000, 120),
    "foldoc": (8_000, 60),
    "gcide": (15_000, 60),
    "man_search": (4_000, 80),
    "tldr_page": (7_000, 60),
}


# -------------------------------------------------------------------------------------------------- everyday sentences
def listed(words: str) -> list[str]:
    """What stands between strokes."""
    return words.replace("\n", "").split("|")


WHO = listed("""a man|a woman|a boy|a girl|two men|two women|the children|a young woman|an old man|someone|people|
a group of people|a crowd|my brother|our neighbours|the police|a doctor|a teacher|a student|a worker|the team|a couple|
a dog|a cat|two dogs|a horse|a bird|the animal|she|he|they|we""")
WHERE = listed("""in the park|on a beach|in the kitchen|on the street|in a field|in the snow|near a river|at night|
on the stage|in front of a house|under a tree|in the city|at a table|at school|on the road|in the morning|outside|
at home|in the garden|at work||||""")
DID = listed("""{who} is {doing} {a} {thing} {where}|{who} was {doing} {the} {thing} {where}|{who} is {doing} {where}|
{who} and {others} are {doing} {where}|{who} is not {doing} {a} {thing}|{who} will {do} {the} {thing} {where}|
{a} {thing} is on {the} {other}|{a} {thing} and {a} {other} {where}|{who} wants to {do} {the} {thing}""")
ASKED = listed("""how do I {do} {my} {thing}|where is {my} {thing}|I lost {my} {thing}, what should I do|
what is {a} {thing}|how long does {the} {thing} take|why is {my} {thing} not {doing}|is {the} {thing} safe|
there is a problem with {my} {thing}|how much is {a} {thing}|I can't find {the} {thing}|can you explain {the} {thing}|
who can help me with {my} {thing}|where can I buy {a} {thing}|{my} {thing} is broken|when does {the} {thing} {do}|
I want to {do} {a} {thing}|please {do} {my} {thing}|can I {do} {my} {thing} without {a} {other}|
how old is {the} {thing}|what is the difference between {a} {thing} and {a} {other}|
do I need {a} {thing} for {the} {other}|which {thing} is best|
should I {do} {the} {thing} or {the} {other}|why did {who} {do} {the} {thing}|
how many {thing}s are there|tell me about {the} {thing}|I would like to {do} {a} {thing} {where}""")
SAID = listed("""I think that {}|I don't think that {}|as far as I know, {}|in my experience {}|I have heard that {}|
the short answer is that {}|my guess is that {}|I would say that {}|you should know that {}|it depends, but {}|
I had the same problem: {}|does anyone know whether {}|I wonder why {}|is it true that {}|I am not sure if {}|
there is no reason why {}|you don't need to worry, {}|somebody told me that {}|the problem is that {}|
it seems to me that {}|for example, {}|I agree that {}|it is a bad idea, because {}|you could try this: {}|
{}, officials said|{}, police said on Tuesday|{}, the company said in a statement|{}, according to a report|
on Monday, {}|last week {}|two years ago {}|reports say that {}|a court has ruled that {}|the government says that {}|
experts warn that {}|{}, he told reporters|{}, she said in an interview|study finds that {}|update: {}|
{} for the first time since the war|{}, a spokesman said on Friday|{} because of the weather|
{} after three days of talks|{}, and more are expected|{} in the first quarter""")
MINE = ["my", "my", "your", "the", "this"]


def everyday(nouns: list[str], verbs: list[str], examples: list[str], number: int, seed: int = SEED) -> Iterator[str]:
    """What people do, ask and report: kinds of text that the data has none of. A third each."""
    chance = np.random.default_rng(seed)

    def one_of(words: list[str]) -> str:
        return words[chance.integers(len(words))]

    for turn in range(number):
        if turn % 3 == 2:
            example = one_of(examples)
            yield sentence(one_of(SAID).format(example[0].lower() + example[1:].rstrip(" .;:")))
            continue
        do, asked = one_of(verbs), turn % 3 == 1
        words = {"who": one_of(WHO), "others": one_of(WHO), "do": do, "doing": doing(do), "the": "the", "a": "a"}
        words |= {"thing": one_of(nouns), "other": one_of(nouns), "my": one_of(MINE), "where": one_of(WHERE)}
        text = re.sub(r"\ba (?=[aeiou])", "an ", one_of(ASKED if asked else DID).format(**words).strip())
        yield sentence(text + (one_of(["?", ""]) if asked else "."))


def doing(verb: str) -> str:
    """cut, cutting; ride, riding: as English spells most."""
    if re.fullmatch(r"[^aeiou]*[aeiou][bdgklmnprt]", verb):
        return verb + verb[-1] + "ing"
    return re.sub(r"(?<=[^eoy])e$", "", re.sub("ie$", "y", verb)) + "ing"


def recombined(texts: Sequence[str], words: Sequence[str], number: int, seed: int = SEED) -> Iterator[str]:
    """Texts whose small-lettered words of three letters and more, the emptiest aside, gave way to others by a chance of
    one in three. Each third text is nothing but other words.

    words   the commonest first, and drawn somewhat oftener; those of the data are a dictionary's, and names, days and
            "kids" are not among them
    """
    chance = np.random.default_rng(seed)
    weights = (np.arange(len(words)) + EMPTY) ** -0.5
    most = 12 * number  # lists have nine at most; a text of 40 words loses 13 on average, and most are shorter
    drawn = (words[index] for index in chance.choice(len(words), most, p=weights / weights.sum()))
    empty = {*words[:EMPTY]}

    def other(found: re.Match[str]) -> str:
        return found[0] if found[0] in empty or chance.random() > 1 / 3 else next(drawn)

    for turn in range(number):
        if turn % 3 == 2:
            yield " ".join(islice(drawn, int(chance.integers(2, 10))))
        else:
            yield LONGER.sub(other, texts[chance.integers(len(texts))])


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def common_words(gloss: list[dict[str, str]], texts: list[str], kind: str, least: int = 5) -> list[str]:
    """WordNet's single words of a kind, noun or verb, that these texts use at least so often: frequent ones more than
    once, as the square root of how often they are used.
    """
    counts = Counter(word for text in texts for word in LONGER.findall(text))
    words = {word for row in gloss if row["query"].endswith(f" ({kind})") for word in words_of(row)}
    used = sorted(word for word in words if LONGER.fullmatch(word) and counts[word] >= least)
    return [word for word in used for _ in range(int(counts[word] ** 0.5))]


# ------------------------------------------------------------------------------------------------------- the given data
def rows_of(data: Path, name: str, language: str = "en") -> Iterator[dict[str, str]]:
    with gzip.open(data / "train" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        yield from (row for row in map(json.loads, lines) if row["lang"] == language)


def paragraphs_of(data: Path, language: str = "en") -> Iterator[tuple[str, str]]:
    """Source and paragraph."""
    with gzip.open(data / "train" / "raw_text" / f"{language}.tsv.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            source, _, text = line.rstrip("\n").partition("\t")
            yield source, text


def cut(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def sentences(text: str, least: int = 4, most: int = 40) -> Iterator[str]:
    for part in SENTENCE.split(text):
        if least <= len(part.split()) <= most:
            yield part


def chosen(items: Iterable[str], number: int, seed: int = SEED) -> list[str]:
    """So many different ones, the same in every run."""
    different = list(dict.fromkeys(item for item in items if item.strip()))
    order = np.random.default_rng(seed).permutation(len(different))[:number]
    return [different[index] for index in order]


def words_of(gloss: dict[str, str]) -> list[str]:
    """The words that a gloss defines."""
    return gloss["query"].rpartition(" (")[0].split(", ")


def short_texts(data: Path, known: Sequence[str]) -> dict[str, list[str]]:
    """Texts whose vectors are learned one by one, by set. known: the teacher's words, the commonest first."""
    gloss = list(rows_of(data, "wordnet_gloss"))
    sense = list(rows_of(data, "wordnet_sense"))
    documentation = [
        *rows_of(data, "doc_sections_en"),
        *rows_of(data, "libreoffice_help"),
        *rows_of(data, "gnome_help"),
    ]
    manuals = [*rows_of(data, "man_search"), *rows_of(data, "tldr_page"), *rows_of(data, "nl2bash")]
    raw = list(paragraphs_of(data))
    examples = [row["query"].partition(": ")[2] for row in sense]
    used = [*examples, *(row["positive"] for row in gloss)]
    nouns, verbs = common_words(gloss, used, "noun"), common_words(gloss, used, "verb")
    wikipedia = chosen((one for row in rows_of(data, "afriqa") for one in sentences(row["positive"])), 20_000)
    scenes = chosen(everyday(nouns, verbs, examples, 66_000), 60_000)
    return {
        "everyday": scenes,
        "recombined": chosen(recombined([*scenes, *examples, *wikipedia], known, 95_000), 90_000),
        "examples": examples,
        "words": chosen((word for row in gloss for word in words_of(row)), 60_000),
        "glosses": chosen((cut(row["positive"], 40) for row in gloss), 60_000),
        "wikipedia": wikipedia,
        "dictionary": chosen((one for source, text in raw if source == "gcide" for one in sentences(text)), 30_000),
        "prose": chosen(
            (one for source, text in raw if source not in ("gcide", "wordnet-glosses") for one in sentences(text)),
            40_000,
        ),
        "titles": chosen((cut(row["query"], 40) for row in [*documentation, *manuals]), 20_000),
        "packages": chosen((row["query"] for row in rows_of(data, "debian_synopsis_en")), 15_000),
    }


def pairs(data: Path) -> dict[str, list[tuple[str, str]]]:
    """Texts and what answers them."""
    sets = {
        "pair-question": ["afriqa"],
        "pair-sense": ["wordnet_sense"],
        "pair-gloss": ["wordnet_gloss"],
        "pair-package": ["debian_synopsis_en"],
        "pair-section": ["doc_sections_en", "libreoffice_help"],
        "pair-word": ["foldoc", "gcide"],
        "pair-manual": ["man_search", "tldr_page"],
    }
    return {name: [pair for file in files for pair in learned(data, file)] for name, files in sets.items()}


def learned(data: Path, name: str, left: int = 0) -> list[tuple[str, str]]:
    """The pairs of a file that are learned, or as many as `left` of those after them, the same in every run."""
    number, words = LEARNED[name]
    found = [(cut(row["query"], 40), cut(row["positive"], words)) for row in rows_of(data, name)]
    order = np.random.default_rng(SEED).permutation(len(found))
    return [found[index] for index in (order[number : number + left] if left else order[:number])]


def held_out(data: Path, number: int = 400) -> list[list[tuple[str, str]]]:
    """So many pairs of five kinds that are not learned as pairs, to choose by. Many of their texts are learned one by
    one, and a gloss may be learned as the answer to another word.
    """
    files = ("wordnet_sense", "wordnet_gloss", "debian_synopsis_en", "doc_sections_en", "gcide")
    return [learned(data, name, number) for name in files]


def paragraphs(data: Path, number: int = 24_000, words: int = 150) -> list[tuple[str, str]]:
    """One sentence of a paragraph, and the whole: what a search for it would say (inverse cloze, Lee et al. 2019)."""
    found = chosen((cut(text, words) for _, text in paragraphs_of(data) if len(text.split()) >= 40), 2 * number)
    chance = np.random.default_rng(SEED)
    parts = [(list(sentences(text)), text) for text in found]
    return [(own[chance.integers(len(own))], text) for own, text in parts if len(own) > 2][:number]


def write_sets(data: Path, folder: Path, known: Sequence[str]) -> None:
    """All sets as files for `refembed train`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = short_texts(data, known)
    for name, texts in found.items():
        order = np.random.default_rng(SEED).permutation(len(texts))
        half = len(texts) // 2
        write(
            folder / f"{name}.jsonl.gz",
            ((texts[a], texts[b]) for a, b in zip(order[:half], order[half:], strict=False)),
        )
    for name, rows in (pairs(data) | {"pair-paragraph": paragraphs(data)}).items():
        write(folder / f"{name}.jsonl.gz", rows)


def write(file: Path, rows: Iterable[tuple[str, str]]) -> None:
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        for query, positive in rows:
            if query.strip() and positive.strip():
                lines.write(json.dumps({"query": query, "positive": positive}, ensure_ascii=False) + "\n")


def read(file: Path) -> list[tuple[str, str]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [(row["query"], row["positive"]) for row in map(json.loads, lines)]
