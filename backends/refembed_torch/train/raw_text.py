"""Raw text for language modelling: files of lines SOURCE<tab>PARAGRAPH, read for ever in shuffled order."""

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from refembed.errors import RefembedError
from refembed.textfiles import BYTE_ORDER_MARK, lines_of, open_source, read_line

from .chance import generator
from .config import at_least
from .data import LONGEST_ROW, PLACES, limit_of, mark_of, place_of, positions_of, report, seek_in, shuffled


@dataclass(frozen=True)
class TextFile:
    """[[text.file]]: one file, .tsv or .tsv.gz.

    rate   how often a paragraph comes from it, relative to the other files
    """

    path: Path
    rate: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, rate=0)

    @property
    def name(self) -> str:
        """What it is called in the random order and in states."""
        return self.path.name.removesuffix(".gz").removesuffix(".tsv")


@dataclass(frozen=True)
class TextSettings:
    """[text]: what is read, and how much of it a step.

    context    most tokens of a sequence; a longer paragraph becomes several
    batch      paragraphs a step, all processes together
    parts      in how many parts a step goes through the model, one after the other: more take less memory
    held_out   about so many paragraphs of each file, at most a fifth, are kept for measuring and never trained on
    buffer     paragraphs in memory that the next is drawn from
    """

    file: tuple[TextFile, ...]
    context: int = 512
    batch: int = 64
    parts: int = 1
    held_out: int = 50
    buffer: int = 10_000

    def __post_init__(self) -> None:
        at_least(self, context=8, batch=1, parts=1, held_out=1, buffer=1)
        repeated = [name for name, times in Counter(one.name for one in self.file).items() if times > 1]
        if repeated:
            raise ValueError(f"two files are called {repeated[0]}; rename one")
        if not any(one.rate for one in self.file):
            raise ValueError("no file has a rate above 0")


def read_paragraphs(file: Path) -> Iterator[tuple[str, bool]]:
    """The paragraphs of a file, and for each malformed line what is wrong with it: (text, whether it is a paragraph).

    Raises RefembedError where the file cannot be read.
    """
    try:
        with open_source(str(file)) as handle:
            for number, line in enumerate(lines_of(handle), 1):
                line = line.removeprefix(BYTE_ORDER_MARK) if line and number == 1 else line
                if line is not None and not line.strip():
                    continue
                paragraph, fault = paragraph_of(line)
                yield (f"{file.name}:{number}: {fault}", False) if fault else (paragraph, True)
    except (OSError, EOFError, zlib.error) as error:
        raise RefembedError("train-data", f"{file}: {getattr(error, 'strerror', None) or error}") from error


def paragraph_of(line: bytes | None) -> tuple[str, str]:
    """A line's paragraph, and what is wrong with the line, if anything."""
    if line is None or len(line) > LONGEST_ROW:
        return "", f"longer than {LONGEST_ROW} bytes"
    decoded = read_line("", line)
    if decoded.fault:
        return "", decoded.fault.reason
    parts = decoded.text.split("\t")
    if len(parts) != 2 or not parts[1].strip():
        return "", f"{len(parts)} columns, a source, a tab and a paragraph needed"
    return parts[1], ""


class TextSource:
    """One file's endless row of paragraphs: pass p is the file in the order that seed, name and p give.

    held_out   what is kept for measuring: a choice by the text alone, so that a text repeated is never on both sides
    """

    def __init__(self, settings: TextFile, held_out: int, buffer: int, seed: int) -> None:
        self.settings, self.name, self.file = settings, settings.name, settings.path
        self.buffer, self.seed = buffer, seed
        self.survey(held_out)
        self.mark = mark_of(self.file)
        self.seek(0)

    def survey(self, held_out: int) -> None:
        """Read the file once, keeping what is held out. Raises RefembedError where it cannot be used."""
        faults: list[str] = []
        malformed = good = 0
        nearest: list[tuple[float, str]] = []
        for text, sound in read_paragraphs(self.settings.path):
            if not sound:
                malformed += 1
                faults += [text] if len(faults) < PLACES else []
                continue
            good += 1
            if (place := place_of(text)) < limit_of(held_out, good):  # it only falls
                nearest.append((place, text))
        report(self.settings.path, good + malformed, malformed, faults)
        self.limit = limit_of(held_out, good)
        self.held_out = [text for place, text in nearest if place < self.limit]
        self.trained = good - len(self.held_out)
        if not self.trained:
            raise RefembedError("train-data", f"{self.settings.path} has no paragraph to train on")

    def seek(self, position: int) -> None:
        """Go on from where so many paragraphs have been given."""
        self.position, self.row = position, self.paragraphs(position)

    def take(self) -> str:
        self.position += 1
        return next(self.row)

    def paragraphs(self, start: int) -> Iterator[str]:
        first, skipped = divmod(start, self.trained)
        for number in count(first):
            seen = 0
            for text in shuffled(self.read(), self.buffer, generator(self.seed, "text", self.name, number)):
                seen += 1
                if number > first or seen > skipped:
                    yield text
            if seen != self.trained:
                raise RefembedError(
                    "train-data", f"{self.file} has changed: {seen} paragraphs to train on, {self.trained} at first"
                )

    def read(self) -> Iterator[str]:
        found = (text for text, sound in read_paragraphs(self.settings.path) if sound)
        return (text for text in found if place_of(text) >= self.limit)


class RawText:
    """The paragraphs of each step, from all files by their rates."""

    def __init__(self, settings: TextSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.sources = [TextSource(one, settings.held_out, settings.buffer, seed) for one in settings.file]
        total = sum(one.rate for one in settings.file)
        self.shares = [one.rate / total for one in settings.file]

    def take(self, index: int) -> list[str]:
        """Those of step `index`; steps come in order, from 0 or from where seek has gone."""
        chosen = generator(self.seed, "files", index).choice(len(self.sources), self.settings.batch, p=self.shares)
        return [self.sources[number].take() for number in chosen]

    def held_out(self) -> list[str]:
        """Of all files that are trained on."""
        used = [source for source in self.sources if source.settings.rate]
        found = [text for source in used for text in source.held_out]
        if not found:
            raise RefembedError(
                "train-data", "no paragraph is held out to measure with; give more text, or raise held_out"
            )
        return found

    def sample(self, each: int) -> list[str]:
        """Some paragraphs of each file, more of those with a higher rate: what a tokenizer is trained on."""
        most = max(self.shares)
        return [
            text
            for source, share in zip(self.sources, self.shares, strict=True)
            for text in islice(source.read(), round(each * share / most))
        ]

    def positions(self) -> dict[str, int]:
        return positions_of(self.sources)

    def seek(self, positions: Mapping[str, int]) -> None:
        seek_in(self.sources, positions)
