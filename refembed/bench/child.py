"""A subject in a process of its own, whose start-up and peak memory are then its own. JSON lines in, JSON lines out.

python -m refembed.bench.child '{"kind": ..., "model": FOLDER, "path": FILE, "threads": N, ...}'

kind is refembed, a peer of refembed.bench.peers, or ruler: what is measured with. Each line calls one method of it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RefembedError
from .peers import PEERS

WARM_UP = 3  # queries before the first that counts
PEER_BATCHES = {"cpu": (1, 8), "cuda": (32, 128)}  # a peer is given the one that suits it better
SIDE, READING_S = 3072, 0.5  # a square product large enough for any library's best rate, repeated for some time


Step = Callable[[], float]  # of training: the loss before it


class Timed:
    """Whatever turns prompted texts into unit vectors, and a stopwatch.

    batches    the batch sizes to try on the documents; none: all in one call
    training   makes a training step of columns of texts, where it can
    device     cuda or cpu
    """

    step: Step | None = None

    def __init__(
        self,
        encode: Callable[[list[str]], NDArray[Any]],
        batches: Sequence[int] = (),
        training: Callable[[list[list[str]]], Step] | None = None,
        device: str = "cpu",
    ) -> None:
        self.encode, self.batches, self.training, self.device = encode, batches, training, device

    def peak(self) -> float | None:
        """GFLOP/s that its device can do, of one that is not the CPU."""
        from .device import device_peak

        return device_peak() if self.device == "cuda" else None

    def start(self, text: str) -> dict[str, Any]:
        self.encode([text])
        return {"started": True}

    def each(self, texts: list[str]) -> dict[str, Any]:
        """The seconds of each text, one at a time."""
        return {"seconds": [self.timed([text])[0] for text in texts]}

    def round(self, queries: list[str], documents: list[str], long: list[str], **_: Any) -> dict[str, Any]:
        """Once through the workload: seconds of each query, of all documents by batch size, of the long text."""
        self.each(queries[:WARM_UP])
        query = self.each(queries)["seconds"]
        longest_first = sorted(documents, key=len, reverse=True)  # little padding in a batch
        by_batch = {}
        for size in self.batches or (len(documents),):
            timed = [self.timed(longest_first[at : at + size]) for at in range(0, len(documents), size)]
            by_batch[str(size)] = sum(seconds for seconds, _ in timed)
        vectors = np.concatenate([vectors for _, vectors in timed]).tolist()  # in this order, which is every subject's
        found = {"query": query, "documents": by_batch, "long": self.each(long)["seconds"], "vectors": vectors}
        return found | {"device_gflops": self.peak()}

    def train(self, columns: list[list[str]]) -> dict[str, Any]:
        """The seconds of one step of training on queries, positives and hard negatives, and the loss before it."""
        assert self.training
        self.step = self.step or self.training(columns)
        started = time.perf_counter()
        loss = self.step()  # a number on this side, so the device has done its work
        return {"seconds": time.perf_counter() - started, "loss": loss, "device_gflops": self.peak()}

    def timed(self, texts: list[str]) -> tuple[float, NDArray[Any]]:
        started = time.perf_counter()
        vectors = self.encode(texts)
        return time.perf_counter() - started, vectors


class Refembed(Timed):
    """refembed itself."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from ..embedder import load, raise_first

        self.model = load(spec["model"], backend=spec["backend"], precision=spec["precision"], threads=spec["threads"])
        backend: Any = self.model.backend

        def training(columns: list[list[str]]) -> Step:
            ids = [raise_first(self.model.prepare(column, task=None)) for column in columns]
            step: Step = backend.training(self.model.checkpoint, spec["precision"], spec["threads"], ids)
            return step

        device = backend.device() if hasattr(backend, "device") else "cpu"
        super().__init__(lambda texts: self.model.encode(texts, task=None), training=training, device=device)

    def stream(self, texts: list[str], number: int) -> dict[str, Any]:
        """So many texts in one call of encode(): these over and over, with a number before each.

        samples   texts, tokens and seconds so far and resident MiB, before the backend's first batch and after each
        """
        samples: list[list[float]] = []
        inner: Any = self.model.encoder

        def encode(batch: Sequence[NDArray[Any]]) -> NDArray[Any]:
            if not samples:
                samples.append([0, 0, time.perf_counter(), resident()])
            found: NDArray[Any] = inner.encode(batch)
            texts, tokens, *_ = samples[-1]
            done = [texts + len(batch), tokens + sum(map(len, batch))]
            samples.append([*done, time.perf_counter(), resident()])
            return found

        self.model.encoder = SimpleNamespace(encode=encode)
        seconds, _ = self.timed([f"{count} {texts[count % len(texts)]}" for count in range(number)])
        self.model.encoder = inner
        return {"samples": samples, "seconds": seconds}


class Ruler:
    """What is measured with: texts of known length and the machine's matrix peak."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from ..checkpoint import open_checkpoint
        from ..tokenizer import Tokenizer

        self.checkpoint = open_checkpoint(Path(spec["model"]))
        self.tokenizer = Tokenizer(self.checkpoint.tokenizer, self.checkpoint.config)

    def count(self, text: str) -> int:
        (ids,) = self.tokenizer([text])
        if isinstance(ids, RefembedError):
            raise ids
        return len(ids)

    def workload(self, given: dict[str, list[str]] | None) -> dict[str, Any]:
        from .workload import make_workload

        return make_workload(given, self.checkpoint.prompts, self.checkpoint.config.context, self.count)

    def cuts(self, text: str, sizes: list[int]) -> dict[str, Any]:
        """The text cut to each number of tokens."""
        from .workload import cut

        return {"texts": [cut("", text, size, self.count) for size in sizes]}

    def columns(self, queries: list[str], documents: list[str], examples: int) -> dict[str, Any]:
        """Queries, positives and hard negatives, a number behind each so that no text comes twice; their tokens."""
        from .workload import numbered

        others = numbered(documents, 2 * examples)
        columns = [numbered(queries, examples), others[:examples], others[examples:]]
        context = self.checkpoint.config.context
        return {"columns": columns, "tokens": [min(self.count(text), context) for one in columns for text in one]}

    def peak(self) -> dict[str, Any]:
        """GFLOP/s of the fastest of NumPy's large float32 products within a short time."""
        square = np.ones((SIDE, SIDE), np.float32)
        seconds: list[float] = []
        ends = time.perf_counter() + READING_S
        while not seconds or time.perf_counter() < ends:
            started = time.perf_counter()
            square @ square
            seconds.append(time.perf_counter() - started)
        return {"gflops": 2e-9 * SIDE**3 / min(seconds)}


def resident() -> float:
    """This process's resident memory now, MiB; its highest so far where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    except OSError:
        return peak_memory()


def peak_memory(of_children: bool = False) -> float:
    """ru_maxrss in MiB, mapped pages counted."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN if of_children else resource.RUSAGE_SELF)
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def open_subject(spec: dict[str, Any]) -> Any:
    if spec["kind"] not in PEERS:
        return (Ruler if spec["kind"] == "ruler" else Refembed)(spec)
    module = import_module(f"refembed.bench.peers.{PEERS[spec['kind']].module}")
    opened, device = module.load(spec), spec.get("device", "cpu")
    if not callable(opened):
        return opened
    training = partial(module.training, spec) if PEERS[spec["kind"]].trains else None
    return Timed(opened, PEER_BATCHES[device], training, device)


def version(kind: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(kind.removesuffix("-int8"))
    except metadata.PackageNotFoundError:
        return None


def answer_to(asked: dict[str, Any], subject: Any, spec: dict[str, Any]) -> dict[str, Any]:
    answer = getattr(subject, asked.pop("call"))(**asked)
    return {"memory": peak_memory(), "version": version(spec["kind"])} | answer


def main() -> None:
    spec = json.loads(sys.argv[1])
    subject = None
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # libraries print what they like; answers have this channel to themselves
        for line in sys.stdin:
            try:
                subject = subject or open_subject(spec)
                answer = answer_to(json.loads(line), subject, spec)
            except ModuleNotFoundError as error:
                answer = {"error": f"{error.name} is not installed for {sys.executable}; --python names another"}
            except Exception as error:
                answer = {
                    "error": str(error) if isinstance(error, RefembedError) else f"{type(error).__name__}: {error}"
                }
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
