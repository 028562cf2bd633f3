"""The queue, with a model whose batches and faults can be watched; and what a fault becomes behind a path."""

import asyncio
import copy
import json
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import refembed
from refembed.errors import RefembedError
from refembed.server.app import Limits, Server
from refembed.server.batching import Batcher
from refembed.server.dialects import Served

POISON = 13


class Model:
    """Vectors of one number, the ids' sum. `go` lets one batch pass; a batch with POISON fails as a whole."""

    config = SimpleNamespace(dimensions=1)

    def __init__(self, held: bool = True) -> None:
        self.go, self.batches, self.held = threading.Semaphore(0), [], held  # type: ignore[var-annotated]
        self.encoder = SimpleNamespace(trace=lambda ids: {"projected": np.array([-1.0 * ids.sum()])})

    def encode_tokens(self, batch: list[Any], dimensions: int) -> Any:
        if self.held:
            assert self.go.acquire(timeout=10)
        self.batches.append([int(ids.sum()) for ids in batch])
        if any(POISON in ids for ids in batch):
            raise MemoryError("poison")
        return np.array([[ids.sum()] for ids in batch], np.float32)


def ids(*values: int, tokens: int = 10) -> list[Any]:
    """Texts of `tokens` tokens, each of one value and zeros."""
    return [np.array([value] + [0] * (tokens - 1)) for value in values]


@pytest.fixture
def model() -> Model:
    return Model()


def batcher(model: Any, tokens: int = 30, waiting: int = 1000) -> Batcher:
    return Batcher(model, tokens, waiting)


def values(future: Any) -> list[float]:
    return list(future.result(10)[:, 0])


def test_texts_of_many_requests_share_a_batch_and_each_gets_its_own(model) -> None:
    """Wrong if what waits is not computed together, up to the stated number of tokens, or results are mixed."""
    queue = batcher(model)
    first = queue.submit(ids(1))  # taken at once, alone
    while queue.waiting:
        pass
    others = [queue.submit(ids(value)) for value in (2, 3, 4, 5)]
    for _ in range(3):
        model.go.release()
    assert [values(one) for one in (first, *others)] == [[1], [2], [3], [4], [5]]
    assert model.batches == [[1], [2, 3, 4], [5]]
    assert (queue.batches, queue.texts, queue.tokens, queue.waiting, queue.waiting_tokens) == (3, 5, 50, 0, 0)
    queue.close()


def test_requests_take_turns(model) -> None:
    """Wrong if a request of many texts keeps a small one waiting until its end."""
    queue = batcher(model)
    queue.submit(ids(1))
    while queue.waiting:
        pass
    large, small = queue.submit(ids(10, 11, 12, 14, 15)), queue.submit(ids(20))
    for _ in range(3):
        model.go.release()
    assert values(large) == [10, 11, 12, 14, 15]
    assert values(small) == [20]
    assert model.batches[1] == [10, 20, 11]
    queue.close()


def test_text_longer_than_a_batch_goes_alone(model) -> None:
    """Wrong if it is never taken, or takes others with it."""
    queue, _ = batcher(model), [model.go.release() for _ in range(9)]
    assert values(queue.submit(ids(7, tokens=99))) == [7]
    queue.close()


def test_poison_fails_alone(model) -> None:
    """Wrong if one text that cannot be computed takes its batch with it, or the thread, or its own request answers."""
    queue = batcher(model, tokens=100)
    queue.submit(ids(1))
    while queue.waiting:
        pass
    good, bad, other = queue.submit(ids(2, 3)), queue.submit(ids(4, POISON)), queue.submit(ids(5))
    model.held = False
    model.go.release()
    assert (values(good), values(other)) == ([2, 3], [5])
    with pytest.raises(MemoryError, match="poison"):
        bad.result(10)
    assert values(queue.submit(ids(6))) == [6]
    assert queue.failed == 1
    queue.close()


def test_rows_of_a_wrong_number_are_the_batchs_fault(model) -> None:
    """Wrong if a backend that loses a row of a batch ends the thread, or shifts the others."""
    whole, model.held = model.encode_tokens, False
    model.encode_tokens = lambda batch, dimensions: whole(batch, dimensions)[: len(batch) - (len(batch) > 1)]
    queue = batcher(model)
    assert values(queue.submit(ids(2, 3))) == [2, 3]
    queue.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_dead_thread_is_noticed(model) -> None:
    """Wrong if requests wait for a thread that has ended, or their end waits for it."""
    queue = batcher(model, tokens=10)
    model.held, model.encode_tokens = False, lambda batch, dimensions: sys.exit("gone")
    with queue.changed:
        futures = [queue.submit(ids(1, 2)), queue.submit(ids(3))]
    for one in futures:
        with pytest.raises(RuntimeError, match="thread ended: SystemExit: gone"):
            one.result(10)
    queue.close()
    with pytest.raises(RefembedError, match="thread has ended") as caught:
        queue.submit(ids(4))
    assert caught.value.id == "server-failed"
    assert (queue.waiting, queue.waiting_tokens) == (0, 0)


def test_vectors_that_are_not_finite_are_a_fault(model) -> None:
    """Wrong if NaN is handed out as a vector, or harms the texts beside it."""
    model.held, model.encode_tokens = False, lambda batch, dimensions: np.array([[np.nan], [2]], np.float32)
    model.encoder.trace = lambda ids: {"projected": np.array([np.inf])}
    queue = batcher(model)
    with queue.changed:
        bad, good = queue.submit(ids(1)), queue.submit(ids(2))
    assert values(good) == [2]
    raw = queue.submit(ids(3), raw=True)
    for one in (bad, raw):
        with pytest.raises(ArithmeticError, match="not finite"):
            one.result(10)
    assert queue.failed == 2
    queue.close()


def test_full_queue(model) -> None:
    """Wrong if more waits than allowed, or a large request alone never gets in."""
    queue = batcher(model, waiting=3)
    queue.submit(ids(1, tokens=99))
    while queue.waiting:
        pass
    left = queue.submit(ids(2, 3, 4, 5))
    with pytest.raises(RefembedError, match="4 texts are waiting") as caught:
        queue.submit(ids(6))
    assert caught.value.id == "queue-full"
    assert left.cancel()
    kept = queue.submit(ids(6))  # in the place of those that nobody waits for
    model.held = False
    model.go.release()
    queue.close()
    assert values(kept) == [6]
    assert (queue.waiting, queue.waiting_tokens) == (0, 0)


def test_cancelled_requests_are_not_computed(model) -> None:
    """Wrong if texts nobody waits for take the model's time, or stay in the queue's count."""
    queue = batcher(model)
    first = queue.submit(ids(1))
    while queue.waiting:
        pass
    left, kept = queue.submit(ids(2, 3)), queue.submit(ids(4))
    assert left.cancel()
    model.held = False
    model.go.release()
    assert (values(first), values(kept)) == ([1], [4])
    assert model.batches == [[1], [4]]
    assert (queue.waiting, queue.waiting_tokens) == (0, 0)
    queue.close()


def test_close_finishes_what_is_queued() -> None:
    """Wrong if the end loses a text that was taken."""
    model = Model(held=False)
    queue = batcher(model)
    futures = [queue.submit(ids(value)) for value in range(20, 40)]
    queue.close()
    assert [values(one) for one in futures] == [[value] for value in range(20, 40)]
    assert not queue.thread.is_alive()


def test_raw_vectors(model) -> None:
    """Wrong if raw texts get unit vectors, or others beside them raw ones."""
    model.held = False
    queue = batcher(model)
    with queue.changed:
        usual = queue.submit(ids(3)), queue.submit(ids(4))
        raw = queue.submit(ids(2), raw=True)
    assert (values(raw), *map(values, usual)) == ([-2], [3], [4])
    assert model.batches == [[3, 4]]
    assert values(queue.submit([])) == []
    queue.close()


def test_raw_vectors_keep_no_trace(model, folder, monkeypatch) -> None:
    """Wrong if every tensor of a text is kept for one of them, where the encoder can do without."""
    real = refembed.load(folder, backend="numpy")
    (one,) = real.prepare(["mars"], task=None)
    wanted = real.encoder.trace(one)["projected"]
    monkeypatch.setattr(real.encoder, "trace", None)
    queue = batcher(real)
    assert np.array_equal(queue.submit([one], raw=True).result(10), wanted[None])
    queue.close()


# ------------------------------------------------------------------------------------------------------ behind a path
async def ask(server: Server, path: str, body: Any = None) -> tuple[int, Any]:
    """One request without a socket: status and JSON."""
    said: list[Any] = []
    sent = asyncio.Event()

    async def receive() -> Any:
        if not sent.is_set():
            sent.set()
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        await asyncio.Event().wait()  # the client stays
        return None

    async def send(message: Any) -> None:
        said.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST" if body else "GET", "path": path, "query_string": b"", "headers": headers}
    await server(scope, receive, send)
    return said[0]["status"], json.loads(b"".join(one.get("body", b"") for one in said[1:]))


def test_poison_behind_a_path(model: Model, folder: Any, capsys: Any) -> None:
    """Wrong if a text that the model fails on is answered as another, or a server whose thread is dead calls itself
    healthy.
    """
    real = refembed.load(folder, backend="numpy")
    poisoned, poison = copy.copy(real), real.prepare(["venus"], task=None)[0]

    def encode(batch: Any, dimensions: int) -> Any:
        if any(np.array_equal(ids, poison) for ids in batch):
            raise MemoryError("poison")
        return real.encode_tokens(batch, dimensions)

    poisoned.encode_tokens = encode  # type: ignore[method-assign]
    served = Served(poisoned, "twin", frozenset({"twin"}), None, True, 10)
    server = Server(served, Batcher(poisoned, 512, 100), Limits(10_000, 10, 10.0), None)

    async def all_at_once() -> Any:
        texts = (["mars", "earth"], ["mars", "venus"], ["earth"])
        return await asyncio.gather(*(ask(server, "/embed", {"inputs": list(one)}) for one in texts))

    (first, second, third) = asyncio.run(all_at_once())
    assert (first[0], third[0]) == (200, 200)
    assert np.allclose([*first[1], *third[1]], real.encode(["mars", "earth", "earth"], task=None), atol=1e-6)
    assert second == (424, {"error": "a text could not be computed: poison", "error_type": "Backend"})
    assert "MemoryError: poison" in capsys.readouterr().err
    assert asyncio.run(ask(server, "/health")) == (200, {"status": "ok"})
    server.metrics.render = lambda queue: json.dumps(threading.current_thread().name)  # type: ignore[method-assign]
    assert asyncio.run(ask(server, "/metrics"))[1] == threading.current_thread().name  # which alone changes its counts
    server.batcher.close()
    for path in ("/health", "/ready"):
        assert asyncio.run(ask(server, path)) == (503, {"status": "failed"})
    assert asyncio.run(ask(server, "/embed", {"inputs": "a"}))[0] == 503


def test_bodies_at_once_are_bounded(folder: Any) -> None:
    """Wrong if bodies are held beyond the memory meant for them, or their place is lost once they are answered."""
    real = refembed.load(folder, backend="numpy")
    served = Served(real, "twin", frozenset({"twin"}), None, True, 10)
    server = Server(served, Batcher(real, 512, 100), Limits(10_000, 100, 10.0), None)
    server.most_held = 2000

    async def all_at_once() -> Any:
        return await asyncio.gather(*(ask(server, "/embed", {"inputs": "a" * 900}) for _ in range(3)))

    found = asyncio.run(all_at_once())
    assert [status for status, _ in found] == [200, 200, 429]
    assert found[2][1]["error_type"] == "Overloaded"
    assert server.held == 0
    assert asyncio.run(ask(server, "/embed", {"inputs": "a"}))[0] == 200
    server.batcher.close()
