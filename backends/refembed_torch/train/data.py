"""Training examples from JSON lines: which set a step reads, in which order, as which tokens.

The order is a function of the seed and the files alone. A set is read pass after pass as one endless row of examples,
so that nothing at a pass's end is lost, and any place in that row is found again by reading into one pass only. A batch
is of one set (RCP-1), and what is held out is never read (RCP-4).
"""

import hashlib
import json
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from refembed.errors import RefembedError
from refembed.prompts import DOCUMENT, PROMPTS, UNTITLED, prompt_of
from refembed.textfiles import BYTE_ORDER_MARK, kind_of, lines_of, open_source, read_line

from .chance import generator
from .config import at_least
from .state import digest

IntArray = NDArray[np.int64]
Item = TypeVar("Item")
Tokenize = Callable[[Sequence[str]], Sequence[IntArray | RefembedError]]


class Kind(NamedTuple):
    """The prompts of a task's two sides, by their names in refembed.prompts, and the type of task it is."""

    query: str
    positive: str
    type: str


ANSWERING, SEARCH, TITLES, CODE = "question answering", "web search", "title and body", "code retrieval"
SIMILARITY, CLASSES = "sentence similarity", "classification"

# a row's `task` -> its kind. The types are those that the paper weights evenly, and classification
TASKS = {
    "qa": Kind("question answering", "document", ANSWERING),
    "xling_qa": Kind("question answering", "document", ANSWERING),
    "package_search": Kind("query", "document", SEARCH),
    "xling_package_search": Kind("query", "document", SEARCH),
    "manual_search": Kind("query", "document", SEARCH),
    "xling_manual_search": Kind("query", "document", SEARCH),
    "command_search": Kind("query", "document", SEARCH),
    "word_sense": Kind("query", "document", SEARCH),
    "doc_search": Kind("query", "document", TITLES),
    "help_search": Kind("query", "document", TITLES),
    "xling_help_search": Kind("query", "document", TITLES),
    "manual_section": Kind("query", "document", TITLES),
    "definition": Kind("query", "document", TITLES),
    "code_retrieval": Kind("code retrieval", "document", CODE),
    "api_search": Kind("code retrieval", "document", CODE),
    "bitext": Kind("query", "query", SIMILARITY),  # the prompt that BitextMining is evaluated with, on both sides
    "sts": Kind("sentence similarity", "sentence similarity", SIMILARITY),
    "intent_banking77": Kind("classification", "classification", CLASSES),
    "intent_clinc150": Kind("classification", "classification", CLASSES),
}

MALFORMED = 0.01  # the greatest share of a file's lines; beyond it the file is not what its name says
PLACES = 3  # lines named in a report; all are counted
LONGEST_ROW = 2**20  # bytes; with a buffer of such rows memory is still bounded
LARGEST_SHARE = 0.2  # of a set that is held out: a small set is to be trained on, too
POOL = 8  # batches sorted by length together: enough for batches of even length, few enough to stay a shuffle
READINGS = 16  # of a file in a pass, at most: reading a line costs a hundredth of training on it


@dataclass(frozen=True)
class SetSettings:
    """[[data.set]]: one file of examples, .jsonl or .jsonl.gz.

    Each line is an object: query, positive, and where there are any task, negative (a text, or several, hardest first),
    query_title, positive_title, negative_title. Blank lines are passed over.

    rate            how often batches come from it, relative to the others; 0: it is held out only
    group           what it counts as where groups have even shares; the type of most of its tasks where not given
    query_task      whose prompt goes before queries, positive_task: before positives and negatives; by TASKS from each
                    row's `task` where not given
    """

    file: Path
    rate: float = 1.0
    group: str = ""
    query_task: str = ""
    positive_task: str = ""

    def __post_init__(self) -> None:
        at_least(self, rate=0)
        for task in filter(None, (self.query_task, self.positive_task)):
            if task not in PROMPTS:
                raise ValueError(f"there is no prompt {task!r}; the prompts are {', '.join(PROMPTS)}")

    @property
    def name(self) -> str:
        """What the set is called in logs and states: its file's name without the endings."""
        return self.file.name.removesuffix(".gz").removesuffix(".jsonl")


@dataclass(frozen=True)
class DataSettings:
    """[data]: the mixture, and how batches are made of it.

    context     most tokens of a text, prompt, BOS and EOS counted; longer ones are cut before their EOS
    batch       examples a batch, all processes together; a set with fewer gives all it has
    hard        negatives used of each example, its first ones; examples with fewer are left out
    held_out    about so many examples of each set, at most a fifth, are kept for measuring and never trained on
    buffer      rows in memory that the next is drawn from. A pass over more rows is made of parts of about so many, at
                most 16, each drawn from the whole file: one sorted by language is mixed
    even        each group has the same share of the batches, in itself divided by rates
    mixture     a file that stage mixtures made, whose rates then hold; expert: which of its mixtures, 0 the best
    """

    set: tuple[SetSettings, ...]
    context: int = 512
    batch: int = 64
    hard: int = 0
    held_out: int = 100
    buffer: int = 10_000
    even: bool = False
    mixture: Path | None = None
    expert: int = 0

    def __post_init__(self) -> None:
        at_least(self, context=3, batch=1, hard=0, held_out=0, buffer=1, expert=0)  # 3: BOS, one piece, EOS
        check_names(self.set)
        if not any(one.rate for one in self.set):
            raise ValueError("no set has a rate above 0")


def check_names(sets: Sequence[SetSettings]) -> None:
    """Raise ValueError where two are called the same: names are places in the random order, in states and folders."""
    repeated = [name for name, times in Counter(one.name for one in sets).items() if times > 1]
    if repeated:
        raise ValueError(f"two sets are called {repeated[0]}; rename one file")


def mixed(settings: DataSettings) -> DataSettings:
    """The settings with the rates of their mixture. Raises RefembedError where the file has none for these sets."""
    if settings.mixture is None:
        return settings
    try:
        rates = json.loads(settings.mixture.read_bytes())[settings.expert]["rates"]
        return replace(settings, set=tuple(replace(one, rate=float(rates[one.name])) for one in settings.set))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RefembedError(
            "train-config",
            f"{settings.mixture} has no mixture {settings.expert} of {', '.join(s.name for s in settings.set)}: "
            f"{type(error).__name__}: {error}",
        ) from error


class Example(NamedTuple):
    """One row. row: its line in the file, from 0, malformed and blank ones counted. A title that is not there is ""."""

    query: str
    positive: str
    negatives: tuple[str, ...]
    row: int
    task: str = ""
    query_title: str = ""
    positive_title: str = ""
    negative_titles: tuple[str, ...] = ()


class Batch(NamedTuple):
    """Examples of one set and their token ids with prompts, cut to the context.

    queries, positives   one (tokens_i,) array an example
    negatives            grouped by example, as many each
    """

    name: str
    examples: tuple[Example, ...]
    queries: list[IntArray]
    positives: list[IntArray]
    negatives: list[IntArray]


class MalformedError(ValueError):
    """A line that is no example, and why."""


def read_examples(settings: SetSettings, wanted: Iterable[bool] = repeat(True)) -> Iterator[Example | str]:
    """The examples of a file, all negatives included, and for each malformed line "NAME:LINE: what is wrong".

    wanted   for each line whether it is read; an endless row

    One line at a time is in memory. Raises RefembedError where the file cannot be read, has scores, or a row's task has
    no prompts.
    """
    file = str(settings.file)
    kind_of(file, "query")
    try:
        with open_source(file) as handle:
            for row, (line, chosen) in enumerate(zip(lines_of(handle), wanted, strict=False)):
                line = line.removeprefix(BYTE_ORDER_MARK) if line and not row else line
                if not chosen or (line is not None and not line.strip()):
                    continue
                place = f"{file}:{row + 1}"
                try:
                    yield example_of(object_of(line), row, settings, place)
                except MalformedError as fault:
                    yield f"{settings.file.name}:{row + 1}: {fault}"
    except (OSError, EOFError, zlib.error) as error:
        raise RefembedError("train-data", f"{file}: {getattr(error, 'strerror', None) or error}") from error


def object_of(line: bytes | None) -> dict[str, Any]:
    if line is None or len(line) > LONGEST_ROW:
        raise MalformedError(f"longer than {LONGEST_ROW} bytes")
    decoded = read_line("", line)
    if decoded.fault:
        raise MalformedError(decoded.fault.reason)
    try:
        entry = json.loads(decoded.text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"not JSON: {getattr(error, 'msg', error)}") from error
    if not isinstance(entry, dict):
        raise MalformedError(f"a JSON object is needed, not {type(entry).__name__}")
    return entry


def example_of(entry: Mapping[str, Any], row: int, settings: SetSettings, place: str) -> Example:
    """An object as an example. Raises MalformedError, and RefembedError for what makes the whole file unfit."""
    if entry.get("score") is not None:
        raise RefembedError(
            "train-data", f"{place} has a score: graded pairs are for evaluation only, not for training"
        )
    negatives = several(entry, "negative")
    titles = several(entry, "negative_title", title=True) or ("",) * len(negatives)
    example = Example(
        text_of(entry.get("query"), "query"),
        text_of(entry.get("positive"), "positive"),
        negatives,
        row,
        text_of(entry.get("task"), "task", title=True),
        text_of(entry.get("query_title"), "query_title", title=True),
        text_of(entry.get("positive_title"), "positive_title", title=True),
        titles,
    )
    if len(titles) != len(negatives):
        raise MalformedError(f"{len(titles)} titles for {len(negatives)} negatives")
    if (example.positive_title, example.positive) in zip(titles, negatives, strict=True):
        raise MalformedError("a negative is the positive")
    try:
        query, positive = prompts_of(settings, example.task)
    except KeyError:
        raise RefembedError(
            "train-data",
            f"{place}: task {example.task!r} has no prompts of its own; set query_task and positive_task for this file",
        ) from None
    if (example.query_title and query != "document") or (
        (example.positive_title or any(titles)) and positive != "document"
    ):
        raise MalformedError("has a title, which only the document prompt has a place for")
    return example


def text_of(value: object, field: str, title: bool = False) -> str:
    """A field's text. title: it may be missing, which is ""."""
    if value is None and title:
        return ""
    if value is None:
        raise MalformedError(f"has no {field!r}")
    if not isinstance(value, str):
        raise MalformedError(f"{field!r} is {type(value).__name__}, a text is needed")
    if not title and not value.strip():
        raise MalformedError(f"{field!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MalformedError(f"{field!r} is not valid Unicode: {error.reason}") from error
    return value


def several(entry: Mapping[str, Any], field: str, title: bool = False) -> tuple[str, ...]:
    value = entry.get(field)
    values = [] if value is None else value if isinstance(value, list) else [value]
    return tuple(text_of(one, field, title) for one in values)


def prompts_of(settings: SetSettings, task: str) -> tuple[str, str]:
    """The names of the prompts of queries and of documents. Raises KeyError for a task that the table has not."""
    query, positive = settings.query_task, settings.positive_task
    if query and positive:
        return query, positive
    kind = TASKS[task]
    return query or kind.query, positive or kind.positive


@cache
def before(prompt: str) -> str:
    return prompt_of(prompt, {})


def prompted(prompt: str, text: str, title: str = "") -> str:
    """A text as the model reads it. prompt: a name of refembed.prompts.PROMPTS."""
    return (DOCUMENT.format(title=title or UNTITLED) if prompt == "document" else before(prompt)) + text


def sides_of(settings: SetSettings, example: Example) -> list[tuple[str, str, str]]:
    """An example's query, positive and negatives, each as what prompted() takes: prompt's name, text, title."""
    query, positive = prompts_of(settings, example.task)
    own = (query, example.query, example.query_title)
    documents = zip(example.negatives, example.negative_titles, strict=True)
    answer = (positive, example.positive, example.positive_title)
    return [own, answer, *((positive, text, title) for text, title in documents)]


def texts_of(settings: SetSettings, example: Example) -> list[str]:
    """An example's query, positive and negatives with their prompts."""
    return [prompted(*side) for side in sides_of(settings, example)]


def cut(ids: IntArray, context: int) -> IntArray:
    """At most `context` tokens, the last of them still EOS (TOK-7)."""
    return ids if len(ids) <= context else np.append(ids[: context - 1], ids[-1])


def folded(text: str) -> str:
    """A text without case and spacing, for telling whether two are the same."""
    return " ".join(text.casefold().split())


def place_of(query: str) -> float:
    """Where a query stands between 0 and 1, spread evenly, the same in every run."""
    return int.from_bytes(hashlib.blake2b(folded(query).encode(), digest_size=8).digest()) / 2**64


class Contents(NamedTuple):
    """What a first reading of a file found.

    trained    examples left to train on; limit: those whose query's place is below it are held out
    rows       how many lines of the file there are up to the last that counts
    held_out   the examples kept for measuring
    type       of most of its tasks
    lines      blank ones not counted, malformed of them, and faults: what is wrong with the first of these
    """

    trained: int
    rows: int
    limit: float
    held_out: list[Example]
    type: str
    lines: int
    malformed: int
    faults: tuple[str, ...]


def survey(settings: SetSettings, hard: int, held_out: int) -> Contents:
    """Read a file once, to its end, keeping only what is held out.

    Warns of malformed lines. Raises RefembedError where they are more than 1 %.
    """
    lines = good = usable = rows = 0
    faults: list[str] = []
    tasks: Counter[str] = Counter()
    nearest: list[tuple[float, Example]] = []
    for found in read_examples(settings):
        lines += 1
        if isinstance(found, str):
            faults += [found] if len(faults) < PLACES else []
            continue
        good += 1
        tasks[TASKS[found.task].type if found.task in TASKS else ""] += 1
        if len(found.negatives) < hard:
            continue
        usable, rows = usable + 1, found.row + 1
        place = place_of(found.query)
        if place < limit_of(held_out, good):  # the limit only falls, so nothing that counts in the end is passed over
            nearest.append((place, with_hard(found, hard)))
    report(settings.file, lines, lines - good, faults)
    limit = limit_of(held_out, good)  # of all rows: the same examples are held out with negatives and without
    kept = [example for place, example in nearest if place < limit]
    commonest = tasks.most_common(1)[0][0] if tasks else ""
    return Contents(usable - len(kept), rows, limit, kept, commonest, lines, lines - good, tuple(faults))


def limit_of(held_out: int, rows: int) -> float:
    return min(LARGEST_SHARE, held_out / max(rows, 1))


def with_hard(example: Example, hard: int) -> Example:
    return example._replace(negatives=example.negatives[:hard], negative_titles=example.negative_titles[:hard])


def report(file: Path, lines: int, malformed: int, faults: Sequence[str]) -> None:
    """Warn of malformed lines, or stop where there are too many."""
    if not malformed:
        return
    more = f"; and {malformed - len(faults)} more" if malformed > len(faults) else ""
    told = f"{file}: {malformed} of {lines} lines are malformed: {'; '.join(faults)}{more}"
    if malformed > MALFORMED * lines:
        raise RefembedError("train-data", f"{told}. More than {MALFORMED:.0%} is too many; mend the file")
    warnings.warn(f"{told}. They are left out", stacklevel=2)


MARK = "sha256/"  # before a name, which has no such stroke


def mark_of(file: Path) -> int:
    """What tells a file from one of other contents: the first 48 bits of its SHA-256, which all JSON readers keep."""
    return int(digest(file)[:12], 16)


class Readable(Protocol):
    """A file that is read for ever. position: how much of it has been given; mark: mark_of it."""

    name: str
    file: Path
    position: int
    mark: int

    def seek(self, position: int) -> None: ...


def positions_of(sources: Iterable[Readable]) -> dict[str, int]:
    """Where reading stands in each file by name, and after MARK its mark."""
    found = list(sources)
    return {one.name: one.position for one in found} | {MARK + one.name: one.mark for one in found}


def seek_in(sources: Iterable[Readable], positions: Mapping[str, int]) -> None:
    """Go on from what positions_of gave. Raises RefembedError where files are others, or were changed since."""
    found = list(sources)
    if positions.keys() != positions_of(found).keys():
        names = [name for name in positions if not name.startswith(MARK)]
        raise RefembedError(
            "train-state", f"the state is of {', '.join(names)}; here are {', '.join(one.name for one in found)}"
        )
    for one in found:
        if positions[MARK + one.name] != one.mark:
            raise RefembedError(
                "train-state", f"{one.file} was changed since the state was kept; put it back, or give another out"
            )
    for one in found:
        one.seek(positions[one.name])


class Source:
    """One set's endless row of examples, batch by batch.

    Pass p is the file in the order that seed, name and p give. Batches are the row of all passes cut into equal pieces,
    sorted by length within pools of a few batches.
    """

    def __init__(self, settings: SetSettings, data: DataSettings, seed: int) -> None:
        self.settings, self.name, self.file = settings, settings.name, settings.file
        self.hard, self.buffer, self.seed = data.hard, data.buffer, seed
        self.contents = survey(settings, data.hard, data.held_out)
        self.mark = mark_of(self.file)
        total = self.contents.trained
        if settings.rate and not total:
            needed = f" with {data.hard} negatives" if data.hard else ""
            raise RefembedError("train-data", f"{settings.file} has no example{needed} to train on; give it the rate 0")
        self.size = max(min(data.batch, total), 1)  # no batch has an example twice because its set is small
        self.parts = min(-(-total // data.buffer), READINGS)
        self.seek(0)

    def seek(self, position: int) -> None:
        """Go on from where so many examples have been given."""
        if position % self.size:
            raise RefembedError("train-state", f"{self.name}: {position} examples are no whole batches of {self.size}")
        self.position = position
        self.number = -1
        self.pool: list[list[Example]] = []
        self.row: Iterator[tuple[int, Example]] | None = None

    def take(self) -> list[Example]:
        """The next batch."""
        number, place = divmod(self.position // self.size, POOL)
        if number != self.number:
            self.pool, self.number = self.fill(number), number
        self.position += self.size
        return self.pool[place]

    def fill(self, number: int) -> list[list[Example]]:
        """The batches of a pool. Where a pass ends in it, its rest stands before the next pass's beginning.

        So only one batch has examples of both, the longest of the one and the shortest of the other: few are the same,
        and those the contrastive loss masks.
        """
        length = self.size * POOL
        self.row = self.row or self.examples(number * length)
        found = sorted(islice(self.row, length), key=lambda one: (one[0], bytes_of(one[1])))
        batches = [[example for _, example in found[at : at + self.size]] for at in range(0, length, self.size)]
        order = generator(self.seed, self.name, "pool", number).permutation(POOL)
        return [batches[index] for index in order]

    def examples(self, start: int) -> Iterator[tuple[int, Example]]:
        """The row from its place `start` on, each example with its pass."""
        first, skipped = divmod(start, self.contents.trained)
        for number in count(first):
            seen = 0
            for example in self.one_pass(number):
                seen += 1
                if number > first or seen > skipped:
                    yield number, example
            if seen != self.contents.trained:
                raise RefembedError(
                    "train-data",
                    f"{self.settings.file} has changed: {seen} examples to train on, {self.contents.trained} at first",
                )

    def one_pass(self, number: int) -> Iterator[Example]:
        """Part by part, so that its beginning is a sample of the whole file, and a buffer that of a part."""
        chance = generator(self.seed, self.name, "pass", number)
        for part in range(self.parts):
            lines = lines_in(part, self.parts, generator(self.seed, self.name, "parts", number))
            yield from shuffled(self.read(lines), self.buffer, chance)

    def read(self, lines: Iterable[bool]) -> Iterator[Example]:
        """What is trained on of these lines, in the file's order."""
        for found in read_examples(self.settings, lines):
            if isinstance(found, str) or len(found.negatives) < self.hard:
                continue
            if place_of(found.query) >= self.contents.limit:
                yield with_hard(found, self.hard)


def lines_in(part: int, parts: int, chance: np.random.Generator) -> Iterator[bool]:
    """For each line, without end, whether it is of this part: with the same chance every line is in one of them."""
    while True:
        yield from (chance.integers(parts, size=4096) == part).tolist()


def bytes_of(example: Example) -> int:
    """About proportional to tokens in every script, and had without a tokenizer."""
    return sum(len(text.encode()) for text in (example.query, example.positive, *example.negatives))


def shuffled(items: Iterable[Item], buffer: int, chance: np.random.Generator) -> Iterator[Item]:
    """All items once, each drawn from the next `buffer` ones."""
    held: list[Item] = []
    for item in items:
        if len(held) < buffer:
            held.append(item)
        else:
            place = chance.integers(buffer)
            yield held[place]
            held[place] = item
    for index in chance.permutation(len(held)):
        yield held[index]


class Batches:
    """The batches of a run: that of a step comes from one set, drawn by rate from seed and step.

    tokenize   refembed.tokenizer.Tokenizer, or what gives the same
    sources    the sets by name; .contents is what their files hold

    Every file is read once here. Raises RefembedError where one cannot be used.
    """

    def __init__(self, settings: DataSettings, seed: int, tokenize: Tokenize) -> None:
        settings = mixed(settings)
        self.settings, self.seed, self.tokenize = settings, seed, tokenize
        self.sources = {one.name: Source(one, settings, seed) for one in settings.set}
        self.shares = shares_of(
            [one.rate for one in settings.set],
            [one.group or self.sources[one.name].contents.type for one in settings.set],
            settings.even,
        )
        self.index = 0
        self.told: dict[Path, set[int]] = {}

    def __call__(self, index: int) -> Batch:
        """The batch of a step; steps come in order, from 0 or from where seek has gone."""
        assert index == self.index, f"step {index} asked for, {self.index} is next"
        name = list(self.sources)[generator(self.seed, "set", index).choice(len(self.shares), p=self.shares)]
        self.index += 1
        return self.batch(name, self.sources[name].take())

    def batch(self, name: str, examples: Sequence[Example]) -> Batch:
        """Examples as tokens. One is left out with a warning that spells a token the model has no vector for, or of
        which the context leaves the same of a negative as of the positive.

        Raises RefembedError where none is left.
        """
        settings = self.sources[name].settings
        texts = [texts_of(settings, example) for example in examples]
        found = iter(self.tokenize([text for own in texts for text in own]))
        rows = [list(islice(found, len(own))) for own in texts]
        good, ids = [], []
        for example, row in zip(examples, rows, strict=True):
            own = [cut(one, self.settings.context) for one in row if not isinstance(one, RefembedError)]
            if faults := [one for one in row if isinstance(one, RefembedError)]:
                self.leave_out(settings.file, example, faults[0].reason)
            elif any(np.array_equal(own[1], negative) for negative in own[2:]):
                self.leave_out(
                    settings.file, example, f"cut to {self.settings.context} tokens a negative is the positive"
                )
            else:
                good.append(example)
                ids.append(own)
        if not good:
            raise RefembedError("train-data", f"{settings.file}: all examples of a batch were left out; mend the file")
        negatives = [one for row in ids for one in row[2:]]
        return Batch(name, tuple(good), [row[0] for row in ids], [row[1] for row in ids], negatives)

    def leave_out(self, file: Path, example: Example, reason: str) -> None:
        """Say so, of each line once, and of a file's first few alone."""
        told = self.told.setdefault(file, set())
        if example.row in told or len(told) == PLACES:
            return
        told.add(example.row)
        more = "; of more such lines of the file nothing is said" if len(told) == PLACES else ""
        warnings.warn(f"{file}:{example.row + 1}: {reason}; it is left out{more}", stacklevel=3)

    def positions(self) -> dict[str, int]:
        """How many examples of each set have been given, and what its file is known by."""
        return positions_of(self.sources.values())

    def seek(self, positions: Mapping[str, int]) -> None:
        """Go on from what positions() gave, as if all before had been read."""
        seek_in(self.sources.values(), positions)
        self.index = sum(source.position // source.size for source in self.sources.values())

    def held_out(self) -> dict[str, list[Example]]:
        """The examples of each set that no batch has; batch() makes tokens of them."""
        return {name: source.contents.held_out for name, source in self.sources.items()}


def shares_of(rates: Sequence[float], groups: Sequence[str], even: bool) -> list[float]:
    """Each set's share of the batches: by rate, or each group's the same and by rate within it.

    A group whose rates are all 0 has no share.
    """
    totals: Counter[str] = Counter()
    for rate, group in zip(rates, groups, strict=True):
        totals[group if even else ""] += rate  # type: ignore[assignment]  # a Counter of floats
    living = sum(total > 0 for total in totals.values())
    return [
        rate / totals[group if even else ""] / living if rate else 0.0
        for rate, group in zip(rates, groups, strict=True)
    ]
