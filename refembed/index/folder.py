"""An index's folder: a manifest, replaced in one step, that names every file of one whole state.

A change writes new files under names never used before, brings them to the disk, then replaces the manifest; files that
it no longer names go last. So a kill leaves the old state or the new one, and at most files that no manifest names,
which the next writer removes. One process writes at a time; readers take no lock, and keep what they have mapped.
"""

import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..embedder import levels_up
from ..errors import RefembedError
from ..output import lock_file, sync_folder, whole_file
from ..vectors import BINARY, INT8
from .segment import Segment, Stored, damaged, open_segment

MANIFEST, LOCK = "index.json", "lock"
OURS = ("segment-*", "graph-*", ".refembed-*")  # what a writer that was killed may leave
FORMAT, VERSION = "refembed index", 1
LOOKS = 100  # at a manifest whose files a writer removes before they are opened


@dataclass(frozen=True)
class Graph:
    """What finds rows without a look at each.

    until   rows of lower keys are in it
    rows    how many are, those removed since counted
    """

    stored: Stored
    until: int
    rows: int


@dataclass(frozen=True)
class State:
    """One whole state of an index: what a manifest says, its segments opened.

    generation   how many changes led to it
    model        the name it was loaded by, its digest, its stamp (checkpoint.Checkpoint)
    by           the backend and precision it was begun with
    quantize     None, "int8" or "binary"
    next_key     the next row's
    removed      keys of rows that segments still hold and nobody is to find
    """

    generation: int
    model: tuple[str, str, str]
    by: str
    dimensions: int
    quantize: str | None
    next_key: int = 0
    segments: tuple[Segment, ...] = ()
    removed: frozenset[int] = field(default_factory=frozenset)
    graph: Graph | None = None

    @property
    def files(self) -> list[Stored]:
        """Every file but the manifest."""
        return [one.stored for one in (*self.segments, self.graph) if one and one.stored]


def write_state(folder: Path, state: State) -> None:
    """Make this the index's state: from the rename on, for everybody who opens it."""
    graph = state.graph and {**state.graph.stored._asdict(), "until": state.graph.until, "rows": state.graph.rows}
    said = {
        "format": FORMAT,
        "version": VERSION,
        "generation": state.generation,
        "model": dict(zip(("name", "digest", "stamp"), state.model, strict=True)),
        "by": state.by,
        "dimensions": state.dimensions,
        "quantize": state.quantize,
        "next_key": state.next_key,
        "segments": [segment.stored._asdict() for segment in state.segments if segment.stored],
        "removed": sorted(state.removed),
        "graph": graph,
    }
    sync_folder(folder)  # the new files' names, before the manifest's
    with whole_file(folder / MANIFEST) as handle:
        handle.write(json.dumps(said, indent=1).encode())
    sync_folder(folder)
    sweep(folder, state)


def read_state(folder: Path) -> State | None:
    """The index's state; None where the folder holds no index.

    Raises RefembedError where a file is damaged, missing or of another size, or the format a later one.
    """
    for look in range(LOOKS):
        try:
            text = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RefembedError("file-unreadable", f"{folder / MANIFEST}: {error.strerror or error}") from error
        try:
            return parse(folder, text)
        except (RefembedError, FileNotFoundError):  # a writer may have removed a file since
            if look + 1 == LOOKS or (folder / MANIFEST).read_bytes() == text:
                return parse(folder, text, graph_needed=False)
    return None


def parse(folder: Path, text: bytes, graph_needed: bool = True) -> State:
    """A manifest's state. Raises RefembedError where it is none, or a file is not as it says.

    graph_needed   False: without its graph nothing is lost, and that is said
    """
    manifest = folder / MANIFEST
    try:
        said = json.loads(text)
        if said["format"] != FORMAT or not isinstance(said["version"], int):
            raise KeyError("format")
        if said["version"] > VERSION:
            raise RefembedError(
                "index-newer", f"{manifest} is of version {said['version']}, up to {VERSION} known; update refembed"
            )
        if said["quantize"] not in (None, INT8, BINARY):
            raise KeyError("quantize")
        stored = [Stored(str(one["file"]), int(one["bytes"]), str(one["sha256"])) for one in said["segments"]]
        graph = said["graph"]
        found = graph and Graph(
            Stored(str(graph["file"]), int(graph["bytes"]), str(graph["sha256"])),
            int(graph["until"]),
            int(graph["rows"]),
        )
        state = State(
            generation=int(said["generation"]),
            model=(str(said["model"]["name"]), str(said["model"]["digest"]), str(said["model"]["stamp"])),
            by=str(said["by"]),
            dimensions=int(said["dimensions"]),
            quantize=said["quantize"],
            next_key=int(said["next_key"]),
            removed=frozenset(map(int, said["removed"])),
            graph=found,
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, RefembedError):
            raise
        raise damaged(manifest, f"it is no manifest of an index ({type(error).__name__}: {error})") from error
    for one in stored:
        if wrong := fault(folder, one):
            raise damaged(folder / one.file, wrong)
    if found and (wrong := fault(folder, found.stored)):
        if graph_needed:
            raise damaged(folder / found.stored.file, wrong)
        warnings.warn(
            f"{folder / found.stored.file}: {wrong}; every text is compared until 'refembed index compact {folder}' "
            f"makes it anew",
            stacklevel=levels_up(),
        )
        state = replace(state, graph=None)
    segments = tuple(open_segment(folder, one) for one in stored)
    kind = "float32" if state.quantize is None else "int8"
    for segment in segments:
        if (
            segment.vectors.shape[1:] != (state.dimensions,)
            or segment.vectors.dtype != kind
            or (segment.bits is not None) != (state.quantize == BINARY)
        ):
            raise damaged(segment.stored and segment.stored.file, "its vectors are not of the index's form")
    return replace(state, segments=segments)


def fault(folder: Path, stored: Stored) -> str | None:
    """What is wrong with a file, as far as its size tells."""
    if Path(stored.file).name != stored.file:
        return "no file of the folder, which the manifest names"
    try:
        size = (folder / stored.file).stat().st_size
    except OSError as error:
        return str(error.strerror or error)
    return None if size == stored.bytes else f"it has {size} bytes, {stored.bytes} needed"


def check_digests(folder: Path, files: Iterable[Stored]) -> None:
    """Raise RefembedError where a byte of a file has changed. Reads them all."""
    for stored in files:
        with (folder / stored.file).open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != stored.sha256:
                raise damaged(folder / stored.file, "its SHA-256 is not the manifest's")


@contextmanager
def new_file(folder: Path, kind: str) -> Iterator[Path]:
    """Where to write a new file of the index; it is brought to the disk at the end, and removed on any error."""
    file = folder / f"{kind}-{secrets.token_hex(8)}"  # a name never used again: readers may have the old one mapped
    try:
        yield file
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    except BaseException as error:
        file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RefembedError("output-unwritable", f"{file}: {error.strerror or error}") from error
        raise


def stored_file(file: Path) -> Stored:
    """A file just written, as the manifest will know it."""
    with file.open("rb") as handle:
        return Stored(file.name, file.stat().st_size, hashlib.file_digest(handle, "sha256").hexdigest())


def sweep(folder: Path, state: State | None) -> None:
    """Remove what no manifest names; where something still holds it, the next writer will."""
    named = {stored.file for stored in state.files} if state else set()
    for file in (file for pattern in OURS for file in folder.glob(pattern) if file.name not in named):
        with suppress(OSError):
            file.unlink()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the folder, made where it is not there, against other writers; without an index at the end, it goes again.

    Raises RefembedError where another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_others(folder)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RefembedError("output-unwritable", f"{folder}: {error.strerror or error}") from error
    try:
        lock(handle, folder)
        try:
            yield
        finally:
            if not (folder / MANIFEST).exists():
                sweep(folder, None)
                with suppress(OSError):
                    (folder / LOCK).unlink()
                    folder.rmdir()
    finally:
        os.close(handle)


def refuse_others(folder: Path) -> None:
    """Not among files of something else."""
    if not (folder / MANIFEST).exists():
        allowed = {LOCK, *(file.name for pattern in OURS for file in folder.glob(pattern))}
        others = sorted(file.name for file in folder.iterdir() if file.name not in allowed)
        if others:
            raise RefembedError("index-missing", f"{folder} holds no index but {others[0]}; name a new or empty folder")


def lock(handle: int, folder: Path) -> None:
    refusal = RefembedError("index-in-use", f"{folder} is being changed by another process; try again")
    lock_file(handle, refusal)
    with suppress(OSError):
        if os.fstat(handle).st_ino == (folder / LOCK).stat().st_ino:
            return
    raise refusal  # its writer has just removed it
