"""the passages of a file that best answer a query

The corpus is embedded once, without its blank lines; its vectors are kept beside it, at full length, in
CORPUS.refembed.safetensors, and all of them are made again when a text of the corpus, the model, the backend, the
precision or --quantize changes. With --quantize binary, bits are compared first, and -k times --rescore passages then
scored by the query's own numbers.

  refembed search notes.txt "where did I put the keys" -k 3
  refembed search notes.txt "where did I put the keys" --quantize binary --rescore 8
"""

import argparse
import sys
from pathlib import Path

from ..errors import RefembedError, printable
from ..search import corpus_vectors
from ..textfiles import read_texts
from ..vectors import BINARY, nearest
from .shared import add_dimensions, add_model_options, add_quantize, load_model, prepare_rows


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("corpus", metavar="CORPUS", help=".txt (a line a text), .jsonl, or .gz of either")
    command.add_argument("query", metavar="QUERY")
    command.add_argument("-k", type=int, default=10, help="how many results (10)")
    command.add_argument("--text-field", metavar="F", help="the key of a JSON object's text (text)")
    command.add_argument("--title-field", metavar="F", help="the key of a JSON object's title (titles are not used)")
    add_dimensions(command)
    add_quantize(command)
    command.add_argument("--rescore", metavar="N", type=int, help="with binary: N times K are scored (4)")
    add_model_options(command)


def run(given: argparse.Namespace) -> int:
    rescore = 4 if given.rescore is None else given.rescore
    if given.k < 1 or rescore < 0:
        raise RefembedError("option-k", f"-k is {given.k} and --rescore {rescore}; at least 1 and 0 needed")
    if given.rescore is not None and given.quantize != BINARY:
        raise RefembedError("option-quantize", "--rescore goes with --quantize binary only; leave it out")
    if given.corpus == "-":
        raise RefembedError("option-input", "search keeps vectors beside the corpus, so CORPUS must be a file, not -")
    read = read_texts(given.corpus, given.text_field, given.title_field)
    rows = [row for row in read if row.fault or row.text.strip()]  # a blank text says nothing, and is near to much
    model = load_model(given)
    query = model.encode_query(given.query, dimensions=given.dimensions)
    ready = prepare_rows(model, rows)
    good = [rows[index] for index in ready.indices]
    vectors, not_kept = corpus_vectors(model, Path(given.corpus), ready.batch, given.dimensions, True, given.quantize)
    if not_kept:
        print(f"refembed: the vectors were not kept: {not_kept}", file=sys.stderr)
    for place, score in zip(*nearest(query, vectors, given.k, rescore), strict=True):
        print(f"{score:.4f}\t{printable(good[place].place)}\t{printable(good[place].text)}")
    return 1 if ready.failed else 0
