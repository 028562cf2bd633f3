"""What several commands have in common: the model's options, a text's options, rows of texts."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ..embedder import Embedder, load
from ..errors import RefembedError
from ..textfiles import Row, read_texts


def add_model_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("model")
    group.add_argument("--model", metavar="M", help="a folder or a hub id; the small built-in model where not given")
    group.add_argument("--backend", metavar="B", help="by name; the best that can run where not given (see doctor)")
    group.add_argument("--precision", metavar="P", help="what to compute in; the backend's default where not given")
    group.add_argument("--threads", metavar="N", type=int, help="how many threads to compute with")


def add_text_options(command: argparse.ArgumentParser, task: str | None) -> None:
    """Prompt, length and size of the vectors. task: what is used where none is given, for the help."""
    group = command.add_argument_group("texts")
    prompts = group.add_mutually_exclusive_group()
    prompts.add_argument("--task", metavar="T", help=f"whose prompt goes before each text ({task}); none for no prompt")
    prompts.add_argument("--prompt", metavar="P", help="your own words before each text")
    group.add_argument("--dimensions", metavar="N", type=int, help="keep the first N numbers: 512, 256 or 128 of 768")
    group.add_argument("--on-long", choices=("cut", "error"), default="cut", help="texts beyond the context (cut)")


def add_file_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-i", "--input", metavar="FILE", help=".txt (a line a text), .jsonl, either .gz, or - for lines"
    )
    command.add_argument("--text-field", metavar="F", help="the key of a JSON object's text (text)")
    command.add_argument("--title-field", metavar="F", help="the key of a JSON object's title (titles are not used)")


def load_model(given: argparse.Namespace) -> Embedder:
    return load(given.model, backend=given.backend, precision=given.precision, threads=given.threads)


def prompt_options(given: argparse.Namespace, task: str) -> dict[str, Any]:
    """encode()'s task and prompt from --task and --prompt; `task` where neither is given."""
    if given.prompt is not None:
        return {"task": None, "prompt": given.prompt}
    chosen = task if given.task is None else given.task
    return {"task": None if chosen.lower() == "none" else chosen, "prompt": None}


def read_rows(given: argparse.Namespace, texts: Sequence[str]) -> list[Row]:
    """The texts of the command line, or of its file: one of the two."""
    if texts and given.input is not None:
        raise RefembedError("option-input", "texts come from arguments or from -i FILE, not from both")
    if texts and (given.text_field or given.title_field):
        raise RefembedError("option-input", "--text-field and --title-field are for the objects of -i FILE")
    if given.input is not None:
        return read_texts(given.input, given.text_field, given.title_field)
    if not texts:
        raise RefembedError("option-input", "no texts: give them as arguments, or -i FILE, or -i - for standard input")
    return [Row(f"text {number}", text) for number, text in enumerate(texts, 1)]


class Encoded(NamedTuple):
    """The vectors of the rows that have one, which rows those are, and how many have none."""

    vectors: NDArray[Any]
    indices: list[int]
    failed: int


def encode_rows(model: Embedder, rows: Sequence[Row], given: argparse.Namespace, task: str) -> Encoded:
    """Embed every row that can be; report each that cannot on standard error, with its place."""
    dimensions = model.check_dimensions(given.dimensions)
    readable = [index for index, row in enumerate(rows) if not row.fault]
    titles = [rows[index].title for index in readable]
    titled = any(title is not None for title in titles)
    prepared = model.prepare(
        [rows[index].text for index in readable],
        titles=titles if titled else None,
        on_long=given.on_long,
        **prompt_options(given, task),
    )
    faults = {index: row.fault for index, row in enumerate(rows) if row.fault}
    batch = {}
    for index, ids in zip(readable, prepared, strict=True):
        if isinstance(ids, RefembedError):
            faults[index] = ids
        else:
            batch[index] = ids
    report(rows, faults)
    vectors = model.encode_tokens(list(batch.values()), dimensions, show_progress=True)
    return Encoded(vectors, list(batch), len(faults))


def report(rows: Sequence[Row], faults: dict[int, RefembedError]) -> None:
    """A line for each row left out, with its place."""
    for index in sorted(faults):
        print(f"refembed: left out {rows[index].place}: {faults[index].reason} [{faults[index].id}]", file=sys.stderr)
