"""A segment: rows of an index, and the one file that holds them and never changes."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import RefembedError
from ..stored import map_file
from ..vectors import INT8, ROWS_AT_ONCE, Table, quantize_vectors

# column -> its type in the file. Eight bytes a number first, so that each column starts at a multiple of its own size
COLUMNS = {"keys": "I64", "ends": "I64", "vectors": "F32", "bits": "U8", "contents": "U8", "rows": "U8"}
Part = tuple["Segment", NDArray[np.int64]]  # some rows of a segment, by their places in it


class Stored(NamedTuple):
    """A file of an index, as its manifest knows it."""

    file: str
    bytes: int
    sha256: str


class Segment(NamedTuple):
    """n rows, mapped from a file or in memory.

    keys       (n,) int64    increasing over all segments: a number each row got when it came, never given again
    ends       (n,) int64    where each row's JSON, [id, text, title], ends in rows
    vectors    (n, d)        float32 of unit length, or int8
    bits       (n, d/8)      uint8; of a binary index alone, whose vectors are int8
    contents   (n, 16) uint8 what was embedded: a digest of the token ids
    rows       (bytes,)      uint8
    stored     its file; None where it is in memory alone
    """

    keys: NDArray[np.int64]
    ends: NDArray[np.int64]
    vectors: Table
    bits: NDArray[np.uint8] | None
    contents: NDArray[np.uint8]
    rows: NDArray[np.uint8]
    stored: Stored | None = None

    def json(self, place: int) -> bytes:
        """One row's JSON."""
        return self.rows[self.ends[place - 1] if place else 0 : self.ends[place]].tobytes()

    def row(self, place: int) -> tuple[str, str, str | None]:
        """One row's id, text and title."""
        try:
            id, text, title = json.loads(self.json(place))
        except ValueError as error:
            raise damaged(self.stored.file if self.stored else "a segment", f"row {place} is no row") from error
        return id, text, title


def damaged(file: object, what: str) -> RefembedError:
    return RefembedError(
        "index-damaged", f"{file}: {what}; put the folder back from a copy, or remove it and add the texts again"
    )


def open_segment(folder: Path, stored: Stored) -> Segment:
    """A segment mapped from its file, whose shapes fit each other."""
    file = folder / stored.file
    mapped = map_file(file).items()
    found: dict[str, Any] = {name: values.view("<i8") if kind == "I64" else values for name, (kind, values) in mapped}
    if set(found) | {"bits"} != set(COLUMNS):
        raise damaged(file, f"it holds {', '.join(sorted(found))}")
    count = len(found["keys"])
    if any(len(values) != count for name, values in found.items() if name != "rows"):
        raise damaged(file, "its columns have different lengths")
    return Segment(**({"bits": None} | found), stored=stored)


def write_segment(file: Path, parts: Sequence[Part]) -> None:
    """Write rows of segments as one file, some thousand rows in memory at a time."""
    lengths = np.concatenate([np.diff(segment.ends, prepend=0)[places] for segment, places in parts])
    first, count = parts[0][0], len(lengths)
    header: dict[str, Any] = {}
    end = 0
    for name, kind in COLUMNS.items():
        column = getattr(first, name)
        if column is None:
            continue
        shape = [int(lengths.sum())] if name == "rows" else [count, *column.shape[1:]]
        start, end = end, end + int(np.prod(shape)) * column.itemsize
        kind = "I8" if column.dtype == np.int8 else kind
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("xb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for name in header:
            for piece in [np.cumsum(lengths)] if name == "ends" else pieces(parts, name):
                handle.write(np.ascontiguousarray(piece, piece.dtype.newbyteorder("<")).data)


def pieces(parts: Sequence[Part], name: str) -> Iterator[NDArray[Any]]:
    """One column of some rows, in their order."""
    for segment, places in parts:
        for start in range(0, len(places), ROWS_AT_ONCE):
            some = places[start : start + ROWS_AT_ONCE]
            if name == "rows":
                yield np.frombuffer(b"".join(segment.json(place) for place in some.tolist()), np.uint8)
            else:
                yield getattr(segment, name)[some]


def groups(segments: Sequence[Segment], removed: frozenset[int], compact: bool) -> list[list[Part]]:
    """Which neighbours become one segment: all; or each that has not twice as many rows as those after it together.

    So there are few segments, and a row is written about as often as the number of rows can be halved.
    """
    found: list[list[Part]] = []
    following = 0  # rows of the last group
    for segment in reversed(segments):
        part = segment, living(segment, removed)
        if found and (compact or len(part[1]) < 2 * following):
            found[-1].insert(0, part)
            following += len(part[1])
        else:
            found.append([part])
            following = len(part[1])
    return found[::-1]


def living(segment: Segment, removed: frozenset[int]) -> NDArray[np.int64]:
    """Places of the rows of a segment that are not removed."""
    return np.flatnonzero(~np.isin(segment.keys, np.fromiter(removed, np.int64)))


def levels(segment: Segment, places: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Table]]:
    """Keys and int8 vectors of some rows, some thousand at a time."""
    for start in range(0, len(places), ROWS_AT_ONCE):
        some = places[start : start + ROWS_AT_ONCE]
        vectors = segment.vectors[some]
        yield segment.keys[some], vectors if vectors.dtype == np.int8 else quantize_vectors(vectors, INT8)
