"""the passages of a file, or of an index, that best answer a query

A file is embedded once, without its blank lines; its vectors are kept beside it, at full length, in the folder
CORPUS.refembed, and only texts that are new are embedded again, or all where the model, the backend, the precision or
--quantize changes. A folder is one that `refembed index` made. With --quantize binary, bits are compared first, and -k
times --rescore passages then scored by the 8-bit numbers kept beside the bits.

  refembed search notes.txt "where did I put the keys" -k 3
  refembed search notes.txt "where did I put the keys" --quantize binary --rescore 8
"""

import argparse
import sys
from pathlib import Path

from ..embedder import raise_first
from ..errors import RefembedError, printable
from ..index.index import open_renewed
from ..textfiles import Fields
from ..vectors import BINARY, check_quantize
from .index import open_for, put_rows, said_rows
from .shared import add_dimensions, add_model_options, add_quantize, load_model, open_rows

ENDING = ".refembed"  # of the folder beside a file


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "corpus", metavar="CORPUS", help=".txt (a line a text), .jsonl, .gz of either, .parquet, or an index's folder"
    )
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
    if given.corpus == "-":
        raise RefembedError("option-input", "search keeps vectors beside the corpus, so CORPUS must be a file, not -")
    folder = Path(given.corpus).is_dir()
    if folder and (given.text_field or given.title_field):
        raise RefembedError("option-input", "--text-field and --title-field are for files; leave them out")
    if folder:
        given.action, given.folder = "search", given.corpus
        index, failed, place = open_for(given), 0, ""
    if given.rescore is not None and (index.state.quantize if folder else given.quantize) != BINARY:
        raise RefembedError("option-quantize", "--rescore goes with --quantize binary only; leave it out")
    if not folder:
        rows = said_rows(open_rows(given.corpus, Fields(given.text_field, given.title_field)))
        model = load_model(given)
        raise_first(model.prepare([given.query], task="query"))  # a query at fault leaves no folder behind
        check_quantize(given.quantize, model.check_dimensions(given.dimensions))
        index, place = open_renewed(Path(given.corpus + ENDING), model, given.quantize), f"{given.corpus}:"
        ids = [row.place.rpartition(":")[2] for row in rows]
        *_, failed, not_kept = put_rows(index, rows, ids, list(index.known()[0]), must_keep=False)
        if not_kept:
            print(f"refembed: the vectors were not kept: {not_kept}", file=sys.stderr)
    for score, id, text, _ in index.search(given.query, given.k, given.dimensions, rescore):
        print(f"{score:.4f}\t{printable(place + id)}\t{printable(text)}")
    return 1 if failed else 0
