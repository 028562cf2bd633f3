"""the golden vectors themselves: list, show, inputs, path

  refembed golden list
  refembed golden show twin length-window
  refembed golden inputs twin > inputs.jsonl
  refembed golden path twin

list: each case, its length and what it shows. show: its ids and vectors. inputs: what a port is given, a line a case.
path: the folder.
"""

import argparse
import json

from ..conformance.losses import open_losses
from ..conformance.suite import golden_folder, open_suite
from ..errors import RefembedError


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("what", choices=("list", "show", "inputs", "path"))
    command.add_argument("suite", nargs="?", default="twin", help="twin (default), embeddinggemma-300m; list losses")
    command.add_argument("case", nargs="?", help="with show: a case's slug")


def run(given: argparse.Namespace) -> int:
    folder = golden_folder(given.suite)
    if given.what == "path":
        print(folder)
        return 0
    if folder.name == "losses" and given.what == "list":
        for loss in open_losses(folder)[1]:
            print(f"{loss.id:<34} {loss.asked['loss']}, {len(loss.asked['queries'])} examples")
        return 0
    suite = open_suite(folder)
    if given.what == "list":
        for case in suite.cases:
            lengths = ",".join(str(len(ids)) for ids in suite.tokens(case))
            print(f"{case.id:<34} {lengths:>9} tokens  {case.why}")
    elif given.what == "inputs":
        for case in suite.cases:
            print(json.dumps({"case": case.id, "prompted": case.prompted, "dimensions": case.dimensions}))
    else:
        found = [case for case in suite.cases if case.id == given.case]
        if not found:
            raise RefembedError("verify-no-case", f"{given.suite} has no case {given.case!r}; 'golden list' shows them")
        (case,) = found
        print(json.dumps({"case": case.id, "why": case.why, "prompted": case.prompted, "flags": case.flags}))
        for row, ids in enumerate(suite.tokens(case)):
            print(json.dumps({"text": row, "ids": ids.tolist(), "embedding": suite.vectors(case)[row].tolist()}))
    return 0
