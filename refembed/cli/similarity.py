"""texts ranked by their similarity to a query

refembed similarity "Which planet is red?" "Mars is red." "Venus is hot."
refembed similarity "How do I cancel?" -i answers.txt
"""

import argparse

from ..errors import printable
from ..textfiles import Row
from .shared import add_file_options, add_model_options, add_text_options, encode_rows, load_model, read_rows


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("query", metavar="QUERY", help="the text to compare with")
    command.add_argument("texts", metavar="TEXT", nargs="*", help="texts to rank")
    add_file_options(command)
    add_text_options(command, "query before QUERY, document before the others")
    add_model_options(command)


def run(given: argparse.Namespace) -> int:
    rows = list(read_rows(given, given.texts))
    model = load_model(given)
    query = encode_rows(model, [Row("the query", given.query)], given, task="query")
    if query.failed:
        return 2
    found = encode_rows(model, rows, given, task="document", quantize=given.quantize)
    scores = model.similarity(query.vectors, found.vectors)[0]
    for place in (-scores).argsort(kind="stable"):
        print(f"{scores[place]:.4f}\t{printable(rows[found.indices[place]].text)}")
    return 1 if found.failed else 0
