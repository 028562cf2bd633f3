"""the golden vectors themselves: list, show, inputs, path

  refembed golden list
  refembed golden show twin length-window
  refembed golden inputs twin > inputs.jsonl
  refembed golden path twin

list: each case, its length and what it shows. show: its ids and vectors. inputs: what a port is given, a line a case.
path: the folder. Of losses and gradients, show has the question and its right answer. quantised, vectors and ul2 are
files of data, to be read as the specification's chapters say: of these there is the path alone.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..conformance.gradients import open_gradients
from ..conformance.losses import open_losses
from ..conformance.suite import DATA, golden_folder, open_suite
from ..errors import RefembedError

QUESTIONS: dict[str, Callable[[Path], Any]] = {"losses": open_losses, "gradients": open_gradients}


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("what", choices=("list", "show", "inputs", "path"))
    command.add_argument(
        "suite",
        nargs="?",
        default="twin",
        help=f"twin (default), embeddinggemma-300m, losses, gradients, {', '.join(DATA)}",
    )
    command.add_argument("case", nargs="?", help="with show: a case's slug")


def run(given: argparse.Namespace) -> int:
    folder = golden_folder(given.suite)
    if given.what == "path":
        print(folder)
        return 0
    if folder.name in QUESTIONS:
        return show_questions(given, folder)
    suite = open_suite(folder)
    if given.what == "list":
        for case in suite.cases:
            lengths = ",".join(str(len(ids)) for ids in suite.tokens(case))
            print(f"{case.id:<34} {lengths:>9} tokens  {case.why}")
    elif given.what == "inputs":
        for case in suite.cases:
            print(json.dumps({"case": case.id, "prompted": case.prompted, "dimensions": case.dimensions}))
    else:
        case = named(given, suite.cases)
        print(json.dumps({"case": case.id, "why": case.why, "prompted": case.prompted, "flags": case.flags}))
        for row, ids in enumerate(suite.tokens(case)):
            print(json.dumps({"text": row, "ids": ids.tolist(), "embedding": suite.vectors(case)[row].tolist()}))
    return 0


def show_questions(given: argparse.Namespace, folder: Path) -> int:
    """The same of what is no model's: each case is a question and an answer."""
    _, cases = QUESTIONS[folder.name](folder)
    if given.what == "list":
        for case in cases:
            print(f"{case.id:<34} {case.about}")
    elif given.what == "inputs":
        for case in cases:
            print(json.dumps({"case": case.id, **case.asked}))
    else:
        case = named(given, cases)
        answer = {part: np.asarray(numbers).tolist() for part, numbers in case.answer.items()}
        print(json.dumps({"case": case.id, "asked": case.asked}))
        print(json.dumps({"answer": answer}))
    return 0


def named(given: argparse.Namespace, cases: Any) -> Any:
    """The case that was asked for."""
    found = [case for case in cases if case.id == given.case]
    if not found:
        raise RefembedError("verify-no-case", f"{given.suite} has no case {given.case!r}; 'golden list' shows them")
    return found[0]
