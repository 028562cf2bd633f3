"""Texts from files: .txt (a line a text) and .jsonl, gzipped or not. A bad line is reported and sinks no other."""

import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .errors import RefembedError

LONGEST_LINE = 64 * 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LINES, OBJECTS = "txt", "jsonl"
TEXT_FIELD = "text"


@dataclass(frozen=True)
class Row:
    """One text of a file: its place (FILE:LINE), its text, its title and id where there are any, or what is wrong."""

    place: str
    text: str = ""
    title: str | None = None
    id: str | int | None = None
    fault: RefembedError | None = None


@dataclass(frozen=True)
class Fields:
    """The keys of JSON objects, or columns of a table, that are read; without title or id there are none of these."""

    text: str | None = None
    title: str | None = None
    id: str | None = None

    @property
    def given(self) -> list[str]:
        return [field for field in (self.text, self.title, self.id) if field]


NO_FIELDS = Fields()  # the text is in TEXT_FIELD


class Texts:
    """The rows of a file, or of standard input for "-", faulty ones included; each is read when it is asked for.

    source   a path ending in .txt or .jsonl, either with .gz; "-" is lines of text, or of JSON where fields are given

    Raises RefembedError where there is no such kind of file; going through it, where it cannot be read.
    """

    def __init__(self, source: str, fields: Fields = NO_FIELDS) -> None:
        self.source, self.fields, self.kind = source, fields, kind_of(source, next(iter(fields.given), None))
        self.rows = 0  # read so far; share says what part of the file they are
        self.share: Callable[[], float] = lambda: 0.0

    def expected(self) -> float | None:
        """How many rows there will be, estimated from those that were read."""
        share = self.share()
        return self.rows / share if share else None

    def __iter__(self) -> Iterator[Row]:
        return checked(self.read(), self.source, self.fields)

    def read(self) -> Iterator[Row]:
        self.rows = 0
        with open_source(self.source) as handle:
            if self.source != "-":
                raw, size = getattr(handle, "fileobj", handle), os.path.getsize(self.source)
                self.share = lambda: raw.tell() / size if size and not raw.closed else 0.0
            for number, line in enumerate(lines_of(handle), 1):
                if number == 1 and line:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                place = f"{'stdin' if self.source == '-' else self.source}:{number}"
                if self.kind == LINES:
                    self.rows += 1
                    yield read_line(place, line)
                elif line is None or line.strip():
                    self.rows += 1
                    yield read_object(place, line, self.fields)
            self.share = lambda: 1.0


def read_texts(source: str, text_field: str | None = None, title_field: str | None = None) -> list[Row]:
    """All rows of what Texts reads, at once."""
    return list(Texts(source, Fields(text_field, title_field)))


def checked(rows: Iterable[Row], source: str, fields: Fields) -> Iterator[Row]:
    """The rows; what none of them can know alone is said: that ids are of one kind, and that some row has a title."""
    any_row = titled = False
    kind: type | None = None
    try:
        for row in rows:
            any_row, titled = True, titled or row.title is not None
            kind = kind or (None if row.id is None else type(row.id))
            if row.id is not None and type(row.id) is not kind:
                reason = f"{fields.id!r} is {type(row.id).__name__}, not {kind and kind.__name__} as in the rows before"
                row = bad(row.place, "line-field", reason)
            yield row
    except (OSError, EOFError, zlib.error) as error:
        raise RefembedError("input-missing", f"{source}: {getattr(error, 'strerror', None) or error}") from error
    if fields.title and any_row and not titled:
        raise RefembedError("title-field", f"{source}: no line has a title in {fields.title!r}; check the name")


def kind_of(source: str, field: str | None) -> str:
    if source == "-":
        return OBJECTS if field else LINES
    ending = Path(source.removesuffix(".gz")).suffix
    if ending not in (".txt", ".jsonl"):
        raise RefembedError(
            "input-format", f"{source}: files of texts end in .txt, .jsonl (or with .gz) or .parquet, not in {ending!r}"
        )
    if ending == ".txt" and field:
        raise RefembedError(
            "input-format",
            f"{source}: a .txt file has no fields; fields such as --text-field need .jsonl",
        )
    return ending[1:]


def open_source(source: str) -> AbstractContextManager[BinaryIO]:
    if source == "-":
        return nullcontext(sys.stdin.buffer)  # not ours to close
    return gzip.open(source) if source.endswith(".gz") else open(source, "rb")  # type: ignore[return-value]


def lines_of(handle: BinaryIO) -> Iterator[bytes | None]:
    """Lines without their ends; None for one too long to be a text."""
    while line := handle.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := handle.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield line.removesuffix(b"\n").removesuffix(b"\r")


def read_line(place: str, line: bytes | None) -> Row:
    if line is None:
        return bad(place, "line-too-long", f"a line of {LONGEST_LINE} bytes or more is no text")
    try:
        return Row(place, line.decode())
    except UnicodeDecodeError as error:
        return bad(place, "line-encoding", f"not valid UTF-8 at byte {error.start}")


def read_object(place: str, line: bytes | None, fields: Fields) -> Row:
    decoded = read_line(place, line)
    if decoded.fault:
        return decoded
    try:
        entry = json.loads(decoded.text)
    except (ValueError, RecursionError) as error:
        return bad(place, "line-json", f"not JSON: {error}")
    if not isinstance(entry, dict):
        return bad(place, "line-json", f"a JSON object is needed, not {type(entry).__name__}")
    return row_of(place, entry, fields)


def row_of(place: str, entry: Mapping[str, Any], fields: Fields) -> Row:
    """A row from values by their names; or what is wrong with them."""
    name = fields.text or TEXT_FIELD
    for needed in filter(None, (name, fields.id)):
        if needed not in entry:
            return bad(place, "line-field", f"has no {needed!r}; it has {', '.join(map(repr, list(entry)[:8]))}")
    text, title = entry[name], entry.get(fields.title) if fields.title else None
    id = entry[fields.id] if fields.id else None
    if not isinstance(text, str):
        return bad(place, "line-field", f"{name!r} is {type(text).__name__}, a text is needed")
    if not isinstance(title, str | None):
        return bad(place, "line-field", f"{fields.title!r} is {type(title).__name__}, a text or nothing is needed")
    whole = isinstance(id, int) and not isinstance(id, bool) and -(2**63) <= id < 2**63
    if fields.id and not (whole or (isinstance(id, str) and id.encode(errors="ignore").decode() == id)):
        return bad(place, "line-field", f"{fields.id!r} is {id!r}, a text or a whole number of 64 bits is needed")
    return Row(place, text, title, id)


def bad(place: str, id: str, reason: str) -> Row:
    return Row(place, fault=RefembedError(id, reason))
