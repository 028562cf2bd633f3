"""A server of embeddings without a model, at fault as it is told: python fake_server.py FAULT --port N"""

import base64
import json
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

TEXTS = [f"text {number}" for number in range(20)]
VECTORS = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
Rows = list[np.ndarray]
FAULTS: dict[str, Callable[[Rows], Rows]] = {  # what becomes of the vectors of a request
    "none": lambda rows: rows,
    "swapped": lambda rows: rows[::-1],
    "lost": lambda rows: rows[1:],
    "wrong": lambda rows: [rows[0] + np.float32(1e-4), *rows[1:]],
    "NaN": lambda rows: [rows[0] * np.float32("nan"), *rows[1:]],
    "short": lambda rows: [row[:4] for row in rows],
}


def server(fault: str, port: int = 0) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer({"data": [{"id": "fake"}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
            known = [TEXTS.index(text) for text in asked if text in TEXTS]
            rows = FAULTS[fault]([VECTORS[number] for number in known])
            data = [{"index": at, "embedding": base64.b64encode(row.tobytes()).decode()} for at, row in enumerate(rows)]
            time.sleep(0.01)
            self.answer({"data": data, "usage": {"prompt_tokens": len(known)}})

        def answer(self, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    server(sys.argv[1], int(sys.argv[3])).serve_forever()
