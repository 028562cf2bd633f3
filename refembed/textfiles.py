"""Texts from files: .txt (a line a text) and .jsonl, gzipped or not. A bad line is reported and sinks no other."""

import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import RefembedError

LONGEST_LINE = 64 * 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LINES, OBJECTS = "txt", "jsonl"


@dataclass(frozen=True)
class Row:
    """One text of a file: its place (FILE:LINE), its text, its title where there is one, or what is wrong with it."""

    place: str
    text: str = ""
    title: str | None = None
    fault: RefembedError | None = None


def read_texts(source: str, text_field: str | None = None, title_field: str | None = None) -> list[Row]:
    """The rows of a file, or of standard input for "-", faulty ones included.

    source        a path ending in .txt or .jsonl, either with .gz; "-" is lines of text, or of JSON with a text_field
    text_field    the key of each JSON object's text; "text" where not given
    title_field   the key of each JSON object's title; none where not given

    Raises RefembedError where the file cannot be read at all.
    """
    kind = kind_of(source, text_field or title_field)
    rows = []
    try:
        with open_source(source) as handle:
            for number, line in enumerate(lines_of(handle), 1):
                if number == 1 and line:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                place = f"{'stdin' if source == '-' else source}:{number}"
                if kind == LINES:
                    rows.append(read_line(place, line))
                elif line is None or line.strip():
                    rows.append(read_object(place, line, text_field or "text", title_field))
    except (OSError, EOFError, zlib.error) as error:
        raise RefembedError("input-missing", f"{source}: {getattr(error, 'strerror', None) or error}") from error
    if title_field and rows and all(row.title is None for row in rows):
        raise RefembedError("title-field", f"{source}: no line has a title in {title_field!r}; check the name")
    return rows


def kind_of(source: str, field: str | None) -> str:
    if source == "-":
        return OBJECTS if field else LINES
    ending = Path(source.removesuffix(".gz")).suffix
    if ending not in (".txt", ".jsonl"):
        raise RefembedError(
            "input-format", f"{source}: files of texts end in .txt or .jsonl (or with .gz), not in {ending!r}"
        )
    if ending == ".txt" and field:
        raise RefembedError(
            "input-format", f"{source}: a .txt file has no fields; --text-field and --title-field need .jsonl"
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


def read_object(place: str, line: bytes | None, text_field: str, title_field: str | None) -> Row:
    decoded = read_line(place, line)
    if decoded.fault:
        return decoded
    try:
        entry = json.loads(decoded.text)
    except (ValueError, RecursionError) as error:
        return bad(place, "line-json", f"not JSON: {error}")
    if not isinstance(entry, dict):
        return bad(place, "line-json", f"a JSON object is needed, not {type(entry).__name__}")
    text, title = entry.get(text_field), entry.get(title_field) if title_field else None
    if text_field not in entry:
        return bad(place, "line-field", f"has no {text_field!r}; it has {', '.join(map(repr, list(entry)[:8]))}")
    if not isinstance(text, str):
        return bad(place, "line-field", f"{text_field!r} is {type(text).__name__}, a text is needed")
    if not isinstance(title, str | None):
        return bad(place, "line-field", f"{title_field!r} is {type(title).__name__}, a text or nothing is needed")
    return Row(place, text, title)


def bad(place: str, id: str, reason: str) -> Row:
    return Row(place, fault=RefembedError(id, reason))
