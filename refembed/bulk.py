"""Files larger than memory, embedded chunk by chunk; a run that was killed goes on after the last whole chunk.

Beside the output stands NAME.partial until it is complete: what was asked for, then each chunk's packed vectors. Every
entry begins with its own SHA-256, so that a torn one is known by itself and taken for not there. A chunk's entry says
what its rows were too: going on, the input is read again from its start and must be the same so far.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import __version__
from .embedder import Embedder, TextsCut
from .errors import RefembedError, printable
from .output import Form, Piece, is_device, lock_file, open_like, open_output, sync_folder
from .progress import Progress
from .textfiles import Row
from .vectors import check_quantize, quantize_vectors

MAGIC = b"refembed embed 1\n"  # how a log begins
ROWS = 512  # of a chunk: what a kill can cost at most
CHARACTERS = 2**20  # of a chunk's texts, beyond which it ends early: memory does not grow with long texts
MOST_LISTED = 100  # faulty rows on standard error
MOST_IN_MEMORY = 2**24  # bytes of packed vectors that need no file


class Each(NamedTuple):
    """A row for each text, in order.

    vectors   (n, d) float32, NaN where a text is at fault; int8, or (n, d/8) uint8, 0 where it is
    faults    (n) None, or what is wrong with that text
    """

    vectors: NDArray[Any]
    faults: list[RefembedError | None]


def encode_each(
    model: Embedder,
    texts: Sequence[Any],
    titles: Sequence[Any] | None = None,
    *,
    dimensions: int | None = None,
    quantize: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Each:
    """encode() that goes on without the texts at fault.

    texts     whatever is no text is a fault of its own row, such as None
    titles    one for each text, None where it has none; no titles at all are no fault, whatever the prompt
    options   dimensions, quantize, task, prompt and on_long, as of encode()

    Raises RefembedError where an option is wrong, which is no single text's fault.
    """
    kept = model.check_dimensions(dimensions)
    check_quantize(quantize, kept)
    titled = titles is not None and any(title is not None for title in titles)
    found = model.prepare(texts, titles=titles if titled else None, **options)
    batch = {index: ids for index, ids in enumerate(found) if not isinstance(ids, RefembedError)}
    part = quantize_vectors(model.encode_tokens(list(batch.values()), kept, progress=progress), quantize)
    vectors = np.full((len(found), part.shape[1]), np.nan if part.dtype.kind == "f" else 0, part.dtype)
    vectors[list(batch)] = part
    return Each(vectors, [ids if isinstance(ids, RefembedError) else None for ids in found])


def encode_rows(model: Embedder, rows: Sequence[Row], **options: Any) -> Each:
    """encode_each() of rows, of which some were at fault before they came here."""
    texts = [None if row.fault else row.text for row in rows]
    found = encode_each(model, texts, [row.title for row in rows], **options)
    return Each(found.vectors, [row.fault or fault for row, fault in zip(rows, found.faults, strict=True)])


def chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in runs that depend on them alone."""
    part: list[Row] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row.text)
        if len(part) == ROWS or size >= CHARACTERS:
            yield part
            part, size = [], 0
    if part:
        yield part


class Log:
    """What is done, entry after entry: a line of SHA-256, size and JSON, then as many bytes."""

    def __init__(self, handle: IO[bytes], path: Path | None = None) -> None:
        self.handle, self.path = handle, path
        handle.seek(0)
        found = handle.read(len(MAGIC))
        if not MAGIC.startswith(found):
            raise RefembedError("output-begun", f"{path} is none of refembed's files; name another output")
        if found != MAGIC:
            self.clear()

    def clear(self) -> None:
        self.handle.truncate(0)
        self.handle.seek(0)
        self.handle.write(MAGIC)

    def entries(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """All whole ones from the start; what follows a torn one is cut off."""
        place, end = len(MAGIC), self.handle.seek(0, os.SEEK_END)
        while True:
            self.handle.seek(place)
            line = self.handle.readline()
            digest, _, rest = line.partition(b" ")
            size, _, text = rest.partition(b" ")
            whole = line.endswith(b"\n") and re.fullmatch(rb"\d{1,18}", size) and int(size) <= end - self.handle.tell()
            packed = self.handle.read(int(size)) if whole else b""
            if digest.decode("latin-1") != sum_of(size, text, packed):
                break
            place = self.handle.tell()
            yield json.loads(text), packed
        self.handle.seek(place)
        self.handle.truncate()

    def append(self, said: dict[str, Any], packed: bytes) -> None:
        size, text = str(len(packed)).encode(), json.dumps(said).encode() + b"\n"
        try:
            self.handle.write(b"%s %s %s%s" % (sum_of(size, text, packed).encode(), size, text, packed))
            self.handle.flush()
            if self.path:
                os.fsync(self.handle.fileno())
        except OSError as error:
            raise RefembedError("output-unwritable", f"{self.path}: {error.strerror or error}") from error


def sum_of(*parts: bytes) -> str:
    return hashlib.sha256(b" ".join(parts)).hexdigest()


def partial_of(output: str | None) -> Path | None:
    """Where a long run keeps what it has; nowhere for a pipe or standard output."""
    if output is None or output == "-" or is_device(output):
        return None
    path = Path(os.path.realpath(output))
    short = path.name if len(os.fsencode(path.name)) < 240 else sum_of(os.fsencode(path.name))
    return path.with_name(f"{short}.partial")


@contextmanager
def open_log(path: Path | None, restart: bool, output: str | None) -> Iterator[Log]:
    """The log at this path, for this process alone and gone once all went well; without a path one that is not kept."""
    if path is None or output is None:
        with tempfile.SpooledTemporaryFile(MOST_IN_MEMORY) as spool:
            yield Log(spool)
        return
    with open_locked(path, Path(output)) as handle:
        log = Log(handle, path)
        if restart:
            log.clear()
        try:
            yield log
        except KeyboardInterrupt:
            print(f"refembed: {path.name} has what is done; the same command goes on from there", file=sys.stderr)
            raise
        sync_folder(path.parent)  # the output has its name on the disk before this has lost its own
        path.unlink()


def open_locked(path: Path, output: Path) -> IO[bytes]:
    refusal = RefembedError("output-in-use", f"another process writes {path.name}; wait for it, or name another output")
    try:
        while True:
            handle = open_like(output, path, "a+b")
            lock_file(handle, refusal)
            if path.exists() and path.stat().st_ino == os.fstat(handle.fileno()).st_ino:
                return handle
            handle.close()  # between the two steps it was completed, and removed, by another process
    except OSError as error:
        raise RefembedError("output-unwritable", f"{path}: {error.strerror or error}") from error


def embed_rows(
    model: Embedder,
    rows: Iterable[Row],
    form: Form,
    output: str | None,
    progress: Progress,
    *,
    asked: dict[str, Any],
    faults: str | None = None,
    restart: bool = False,
    **options: Any,
) -> int:
    """Embed all rows and write the output, which appears whole or not at all; how many rows were left out.

    asked      what else must be the same for going on, by the names its user knows
    faults     a file to list what was left out in: a JSON object a line, {"index", "place", "id", "reason"}
    restart    do not go on
    options    dimensions, quantize, task, prompt and on_long, as of encode()

    Raises RefembedError where an option is wrong, or what is there was begun as something else.
    """
    like = encode_each(model, [], **options).vectors
    parts = chunks(rows)
    head = list(islice(parts, 2)) or [[]]
    partial = partial_of(output)
    kept = partial if partial and (len(head) > 1 or partial.exists()) else None
    with open_log(kept, restart, output) as log, Report(progress, model) as report:
        done = begun(log, {**settings_of(model, options), **asked}) if kept else iter(())
        straight = form.one_pass and partial is None
        pieces = embed_chunks(model, chain(head, parts), done, None if straight else log, form, progress, options)
        if straight:
            with open_output(output) as handle:
                form.join(handle, lambda: report.follow(pieces), like)
        else:
            for _ in report.follow(pieces):
                pass
        report.finish(faults)
        if not straight:
            with open_output(output, kept and kept.with_name(f"{kept.name}.whole")) as handle:
                form.join(handle, lambda: (piece_of(*entry) for entry in log.entries() if "first" in entry[0]), like)
    return report.left_out


def settings_of(model: Embedder, options: dict[str, Any]) -> dict[str, Any]:
    """What the vectors depend on but for the texts."""
    info = model.info
    named = {name: getattr(info, name) for name in ("backend", "precision", "threads")}
    return {"refembed": __version__, "model": info.digest[:16], **named, **options, "rows": ROWS}


def begun(log: Log, settings: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The chunks that are in the log, where it was begun with the same settings."""
    done = log.entries()
    said, _ = next(done, (None, b""))
    if said is None:
        log.append(settings, b"")
    elif said != settings:
        names = [name for name in {**said, **settings} if said.get(name) != settings.get(name)]
        changes = ", ".join(f"{name} {said.get(name)!r} and now {settings.get(name)!r}" for name in names)
        raise begun_otherwise(f"was begun with {changes}")
    return done


def begun_otherwise(what: str) -> RefembedError:
    return RefembedError("output-begun", f"the output {what}; run it as it was, or start anew with --restart")


def embed_chunks(
    model: Embedder,
    parts: Iterable[list[Row]],
    done: Iterator[tuple[dict[str, Any], bytes]],
    log: Log | None,
    form: Form,
    progress: Progress,
    options: dict[str, Any],
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The entry of each chunk: from the log where it is done, else made and put there."""
    first = there = 0
    for rows in parts:
        mark = sum_of(json.dumps([[row.place, row.text, row.title, row.id, str(row.fault)] for row in rows]).encode())
        said, packed = next(done, ({}, b""))
        if said:
            if said["mark"] != mark:
                raise begun_otherwise(f"has other rows than the input from row {first + 1:,} to {first + len(rows):,}")
            there = first + len(rows)
            progress.skip(len(rows))
        else:
            if there and there == first:
                progress.say(f"going on after {there:,} rows")
            said, packed = embed_chunk(model, rows, first, form, progress, options)
            said["mark"] = mark
            if log:
                log.append(said, packed)
        yield said, packed
        first += len(rows)
    if next(done, None):
        raise begun_otherwise(f"has more rows than the {first:,} of the input")
    if there and there == first:
        progress.say(f"going on after {there:,} rows")


def embed_chunk(
    model: Embedder, rows: list[Row], first: int, form: Form, progress: Progress, options: dict[str, Any]
) -> tuple[dict[str, Any], bytes]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = encode_rows(model, rows, progress=progress, **options)
    cut = 0
    for one in caught:
        if isinstance(one.message, TextsCut):
            cut += one.message.cut  # said once for all chunks
        else:
            warnings.warn(one.message, stacklevel=2)
    faults = [
        {"index": first + place, "place": row.place, "id": fault.id, "reason": fault.reason}
        for place, (row, fault) in enumerate(zip(rows, found.faults, strict=True))
        if fault
    ]
    if faults:
        progress.add(len(faults))
    good = [place for place, fault in enumerate(found.faults) if not fault]
    said = {"first": first, "rows": len(rows), "faults": faults, "cut": cut}
    return said, form.pack(first, rows, good, found.vectors)


def piece_of(said: dict[str, Any], packed: bytes) -> Piece:
    left_out = {fault["index"] for fault in said["faults"]}
    indices = range(said["first"], said["first"] + said["rows"])
    return Piece(indices.start, len(indices), [index for index in indices if index not in left_out], packed)


class Report:
    """What is said of the rows, whether they were done now or before: some faults on standard error, all in a file."""

    def __init__(self, progress: Progress, model: Embedder) -> None:
        self.progress, self.context = progress, model.config.context
        self.left_out = self.cut = self.rows = 0

    def __enter__(self) -> "Report":
        self.listed = tempfile.SpooledTemporaryFile(MOST_IN_MEMORY)
        return self

    def __exit__(self, *exception: object) -> None:
        self.listed.close()

    def follow(self, entries: Iterable[tuple[dict[str, Any], bytes]]) -> Iterator[Piece]:
        for said, packed in entries:
            self.rows, self.cut = self.rows + said["rows"], self.cut + said["cut"]
            for fault in said["faults"]:
                self.left_out += 1
                self.listed.write(json.dumps(fault).encode() + b"\n")
                if self.left_out <= MOST_LISTED:
                    self.progress.say(f"left out {printable(fault['place'])}: {fault['reason']} [{fault['id']}]")
            yield piece_of(said, packed)

    def finish(self, faults: str | None) -> None:
        if self.left_out > MOST_LISTED:
            self.progress.say(f"left out {self.left_out:,} rows in all; --faults FILE lists them")
        if self.cut:
            warnings.warn(TextsCut(self.cut, self.rows, self.context), stacklevel=2)
        if faults:
            self.listed.seek(0)
            with open_output(faults) as handle:
                shutil.copyfileobj(self.listed, handle)
