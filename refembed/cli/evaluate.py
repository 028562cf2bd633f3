"""scores on sets in local folders: similarity, retrieval, bitext, classification, clustering

What a folder holds is seen by its files, all of them plain or .gz:

  sts                           .tsv of score, sentence1, sentence2
  classification, clustering    .tsv of label, text; one split of them named train
  bitext                        .tsv of lang, sentence, english
  retrieval                     corpus.jsonl and queries.jsonl of _id, text [title, lang, split, answers], and
                                qrels.tsv of query-id, corpus-id, score; also queries-SPLIT.jsonl, qrels-SPLIT.tsv,
                                and NAME.jsonl with qrels_NAME.tsv where a folder has several collections

A table's language and split are its columns lang and split, or its file's name: en-test.tsv, train.tsv. Every task has
its own prompt. spec/evaluation.md of the source distribution defines the scores.

  refembed evaluate stsb_multi_mt --language en --model google/embeddinggemma-300m
  refembed evaluate sick --split all --model google/embeddinggemma-300m -o sick.json
  refembed evaluate xquad_r --collection paragraphs --documents en --language de --language zh
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from ..evaluation.metrics import check_libraries
from ..evaluation.report import as_json, as_text
from ..evaluation.tasks import TASKS, Choice, chosen, evaluate
from ..evaluation.vectors import CONTEXT, TextEncoder
from ..output import check_output, open_output
from ..vectors import check_quantize
from .shared import add_dimensions, add_model_options, add_quantize, load_model


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("folders", metavar="FOLDER", nargs="+", help="files as above")
    command.add_argument("--task", choices=TASKS, help="the first that a set is for where not given")
    command.add_argument("--split", metavar="S", default="test", help="of sets that have any (test); all for every one")
    command.add_argument("--language", metavar="LL", action="append", default=[], help="of the texts, or queries (all)")
    command.add_argument("--collection", metavar="NAME", help="of a folder that has several (all)")
    command.add_argument("--documents", metavar="LL", help="their language, or all (the query's, else all)")
    command.add_argument(
        "--prompt-task", metavar="T", help="whose prompt goes before texts or queries (the task's own)"
    )
    command.add_argument("--context", metavar="N", type=int, default=CONTEXT, help=f"most tokens of a text ({CONTEXT})")
    command.add_argument("--format", choices=("text", "json"), help="of the output; by OUT's ending, else text")
    command.add_argument("-o", "--output", metavar="OUT", help="file to write; standard output where not given")
    add_dimensions(command)
    add_quantize(command)
    add_model_options(command)


def run(given: argparse.Namespace) -> int:
    check_output(given.output)
    check_libraries()
    choice = Choice(given.task, given.split, given.language, given.collection, given.documents, given.prompt_task)
    choice = replace(choice, quantize=given.quantize)
    for folder in given.folders:
        chosen(Path(folder), choice)  # what is wrong with the files is said before the model is loaded
    encode = TextEncoder(load_model(given), given.context, given.dimensions, show_progress=True)
    check_quantize(given.quantize, encode.dimensions)
    started = time.perf_counter()
    results = [result for folder in given.folders for result in evaluate(encode, folder, choice)]
    report = as_json(encode, results, time.perf_counter() - started, given.quantize)
    as_objects = (given.format or str(given.output).rpartition(".")[2]) == "json"
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) if as_objects else as_text(report)
    with open_output(given.output) as handle:
        handle.write(text.encode() + b"\n")
    return 0
