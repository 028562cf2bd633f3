"""Every subject in turn, round after round, so that the machine's moods fall on all alike."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import open_checkpoint
from ..errors import printable, shortened
from .laws import CURVE
from .peers import PEERS
from .results import Subject, collect

PACKAGE = Path(__file__).parents[1]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS")
SETTLE_S = 0.3  # threads of whoever ran last may still spin
RULER = Subject("", "ruler", sys.executable, {})


@dataclass(frozen=True)
class Plan:
    """What to measure and how often.

    model    the checkpoint's folder
    given    the texts of read_workload; None: the built-in ones
    stream   how many texts; 0: none
    train    how many examples, each a query, a positive and a hard negative, in a step of training; 0: none
    """

    model: Path
    threads: int
    rounds: int
    given: Mapping[str, list[str]] | None = None
    first_time: bool = False
    curve: bool = False
    stream: int = 0
    train: int = 0


class FailedError(Exception):
    """A subject cannot be run, or has ended; the reason in one line."""


class Child:
    """refembed.bench.child in a process of its own.

    This process must stay small beside it: Linux counts the parent's pages at the fork in the child's ru_maxrss. So
    texts are counted and matrices multiplied in a child, too.
    """

    def __init__(self, python: str, spec: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self.said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  what it says on standard error
        command, pipe = [python, "-P", "-m", "refembed.bench.child", json.dumps(spec)], subprocess.PIPE
        try:
            self.process = subprocess.Popen(  # noqa: S603
                command, stdin=pipe, stdout=pipe, stderr=self.said, env=environment, text=True
            )
        except OSError as error:
            raise FailedError(f"{python} cannot be started: {error.strerror or error}") from error

    def ask(self, call: str, **arguments: Any) -> Any:
        """Its answer; raises FailedError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        answer = ""
        with suppress(BrokenPipeError):
            print(json.dumps({"call": call, **arguments}), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        found = json.loads(answer) if answer.endswith("\n") else {"error": self.last_words()}
        if "error" in found:
            raise FailedError(shortened(printable(found["error"])))
        return found

    def last_words(self) -> str:
        status = self.process.wait()
        self.said.seek(0)
        said = [line for line in self.said.read().splitlines() if line.strip()]
        return f"its process ended with {status}: {said[-1] if said else 'no word'}"

    def close(self) -> None:
        with suppress(BrokenPipeError), self.said, self.process:
            self.process.kill()


class Bench:
    """One sitting: the processes of its subjects, and of the ruler, which knows texts' tokens and the matrix peak."""

    def __init__(self, plan: Plan, subjects: Sequence[Subject], tell: Callable[[str], None], folder: str) -> None:
        self.plan, self.subjects, self.tell = plan, subjects, tell
        Path(folder, "refembed").symlink_to(PACKAGE)  # a peer's interpreter gets this package and none beside it
        self.environment = {
            **os.environ,
            **dict.fromkeys(THREADS, str(plan.threads)),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH")))),
        }
        self.children: dict[str, Child] = {}
        self.peaks: list[float] = []

    def run(self) -> dict[str, Any]:
        """All of it, in the order of the results."""
        plan = self.plan
        config = open_checkpoint(plan.model).config
        self.open(RULER, **blas_core())
        work = self.ask(RULER, "workload", given=plan.given)
        text = work["queries"][0]
        if plan.first_time:
            self.in_turn("first start ever", lambda subject: self.start_first_time(subject, text), all=False)
        for number in range(plan.rounds + 1):
            self.in_turn(f"start {number}", lambda subject: self.start(subject, text))
        for number in range(plan.rounds):
            self.in_turn(f"round {number + 1} of {plan.rounds}", lambda subject: self.round(subject, work))
        self.read_peak()
        if plan.curve:
            sizes = [size for size in CURVE if size <= config.context]
            cuts = self.ask(RULER, "cuts", text=" ".join(work["documents"]), sizes=sizes)["texts"]
            for number in range(plan.rounds + 1):
                self.in_turn(f"curve {number}", lambda subject: self.curve(subject, cuts), all=False)
        if plan.stream:
            self.in_turn("stream", lambda subject: self.stream(subject, work["queries"]), all=False)
        if plan.train:
            some = {"queries": work["queries"], "documents": work["documents"], "examples": plan.train}
            made = self.ask(RULER, "columns", **some)
            for number in range(plan.rounds + 1):
                self.in_turn(f"training {number}", lambda subject: self.train(subject, made["columns"]))
            work["tokens"]["training"] = made["tokens"]
        return {"threads": plan.threads, "rounds": plan.rounds} | collect(self.subjects, work, config, self.peaks)

    def in_turn(self, what: str, measure: Callable[[Subject], None], all: bool = True) -> None:
        """Every subject that still runs, or refembed alone; one that fails keeps its reason and is asked no more."""
        for subject in self.subjects:
            if subject.failed is None and (all or subject.kind == "refembed"):
                self.tell(f"{what}: {subject.name}")
                time.sleep(SETTLE_S)
                try:
                    measure(subject)
                except FailedError as error:
                    subject.failed = str(error)

    def start(self, subject: Subject, text: str) -> None:
        """From the process's start to its first vector."""
        started = self.open(subject)
        if self.ask(subject, "start", text=text)["started"]:
            subject.starts.append(time.perf_counter() - started)

    def start_first_time(self, subject: Subject, text: str) -> None:
        """The same where nothing is compiled yet."""
        with tempfile.TemporaryDirectory() as cache:
            started = self.open(subject, REFEMBED_CACHE=cache)
            self.ask(subject, "start", text=text)
            subject.first_time = time.perf_counter() - started
            self.close(subject.name)

    def round(self, subject: Subject, work: Mapping[str, Any]) -> None:
        self.read_peak()
        subject.rounds.append(self.ask(subject, "round", **work))

    def read_peak(self) -> None:
        self.peaks.append(self.ask(RULER, "peak")["gflops"])
        time.sleep(SETTLE_S)

    def curve(self, subject: Subject, texts: list[str]) -> None:
        subject.curve.append(self.ask(subject, "each", texts=texts)["seconds"])

    def stream(self, subject: Subject, texts: list[str]) -> None:
        subject.stream = self.ask(subject, "stream", texts=texts, number=self.plan.stream)

    def train(self, subject: Subject, columns: list[list[str]]) -> None:
        if subject.kind == "refembed" or PEERS[subject.kind].trains:
            subject.training.append(self.ask(subject, "train", columns=columns))

    def open(self, subject: Subject, **environment: str) -> float:
        """Start its process in place of the one it had, and say when that was."""
        self.close(subject.name)
        spec = {"kind": subject.kind, "model": str(self.plan.model), "threads": self.plan.threads, **subject.settings}
        started = time.perf_counter()
        self.children[subject.name] = Child(subject.python, spec, self.environment | environment)
        return started

    def ask(self, subject: Subject, call: str, **arguments: Any) -> Any:
        return self.children[subject.name].ask(call, **arguments)

    def close(self, name: str) -> None:
        if name in self.children:
            self.children.pop(name).close()


def bench(plan: Plan, subjects: Sequence[Subject], tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure all subjects. tell: is given a line on what is being done."""
    with tempfile.TemporaryDirectory() as folder:
        sitting = Bench(plan, subjects, tell, folder)
        try:
            return sitting.run()
        finally:
            for name in list(sitting.children):
                sitting.close(name)


def blas_core() -> dict[str, str]:
    """Tell OpenBLAS of AVX-512 where there is, whatever the environment told it: a yardstick must not be short."""
    try:
        wide = "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        wide = False
    return {"OPENBLAS_CORETYPE": "SkylakeX"} if wide else {}
