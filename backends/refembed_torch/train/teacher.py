"""A teacher's vectors for examples: from a model, computed once and kept beside the run, or from files."""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

import refembed
from refembed.backend import choose_backend, choose_precision
from refembed.checkpoint import open_checkpoint
from refembed.embedder import raise_first
from refembed.errors import RefembedError
from refembed.stored import open_tensors, widen

from .data import Batch, Batches, Example, SetSettings, cut, prompted, sides_of
from .distributed import gather_rows, world
from .state import digest

Rows = NDArray[np.float32]  # (examples, 2 + hard, width): query, positive, negatives
SIDES = ("queries", "positives", "negatives")


@dataclass(frozen=True)
class TeacherSettings:
    """[teacher]: whose vectors the student's are drawn to.

    kind      refembed: a checkpoint folder, with the prompts that the student has; sentence-transformers: a folder of
              its; file: a folder with the vectors themselves, SET.safetensors with tensors queries, positives and where
              there are any negatives, or SET.queries.npy and so on: (lines, width), negatives (lines, negatives,
              width), row i for line i of the set's file from 0, NaN where there is none
    backend   of kind refembed; the best that can run where not given; precision: its default where not given
    prompts   of kind sentence-transformers: own, its encode_query and encode_document, or refembed, the student's
    """

    kind: Literal["refembed", "sentence-transformers", "file"]
    folder: Path
    backend: str = ""
    precision: str = ""
    prompts: Literal["own", "refembed"] = "own"


class Vectors(NamedTuple):
    """queries and positives (examples, width), negatives (examples, hard, width): float32, of any length."""

    queries: Rows
    positives: Rows
    negatives: Rows


class Source(Protocol):
    """What gives vectors. width: numbers in each."""

    width: int

    def __call__(self, settings: SetSettings, examples: Sequence[Example], hard: int) -> Rows: ...


class Teacher:
    """The teacher's vectors of a batch. Under torchrun every process finds its part of them, and all get all.

    width   numbers in a vector, which need not be the student's
    """

    def __init__(self, source: Source, batches: Batches) -> None:
        self.source, self.batches, self.width = source, batches, source.width

    def __call__(self, batch: Batch) -> Vectors:
        here = world()
        bounds = [len(batch.examples) * rank // here.size for rank in (here.rank, here.rank + 1)]
        settings, hard = self.batches.sources[batch.name].settings, self.batches.settings.hard
        own = self.source(settings, batch.examples[slice(*bounds)], hard)
        rows = gather_rows(torch.from_numpy(own).to(here.device)).cpu().numpy()
        return Vectors(rows[:, 0], rows[:, 1], rows[:, 2:])


def open_teacher(settings: TeacherSettings, batches: Batches, folder: Path) -> Teacher:
    """The teacher of a run.

    folder   where vectors are kept that a model gave, so that a run that goes on does not compute them again

    Raises RefembedError where it cannot be opened.
    """
    if not settings.folder.is_dir():
        raise RefembedError("folder-missing", f"the teacher's folder {settings.folder} is not there")
    if settings.kind == "file":
        return Teacher(Files(settings, batches), batches)
    kind = RefembedModel if settings.kind == "refembed" else SentenceTransformersModel
    return Teacher(Kept(kind(settings, batches.settings.context), folder), batches)


class RefembedModel:
    """A checkpoint folder on any backend; its weights are loaded when they are first needed."""

    def __init__(self, settings: TeacherSettings, context: int) -> None:
        self.settings, self.context = settings, context
        self.checkpoint = open_checkpoint(settings.folder)
        self.backend, _ = choose_backend(settings.backend or None)
        self.precision = choose_precision(self.backend, settings.precision or None, self.checkpoint)
        self.width = self.checkpoint.config.dimensions

    @property
    def marks(self) -> list[str | int]:
        """All that its vectors depend on beside the texts."""
        device = getattr(self.backend, "device", lambda: "cpu")()
        return [self.checkpoint.digest, self.backend.name, device, self.precision, self.context]

    @cached_property
    def model(self) -> refembed.Embedder:
        return refembed.load(self.settings.folder, backend=self.backend.name, precision=self.precision)

    def __call__(self, sides: Sequence[tuple[str, str, str]]) -> Rows:
        ids = raise_first(self.model.tokenizer([prompted(*side) for side in sides]))
        most = min(self.context, self.model.config.context)
        return self.model.encode_tokens([cut(one, most) for one in ids], self.width)


class SentenceTransformersModel:
    """A folder that sentence-transformers opens, with its own tokenizer; no code of it is run."""

    def __init__(self, settings: TeacherSettings, context: int) -> None:
        self.settings, self.context = settings, context
        try:
            library = import_module("sentence_transformers")
        except ImportError as error:
            raise RefembedError(
                "train-missing", 'the teacher needs sentence-transformers; pip install "sentence-transformers"'
            ) from error
        try:
            self.model = library.SentenceTransformer(
                str(settings.folder), device=str(world().device), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the library and those below it raise whatever they like
            raise RefembedError(
                "folder-missing", f"sentence-transformers cannot open {settings.folder}: {error}"
            ) from error
        self.model.max_seq_length = min(context, self.model.max_seq_length or context)
        self.width = len(self.model.encode("a", prompt=""))

    @cached_property
    def marks(self) -> list[str | int]:
        return [digest_of_folder(self.settings.folder), world().device.type, self.settings.prompts, self.context]

    def __call__(self, sides: Sequence[tuple[str, str, str]]) -> Rows:
        if self.settings.prompts == "refembed":
            return self.encoded(self.model.encode, [prompted(*side) for side in sides], prompt="")
        texts = [f"{title}\n{text}" if title else text for _, text, title in sides]
        stored = np.array([prompt == "document" for prompt, _, _ in sides])
        found = np.empty((len(sides), self.width), np.float32)
        for chosen, encode in ((~stored, self.model.encode_query), (stored, self.model.encode_document)):
            if chosen.any():
                found[chosen] = self.encoded(encode, [texts[index] for index in np.flatnonzero(chosen)])
        return found

    def encoded(self, encode: Callable[..., Any], texts: list[str], **options: str) -> Rows:
        return np.asarray(encode(texts, show_progress_bar=False, convert_to_numpy=True, **options), np.float32)


def digest_of_folder(folder: Path) -> str:
    """Of the names and contents of all files in it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    parts = [f"{file.relative_to(folder)} {digest(file)}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Kept:
    """A model's vectors, each computed once: a file for every set and process, named after all that they depend on."""

    def __init__(self, model: RefembedModel | SentenceTransformersModel, folder: Path) -> None:
        self.model, self.folder, self.width = model, folder, model.width
        self.stores: dict[str, Store] = {}

    def __call__(self, settings: SetSettings, examples: Sequence[Example], hard: int) -> Rows:
        if settings.name not in self.stores:
            self.stores[settings.name] = self.open(settings, hard)
        store = self.stores[settings.name]
        missing = {example.row: example for example in examples if example.row not in store.places}
        if missing:
            sides = [side for example in missing.values() for side in sides_of(settings, example)]
            try:
                found = self.model(sides).reshape(len(missing), 2 + hard, self.width)
            except RefembedError as error:
                if error.index is None:
                    raise
                row = list(missing)[error.index // (2 + hard)]
                raise RefembedError("train-data", f"{settings.file}:{row + 1}: the teacher: {error.reason}") from error
            if not np.isfinite(found).all():
                raise RefembedError("train-data", f"the teacher gave NaN or infinity for texts of {settings.file}")
            store.add(list(missing), found)
        return store.get([example.row for example in examples])

    def open(self, settings: SetSettings, hard: int) -> "Store":
        own = [digest(settings.file), settings.query_task, settings.positive_task, hard]
        key = hashlib.sha256(json.dumps([*self.model.marks, *own]).encode()).hexdigest()[:16]
        here = world()  # no process sees another's, or a run that goes on would find more than it did the first time
        return Store(self.folder / f"{settings.name}.{key}.{here.rank}-of-{here.size}", (2 + hard, self.width))


class Store:
    """Rows of vectors on disk, appended in lots. A lot that a kill has cut short is dropped when the file is opened.

    Lots are kept whole or not at all because a model may give a text's vector another last bit in other company: a run
    that goes on asks for the same lots again.

    places   row -> its place in the file
    """

    def __init__(self, file: Path, shape: tuple[int, int]) -> None:
        self.file, self.places = file, dict[int, int]()
        fields = [("row", "<i8"), ("lot", "<i4"), ("check", "<u4"), ("vectors", "<f4", shape)]
        self.kind = np.dtype(fields)  # lot: how many rows it has; check: of row and vectors
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            os.truncate(file, self.recover() * self.kind.itemsize)
        except OSError as error:
            raise self.unwritable(error) from error

    def unwritable(self, error: OSError) -> RefembedError:
        return RefembedError("output-unwritable", f"{self.file}: {error.strerror or error}")

    def recover(self) -> int:
        """Find the rows of all whole lots; how many these are."""
        count = self.file.stat().st_size // self.kind.itemsize
        records = np.memmap(self.file, self.kind, "r", shape=(count,)) if count else np.empty(0, self.kind)
        at = 0
        while at < count:
            lot = records[at : at + max(int(records["lot"][at]), 1)]
            if len(lot) < records["lot"][at] or any(check(record) != record["check"] for record in lot):
                break
            self.places |= {int(row): at + place for place, row in enumerate(lot["row"])}
            at += len(lot)
        return at

    def add(self, rows: Sequence[int], vectors: Rows) -> None:
        """Append a lot. vectors: (rows, sides, width)."""
        records = np.empty(len(rows), self.kind)
        records["row"], records["lot"], records["vectors"] = rows, len(rows), vectors
        records["check"] = [check(record) for record in records]
        try:
            with self.file.open("ab") as handle:
                start = handle.tell() // self.kind.itemsize
                handle.write(records.tobytes())
        except OSError as error:
            raise self.unwritable(error) from error
        self.places |= {row: start + place for place, row in enumerate(rows)}

    def get(self, rows: Sequence[int]) -> Rows:
        """(rows, sides, width)"""
        found = np.empty((len(rows), *self.kind["vectors"].shape), np.float32)
        with self.file.open("rb") as handle:
            for place, row in enumerate(rows):
                handle.seek(self.places[row] * self.kind.itemsize)
                found[place] = np.frombuffer(handle.read(self.kind.itemsize), self.kind)["vectors"][0]
        return found


def check(record: np.void) -> int:
    return zlib.crc32(record["row"].tobytes() + record["vectors"].tobytes())


class Files:
    """Vectors that somebody else has computed: a table of each side of each set, by line."""

    def __init__(self, settings: TeacherSettings, batches: Batches) -> None:
        sides = SIDES if batches.settings.hard else SIDES[:2]
        self.tables = {
            name: {side: table_of(settings.folder, name, side) for side in sides}
            for name, share in zip(batches.sources, batches.shares, strict=True)
            if share
        }
        widths = {table.shape[-1] for tables in self.tables.values() for table in tables.values()}
        if len(widths) > 1:
            raise RefembedError(
                "train-data",
                f"{settings.folder}: vectors of {' and '.join(map(str, sorted(widths)))} numbers, one needed",
            )
        (self.width,) = widths
        for name, tables in self.tables.items():
            check_tables(name, tables, batches.sources[name].contents.rows, batches.settings.hard)

    def __call__(self, settings: SetSettings, examples: Sequence[Example], hard: int) -> Rows:
        tables = self.tables[settings.name]
        rows = np.array([example.row for example in examples], np.int64)
        found = np.empty((len(rows), 2 + hard, self.width), np.float32)
        found[:, 0], found[:, 1] = (widen(tables[side][rows], np.float32) for side in SIDES[:2])
        if hard:
            found[:, 2:] = widen(tables["negatives"][rows, :hard], np.float32)
        if not np.isfinite(found).all():
            row = rows[~np.isfinite(found).all(axis=(1, 2))][0]
            raise RefembedError("train-data", f"the teacher has no vectors for {settings.file}:{row + 1}")
        return found


def check_tables(name: str, tables: Mapping[str, NDArray[Any]], rows: int, hard: int) -> None:
    """Raise RefembedError where a table has fewer rows than its set has lines, or fewer negatives than are used."""
    for side, table in tables.items():
        if len(table) < rows or (side == "negatives" and table.shape[1] < hard):
            needed = f"{rows} rows or more" + (f", {hard} vectors in each" if side == "negatives" else "")
            raise RefembedError(
                "train-data", f"the teacher's {side} of {name} are a table {table.shape}; {needed} needed"
            )


def table_of(folder: Path, name: str, side: str) -> NDArray[Any]:
    """The table of one side, mapped from disk: (lines, width), for negatives (lines, negatives, width)."""
    both, single = folder / f"{name}.safetensors", folder / f"{name}.{side}.npy"
    table: NDArray[Any] | None = None
    if both.exists():
        tensors = open_tensors(both)
        table = tensors[side].stored if side in tensors else None  # bfloat16 still as it is stored
    elif single.exists():
        try:
            table = np.load(single, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RefembedError("train-data", f"{single}: {error}") from error
        if table.dtype.kind != "f":
            raise RefembedError("train-data", f"{single} holds {table.dtype}, floats needed")
    if table is None:
        raise RefembedError("train-data", f"the teacher's {side} of {name} are neither in {both} nor in {single}")
    axes = 3 if side == "negatives" else 2
    if table.ndim != axes or 0 in table.shape[1:]:
        raise RefembedError("train-data", f"the teacher's {side} of {name} are {table.shape}; {axes} axes needed")
    return table
