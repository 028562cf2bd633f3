"""What the built-in model learns from: short texts of the allowed data, and sentences made of words written here.

Every set is a file of rows {"query", "positive"}. In the sets whose name begins with `pair` the one answers the other;
in the others they are two texts by chance, and only the teacher's vector of each is learned.
"""

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

SEED = 20_250_924
RECOMBINED = "recombined"  # the set of texts that have no words of their own
SENTENCE = re.compile(r"(?<=[.!?;:])\s+")
LONGER = re.compile(r"\b[a-z]{4,}\b")


# ---------------------------------------------------------------------------------------------- sentences of our own
def listed(words: str) -> list[str]:
    """What stands between strokes."""
    return words.replace("\n", "").split("|")


PEOPLE = listed("""a man|a woman|a boy|a girl|two men|two women|the children|a young woman|an old man|
a group of people|a child|a crowd|
the police|a chef|a musician|a soldier|a doctor|a farmer|a teacher|three kids|a couple|someone|a player|
a worker|a baby|a lady|people|a student|the president|a driver""")
ANIMALS = listed("""a dog|a cat|two dogs|a horse|a bird|a monkey|a panda|an elephant|a lion|a rabbit|a cow|a brown dog|
a fish|a white cat|a duck|a sheep|a kitten|a puppy|a snake|a tiger|a bear|a black horse""")
THINGS = {
    "playing": "a guitar|the piano|football|a violin|cards|chess|the drums|a flute|a video game|baseball|with a ball",
    "cutting": "an onion|a tomato|paper|bread|vegetables|a potato|a cake|meat|wood|the grass|a carrot|hair",
    "eating": "an apple|a sandwich|breakfast|pasta|a banana|rice|an ice cream|lunch|a burger|soup",
    "cooking": "dinner|eggs|pasta|a chicken|fish|a meal|rice in a pot|some shrimp",
    "riding": "a bicycle|a horse|a motorcycle|a skateboard|a bus|a train|a wave|an elephant|a scooter",
    "driving": "a car|a truck|a tractor|a bus|down the road|to work",
    "reading": "a book|a newspaper|a letter|the news|a story to children|a map",
    "holding": "a baby|an umbrella|a phone|a sign|a camera|a cup of coffee|a gun|a flag|flowers",
    "wearing": "a red shirt|a hat|a blue dress|sunglasses|a uniform|a black jacket|a helmet|a mask",
    "carrying": "a bag|a box|a backpack|a child|a ladder|water|groceries",
    "writing": "a letter|on a blackboard|in a notebook|a song|an email",
    "throwing": "a ball|a stone|a stick|a frisbee|rubbish away",
    "opening": "a door|a package|a bottle|a window|a can|a letter",
    "watching": "television|a movie|a parade|the game|a bird|the sunset",
    "climbing": "a tree|a rock|a mountain|a ladder|the stairs|a wall",
    "washing": "the dishes|a car|clothes|a dog|hands|the floor",
    "pouring": "water into a glass|milk into a bowl|oil into a pan|coffee|sauce on a plate",
    "painting": "a wall|a picture|a fence|a portrait",
    "repairing": "a bicycle|a roof|an engine|a broken chair",
    "buying": "a ticket|fruit at the market|a house|new shoes|shares",
    "protesting": "against the government|in the street|about taxes",
    "killing": "a man|several people|a mouse|the engine",
    "announcing": "a new plan|the results|a visit|higher prices|peace talks",
}
MOVES = listed("""running|walking|jumping|sleeping|swimming|dancing|sitting|standing|singing|laughing|crying|lying down|
talking|smiling|waiting|playing|falling|flying|fighting|looking around|resting|skating|skiing|working""")
PLACES = listed("""in the park|on a beach|in the kitchen|on the street|in a field|in the snow|near a river|in the water|
at night|on a couch|on the stage|in front of a house|under a tree|in a room|on a bench|by a lake|in the city|at a table|
in the grass|on the road|at school|in a restaurant|on a mountain|at the station||||""")
MATTERS = listed("""my card|my payment|my order|a refund|my account|my password|a transfer|the cash machine|my bill|
my phone|my subscription|a parcel|my ticket|my booking|a loan|my bank account|my salary|the invoice|my address|my PIN|
a direct debit|the exchange rate|a cheque|a fee|my identity|a top up|the app|my laptop|the delivery|my passport|
a foreign currency|my credit card|my balance|a cash withdrawal|my insurance|a discount|my data""")
ASKED = listed("""how do I cancel {}|why was {} declined|where is {}|I lost {}, what should I do|can I change {}|
how long does {} take|why is {} still pending|I want to know about {}|there is a problem with {}|how much is {}|
what is {}|I can't find {}|who can help me with {}|I did not authorize {}|is there a charge for {}|
when will {} arrive|how can I get {}|{} is not working|please help, {} is wrong|do you support {}|
I was charged twice for {}|can you explain {}|why has {} not arrived yet|how do I verify {}|
I need to update {}|{} was stolen|what happens to {} abroad|which countries accept {}|I would like to order {}|
how do I activate {}|what is the limit for {}|can someone else use {}""")


def sentences_of_our_own(number: int, seed: int = SEED) -> Iterator[str]:
    """Scenes, and questions of customers: kinds of text that the data has none of."""
    chance = np.random.default_rng(seed)

    def one_of(words: list[str]) -> str:
        return words[chance.integers(len(words))]

    for _ in range(number):
        kind = chance.random()
        if kind < 0.4:
            verb = one_of(list(THINGS))
            subject, rest = one_of(PEOPLE), f"{verb} {one_of(THINGS[verb].split('|'))}"
        elif kind < 0.65:
            subject, rest = one_of(PEOPLE + ANIMALS), one_of(MOVES)
        else:
            yield sentence(one_of(ASKED).format(one_of(MATTERS)) + ("?" if chance.random() < 0.5 else ""))
            continue
        several = subject.startswith(("two", "three", "the ch", "people", "the police"))
        link = one_of(["are" if several else "is"] * 3 + ["are not" if several else "is not"])
        place = one_of(PLACES) if chance.random() < 0.6 else ""
        yield sentence(f"{subject} {link} {rest} {place}".strip() + one_of([".", "."]))


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


FRAMES = listed("""I think that {}|I don't think that {}|as far as I know, {}|in my experience {}|I have heard that {}|
the short answer is that {}|my guess is that {}|I would say that {}|you should know that {}|it depends, but {}|
I had the same problem: {}|does anyone know whether {}|I wonder why {}|is it true that {}|I am not sure if {}|
my answer would be that {}|there is no reason why {}|you don't need to worry, {}|somebody told me that {}|
as others have said, {}|the problem is that {}|it seems to me that {}|one reason is that {}|for example, {}|
if you ask me, {}|I agree that {}|it is a bad idea, because {}|the best way is this: {}|you could try this: {}|
{}, officials said|{}, police said on Tuesday|{}, the company said in a statement|{}, according to a report|
on Monday, {}|last week {}|two years ago {}|reports say that {}|a court has ruled that {}|the government says that {}|
in a statement, the minister said that {}|experts warn that {}|{}, he told reporters|{}, she said in an interview|
breaking news: {}|study finds that {}|update: {}|the new law means that {}|{} for the first time since the war|
{}, a spokesman said on Friday|thousands of people heard that {}|{}, which surprised nobody|{} because of the weather|
{}, the newspaper reported|{} after three days of talks|{}, and more are expected|{} in the first quarter""")
JOINTS = [", and ", ", but ", " because ", " while ", ". ", " when ", ", so ", ", which means that "]


def recombined(texts: list[str], number: int, seed: int = SEED) -> Iterator[str]:
    """Sentences with some of their words changed for words of others, half of them as people say or report them: so
    words are met in more company than these few texts give them, and the teacher says what that means.
    """
    chance = np.random.default_rng(seed)
    words = [word for text in texts for word in LONGER.findall(text)]
    for first, second in chance.integers(len(texts), size=(number, 2)):
        text, share = texts[first], chance.random() * 0.6
        if chance.random() < 0.35:
            text = text.rstrip(" .;:") + JOINTS[chance.integers(len(JOINTS))] + texts[second]
        mixed = LONGER.sub(
            lambda found, share=share: words[chance.integers(len(words))] if chance.random() < share else found[0], text
        )
        if chance.random() < 0.5:
            mixed = FRAMES[chance.integers(len(FRAMES))].format(mixed[0].lower() + mixed[1:].rstrip(" .;:"))
        yield sentence(mixed)


def other_capitals(text: str, chance: np.random.Generator) -> str:
    """Of three texts one as a headline, in small letters or in capitals: to the teacher, which knows none, the same."""
    way = chance.random()
    if way < 0.2:
        return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))
    return text.lower() if way < 0.3 else text.upper() if way < 0.33 else text


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


def short_texts(data: Path) -> dict[str, list[str]]:
    """Texts whose vectors are learned one by one, by set."""
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
    wikipedia = chosen((one for row in rows_of(data, "afriqa") for one in sentences(row["positive"])), 20_000)
    return {
        "own": list(sentences_of_our_own(40_000)),
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

    def sample(name: str, number: int, words: int) -> list[tuple[str, str]]:
        found = [(cut(row["query"], 40), cut(row["positive"], words)) for row in rows_of(data, name)]
        order = np.random.default_rng(SEED).permutation(len(found))[:number]
        return [found[index] for index in order]

    return {
        "pair-question": sample("afriqa", 4_000, 120),
        "pair-sense": sample("wordnet_sense", 25_000, 40),
        "pair-gloss": sample("wordnet_gloss", 25_000, 40),
        "pair-package": sample("debian_synopsis_en", 12_000, 80),
        "pair-section": [*sample("doc_sections_en", 4_000, 120), *sample("libreoffice_help", 3_000, 120)],
        "pair-manual": [*sample("man_search", 4_000, 80), *sample("tldr_page", 7_000, 60)],
    }


def paragraphs(data: Path, number: int = 12_000, words: int = 150) -> list[tuple[str, str]]:
    """One sentence of a paragraph, and the whole: what a search for it would say (inverse cloze, Lee et al. 2019)."""
    found = chosen((cut(text, words) for _, text in paragraphs_of(data) if len(text.split()) >= 40), 2 * number)
    chance = np.random.default_rng(SEED)
    parts = [(list(sentences(text)), text) for text in found]
    return [(own[chance.integers(len(own))], text) for own, text in parts if len(own) > 2][:number]


def write_sets(data: Path, folder: Path) -> None:
    """All sets as files for `refembed train`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = short_texts(data)
    common = [*found["examples"], *found["wikipedia"], *found["glosses"][:20_000]]
    found[RECOMBINED] = list(recombined(common, 120_000))
    for name, texts in found.items():
        order = np.random.default_rng(SEED).permutation(len(texts))
        half = len(texts) // 2
        write(
            folder / f"{name}.jsonl.gz",
            ((texts[a], texts[b]) for a, b in zip(order[:half], order[half:], strict=False)),
        )
    for name, rows in (pairs(data) | {"pair-paragraph": paragraphs(data)}).items():
        write(folder / f"{name}.jsonl.gz", rows)


def write_varied(sets: Path, folder: Path) -> None:
    """The same sets with other capitals here and there."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(SEED)
    for file in sorted(sets.glob("*.jsonl.gz")):
        rows = read(file)
        write(folder / file.name, ((other_capitals(a, chance), other_capitals(b, chance)) for a, b in rows))


def write(file: Path, rows: Iterable[tuple[str, str]]) -> None:
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        for query, positive in rows:
            if query.strip() and positive.strip():
                lines.write(json.dumps({"query": query, "positive": positive}, ensure_ascii=False) + "\n")


def read(file: Path) -> list[tuple[str, str]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [(row["query"], row["positive"]) for row in map(json.loads, lines)]
