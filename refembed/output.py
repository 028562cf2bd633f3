"""Vectors to files, which appear whole or not at all."""

import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import RefembedError

FORMATS = ("jsonl", "npy", "safetensors")


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, beside `path` until it is complete, then in its place; on any error nothing is left behind.

    Raises RefembedError where it cannot be written.
    """
    temporary = None
    try:
        path = Path(os.path.realpath(path))  # through a link, which stays
        if path.is_dir():
            raise IsADirectoryError(None, "is a folder")
        temporary = path.parent / f".refembed-{secrets.token_hex(8)}"
        with open(temporary, "xb") as handle:
            if path.exists():
                temporary.chmod(path.stat().st_mode & 0o777)  # a private file stays private
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RefembedError("output-unwritable", f"{path}: {error.strerror or error}") from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


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
def open_output(path: str | None) -> Iterator[IO[bytes]]:
    """Standard output where no path is given; a pipe or device is written to, never replaced."""
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
        with whole_file(Path(path)) as handle:
            yield handle


def format_of(path: str | None, given: str | None) -> str:
    """The format asked for, or the one the path's ending names, or JSON lines."""
    ending = Path(path).suffix[1:].lower() if path and not is_device(path) else ""
    format = given or ending or "jsonl"
    if format not in FORMATS:
        raise RefembedError("option-format", f"{path}: the formats are {', '.join(FORMATS)}; end so, or say --format")
    if format != "jsonl" and (path is None or path == "-"):
        raise RefembedError("option-format", f"{format} is binary and goes to a file; name one with -o")
    return format


def write_vectors(
    handle: IO[bytes] | BinaryIO,
    format: str,
    count: int,
    indices: Sequence[int],
    texts: Sequence[str],
    vectors: NDArray[Any],
) -> None:
    """Write the vectors of the texts that have one.

    count     how many texts there were
    indices   (n) which of them the vectors belong to, from 0
    texts     (n) the texts themselves
    vectors   (n, d) float32, int8, or uint8 of eight numbers each

    jsonl: an object a line, {"index", "text", "embedding"}. npy: (count, d), NaN in the rows of texts without a vector,
    or 0 where numbers are whole.
    safetensors: "embeddings" (n, d) and "index" (n).
    """
    if format == "jsonl":
        for index, text, vector in zip(indices, texts, vectors, strict=True):
            whole = vectors.dtype.kind in "iu"
            numbers = vector.tolist() if whole else [float(str(number)) for number in vector]  # its shortest form
            row = {"index": index, "text": text, "embedding": numbers}
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    elif format == "npy":
        missing = np.nan if vectors.dtype.kind == "f" else 0
        table = np.full((count, vectors.shape[1]), missing, vectors.dtype)
        table[list(indices)] = vectors
        header = np.lib.format.header_data_from_array_1_0(table)
        np.lib.format.write_array_header_1_0(handle, header)
        handle.write(table.tobytes())  # np.save asks for the position, which a pipe has not
    else:
        from safetensors.numpy import save

        handle.write(save({"embeddings": np.ascontiguousarray(vectors), "index": np.array(indices, np.int64)}))
