"""is a port right, and if not, which known mistake is it

Reach the port in one of five ways: a Python function (--call module:function, a list of texts to vectors), a command
that speaks JSON lines (--command), an HTTP server (--url with --dialect), a file of vectors (--vectors), or one of
refembed's own backends (--backend). spec/protocol.md of the source distribution says how, by example.

  refembed verify --call my_port:embed
  refembed verify --command "./my_port $(refembed golden path twin)/checkpoint" --track runs.json
  refembed verify --model embeddinggemma-300m --url http://127.0.0.1:8080 --dialect openai
  refembed verify --level losses --call my_training:loss
  refembed verify --level gradients --call my_training:gradients

Exit status: 0 the port conforms, 1 it does not, 2 it could not be verified.
"""

import argparse
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..backend import Backend, choose_backend
from ..checkpoint import Checkpoint, open_checkpoint
from ..conformance.gradients import verify_gradients
from ..conformance.losses import verify_losses
from ..conformance.mutation import Text
from ..conformance.port import CALLS, DIALECTS, CallPort, CommandPort, FilePort, HttpPort, Port, within
from ..conformance.report import as_json, as_junit, as_text, changes, is_report, unlike, verdict_lines
from ..conformance.suite import PRECISIONS, Case, Suite, golden_folder, open_suite
from ..conformance.verify import LEVELS, Report, verify
from ..embedder import Embedder, load
from ..errors import RefembedError
from ..output import check_output, open_output

TIMEOUT = 120
CONTRACTS = {  # what a matrix is stored in -> whose bounds apply: a float16 has three more bits than a bfloat16
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "int8-block": "int8",
    "int4-block": "int4",
    "mixed-channel": "int4",
}
ALONE: dict[str, Callable[..., Report]] = {"losses": verify_losses, "gradients": verify_gradients}  # levels asked alone
BELONGS = {  # option -> the ways to reach a port that have it
    "dialect": ("url",),
    "name": ("url",),
    "checkpoint": ("backend",),
    "timeout": ("call", "program", "url"),
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    ways = command.add_mutually_exclusive_group(required=True)
    ways.add_argument("--call", metavar="MODULE:FUNCTION", help="a Python function, list of texts -> vectors")
    ways.add_argument("--command", dest="program", metavar="CMD", help="a program that speaks JSON lines")
    ways.add_argument("--url", metavar="URL", help="an HTTP server")
    ways.add_argument("--vectors", metavar="FILE", help=".jsonl or .safetensors of vectors by case")
    ways.add_argument("--backend", metavar="B", help="one of refembed's own backends")
    command.add_argument(
        "--suite", "--model", metavar="S", default="twin", help="twin (default), embeddinggemma-300m, or a folder"
    )
    command.add_argument(
        "--checkpoint", metavar="FOLDER", help="with --backend: the model's folder or .gguf file (the twin's own)"
    )
    command.add_argument("--dialect", choices=DIALECTS, help="with --url (openai)")
    command.add_argument("--name", help="with --url: the model's name there (embeddinggemma)")
    command.add_argument(
        "--timeout", type=seconds, metavar="S", help=f"seconds to wait for an answer, or a start ({TIMEOUT})"
    )
    command.add_argument(
        "--precision",
        metavar="P",
        help="whose bounds apply (float32; with --backend those of how its weights are stored)",
    )
    command.add_argument(
        "--levels",
        "--level",
        default=",".join(LEVELS),
        metavar="L,L",
        help=f"some of {','.join(LEVELS)}; or losses, or gradients",
    )
    command.add_argument("--cases", default="*", metavar="PATTERN,...", help="some cases only, like length-*")
    command.add_argument("--json", metavar="FILE", help="write conformance.json there")
    command.add_argument("--junit", metavar="FILE", help="write JUnit XML there")
    command.add_argument(
        "--track", metavar="FILE", help="keep this run there, and print only what changed since the last"
    )


def run(given: argparse.Namespace) -> int:
    check_options(given)
    before = read_track(given.track)
    for path in (given.json, given.junit, given.track):
        check_output(path)
    report = report_of(given)
    apart = unlike(report, before) if before else []
    if before is None or apart:
        print(as_text(report))
    else:
        print("\n".join(changes(report, before) or ["no change"]))
        print("\n".join(verdict_lines(report)))
    for path, write in ((given.json, as_json), (given.junit, as_junit), (track_file(given, report, apart), as_json)):
        if path:
            with open_output(path) as handle:
                handle.write(write(report))
    if not report.answered:
        return 2
    return 0 if report.conforms else 1


def report_of(given: argparse.Namespace) -> Report:
    """Ask the port and judge it."""
    if given.levels.strip() in ALONE:
        return report_alone(given, given.levels.strip())
    folder = Path(given.suite)
    suite = open_suite(folder if folder.is_dir() else golden_folder(given.suite))
    port = open_port(given, suite)
    try:
        return verify(suite, port, bounds_of(given.precision, port), words(given.levels), words(given.cases))
    finally:
        port.close()


def report_alone(given: argparse.Namespace, level: str) -> Report:
    """The same of its losses, or of its backward pass, which have golden vectors of their own."""
    if given.precision not in (None, "float32", "float64"):
        raise RefembedError("verify-precision", f"the {level} have bounds for float32 only; leave --precision out")
    if given.call is None and given.program is None:
        raise RefembedError("verify-option", f"--level {level} goes with --call and --command only")
    folder = Path(given.suite)
    if not folder.is_dir() and given.suite not in ("twin", level):  # twin: nothing was asked for
        raise RefembedError(
            "verify-option",
            f"--level {level} has a suite of its own, {level}, or takes a folder; {given.suite} is none",
        )
    port = called_port(given)
    try:
        return ALONE[level](folder if folder.is_dir() else golden_folder(level), port, words(given.cases))
    finally:
        port.close()


def check_options(given: argparse.Namespace) -> None:
    """Raise where an option is given that would be ignored."""
    for option, ways in BELONGS.items():
        if getattr(given, option) is not None and all(getattr(given, way) is None for way in ways):
            names = " and ".join(f"--{'command' if way == 'program' else way}" for way in ways)
            raise RefembedError("verify-option", f"--{option} goes with {names} only; leave it out")


def track_file(given: argparse.Namespace, report: Report, apart: list[str]) -> str | None:
    """Where this run is kept, if it is: it may take the place of one like it, and of nothing without an answer."""
    if given.track and apart:
        why = f"it is of another run: {'; '.join(apart)}; to track this one, name another file"
    elif given.track and not report.answered:
        why = "nothing was answered"
    else:
        return str(given.track) if given.track else None
    print(f"note: {given.track} is left as it is, since {why}", file=sys.stderr)
    return None


def words(listed: str) -> list[str]:
    return [word.strip() for word in listed.split(",")]


def seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < threading.TIMEOUT_MAX:
        raise ValueError(text)
    return number


def open_port(given: argparse.Namespace, suite: Suite) -> Port:
    """The port that the options name."""
    if given.call is not None or given.program is not None:
        return called_port(given)
    if given.url is not None:
        key, name = os.environ.get("REFEMBED_API_KEY", ""), given.name or "embeddinggemma"
        return HttpPort(given.url, given.dialect or "openai", name, given.timeout or TIMEOUT, key)
    if given.vectors is not None:
        return FilePort(Path(given.vectors))
    folder = given.checkpoint or suite.folder / "checkpoint"
    if given.checkpoint and not os.path.exists(folder):  # pathlib's own raises where a name is too long for any file
        raise RefembedError(
            "folder-missing", f"{folder} is not there; give --checkpoint a model folder or a .gguf file"
        )
    if not os.path.exists(folder):
        raise RefembedError(
            "verify-checkpoint", f"{suite.name} carries no weights; name the model's folder by --checkpoint"
        )
    backend, _ = choose_backend(given.backend)
    checkpoint, model_of = open_checkpoint(Path(folder)), suite.manifest["model"]
    sizes = len(checkpoint.config.layer_kinds), checkpoint.config.dimensions
    if sizes != (model_of["layers"], model_of["dimensions"]):
        raise RefembedError(
            "verify-checkpoint",
            f"{folder} has {sizes[0]} layers and {sizes[1]} dimensions, {suite.name} {model_of['layers']} and "
            f"{model_of['dimensions']}: it is another model; name its own golden vectors by --suite",
        )
    precision = own_precision(given.precision, backend, checkpoint)
    model = load(folder, backend=given.backend, precision=precision)
    if model.info.digest != suite.manifest["model"]["digest"]:
        print(f"note: {folder} holds other files than these golden vectors were made with", file=sys.stderr)
    return BackendPort(model)


def called_port(given: argparse.Namespace) -> CommandPort:
    """A function or a command."""
    timeout = given.timeout or TIMEOUT
    return CallPort(given.call, timeout) if given.call is not None else CommandPort(given.program, timeout)


def bounds_of(precision: str | None, port: Port) -> str:
    """The contract a port is held to: the one asked for, or that of a checkpoint's stored weights, or float32's."""
    if precision:
        return "float32" if precision == "float64" else precision
    if not isinstance(port, BackendPort):
        return "float32"
    stored = port.model.checkpoint.weights
    bounds = max((CONTRACTS[one] for one in stored.split(" and ")), key=PRECISIONS.index)  # the widest
    if bounds != "float32":
        print(f"note: weights are {stored}: {bounds}'s bounds apply, unless --precision names others", file=sys.stderr)
    return bounds


def own_precision(precision: str | None, backend: Backend, checkpoint: Checkpoint) -> str | None:
    """What to ask a backend to compute in, which is not what it is held to; None for its default.

    Of a checkpoint of floats float32 where none is named: a lower default must not be held to bounds of floats. What is
    named, where the backend has it; float32 and float64 in any case, since no other may stand in for them.
    """
    if precision is None:
        return None if checkpoint.quantized else "float32"
    return precision if precision in (*backend.precisions, "float32", "float64") else None


class BackendPort:
    """A loaded model as a port that answers everything."""

    can = CALLS

    def __init__(self, model: Embedder) -> None:
        self.name, self.model = repr(model), model

    def embed(self, case: Case, prompted: Sequence[str]) -> Any:
        return quietly(lambda: self.model.encode(list(prompted), task=None, dimensions=case.dimensions))

    def embed_prompted(self, case: Case, texts: Sequence[Text]) -> Any:
        def encode(text: Text) -> Any:
            return self.model.encode(text.text, task=text.task, titles=text.title, dimensions=case.dimensions)

        return quietly(lambda: [encode(text) for text in texts])

    def tokenize(self, prompted: Sequence[str]) -> Any:
        return quietly(lambda: [self.ids(text) for text in prompted])

    def trace(self, case: Case, prompted: str) -> Any:
        return quietly(lambda: self.model.encoder.trace(self.ids(prompted)))

    def ids(self, prompted: str) -> Any:
        (ids,) = self.model.prepare([prompted], task=None)
        if isinstance(ids, RefembedError):
            raise ids
        return ids

    def close(self) -> None:
        pass


def quietly(ask: Callable[[], Any]) -> Any:
    """Without a warning for each text that is meant to be too long."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return within(None, ask)


def read_track(path: str | None) -> Any:
    """The last run, None where there is none yet."""
    if not path or not Path(path).exists():
        return None
    try:
        before = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RefembedError("verify-track", f"{path} is not an earlier run: {error}; name another file") from error
    if not is_report(before):
        raise RefembedError("verify-track", f"{path} is not an earlier run of this version; name another file")
    return before
