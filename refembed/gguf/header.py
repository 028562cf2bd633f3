"""What a GGUF file says before its tensors: metadata by key, and each tensor's type, shape and place.

Source: ggml's docs/gguf.md; what is refused here is refused by llama.cpp's ggml/src/gguf.cpp.
"""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import RefembedError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # of one form; 1 counted in 32 bits, and llama.cpp no longer reads it either
LARGEST_HEADER = 16 * 2**20  # bytes; the released model's, nearly all of it the tokenizer, has 6.5 million
MOST_ENTRIES = 2**16  # keys, or tensors
MOST_DIMENSIONS = 4
ALIGNMENT = 32  # bytes, where the file names no other
NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING, ARRAY = 8, 9
LENGTH = struct.Struct("<Q")  # of a text, before it


class Entry(NamedTuple):
    """What a file says of one tensor.

    kind     ggml's number of the type it is stored in
    shape    outermost first, the reverse of the file's order
    offset   bytes from the end of the header
    """

    kind: int
    shape: tuple[int, ...]
    offset: int


class Header(NamedTuple):
    """A file's header.

    values    key -> number, bool, text, array of numbers, or list of bytes for an array of texts
    tensors   name -> Entry, in the file's order
    data      the whole file, mapped, uint8
    start     where the first tensor begins; tensors begin at multiples of `alignment`
    """

    values: dict[str, Any]
    tensors: dict[str, Entry]
    data: NDArray[np.uint8]
    start: int
    alignment: int


def read_header(file: Path) -> Header:
    """Read and check everything before the first tensor.

    Raises RefembedError: no more of the file is believed than its own size and LARGEST_HEADER allow.
    """
    if not os.path.isfile(file):  # pathlib's own raises where a name is too long for any file
        raise RefembedError(
            "file-missing", f"{file} is not there, or no file; a GGUF file, or a model folder, is needed"
        )
    try:
        data = np.asarray(np.memmap(file, np.uint8, mode="r"))
    except ValueError as error:  # an empty file cannot be mapped
        raise RefembedError("gguf-invalid", f"{file} is empty, a GGUF file is needed") from error
    except OSError as error:
        raise RefembedError("file-unreadable", f"{file}: {error.strerror or error}") from error
    cursor = Cursor(file, data)
    found = bytes(data[: len(MAGIC)])
    if found != MAGIC:
        raise RefembedError("gguf-invalid", f"{file} begins with {found!r}, a GGUF file with {MAGIC!r}")
    cursor.at = len(MAGIC)
    version, *counts = cursor.numbers("<IQQ")
    if version not in VERSIONS:
        other = "written for big-endian processors" if version & 0xFFFF == 0 else f"of version {version}"
        raise RefembedError(
            "gguf-version", f"{file} is {other}; little-endian version 2 or 3 is read: convert it again"
        )
    for count, what in zip(counts, ("tensors", "keys"), strict=True):
        if count > MOST_ENTRIES:
            raise RefembedError("gguf-too-large", f"{file} says it has {count} {what}, at most {MOST_ENTRIES} expected")
    values = table(cursor, counts[1], cursor.value)
    tensors = table(cursor, counts[0], cursor.entry)
    alignment = values.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1) or alignment % 8:
        raise cursor.refuse("gguf-metadata", f"general.alignment is {alignment!r}, a power of two from 8 on is needed")
    return Header(values, tensors, data, round_up(cursor.at, alignment), alignment)


def table(cursor: "Cursor", count: int, read: Callable[[str], Any]) -> dict[str, Any]:
    """Names, no two the same, each with what `read` makes of the bytes after it."""
    found: dict[str, Any] = {}
    for _ in range(count):
        name = cursor.name()
        if name in found:
            raise cursor.refuse("gguf-metadata", f"{name} stands there twice")
        found[name] = read(name)
    return found


def round_up(number: int, step: int) -> int:
    return -(-number // step) * step


class Cursor:
    """A place in a header, which reads on from there and never beyond the end."""

    def __init__(self, file: Path, data: NDArray[np.uint8]) -> None:
        self.file, self.size, self.at = file, len(data), 0
        self.data: Any = memoryview(data[:LARGEST_HEADER])  # type: ignore[arg-type] # an array is one

    def refuse(self, id: str, what: str) -> RefembedError:
        return RefembedError(id, f"{self.file}: {what}; the file is damaged, fetch or convert it again")

    def take(self, size: int) -> int:
        """Where the next `size` bytes begin."""
        start, self.at = self.at, self.at + size
        if self.at > self.size:
            raise self.refuse("gguf-truncated", f"the header goes on to byte {self.at}, the file to {self.size}")
        if self.at > LARGEST_HEADER:
            raise RefembedError("gguf-too-large", f"{self.file}: the header has more than {LARGEST_HEADER} bytes")
        return start

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack_from(form, self.data, self.take(struct.calcsize(form)))

    def text(self) -> bytes:
        (size,) = self.numbers("<Q")
        start = self.take(size)
        return bytes(self.data[start : start + size])

    def decoded(self, what: str) -> str:
        try:
            return self.text().decode()
        except UnicodeDecodeError as error:
            raise self.refuse("gguf-metadata", f"{what} is not UTF-8") from error

    def name(self) -> str:
        return self.decoded("a name")

    def value(self, key: str) -> Any:
        """One value: its type, then itself."""
        (kind,) = self.numbers("<I")
        if kind == STRING:
            return self.decoded(key)
        if kind != ARRAY:
            number = self.array(key, kind, 1)[0]
            return float(str(number)) if number.dtype == np.float32 else number.item()  # 1e-6, not 9.99999997e-07
        kind, count = self.numbers("<IQ")
        return self.texts(count) if kind == STRING else self.array(key, kind, count)

    def array(self, key: str, kind: int, count: int) -> NDArray[Any]:
        if kind not in NUMBERS:
            raise self.refuse("gguf-metadata", f"{key} is of type {kind}, which there is not")
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.data, dtype, count, self.take(count * dtype.itemsize))

    def texts(self, count: int) -> list[bytes]:
        """Some texts; a loop of its own, since the released model has 262,144 of them."""
        data, at, end, found = self.data, self.at, len(self.data), []
        for _ in range(count):
            (size,) = LENGTH.unpack_from(data, at) if at + LENGTH.size <= end else (0,)
            start, at = at + LENGTH.size, at + LENGTH.size + size
            if at > end:
                self.take(at - self.at)  # which refuses
            found.append(bytes(data[start:at]))
        self.at = at
        return found

    def entry(self, name: str) -> Entry:
        (dimensions,) = self.numbers("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self.refuse("gguf-tensor", f"{name} has {dimensions} dimensions, 1 to {MOST_DIMENSIONS} needed")
        *shape, kind, offset = self.numbers(f"<{dimensions}QIQ")
        return Entry(kind, tuple(reversed(shape)), offset)
