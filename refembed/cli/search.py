"""the passages of a file that best answer a query

The corpus is embedded once; its vectors are kept beside it, in CORPUS.refembed.safetensors, and made again when the
corpus or the model changes.

  refembed search notes.txt "where did I put the keys" -k 3
"""

import argparse
import sys
from pathlib import Path

from ..errors import RefembedError, printable
from ..search import best, corpus_vectors
from ..textfiles import read_texts
from .shared import add_model_options, load_model, report


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("corpus", metavar="CORPUS", help=".txt (a line a text), .jsonl, or .gz of either")
    command.add_argument("query", metavar="QUERY")
    command.add_argument("-k", type=int, default=10, help="how many results (10)")
    command.add_argument("--text-field", metavar="F", help="the key of a JSON object's text (text)")
    command.add_argument("--title-field", metavar="F", help="the key of a JSON object's title (titles are not used)")
    command.add_argument("--dimensions", metavar="N", type=int, help="keep the first N numbers: 512, 256 or 128 of 768")
    add_model_options(command)


def run(given: argparse.Namespace) -> int:
    if given.k < 1:
        raise RefembedError("option-k", f"-k is {given.k}, at least 1 needed")
    if given.corpus == "-":
        raise RefembedError("option-input", "search keeps vectors beside the corpus, so CORPUS must be a file, not -")
    rows = read_texts(given.corpus, given.text_field, given.title_field)
    model = load_model(given)
    query = model.encode_query(given.query, dimensions=given.dimensions)
    faults = {index: row.fault for index, row in enumerate(rows) if row.fault}
    titles = [row.title for row in rows]
    titled = any(title is not None for title in titles)
    prepared = model.prepare([row.text for row in rows], titles=titles if titled else None)
    faults |= {index: ids for index, ids in enumerate(prepared) if isinstance(ids, RefembedError)}
    report(rows, faults)
    good = [row for index, row in enumerate(rows) if index not in faults]
    batch = [ids for index, ids in enumerate(prepared) if index not in faults and not isinstance(ids, RefembedError)]
    vectors, not_kept = corpus_vectors(model, Path(given.corpus), batch, given.dimensions, True)
    if not_kept:
        print(f"refembed: the vectors were not kept: {not_kept}", file=sys.stderr)
    scores = model.similarity(query, vectors)[0]
    for place in best(scores, given.k):
        print(f"{scores[place]:.4f}\t{printable(good[place].place)}\t{printable(good[place].text)}")
    return 1 if faults else 0
