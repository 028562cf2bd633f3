"""Stage mine: hard negatives, texts that rank high for a query and are no answer to it.

A negative that is an answer after all teaches the contrary. So nothing that scores too near the positive is taken:
texts that answer without being marked as answers are mostly found there.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

import refembed
from refembed.checkpoint import open_checkpoint
from refembed.errors import RefembedError
from refembed.output import whole_file
from refembed.progress import Progress

from .config import at_least, plain, read
from .data import PLACES, Example, SetSettings, check_names, cut, folded, prompted, read_examples, report, sides_of
from .distributed import wait_for_all, world
from .loop import LOG, RESULT, alone, as_line, finished, write_json
from .state import digest

TEXTS_AT_ONCE = 8192  # whose tokens are in memory together
QUERIES_AT_ONCE = 64  # bounds the table of scores, which has a column for every text
UNSPACED = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"  # Thai, Lao, kana, Han: no space stands between words
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
SATURATION, LENGTH = 0.9, 0.4  # BM25's k1 and b, as Anserini sets them for passages

FIELDS = ("task", "query_title", "query", "positive_title", "positive")

Side = tuple[str, str, str]  # a prompt's name, a text, its title: what data.prompted takes
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class MineSettings:
    """A file of stage mine.

    out         the folder that gets a file of the same name for each set: the same rows, with negatives
    set         files to mine, as in [data]; each file's texts are ranked for its own queries
    how         model: by the cosine of the model's vectors; bm25: by shared words
    model       the checkpoint folder, as the training stands; not for bm25
    negatives   how many a row shall have; its own come first
    first, last the ranks they are taken from, 1 the best text that is no positive of the query
    margin      how far below the positive's score a negative's must lie, as a share of that: 0.05 of cosine 0.8 is 0.04
    context     most tokens of a text
    """

    out: Path
    set: tuple[SetSettings, ...]
    how: Literal["model", "bm25"] = "model"
    model: Path | None = None
    backend: str = ""
    precision: str = ""
    negatives: int = 1
    first: int = 1
    last: int = 100
    margin: float = 0.05
    context: int = 512

    def __post_init__(self) -> None:
        at_least(self, negatives=1, first=1, last=self.first, margin=0, context=3)
        if self.how == "model" and self.model is None:
            raise ValueError('mines with a model and names none; give model, or how = "bm25"')
        if not self.set:
            raise ValueError("names no set to mine")
        check_names(self.set)
        for one in self.set:
            if one.file.resolve().parent == self.out.resolve():
                raise ValueError(f"out is the folder of {one.file}, which would be replaced")


class Ranking(Protocol):
    """What scores documents. least: a score that means nothing in common, above which a negative's must lie."""

    least: float

    def index(self, documents: Sequence[Side]) -> None:
        """Take in the documents to be ranked, in place of any before."""

    def scores(self, queries: Sequence[Side]) -> Scores:
        """(queries, documents)"""


def run_mine(table: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The stage. Its result: of each set how many rows it has, and how many of them have negatives now.

    Killed, it goes on with the first set that log.jsonl has no line of.
    """
    settings = read(MineSettings, table, file)
    mark = fingerprint(settings)
    with alone(settings.out, [one.file.name for one in settings.set]):
        if done := finished(settings.out, mark):
            return done
        found = mined_before(settings.out / LOG, mark)
        ranking: Ranking | None = None
        for one in settings.set:
            if one.name in found:
                continue
            ranking = ranking or (Bm25() if settings.how == "bm25" else ByModel(settings))
            found[one.name] = mine(one, settings, ranking)  # by every process alike: none waits for another's hours
            if world().rank == 0:
                with whole_file(settings.out / LOG) as handle:
                    lines = [as_line({"set": name, **counts, "fingerprint": mark}) for name, counts in found.items()]
                    handle.write("".join(lines).encode())
        result = {"sets": found, "fingerprint": mark, "settings": plain(settings)}
        if world().rank == 0:
            write_json(settings.out / RESULT, result)
        wait_for_all()
    return result


def fingerprint(settings: MineSettings) -> str:
    """What tells one mining from another: settings, the files' contents, and the model's folder as it stands."""
    used = {key: value for key, value in plain(settings).items() if key != "out"}
    stamp = open_checkpoint(settings.model).stamp if settings.model and settings.how == "model" else ""
    try:
        marks = [digest(one.file) for one in settings.set]
    except OSError as error:
        raise RefembedError("train-data", f"{error.filename}: {error.strerror}") from error
    return hashlib.sha256(json.dumps([used, stamp, marks], sort_keys=True).encode()).hexdigest()


def mined_before(log: Path, mark: str) -> dict[str, dict[str, int]]:
    """By a run of the same fingerprint that was killed: the log's figures of each set."""
    lines = [json.loads(line) for line in log.read_bytes().splitlines()] if log.exists() else []
    return {
        line["set"]: {key: line[key] for key in ("rows", "with_negatives")}
        for line in lines
        if line["fingerprint"] == mark
    }


def mine(one: SetSettings, settings: MineSettings, ranking: Ranking) -> dict[str, int]:
    """Write a set's rows with negatives, whole or not at all; rows for which there are none stay without.

    Only the fields that training reads are written, and malformed lines are left out.
    """
    pool = Pool(one)
    ranking.index(list(pool.columns))
    rows = mined = 0
    target = settings.out / one.file.name
    shown = world().rank == 0
    with (
        whole_file(target) as handle,
        Progress(pool.rows, shown, "rows") as progress,
        lines_to(handle, target) as write,
    ):
        for examples in lots(one):
            scores = ranking.scores([sides_of(one, example)[0] for example in examples])
            for example, row in zip(examples, scores, strict=True):
                fuller = with_negatives(example, pool.negatives(example, row, settings, ranking.least))
                write((json.dumps(entry_of(fuller), ensure_ascii=False) + "\n").encode())
                rows, mined = rows + 1, mined + bool(fuller.negatives)
            progress.add(len(examples))
    return {"rows": rows, "with_negatives": mined}


def lots(one: SetSettings) -> Iterator[list[Example]]:
    good = (found for found in read_examples(one) if not isinstance(found, str))
    while lot := list(islice(good, QUERIES_AT_ONCE)):
        yield lot


def lines_to(handle: IO[bytes], target: Path) -> AbstractContextManager[Callable[[bytes], object]]:
    """A function that writes, gzipped where the name says so, with no time in it: the same rows give the same file."""
    return gzipped(handle) if target.suffix == ".gz" else nullcontext(handle.write)


@contextmanager
def gzipped(handle: IO[bytes]) -> Iterator[Callable[[bytes], object]]:
    with gzip.GzipFile("", "wb", fileobj=handle, mtime=0) as packed:
        yield packed.write


class Pool:
    """The texts of a file that can be negatives: its different positives.

    columns   each as a prompt's name, a text and a title -> its column in the scores
    answers   a query -> its positives; both without case and spacing
    """

    def __init__(self, one: SetSettings) -> None:
        self.one, self.rows = one, 0
        self.columns: dict[Side, int] = {}
        self.places: dict[str, list[int]] = {}  # a text -> its columns, under every title
        self.answers: dict[str, set[str]] = {}
        faults: list[str] = []
        malformed = 0
        for found in read_examples(one):
            if isinstance(found, str):
                malformed += 1
                faults += [found] if len(faults) < PLACES else []
                continue
            self.rows += 1
            side = sides_of(one, found)[1]
            if side not in self.columns:
                self.places.setdefault(folded(found.positive), []).append(len(self.columns))
                self.columns[side] = len(self.columns)
            self.answers.setdefault(folded(found.query), set()).add(folded(found.positive))
        report(one.file, self.rows + malformed, malformed, faults)
        if not self.rows:
            raise RefembedError("train-data", f"{one.file} has no row to mine")
        self.documents = list(self.columns)

    def negatives(self, example: Example, scores: Scores, settings: MineSettings, least: float) -> list[Side]:
        """The best texts for an example that may count as wrong, as many as it lacks."""
        goal = float(scores[self.columns[sides_of(self.one, example)[1]]])
        known = {folded(example.query), *map(folded, example.negatives), *self.answers[folded(example.query)]}
        left = scores.copy()
        left[[column for text in known for column in self.places.get(text, ())]] = -np.inf
        most = min(settings.last, len(left))
        near = np.argpartition(-left, most - 1)[:most]
        best = near[np.lexsort((near, -left[near]))][settings.first - 1 :]
        highest = goal - settings.margin * abs(goal)
        chosen: dict[str, Side] = {}
        for column in best:
            if least < left[column] <= highest:
                chosen.setdefault(folded(self.documents[column][1]), self.documents[column])
        return list(chosen.values())[: max(settings.negatives - len(example.negatives), 0)]


def with_negatives(example: Example, found: Sequence[Side]) -> Example:
    texts, titles = (tuple(side[place] for side in found) for place in (1, 2))
    return example._replace(negatives=example.negatives + texts, negative_titles=example.negative_titles + titles)


def entry_of(example: Example) -> dict[str, Any]:
    """An example as the JSON object that reads as it."""
    fields = example._asdict()
    titles, negatives = fields.pop("negative_titles"), fields.pop("negatives")
    entry = {key: fields[key] for key in FIELDS if fields[key]}
    if negatives:
        entry["negative"] = negatives[0] if len(negatives) == 1 else list(negatives)
    if any(titles):
        entry["negative_title"] = list(titles)
    return entry


class ByModel:
    """Cosines of a model's vectors."""

    least = -np.inf

    def __init__(self, settings: MineSettings) -> None:
        assert settings.model is not None
        self.model = refembed.load(
            settings.model, backend=settings.backend or None, precision=settings.precision or None
        )
        self.context = min(settings.context, self.model.config.context)
        self.stored = np.empty((0, self.model.config.dimensions), np.float32)

    def index(self, documents: Sequence[Side]) -> None:
        lots = [documents[at : at + TEXTS_AT_ONCE] for at in range(0, len(documents), TEXTS_AT_ONCE)]
        self.stored = np.concatenate([self.vectors(lot) for lot in lots])

    def scores(self, queries: Sequence[Side]) -> Scores:
        return self.vectors(queries) @ self.stored.T

    def vectors(self, sides: Sequence[Side]) -> Scores:
        """Unit vectors (texts, dimensions); NaN, which no text is compared with, for one that spells a token without a
        vector.
        """
        found = self.model.tokenizer([prompted(*side) for side in sides])
        good = {index: cut(ids, self.context) for index, ids in enumerate(found) if not isinstance(ids, RefembedError)}
        vectors = np.full((len(sides), self.model.config.dimensions), np.nan, np.float32)
        vectors[list(good)] = self.model.encode_tokens(list(good.values()), self.model.config.dimensions)
        return vectors


class Bm25:
    """Shared words, by BM25: those of texts and titles, not of prompts."""

    least = 0.0

    def __init__(self) -> None:
        try:
            self.library = import_module("bm25s")
        except ImportError as error:
            raise RefembedError(
                "train-missing", 'mining by words needs bm25s; pip install "refembed[train]"'
            ) from error

    def index(self, documents: Sequence[Side]) -> None:
        self.count = len(documents)
        self.table = self.library.BM25(k1=SATURATION, b=LENGTH)
        self.table.index([words(f"{title} {text}") for _, text, title in documents], show_progress=False)

    def scores(self, queries: Sequence[Side]) -> Scores:
        found = np.zeros((len(queries), self.count), np.float32)
        for row, (_, text, title) in zip(found, queries, strict=True):
            asked = words(f"{title} {text}")
            if asked:
                row[:] = self.table.get_scores(asked)
        return found


def words(text: str) -> list[str]:
    """Its words in lower case; of scripts that leave no space between words every letter."""
    return WORD.findall(text.lower())
