"""Small evaluation sets in the folders' own formats, of random words that a random model can tell apart a little."""

import gzip
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

WORDS = "the end in air of a tin hat he ate then that thin ink inn tea heat neat tend hint dent than win ant".split()  # noqa: SIM905


def words(rng: random.Random, count: int) -> list[str]:
    return rng.choices(WORDS, k=count)


def sentence(rng: random.Random, count: int = 8) -> str:
    return " ".join(words(rng, count))


def write_table(file: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join("\t".join(map(str, row)) + "\n" for row in [names, *rows])
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def write_objects(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def near(rng: random.Random, text: str, changed: int) -> str:
    """The same text with some words replaced."""
    found = text.split()
    for place in rng.sample(range(len(found)), changed):
        found[place] = rng.choice(WORDS)
    return " ".join(found)


def pairs_folder(folder: Path, languages: Sequence[str] = ("en", "de"), count: int = 30) -> Path:
    rng = random.Random(1)
    for lang in languages:
        for split in ("dev", "test"):
            rows = []
            for _ in range(count):
                first, score = sentence(rng), rng.randint(0, 5)
                rows.append((score + rng.random() / 2, first, near(rng, first, 8 - score)))
            write_table(folder / f"{lang}-{split}.tsv", ("score", "sentence1", "sentence2"), rows)
    return folder


def labelled_folder(folder: Path, labels: int = 5, train: int = 14, test: int = 12) -> Path:
    rng = random.Random(2)
    models = [sentence(rng) for _ in range(labels)]
    for split, count in (("train", train), ("test", test)):
        rows = [(f"label {index}", near(rng, model, 4)) for index, model in enumerate(models) for _ in range(count)]
        rng.shuffle(rows)
        write_table(folder / f"{split}.tsv", ("label", "text"), rows)
    return folder


def bitext_folder(folder: Path, count: int = 40) -> Path:
    rng = random.Random(3)
    english = [sentence(rng) for _ in range(count)]
    rows = [(lang, near(rng, text, 5), text) for lang in ("deu", "fra") for text in english]
    write_table(folder / "pairs.tsv.gz", ("lang", "sentence", "english"), rows)
    return folder


def retrieval_folder(folder: Path, titles: bool = True, documents: int = 60, queries: int = 25) -> Path:
    """Each query is about one document, relevant by 2, and a little about the next, relevant by 1."""
    rng = random.Random(4)
    texts = [sentence(rng, 12) for _ in range(documents)]
    title = [sentence(rng, 2) for _ in range(documents)]
    rows = [{"_id": f"d{n}", "text": text} | ({"title": title[n]} if titles else {}) for n, text in enumerate(texts)]
    write_objects(folder / "corpus.jsonl.gz", rows)
    about = rng.sample(range(documents - 1), queries)
    asked = [{"_id": f"q{n}", "text": near(rng, texts[place], 6)[:40]} for n, place in enumerate(about)]
    write_objects(folder / "queries.jsonl", asked)
    judged = [(f"q{n}", f"d{place + more}", 2 - more) for n, place in enumerate(about) for more in (0, 1)]
    write_table(folder / "qrels.tsv", ("query-id", "corpus-id", "score"), judged)
    return folder


def parallel_folder(folder: Path) -> Path:
    """Two languages that say the same, each question answered by the paragraph of its number in either."""
    rng = random.Random(5)
    for kind, count in (("paragraphs", 6), ("queries", 4)):
        rows = []
        for lang in ("de", "en"):
            for number in range(count):
                id = f"{lang}-{'p' if kind == 'paragraphs' else ''}{number}"
                answer = {"answer": f"{lang} answer {number}"} if kind == "queries" else {}
                text = f"{sentence(rng)} {lang} answer {number}" if kind == "paragraphs" else sentence(rng)
                rows.append({"_id": id, "lang": lang, "text": text} | answer)
        write_objects(folder / f"{kind}.jsonl", rows)
    judged = [(f"{lang}-{number}", f"{lang}-p{number}", 1) for lang in ("de", "en") for number in range(4)]
    write_table(folder / "qrels_paragraphs.tsv", ("query-id", "corpus-id", "score"), judged)
    return folder
