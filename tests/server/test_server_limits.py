"""Keys, limits, metrics, and the ends of a server: asked to stop, and killed."""

import http.client
import signal
import socket
import subprocess
import sys
import threading
import time
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
MANY = ["the red planet mars is hot " * 4] * 100  # seconds of work for the NumPy backend
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
    assert guarded.ask("/health").status == guarded.ask("/ready").status == 200
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
def test_full_queue_says_come_again(guarded) -> None:
    """Wrong if a full queue takes more, does not say when to come again, or forgets what it took."""
    many = in_thread(embed, guarded, *MANY, headers=BEARER)  # alone it may be larger than the queue
    wait_for = lambda: "refembed_queue_texts 1" in guarded.ask("/metrics", None, BEARER).body.decode()  # noqa: E731
    guarded.wait_until(wait_for)
    answer = embed(guarded, *["a"] * 100, headers=BEARER)
    assert (answer.status, answer.json["error_type"]) == (429, "Overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    assert many().status == 200


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


def test_time_limits(folder) -> None:
    """Wrong if an answer that takes too long, or a body that does not come, is waited for; or work that nobody waits
    for is done all the same.
    """
    running = Running(folder, "--timeout", "0.3")
    try:
        answer = running.ask("/v1/embeddings", {"model": "twin", "input": MANY})
        assert (answer.status, answer.json["error"]["code"]) == (504, "time_limit")
        running.wait_until(lambda: running.metric("refembed_queue_texts") == 0, 2)
        assert running.metric("refembed_texts_total") < len(MANY)
        with socket.create_connection(("127.0.0.1", running.port)) as slow:
            slow.sendall(
                b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
            )
            assert b" 408 " in slow.recv(1000)
        assert embed(running, "a").status == 200
    finally:
        assert running.close() == 0


def test_work_of_a_client_that_left_is_dropped(server, model) -> None:
    """Wrong if a client that hangs up still has all its texts computed."""
    before = server.metric("refembed_texts_total")
    body = b'{"inputs": [' + b", ".join([b'"' + MANY[0].encode() + b'"'] * 40) + b"]}"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = (
            f"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        client.sendall(head.encode() + body)
        server.wait_until(lambda: server.metric("refembed_active_requests") == 2)  # this one, and the one that asks
    server.wait_until(lambda: server.metric("refembed_active_requests") == 1)
    server.wait_until(lambda: server.metric("refembed_queue_texts") == 0)
    assert server.metric("refembed_texts_total") - before <= 40
    assert np.allclose(server.vectors("mars"), model.encode(["mars"], task=None), atol=1e-6)


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
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_graceful_stop(folder, model, name) -> None:
    """Wrong if a server that is told to stop drops what it took, takes what is new, or does not end."""
    running = Running(folder)
    many = in_thread(embed, running, *MANY[:40])
    kept = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
    running.wait_until(lambda: running.metric("refembed_queue_texts") > 0)
    running.process.send_signal(getattr(signal, name))
    running.wait_until(lambda: running.ask("/ready").status == 503)
    with pytest.raises(openai.InternalServerError) as caught:
        kept.embeddings.create(model="twin", input="a")
    assert (caught.value.status_code, caught.value.code) == (503, "server_stopping")
    assert np.allclose(many().json, model.encode(MANY[:40], task=None), atol=1e-6)
    assert running.process.wait(10) == 0
    assert len(running.said) == 1, running.said


def test_killed_and_started_again(folder, model) -> None:
    """Wrong if clients that try again lose a text, or get another's vector, where the server is killed under load."""
    texts = [f"the red planet {place}" for place in range(160)]
    running = Running(folder)
    found: dict[int, Any] = {}

    def client(number: int) -> None:
        for place in range(number, len(texts), 8):
            while place not in found:
                try:
                    answer = running.ask("/embed", {"inputs": texts[place]})
                except (OSError, http.client.HTTPException):  # refused, reset, or half an answer
                    time.sleep(0.02)
                    continue
                assert answer.status == 200
                found[place] = answer.json[0]

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    running.wait_until(lambda: len(found) > 40)
    running.process.kill()
    running.process.wait()
    assert len(found) < len(texts)
    running = Running(folder, port=running.port)
    for thread in threads:
        thread.join(60)
    assert running.close() == 0
    assert np.allclose([found[place] for place in range(len(texts))], model.encode(texts, task=None), atol=1e-6)


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
