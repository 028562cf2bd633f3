"""Vectors to files, which appear whole or not at all."""

import json
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import RefembedError
from .plugins import plugins
from .textfiles import Row

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

WRITERS = "refembed.writers"  # the entry points by which adapters add forms


@contextmanager
def whole_file(path: Path, beside: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write, beside `path` until it is complete, then in its place; on any error nothing is left behind.

    beside   its name till then, which nobody else uses; each time another where not given

    Raises RefembedError where it cannot be written.
    """
    temporary = None
    try:
        path = Path(os.path.realpath(path))  # through a link, which stays
        if path.is_dir():
            raise IsADirectoryError(None, "is a folder")
        temporary = beside or path.parent / f".refembed-{secrets.token_hex(8)}"
        with open_like(path, temporary, "wb" if beside else "xb") as handle:
            if path.exists():
                temporary.chmod(path.stat().st_mode & 0o777)
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RefembedError("output-unwritable", f"{path}: {error.strerror or error}") from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def open_like(target: Path, path: Path, mode: str) -> IO[bytes]:
    """Open a file that is made, where it is, for nobody who may not open the target: what is private stays private."""
    allowed = target.stat().st_mode & 0o777 | 0o600 if target.exists() else 0o666
    return open(path, mode, opener=lambda name, flags: os.open(name, flags, allowed))


def is_device(path: str) -> bool:
    """A pipe, /dev/null, /dev/stdout."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def check_output(path: str | None) -> None:
    """Raise now what writing there would raise after all the embedding."""
    if path is None or path == "-" or is_device(path):
        return
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise IsADirectoryError(None, "is a folder")
        target.exists()  # raises where the name is too long
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".refembed-"):
            pass
    except OSError as error:
        raise RefembedError("output-unwritable", f"{path}: {error.strerror or error}") from error


@contextmanager
def open_output(path: str | None, beside: Path | None = None) -> Iterator[IO[bytes]]:
    """Standard output where no path is given; a pipe or device is written to, never replaced. beside: of whole_file."""
    if path is None or path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif is_device(path):
        try:
            with open(path, "wb") as handle:
                yield handle
        except OSError as error:
            raise RefembedError("output-unwritable", f"{path}: {error.strerror or error}") from error
    else:
        with whole_file(Path(path), beside) as handle:
            yield handle


def format_of(path: str | None, given: str | None) -> str:
    """The format asked for, or the one the path's ending names, or JSON lines."""
    ending = Path(path).suffix[1:].lower() if path and not is_device(path) else ""
    format = given or ending or "jsonl"
    if format not in formats():
        raise RefembedError("option-format", f"{path}: the formats are {', '.join(formats())}; end so, or say --format")
    if format != "jsonl" and (path is None or path == "-"):
        raise RefembedError("option-format", f"{format} is binary and goes to a file; name one with -o")
    return format


class Piece(NamedTuple):
    """The vectors of some rows that follow each other, as a form packed them.

    first     the index of the first of them, counted from 0 over all rows
    rows      how many they are
    good      the indices of those that have a vector
    packed    what the form made of them
    """

    first: int
    rows: int
    good: list[int]
    packed: bytes


Pieces = Callable[[], Iterable[Piece]]  # all of them in order, as often as they are asked for


class Form(Protocol):
    """A format of vectors: each piece is packed by itself, and a file is made of all.

    one_pass   whether join asks for the pieces only once, so that they can be written as they come
    """

    one_pass: bool

    def pack(self, first: int, rows: Sequence[Row], good: Sequence[int], vectors: NDArray[Any]) -> bytes:
        """The bytes of a piece.

        first     the index of rows[0]
        good      places within rows that have a vector
        vectors   (rows, d) float32, int8, or uint8 of eight numbers each; only the good ones mean anything
        """

    def join(self, handle: IO[bytes], pieces: Pieces, like: NDArray[Any]) -> None:
        """Write the file. like: (0, d), of the vectors' type."""


class Jsonl:
    """An object a line, {"index", "text", "embedding"}, and "id" where there is one."""

    one_pass = True

    def pack(self, first: int, rows: Sequence[Row], good: Sequence[int], vectors: NDArray[Any]) -> bytes:
        lines = []
        for place in good:
            row = rows[place]
            about = {"index": first + place} | ({} if row.id is None else {"id": row.id}) | {"text": row.text}
            shortest = vectors[place].astype("U").tolist()  # the fewest digits that give this float32
            start = json.dumps(about, ensure_ascii=False)[:-1]
            lines.append(f'{start}, "embedding": [{", ".join(shortest)}]}}\n')
        return "".join(lines).encode()

    def join(self, handle: IO[bytes], pieces: Pieces, like: NDArray[Any]) -> None:
        for piece in pieces():
            handle.write(piece.packed)


class Npy:
    """A row for each text, (texts, d): NaN where a text has no vector, or 0 where numbers are whole."""

    one_pass = False

    def pack(self, first: int, rows: Sequence[Row], good: Sequence[int], vectors: NDArray[Any]) -> bytes:
        return vectors.tobytes()

    def join(self, handle: IO[bytes], pieces: Pieces, like: NDArray[Any]) -> None:
        count = sum(piece.rows for piece in pieces())
        header = np.lib.format.header_data_from_array_1_0(like) | {"shape": (count, like.shape[1])}
        np.lib.format.write_array_header_1_0(handle, header)
        for piece in pieces():
            handle.write(piece.packed)


class Safetensors:
    """ "embeddings" (n, d) of the texts that have a vector, and "index" (n)."""

    one_pass = False

    def pack(self, first: int, rows: Sequence[Row], good: Sequence[int], vectors: NDArray[Any]) -> bytes:
        return vectors[list(good)].tobytes()

    def join(self, handle: IO[bytes], pieces: Pieces, like: NDArray[Any]) -> None:
        count = sum(len(piece.good) for piece in pieces())
        kind = {"f": "F32", "i": "I8", "u": "U8"}[like.dtype.kind]
        size = count * like.shape[1] * like.itemsize
        about = {
            "index": {"dtype": "I64", "shape": [count], "data_offsets": [0, 8 * count]},  # first: it needs alignment
            "embeddings": {
                "dtype": kind,
                "shape": [count, like.shape[1]],
                "data_offsets": [8 * count, 8 * count + size],
            },
        }
        header = json.dumps(about, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        handle.write(len(header).to_bytes(8, "little") + header)
        for piece in pieces():
            handle.write(np.array(piece.good, "<i8").tobytes())
        for piece in pieces():
            handle.write(piece.packed)


FORMS: dict[str, type[Form]] = {"jsonl": Jsonl, "npy": Npy, "safetensors": Safetensors}


def formats() -> list[str]:
    """The names of all forms."""
    return [*FORMS, *(entry.name for entry in writers())]


def form_of(format: str) -> Form:
    """The form of this name, one of formats()."""
    made: type[Form] = FORMS.get(format) or next(entry.load() for entry in writers() if entry.name == format)
    return made()


def writers() -> "Iterable[EntryPoint]":
    return plugins(WRITERS)


def sync_folder(folder: Path) -> None:
    """Bring the folder's names to the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def lock_file(handle: IO[bytes] | int, refusal: RefembedError) -> None:
    """Keep it for this process till it is closed; raise the refusal where another has it."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps two processes apart there
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise refusal from error
