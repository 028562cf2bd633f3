"""texts to vectors

jsonl: a line {"index", "text", "embedding"} for each text; index counts texts from 0. npy: a row for each text, NaN in
the rows of texts that were left out. safetensors: "embeddings" and "index" of the texts that were not. With --quantize
int8 numbers are whole, with --quantize binary they are bytes of eight; zeros then stand for NaN.

refembed embed "Mars is often called the Red Planet."
refembed embed -i corpus.jsonl --title-field title -o corpus.safetensors --model google/embeddinggemma-300m
"""

import argparse

from ..output import FORMATS, check_output, format_of, open_output, write_vectors
from .shared import add_file_options, add_model_options, add_text_options, encode_rows, load_model, read_rows


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("texts", metavar="TEXT", nargs="*", help="texts to embed")
    add_file_options(command)
    command.add_argument("-o", "--output", metavar="OUT", help="file to write; standard output where not given")
    command.add_argument("--format", choices=FORMATS, help="of the output; by OUT's ending, else jsonl")
    add_text_options(command, "document")
    add_model_options(command)


def run(given: argparse.Namespace) -> int:
    format = format_of(given.output, given.format)
    check_output(given.output)
    rows = read_rows(given, given.texts)
    encoded = encode_rows(load_model(given), rows, given, task="document", quantize=given.quantize)
    with open_output(given.output) as handle:
        texts = [rows[index].text for index in encoded.indices]
        write_vectors(handle, format, len(rows), encoded.indices, texts, encoded.vectors)
    return 1 if encoded.failed else 0
