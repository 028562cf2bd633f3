"""What is asked of a model: prompts, vectors and scores of each task, on one folder."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..embedder import Vectors
from ..errors import RefembedError
from ..vectors import quantize_vectors, unit_rows
from . import metrics
from .sets import ALL, Row, Search, Set, check_choice, open_folder

MEAN, TRAIN = "mean", "train"
Rows = Sequence[Row]
Scored = tuple[int, dict[str, float]]  # how many examples were judged, and the scores


class Encode(Protocol):
    """Texts to vectors: a TextEncoder, or whatever else is to be measured the same way."""

    def __call__(self, texts: Sequence[str], task: str, titles: Sequence[str] | None = None) -> Vectors:
        """The embedding of each text after this task's prompt: (texts, dimensions)."""


@dataclass(frozen=True)
class Stored:
    """What an index keeps of a model's embeddings, quantised or not, and what it is asked with, which never is."""

    asked: Encode
    quantize: str | None

    def __call__(self, texts: Sequence[str], task: str, titles: Sequence[str] | None = None) -> Any:
        """(texts, dimensions) float32 or int8, or (texts, dimensions/8) uint8."""
        return quantize_vectors(self.asked(texts, task, titles), self.quantize)

    def as_floats(self, texts: Sequence[str], task: str) -> Vectors:
        """The same as floats, for libraries that take nothing else: unit vectors."""
        vectors = self(texts, task)
        return vectors if self.quantize is None else unit_rows(vectors).astype(np.float32)


@dataclass(frozen=True)
class Result:
    """The scores of one task on one language of one set.

    set        the folder, and the collection where it holds several
    language   "" where the set names none; "mean" over its languages, each counting the same
    examples   pairs, texts or queries that were judged
    scores     in percent, the task's main score first
    seconds    embedding and judging; a document counts where it is met first
    """

    set: str
    task: str
    language: str
    split: str
    examples: int
    scores: Mapping[str, float]
    seconds: float


def sts(encode: Stored, prompt: str, rows: Rows) -> Scored:
    first, second = halves(encode, prompt, rows, "sentence1", "sentence2")
    return len(rows), metrics.sts(first, second, [row["score"] for row in rows])


def bitext(encode: Stored, prompt: str, rows: Rows) -> Scored:
    return len(rows), metrics.bitext(*halves(encode, prompt, rows, "sentence", "english"))


def halves(encode: Stored, prompt: str, rows: Rows, one: str, other: str) -> tuple[Any, Any]:
    vectors = encode([row[key] for key in (one, other) for row in rows], prompt)
    return vectors[: len(rows)], vectors[len(rows) :]


def classification(encode: Stored, prompt: str, rows: Rows, train: Rows) -> Scored:
    experiments = metrics.few_shot([row["label"] for row in train])
    used = sorted(set().union(*experiments))  # the others need no vector
    place = {index: new for new, index in enumerate(used)}
    vectors = encode.as_floats([train[index]["text"] for index in used], prompt)
    picked = [[place[index] for index in experiment] for experiment in experiments]
    test, labels = encode.as_floats([row["text"] for row in rows], prompt), [row["label"] for row in rows]
    return len(rows), metrics.classification(vectors, [train[index]["label"] for index in used], picked, test, labels)


def clustering(encode: Stored, prompt: str, rows: Rows) -> Scored:
    return len(rows), metrics.clustering(
        encode.as_floats([row["text"] for row in rows], prompt), [row["label"] for row in rows]
    )


def retrieval(encode: Stored, prompt: str, search: Search, known: dict[str, Any]) -> Scored:
    """known: the vectors of documents met before, by id; several languages may ask the same ones."""
    new = [row for row in search.documents if row["_id"] not in known]
    if new:
        vectors = encode([row["text"] for row in new], "document", [row["title"] for row in new])
        known |= {row["_id"]: vector for row, vector in zip(new, vectors, strict=True)}
    ids = [row["_id"] for row in search.documents]
    asked = encode.asked([row["text"] for row in search.queries], prompt)
    rankings = metrics.rankings(asked, np.stack([known[id] for id in ids]), ids)
    ranked = dict(zip([query["_id"] for query in search.queries], rankings, strict=True))
    scores = metrics.retrieval(ranked, ids, search.relevant)
    answers = [query["answers"] for query in search.queries]
    if any(answers):
        found = [[search.documents[place]["text"] for place, _ in ranking] for ranking in rankings]
        scores["recall@5kt"] = metrics.recall_at_words(found, answers)
    return len(search.queries), scores


class Task(NamedTuple):
    """form: of the sets it is for; prompt: the task whose prompt goes before its texts, or its queries."""

    form: str
    prompt: str
    score: Callable[..., Scored]


TASKS = {
    "sts": Task("pairs", "STS", sts),
    "retrieval": Task("retrieval", "query", retrieval),
    "bitext": Task("bitext", "BitextMining", bitext),
    "classification": Task("labelled", "Classification", classification),
    "clustering": Task("labelled", "Clustering", clustering),
}


@dataclass(frozen=True)
class Choice:
    """What of a folder to evaluate, and how.

    task         one of TASKS; the first that fits the set where not given
    split        of the texts judged; "all" for every one; sets without splits are taken whole
    languages    some of the set's; all where none is named
    collection   one of a folder's; all where not given
    documents    the language of the documents of a retrieval set, or "all" (Set.searches)
    prompt       another task whose prompt goes before texts, or queries: "code retrieval", "question answering"
    quantize     "int8" or "binary": what an index keeps of all vectors but those of queries
    """

    task: str | None = None
    split: str = "test"
    languages: Sequence[str] = ()
    collection: str | None = None
    documents: str | None = None
    prompt: str | None = None
    quantize: str | None = None


EVERYTHING = Choice()


def evaluate(encode: Encode, folder: Path | str, choice: Choice = EVERYTHING) -> list[Result]:
    """The scores of a model on the sets of a folder, by language, and their mean where there are several.

    Raises RefembedError where the folder, a row of its files, the choice or the libraries are at fault.
    """
    metrics.check_libraries()
    results = []
    for found, name in chosen(Path(folder), choice):
        judged = [judge(encode, found, name, choice, *work) for work in works(found, name, choice)]
        results += judged + [mean(judged)] * (len(judged) > 1)
    return results


def chosen(folder: Path, choice: Choice) -> list[tuple[Set, str]]:
    """The sets of a folder that are wanted, and the task of each."""
    found = {one.name.partition("/")[2]: one for one in open_folder(folder, choice.split)}
    if choice.collection is not None:
        check_choice(str(folder), "collection", choice.collection, found)
        found = {choice.collection: found[choice.collection]}
    fitting = [[name for name, task in TASKS.items() if task.form == one.form] for one in found.values()]
    for one, names in zip(found.values(), fitting, strict=True):
        check_choice(one.name, "task", choice.task or names[0], names)
    return [(one, choice.task or names[0]) for one, names in zip(found.values(), fitting, strict=True)]


def works(found: Set, name: str, choice: Choice) -> list[tuple[Any, ...]]:
    """The languages of a set, each with what its task is given beside encode and prompt."""
    if name == "retrieval":
        known: dict[str, Any] = {}
        return [(lang, one, known) for lang, one in found.searches(choice.split, choice.languages, choice.documents)]
    rows = found.select(choice.split, choice.languages)
    if name != "classification":
        return list(rows.items())
    check_choice(
        found.name, "classification of split", choice.split, {row["split"] for row in found.rows} - {TRAIN, ALL}
    )
    train = found.select(TRAIN, choice.languages)
    return [(lang, group, train.get(lang, [])) for lang, group in rows.items()]


def judge(encode: Encode, found: Set, name: str, choice: Choice, lang: str, *given: Any) -> Result:
    started, task = time.perf_counter(), TASKS[name]
    try:
        examples, scores = task.score(Stored(encode, choice.quantize), choice.prompt or task.prompt, *given)
    except RefembedError:
        raise
    except ValueError as error:  # a library's word that there is no score: of one pair, of one label
        raise RefembedError("set-unusable", f"{found.name} {lang}: no {name} score: {error}") from error
    return Result(found.name, name, lang, choice.split, examples, scores, time.perf_counter() - started)


def mean(results: Sequence[Result]) -> Result:
    """Over languages; a score that some do not have is the mean of those that do."""
    names = dict.fromkeys(name for result in results for name in result.scores)
    scores = {name: float(np.mean([one.scores[name] for one in results if name in one.scores])) for name in names}
    examples, seconds = sum(one.examples for one in results), sum(one.seconds for one in results)
    return replace(results[0], language=MEAN, examples=examples, scores=scores, seconds=seconds)
