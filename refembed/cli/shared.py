"""What several commands have in common: the model's options, a text's options, rows of texts."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from ..embedder import Embedder, load
from ..errors import RefembedError, printable
from ..plugins import plugins
from ..prompts import PROMPTS
from ..textfiles import NO_FIELDS, Fields, Row, Texts
from ..vectors import QUANTIZED, check_quantize, quantize_vectors

READERS = "refembed.readers"  # the entry points by which adapters read other files than Texts


def add_model_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("model")
    group.add_argument(
        "--model", metavar="M", help="a folder, .gguf file or hub id; the small built-in one if not given"
    )
    group.add_argument("--backend", metavar="B", help="by name; the best that can run where not given (see doctor)")
    group.add_argument("--precision", metavar="P", help="what to compute in; the backend's default where not given")
    group.add_argument("--threads", metavar="N", type=int, help="how many threads to compute with")


def add_text_options(command: argparse.ArgumentParser, task: str | None) -> None:
    """Prompt, length and size of the vectors. task: what is used where none is given, for the help."""
    group = command.add_argument_group("texts")
    prompts = group.add_mutually_exclusive_group()
    prompts.add_argument(
        "--task",
        metavar="T",
        help=f"whose prompt goes before each text ({task}): {', '.join(PROMPTS)}, none, or MTEB's names",
    )
    prompts.add_argument(
        "--prompt", metavar="P", help="your own words before each text, with the space that follows them"
    )
    add_dimensions(group)
    add_quantize(group)
    group.add_argument("--on-long", choices=("cut", "error"), default="cut", help="texts beyond the context (cut)")


def add_dimensions(command: Any) -> None:
    command.add_argument(
        "--dimensions", metavar="N", type=int, help="keep the first N numbers (trained: 512, 256 and 128 of 768)"
    )


def add_quantize(command: Any) -> None:
    command.add_argument(
        "--quantize",
        metavar="Q",
        choices=QUANTIZED,
        help="what is kept of a vector: int8, a byte a number; binary, a bit",
    )


def add_file_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-i", "--input", metavar="FILE", help=".txt (a line a text), .jsonl, either .gz, .parquet, or - for lines"
    )
    command.add_argument("--text-field", metavar="F", help="the key, or column, of an object's text (text)")
    command.add_argument("--title-field", metavar="F", help="the key of its title (titles are not used)")


def load_model(given: argparse.Namespace) -> Embedder:
    return load(given.model, backend=given.backend, precision=given.precision, threads=given.threads)


def prompt_options(given: argparse.Namespace, task: str) -> dict[str, Any]:
    """encode()'s task and prompt from --task and --prompt; `task` where neither is given."""
    if given.prompt is not None:
        return {"task": None, "prompt": given.prompt}
    chosen = task if given.task is None else given.task
    return {"task": None if chosen.lower() == "none" else chosen, "prompt": None}


class Rows(Protocol):
    """Rows that are read as they are asked for, and how many they will be: a float is an estimate, None unknown."""

    def __iter__(self) -> Iterator[Row]: ...

    def expected(self) -> float | None: ...


class Arguments(list[Row]):
    """The texts of a command line."""

    def expected(self) -> int:
        return len(self)


def read_rows(given: argparse.Namespace, texts: Sequence[str]) -> Rows:
    """The texts of the command line, or of its file: one of the two."""
    fields = Fields(given.text_field, given.title_field, getattr(given, "id_field", None))
    if texts and given.input is not None:
        raise RefembedError("option-input", "texts come from arguments or from -i FILE, not from both")
    if texts and fields != NO_FIELDS:
        raise RefembedError("option-input", "--text-field, --title-field and --id-field are for the objects of -i FILE")
    if given.input is not None:
        return open_rows(given.input, fields)
    if not texts:
        raise RefembedError("option-input", "no texts: give them as arguments, or -i FILE, or -i - for standard input")
    return Arguments(Row(f"text {number}", text) for number, text in enumerate(texts, 1))


def open_rows(source: str, fields: Fields) -> Rows:
    """The rows of a file; it is refused before a model is loaded where it cannot be read, or none has such a title."""
    ending = source.rpartition(".")[2]
    rows: Rows = next((entry.load() for entry in plugins(READERS) if entry.name == ending), Texts)(source, fields)
    if source != "-":
        next((row for row in rows if not fields.title or row.title is not None), None)
    return rows


class Prepared(NamedTuple):
    """The ids of the rows that can be embedded, which rows those are, and how many cannot."""

    batch: list[NDArray[Any]]
    indices: list[int]
    failed: int


def prepare_rows(model: Embedder, rows: Sequence[Row], **options: Any) -> Prepared:
    """Prompt and tokenise every row that can be; report each that cannot on standard error, with its place.

    options   task, prompt and on_long, as of encode()
    """
    faults = {index: row.fault for index, row in enumerate(rows) if row.fault}
    readable = [index for index in range(len(rows)) if index not in faults]
    titles = [rows[index].title for index in readable]
    titled = any(title is not None for title in titles)
    found = model.prepare([rows[index].text for index in readable], titles=titles if titled else None, **options)
    batch = {}
    for index, ids in zip(readable, found, strict=True):
        if isinstance(ids, RefembedError):
            faults[index] = ids
        else:
            batch[index] = ids
    for index, fault in sorted(faults.items()):
        print(f"refembed: left out {printable(rows[index].place)}: {fault.reason} [{fault.id}]", file=sys.stderr)
    return Prepared(list(batch.values()), list(batch), len(faults))


class Encoded(NamedTuple):
    """The vectors of the rows that have one, which rows those are, and how many have none."""

    vectors: NDArray[Any]
    indices: list[int]
    failed: int


def encode_rows(
    model: Embedder, rows: Sequence[Row], given: argparse.Namespace, task: str, quantize: str | None = None
) -> Encoded:
    """Embed every row that can be."""
    dimensions = model.check_dimensions(given.dimensions)
    check_quantize(quantize, dimensions)
    ready = prepare_rows(model, rows, on_long=given.on_long, **prompt_options(given, task))
    vectors = model.encode_tokens(ready.batch, dimensions, show_progress=True)
    return Encoded(quantize_vectors(vectors, quantize), ready.indices, ready.failed)
