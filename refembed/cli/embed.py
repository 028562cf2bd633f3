"""texts to vectors, of files of any size

jsonl: a line {"index", "text", "embedding"} for each text; index counts texts from 0. npy: a row for each text, NaN in
the rows of texts that were left out. safetensors: "embeddings" and "index" of the texts that were not; parquet: the
columns of jsonl (pip install 'refembed[arrow]'). With --quantize int8 numbers are whole, with --quantize binary they
are bytes of eight; zeros then stand for NaN.

OUT appears when it is whole. A long run that was killed has left OUT.partial, and the same command goes on from there.

refembed embed "Mars is often called the Red Planet."
refembed embed -i corpus.jsonl --title-field title -o corpus.safetensors --model google/embeddinggemma-300m
refembed embed -i corpus.jsonl --title-field title -o corpus.parquet --faults left-out.jsonl --progress
"""

import argparse
import os
import sys

from ..bulk import embed_rows
from ..errors import RefembedError
from ..output import check_output, form_of, format_of, formats, is_device
from ..progress import Progress
from ..prompts import prefixes
from .shared import add_file_options, add_model_options, add_text_options, load_model, prompt_options, read_rows


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("texts", metavar="TEXT", nargs="*", help="texts to embed")
    add_file_options(command)
    command.add_argument("--id-field", metavar="F", help="the key of its id, which goes to jsonl and parquet (none)")
    command.add_argument("-o", "--output", metavar="OUT", help="file to write; standard output where not given")
    command.add_argument("--format", choices=formats(), help="of the output; by OUT's ending, else jsonl")
    command.add_argument("--faults", metavar="FILE", help="list what was left out there: index, place, id, reason")
    command.add_argument("--restart", action="store_true", help="start anew where a killed run could go on")
    command.add_argument("--progress", action="store_true", help="say how far it is without a terminal too")
    add_text_options(command, "document")
    add_model_options(command)


def run(given: argparse.Namespace) -> int:
    format = format_of(given.output, given.format)
    form = form_of(format)
    for path in (given.output, given.faults):
        check_output(path)
    refuse_one_file_twice(given)
    rows = read_rows(given, given.texts)
    model = load_model(given)
    options = prompt_options(given, "document")
    titles = [None] if given.title_field else None
    prompt = prefixes(1, **options, titles=titles, own=model.checkpoint.prompts)[0]
    asked = {name: getattr(given, name) for name in ("input", "text_field", "title_field", "id_field")}
    shown = given.output is not None or not sys.stdout.isatty()
    with Progress(rows.expected, shown, always=given.progress) as progress:
        left_out = embed_rows(
            model,
            rows,
            form,
            given.output,
            progress,
            asked={**asked, "format": format, "prompt": prompt},
            faults=given.faults,
            restart=given.restart,
            dimensions=given.dimensions,
            quantize=given.quantize,
            on_long=given.on_long,
            **options,
        )
    return 1 if left_out else 0


def refuse_one_file_twice(given: argparse.Namespace) -> None:
    """Raise RefembedError where one of the files would take another's place."""
    named = {"-i": given.input, "-o": given.output, "--faults": given.faults}
    seen: dict[str, str] = {}
    for option, path in named.items():
        if path is None or path == "-" or is_device(path):
            continue
        other = seen.setdefault(os.path.realpath(path), option)
        if other != option:
            raise RefembedError(
                "option-input", f"{other} and {option} both name {path}; one would take the other's place"
            )
