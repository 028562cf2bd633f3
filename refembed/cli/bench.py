"""how fast it runs here, by itself and beside others

Latency of short queries one at a time (tokenising included), documents and tokens a second, a text of 2,000 tokens,
start-up, peak memory, and the share of this machine's float32 matrix peak. Each subject is a process of its own; all
are asked in turn, round after round. --precision float32,int8 is two subjects. Numbers of one run go together; of two
runs only their ratios do.

  refembed bench
  refembed bench --model google/embeddinggemma-300m --precision float32,int8 --curve --stream 10000 --json bench.json
  refembed bench --model google/embeddinggemma-300m --against sentence-transformers --against llama.cpp=eg-f32.gguf
  refembed bench --model google/embeddinggemma-300m --backend torch --train --against sentence-transformers

Exit status: 0 everything asked for was measured, 1 something was not, 2 wrong use or unreadable input.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..backend import choose_backend, choose_precision
from ..bench.peers import PEERS
from ..bench.report import as_text
from ..bench.results import Subject
from ..bench.runner import Plan, bench
from ..bench.workload import read_workload
from ..checkpoint import Checkpoint, open_checkpoint
from ..embedder import DEFAULT_MODEL
from ..errors import RefembedError
from ..hub import find_folder
from ..numpy_backend import usual_threads
from ..output import check_output, open_output
from .shared import add_model_options

EXAMPLES = 8


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_model_options(command)
    peers = ", ".join(f"{name}=FILE" if peer.file else name for name, peer in PEERS.items())
    command.add_argument(
        "--against", metavar="PEER[=PATH]", type=peer_of, action="append", default=[], help=f"one or more of {peers}"
    )
    command.add_argument("--python", metavar="PATH", default=sys.executable, help="the interpreter peers run in")
    command.add_argument("--workload", metavar="FILE", help='JSON {"queries": [...], "docs": [...], "long": [...]}')
    command.add_argument("--rounds", metavar="N", type=at_least_one, default=3, help="how often to measure (3)")
    command.add_argument("--first-time", action="store_true", help="start-up with nothing compiled yet, too")
    command.add_argument("--curve", action="store_true", help="one text of 8, 16, 32 ... 2,048 tokens")
    command.add_argument("--stream", metavar="N", type=at_least_one, default=0, help="N short texts in one call")
    command.add_argument(
        "--train", metavar="N", type=at_least_one, nargs="?", const=EXAMPLES, default=0,
        help=f"steps of training on N examples ({EXAMPLES}), too; a query, a positive and a hard negative each",
    )  # fmt: skip
    command.add_argument("--json", metavar="FILE", help="write all results there")


def run(given: argparse.Namespace) -> int:
    check_output(given.json)
    if given.threads is not None and given.threads < 1:
        raise RefembedError("option-threads", f"threads is {given.threads}, a whole number of at least 1 needed")
    plan = Plan(
        model=DEFAULT_MODEL if given.model is None else find_folder(given.model, None),
        threads=given.threads or usual_threads(),
        rounds=given.rounds,
        given=read_workload(given.workload) if given.workload else None,
        first_time=given.first_time,
        curve=given.curve,
        stream=given.stream,
        train=given.train,
    )
    own = subjects(given, open_checkpoint(plan.model))
    results: dict[str, Any] = {"model": given.model or "the small built-in model"} | bench(plan, own, tell)
    print(as_text(results))
    if given.json:
        with open_output(given.json) as handle:
            handle.write(json.dumps(results, indent=1, ensure_ascii=False).encode() + b"\n")
    return 1 if any(row["failed"] is not None for row in results["subjects"]) else 0


def subjects(given: argparse.Namespace, checkpoint: Checkpoint) -> list[Subject]:
    """refembed at each precision asked for, then the peers."""
    backend, _ = choose_backend(given.backend)
    asked = given.precision.split(",") if given.precision else [None]
    own = [choose_precision(backend, one, checkpoint) for one in asked]
    if given.train and not hasattr(backend, "training"):
        raise RefembedError("backend-cannot-run", f"backend {backend.name} does not train; name one that does")
    settings = {"backend": backend.name, "threads": given.threads}
    device = backend.device() if hasattr(backend, "device") else "cpu"
    beside = {"device": device, "precision": own[0] if device == "cuda" else "float32"}
    return [
        Subject(
            f"refembed {backend.name} {precision}", "refembed", sys.executable, {**settings, "precision": precision}
        )
        for precision in own
    ] + [
        Subject(
            " ".join(filter(None, (name, Path(path).name))),
            name,
            given.python,
            {"path": path} | (beside if PEERS[name].trains else {}),
        )
        for name, path in given.against
    ]


def peer_of(text: str) -> tuple[str, str]:
    """A peer's name and its file, "" where it needs none."""
    name, _, path = text.partition("=")
    if name not in PEERS:
        raise argparse.ArgumentTypeError(f"no peer {name!r}; they are {', '.join(PEERS)}")
    if PEERS[name].file and not path:
        raise argparse.ArgumentTypeError(f"{name} needs {PEERS[name].file}: {name}=FILE")
    return name, path


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, a whole number of at least 1 needed")
    return int(text)


def tell(what: str) -> None:
    """How far it is, on a terminal."""
    if sys.stderr.isatty():
        print(what, file=sys.stderr)
