"""A server as a process of its own, and requests to it."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

JSON = {"content-type": "application/json"}


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """`refembed serve` on the NumPy backend. said: its lines on standard error."""

    def __init__(self, folder: Path, *options: str, key: str = "", port: int = 0) -> None:
        command = [sys.executable, "-m", "refembed", "serve", "--backend", "numpy", "--threads", "1"]
        named = [] if "--model" in options else ["--model", str(folder)]
        environment = {**os.environ, "REFEMBED_API_KEY": key}
        self.process = subprocess.Popen(
            [*command, *named, "--port", str(port), *options], stderr=subprocess.PIPE, env=environment, text=True
        )
        assert self.process.stderr
        self.said: list[str] = []
        found = None
        while not found and (line := self.process.stderr.readline()):
            self.said.append(line)
            found = re.search(r"at (http://(127\.0\.0\.1|\[::1\]):(\d+))$", line)
        assert found, self.said
        self.url, self.port = found[1], int(found[3])
        threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True).start()

    def ask(self, path: str, body: Any = None, headers: Mapping[str, str] = JSON, method: str = "") -> Answer:
        """One request on a connection of its own; a body that is no bytes or None becomes JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            sent = body if isinstance(body, bytes | None) or hasattr(body, "__next__") else json.dumps(body).encode()
            connection.request(method or ("GET" if body is None else "POST"), path, sent, dict(headers))
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def vectors(self, *texts: str, **options: Any) -> list[list[float]]:
        answer = self.ask("/v1/embeddings", {"model": "embeddinggemma", "input": list(texts), **options})
        assert answer.status == 200, answer
        return [entry["embedding"] for entry in answer.json["data"]]

    def wait_until(self, condition: Any, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not come to be"
            time.sleep(0.01)

    def close(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


def in_thread(function: Any, *arguments: Any, **options: Any) -> Any:
    """Start a call; the function that waits for what it gives."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function(*arguments, **options)))
    thread.start()

    def result() -> Any:
        thread.join(60)
        return found[0]

    return result
