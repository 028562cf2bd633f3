"""One queue and one thread that computes: texts of many requests in one batch, each request its own vectors back."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..embedder import Embedder
from ..errors import RefembedError

TOKENS_A_THREAD = 256  # of a batch: enough for the kernels' full rate, and what waits behind it waits little
Vectors = NDArray[np.float32]


class Job:
    """The texts of one request.

    taken    how many were given to a batch
    left     how many have no vector yet
    future   all vectors, (texts, dimensions) float32, or what went wrong with one; cancelled where nobody waits
    """

    def __init__(self, ids: Sequence[NDArray[Any]], raw: bool, dimensions: int) -> None:
        self.ids, self.raw = ids, raw
        self.vectors: Vectors = np.empty((len(ids), dimensions), np.float32)
        self.taken, self.left = 0, len(ids)
        self.future: Future[Vectors] = Future()

    def put(self, index: int, found: Vectors | Exception) -> None:
        """One text's vector or fault; the last vector, or the first fault, is the answer."""
        if self.future.done():
            return
        if not isinstance(found, Exception):
            self.vectors[index] = found
            self.left -= 1
            if self.left:
                return
        if self.future.set_running_or_notify_cancel():
            if isinstance(found, Exception):
                self.future.set_exception(found)
            else:
                self.future.set_result(self.vectors)


class Batcher:
    """Computes what is waiting, at most `tokens_at_once` tokens at a time, without waiting for more to come.

    Requests take turns, a text each: among requests of one text that is first come, first served, and a large one
    cannot keep small ones waiting until its end.

    waiting         texts in the queue, at most `most_waiting`
    batches, ...    what was done since the start
    """

    def __init__(self, model: Embedder, tokens_at_once: int, most_waiting: int) -> None:
        self.model, self.tokens_at_once, self.most_waiting = model, tokens_at_once, most_waiting
        self.jobs: deque[Job] = deque()
        self.changed = threading.Condition()
        self.waiting = self.waiting_tokens = self.batches = self.texts = self.tokens = self.failed = 0
        self.busy = 0.0  # seconds of computing
        self.closed = False
        self.batch: list[tuple[Job, int]] = []  # being computed
        self.thread = threading.Thread(target=self.run, name="refembed-model", daemon=True)
        self.thread.start()

    def submit(self, ids: Sequence[NDArray[Any]], raw: bool = False) -> "Future[Vectors]":
        """Queue the texts of one request. raw: vectors as they are before they are made unit length."""
        job = Job(ids, raw, self.model.config.dimensions)
        if not ids:
            job.future.set_result(job.vectors)
            return job.future
        with self.changed:
            if self.closed:
                raise RefembedError("server-failed", "the model's thread has ended; start the server again")
            if self.waiting + len(ids) > self.most_waiting:
                self.sweep()
            if self.waiting and self.waiting + len(ids) > self.most_waiting:
                raise RefembedError(
                    "queue-full", f"{self.waiting} texts are waiting, and {len(ids)} more do not fit; try again later"
                )
            self.jobs.append(job)
            self.waiting += len(ids)
            self.waiting_tokens += sum(map(len, ids))
            self.changed.notify()
        return job.future

    def seconds_to_wait(self) -> float:
        """How long the queue will take, by the rate so far."""
        return self.waiting_tokens * self.busy / max(self.tokens, 1)

    def close(self) -> None:
        """Finish what is queued, and end the thread."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def take(self) -> list[tuple[Job, int]]:
        """The next batch, each text by its job and place there; empty at the end."""
        batch = self.batch
        room = self.tokens_at_once
        with self.changed:
            while not self.jobs and not self.closed:
                self.changed.wait()
            while self.jobs:
                job = self.jobs[0]
                if job.future.done():  # nobody waits for it, or one of its texts failed
                    self.leave(job.ids[job.taken :])
                    self.jobs.popleft()
                    continue
                tokens = len(job.ids[job.taken])
                if batch and tokens > room:
                    break
                batch.append((job, job.taken))
                room -= tokens
                self.leave(job.ids[job.taken : job.taken + 1])
                job.taken += 1
                self.jobs.rotate(-1)
                if job.taken == len(job.ids):
                    self.jobs.pop()
        return batch

    def sweep(self) -> None:
        """Take out what nobody waits for any more."""
        for job in self.jobs:
            if job.future.done():
                self.leave(job.ids[job.taken :])
        self.jobs = deque(job for job in self.jobs if not job.future.done())

    def leave(self, ids: Sequence[NDArray[Any]]) -> None:
        self.waiting -= len(ids)
        self.waiting_tokens -= sum(map(len, ids))

    def run(self) -> None:
        try:
            while not self.closed or self.jobs:
                if batch := self.take():
                    self.answer(batch)
                batch.clear()  # an idle server holds no request
        except BaseException as error:
            self.fail(RuntimeError(f"the model's thread ended: {type(error).__name__}: {error}"))
            raise

    def answer(self, batch: list[tuple[Job, int]]) -> None:
        start = time.perf_counter()
        found = self.compute(batch)
        self.busy += time.perf_counter() - start
        self.batches += 1
        self.texts += len(batch)
        self.tokens += sum(len(job.ids[index]) for job, index in batch)
        for (job, index), vector in zip(batch, found, strict=True):
            self.failed += isinstance(vector, Exception)
            job.put(index, vector)

    def fail(self, fault: Exception) -> None:
        """Take no more, and give what was taken its answer: nothing will be computed any more."""
        with self.changed:
            self.closed = True
            for job in [*self.jobs, *(job for job, _ in self.batch)]:
                job.put(0, fault)
            self.jobs.clear()
            self.batch.clear()
            self.waiting = self.waiting_tokens = 0

    def compute(self, batch: list[tuple[Job, int]]) -> list[Vectors | Exception]:
        """A vector for each text. Where the batch cannot be computed, each text alone: the fault is one text's own."""
        try:
            usual = [job.ids[index] for job, index in batch if not job.raw]
            found = iter(self.encode(usual) if usual else [])
            return [self.alone(job, index) if job.raw else next(found) for job, index in batch]
        except Exception:
            return [self.alone(job, index) for job, index in batch]

    def alone(self, job: Job, index: int) -> Vectors | Exception:
        try:
            if job.raw:
                return usable(self.projected(job.ids[index]))
            return self.encode([job.ids[index]])[0]
        except Exception as error:
            return error

    def encode(self, ids: list[NDArray[Any]]) -> list[Vectors | Exception]:
        found = self.model.encode_tokens(ids, self.model.config.dimensions)
        if found.shape != (wanted := (len(ids), self.model.config.dimensions)):
            raise ValueError(f"the backend gave vectors of shape {found.shape}, {wanted} needed")
        return [usable(row) for row in found]

    def projected(self, ids: NDArray[Any]) -> Vectors:
        """(dimensions,) The head's output; where the encoder can be followed no other tensor is kept on the way."""
        encoder: Any = self.model.encoder
        if not hasattr(encoder, "follow"):
            return np.asarray(encoder.trace(ids)["projected"], np.float32)
        kept: dict[str, Vectors] = {}

        def keep(name: str, tensor: NDArray[Any]) -> None:
            if name == "projected":
                kept[name] = np.array(tensor, np.float32)

        encoder.follow(ids, keep)
        return kept["projected"]


def usable(vector: Vectors) -> Vectors | Exception:
    """JSON has no NaN, and no client a use for one."""
    return vector if np.isfinite(vector).all() else ArithmeticError("its vector has a value that is not finite")
