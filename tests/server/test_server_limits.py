"""Keys, limits, metrics, and the ends of a server: asked to stop, and killed."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import JSON, Running, in_thread

import refembed
from refembed.cli import main
from refembed.errors import RefembedError
from refembed.server import command

HEAD = b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
LONG = "the red planet mars is hot " * 4  # as many tokens as fit; a millisecond or two of the NumPy backend's time
BEARER = {**JSON, "authorization": "Bearer secret"}


def embed(running: Running, *texts: str, headers: Any = JSON) -> Any:
    return running.ask("/embed", {"inputs": list(texts)}, headers)


# ---------------------------------------------------------------------------------------------------------------- keys
@pytest.fixture(scope="module")
def guarded(folder: Path) -> Any:
    """A server that is soon full: 3 requests at once, 100 texts waiting, and a key."""
    running = Running(
        folder, "--max-requests", "3", "--max-waiting", "100", "--on-long", "error", "--task", "query", key="secret"
    )
    yield running
    running.close()


def test_key(guarded, model) -> None:
    """Wrong if anything but health is answered without the key, or the key's own client is refused."""
    for path, body in (("/embed", {"inputs": "a"}), ("/v1/models", None), ("/metrics", None), ("/nothing", None)):
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            answer = guarded.ask(path, body, {**JSON, **header})
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    said = [guarded.ask("/api/embed", {}, {**JSON, **one}).json["error"] for one in ({}, {"authorization": "bearer x"})]
    assert said == ["no API key: send the header Authorization: Bearer KEY", "incorrect API key"]
    assert embed(guarded, "a").json["error_type"] == "Unauthorized"
    assert [guarded.ask(path).status for path in ("/health", "/ready", "/")] == [200] * 3
    assert guarded.ask("/", {"inputs": "a"}).status == 401
    client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="secret")
    (entry,) = client.embeddings.create(model="twin:none", input="mars").data
    assert np.allclose(entry.embedding, model.encode("mars", task=None), atol=1e-6)
    with pytest.raises(openai.AuthenticationError) as caught:
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong").embeddings.create(model="twin", input="mars")
    assert caught.value.code == "invalid_api_key"


def test_on_long_error_is_the_default_where_asked(guarded) -> None:
    """Wrong if --on-long error cuts, or a request's own truncate does not come first."""
    assert guarded.ask("/embed", {"inputs": "red " * 90}, BEARER).status == 413
    assert guarded.ask("/embed", {"inputs": "red " * 90, "truncate": True}, BEARER).status == 200


def test_task_of_the_server(guarded, model) -> None:
    """Wrong if --task is not what holds for a request that names none, or comes before one that does."""
    for asked, task in (({}, "query"), ({"task": "document"}, "document"), ({"task": "none"}, None)):
        found = guarded.ask("/embed", {"inputs": ["mars"], **asked}, BEARER).json
        assert np.allclose(found, model.encode(["mars"], task=task), atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- limits
@contextmanager
def many_texts(running: Running, count: int) -> Iterator[None]:
    """A client that asks for many texts at once, and hangs up at the end."""
    body = json.dumps({"inputs": [LONG] * count, "truncate": True}).encode()
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(HEAD.replace(b"host: a", b"host: a\r\nauthorization: Bearer secret") % len(body) + body)
        running.wait_until(lambda: queued(running) > 0)
        yield


def queued(running: Running) -> float:
    return metric(running, "refembed_queue_texts")


def metric(running: Running, name: str) -> float:
    """A metric without labels."""
    lines = running.ask("/metrics", None, BEARER).body.decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_full_queue_and_a_client_that_hangs_up(guarded) -> None:
    """Wrong if a full queue takes more, or does not say when to come again; or if what nobody waits for is computed."""
    before = metric(guarded, "refembed_texts_total")
    with many_texts(guarded, 2000):  # alone a request may be larger than the queue
        answer = embed(guarded, "a", headers=BEARER)
        assert (answer.status, answer.json["error_type"]) == (429, "Overloaded")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    guarded.wait_until(lambda: queued(guarded) == 0)
    assert metric(guarded, "refembed_texts_total") - before < 2000
    assert embed(guarded, "a", headers=BEARER).status == 200


def test_too_many_requests_at_once(guarded) -> None:
    """Wrong if more requests than allowed are looked at, or the next one after them is refused."""
    held = [socket.create_connection(("127.0.0.1", guarded.port)) for _ in range(3)]
    for one in held:
        one.sendall(HEAD.replace(b"host: a", b"host: a\r\nauthorization: Bearer secret") % 9 + b"{")
    guarded.wait_until(lambda: guarded.ask("/ready").json["status"] == "full")
    answer = guarded.ask("/v1/embeddings", {"model": "twin", "input": "a"}, BEARER)
    assert (answer.status, answer.json["error"]["code"]) == (429, "rate_limit_exceeded")
    for one in held:
        one.close()
    guarded.wait_until(lambda: guarded.ask("/ready").status == 200)
    assert embed(guarded, "a", headers=BEARER).status == 200


def test_refused_requests_take_no_place(guarded) -> None:
    """Wrong if clients without a key, whose bodies do not come, keep out those with one."""
    held = [socket.create_connection(("127.0.0.1", guarded.port)) for _ in range(8)]
    for one in held:
        one.sendall(HEAD % 9 + b"{")
    assert embed(guarded, "a", headers=BEARER).status == 200
    guarded.wait_until(lambda: metric(guarded, "refembed_active_requests") == 1)
    for one in held:
        one.close()


def test_time_limits(folder) -> None:
    """Wrong if an answer that takes too long, or a body that does not come, is waited for."""
    running = Running(folder, "--timeout", "0.5")
    try:
        answer = running.ask("/v1/embeddings", {"model": "twin", "input": [LONG] * 2000})
        assert (answer.status, answer.json["error"]["code"]) == (504, "time_limit")
        with socket.create_connection(("127.0.0.1", running.port)) as slow:
            slow.sendall(HEAD % 9 + b"{")
            assert b" 408 " in slow.recv(1000)
        running.wait_until(lambda: embed(running, "a").status == 200)  # as soon as the machine is quick enough
        assert metric(running, "refembed_texts_total") < 2000
    finally:
        assert running.close() == 0


# ------------------------------------------------------------------------------------------------------------- metrics
def test_metrics(server) -> None:
    """Wrong if Prometheus' own parser cannot read them, or they do not count what happened."""

    def read() -> dict[Any, float]:
        families = text_string_to_metric_families(server.ask("/metrics").body.decode())
        return {
            (sample.name, sample.labels.get("path"), sample.labels.get("status")): sample.value
            for family in families
            for sample in family.samples
            if sample.labels.get("le", "+Inf") == "+Inf"
        }

    before = read()
    server.ask("/embed", {"inputs": ["a", "red " * 90, "b"]})
    server.ask("/embed", {"inputs": 5})
    server.ask("/no/such/path")
    after = read()

    def change(name: str, path: str | None = None, status: str | None = None) -> float:
        return after[name, path, status] - before.get((name, path, status), 0)

    assert change("refembed_requests_total", "/embed", "200") == 1
    assert change("refembed_requests_total", "/embed", "422") == 1
    assert change("refembed_requests_total", "other", "404") == 1
    assert change("refembed_request_seconds_count", "/embed") == 2
    assert change("refembed_request_seconds_bucket", "/embed") == 2
    assert change("refembed_texts_total") == 3
    assert change("refembed_tokens_total") == 3 + 64 + 3
    assert change("refembed_cut_texts_total") == 1
    assert change("refembed_batches_total") in (1, 2, 3)
    assert after["refembed_queue_texts", None, None] == 0
    assert after["refembed_peak_memory_bytes", None, None] > 10_000_000


# -------------------------------------------------------------------------------------------------------- start and end
def test_graceful_stop(folder, model) -> None:
    """Wrong if a server that is told to stop drops what it took, takes what is new, or does not end."""
    running = Running(folder)
    many = in_thread(embed, running, *[LONG] * 250)
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
    running.wait_until(lambda: queued(running) > 0)
    running.process.terminate()
    running.wait_until(lambda: running.ask("/ready").status == 503)
    with pytest.raises(openai.InternalServerError) as caught:
        client.embeddings.create(model="twin", input="a")
    assert (caught.value.status_code, caught.value.code) == (503, "server_stopping")
    with socket.create_connection(("127.0.0.1", running.port), timeout=3) as slow:
        slow.sendall(HEAD % 9 + b"{")
        assert b" 503 " in slow.recv(1000)  # at once: its body is not waited for
    assert np.allclose(many().json, np.tile(model.encode(LONG, task=None), (250, 1)), atol=1e-6)
    assert running.process.wait(10) == 0
    assert [line.split(":")[1].split()[0] for line in running.said] == ["twin", "stopping"], running.said


def test_second_signal(folder) -> None:
    """Wrong if a server that is told to stop twice still computes what it took, or leaves a client without a word."""
    running = Running(folder)
    many = in_thread(embed, running, *[LONG] * 2000)
    running.wait_until(lambda: queued(running) > 0)
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as slow:
        slow.sendall(HEAD % 9 + b"{")  # a body that is still to come
        running.wait_until(lambda: metric(running, "refembed_active_requests") == 3)
        running.process.send_signal(signal.SIGINT)
        running.wait_until(lambda: running.ask("/ready").status == 503)
        running.process.send_signal(signal.SIGINT)
        assert many().status == 503
        assert b" 503 " in slow.recv(1000)
    assert running.process.wait(10) == 0


def test_killed_and_started_again(folder, model) -> None:
    """Wrong if clients that try again lose a text, or get another's vector, where the server is killed under load."""
    texts = [f"the red planet {place}" for place in range(48)]
    truth = model.encode(texts, task=None)
    running, again = Running(folder), threading.Event()
    right: Counter[int] = Counter()  # place of a text -> times it had its vector
    failed: list[int] = []  # times that a client had to try again

    def ask_until_answered(place: int) -> Any:
        while True:
            try:
                return running.ask("/embed", {"inputs": texts[place]})
            except (OSError, http.client.HTTPException):  # refused, reset, or half an answer
                failed.append(place)
                time.sleep(0.02)

    def client(number: int) -> None:
        last = False
        while not last:
            last = again.is_set()
            for place in range(number, len(texts), 8):
                answer = ask_until_answered(place)
                assert answer.status == 200
                right[place] += bool(np.allclose(answer.json, truth[[place]], atol=1e-6))

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, number) for number in range(8)]
        running.wait_until(lambda: sum(right.values()) > 40)
        running.process.kill()
        running.process.wait()
        running = Running(folder, port=running.port)
        again.set()
        for one in clients:
            one.result(60)
    assert running.close() == 0
    assert failed
    assert min(right[place] for place in range(len(texts))) >= 1


def given(*options: str) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(options)


def test_what_keeps_it_from_starting(server, monkeypatch) -> None:
    """Wrong if a port in use, a limit of nothing, an unknown task or a missing library is found late or not named."""
    for options, id, words in (
        (["--port", str(server.port)], "serve-address", f"port {server.port}: Address already in use"),
        (["--port", "70000"], "serve-address", "port"),
        (["--max-texts", "0"], "serve-option", "--max-texts is 0"),
        (["--timeout", "nan"], "serve-option", "--timeout is nan"),
        (["--task", "poem", "--port", "0", "--model", "nowhere/at all"], "hub-name", "nowhere"),
    ):
        with pytest.raises(RefembedError, match=words) as caught:
            command.run(given(*options))
        assert caught.value.id == id
    with pytest.raises(RefembedError, match="no task 'poem'"):
        command.what_is_served(given("--task", "poem"), SimpleNamespace(checkpoint=SimpleNamespace(prompts={})))
    monkeypatch.setattr(command, "NEEDED", ("orjson", "no_such_library"))
    with pytest.raises(RefembedError, match=r"no_such_library.*refembed\[serve\]") as caught:
        command.run(given())
    assert caught.value.id == "serve-missing"


def test_core_does_without_it() -> None:
    """Wrong if importing refembed or its command line imports the server or what it stands on."""
    code = "import sys, refembed.cli; refembed.cli.build_parser(); print([m for m in sys.modules if m in sys.argv[1:]])"
    names = ["starlette", "uvicorn", "orjson", "refembed.server.app"]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_has_examples(capsys) -> None:
    """Wrong if the command is not found by the command line, or its help has no example."""
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert "curl http://127.0.0.1:8080/v1/embeddings" in capsys.readouterr().out
    assert refembed.__version__
