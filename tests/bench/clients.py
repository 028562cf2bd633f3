"""Many clients of a server of embeddings, every vector checked: python clients.py FOLDER, started by serve.py.

FOLDER holds spec.json and vectors.npy, the vectors that are right; what happened goes to standard output as JSON.
"""

import base64
import http.client
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

MOST = 8  # texts in a request
EACH = 8  # times that each text whose latency is taken is asked alone, for every time that all are asked
ANSWER_S = 280  # for an answer; below the time after which refembed's server says that it took too long
PAUSE_S = 0.1  # before a request is sent again


def one_pass(texts: int, alone: Sequence[int]) -> list[int]:
    """The texts of one pass, by number: what the library embeds in one call to be compared with."""
    return [*range(texts), *(text for text in alone for _ in range(EACH))]


def requests(texts: int, alone: Sequence[int], draw: random.Random) -> Iterator[list[int]]:
    """Without end, the texts of each: pass after pass, cut anew into 1 to 8 texts each, in another order."""
    while True:
        found = [[text] for text in one_pass(texts, alone)[texts:]]
        places = list(range(texts))
        draw.shuffle(places)
        while places:
            size = draw.randint(1, MOST)
            found.append(places[:size])
            del places[:size]
        draw.shuffle(found)
        yield from found


class RefusedError(Exception):
    """An answer that is none, with what was said."""


class Clients:
    """Threads that ask, each with a connection of its own, one request after the other, and what they found.

    spec  url; model; texts; tokens of each; alone: the texts whose latency is taken; bound: the largest difference that
          passes; clients; seconds; patience: seconds for which a request that failed is sent again; 0: it is lost
    """

    def __init__(self, spec: dict[str, Any], right: np.ndarray) -> None:
        self.spec, self.right = spec, right
        self.host = urlsplit(spec["url"]).netloc
        self.bodies = [json.dumps(text) for text in spec["texts"]]  # once, not at every request
        self.deck = requests(len(right), spec["alone"], random.Random(0))
        self.lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.said: Counter[str] = Counter()
        self.worst = 0.0
        self.done: list[tuple[float, float, int, int, int]] = []  # ended, took, texts, tokens, the text alone or -1

    def run(self) -> dict[str, Any]:
        self.started = time.time()
        threads = [threading.Thread(target=self.client) for _ in range(self.spec["clients"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = {"started": self.started, "done": self.done, "worst": self.worst, "processor": time.process_time()}
        return found | {"counts": dict(self.counts), "said": self.said.most_common(5)}

    def client(self) -> None:
        connection = http.client.HTTPConnection(self.host, timeout=ANSWER_S)
        while time.time() < self.started + self.spec["seconds"]:
            with self.lock:
                texts = next(self.deck)
            self.ask(connection, texts)
        connection.close()

    def ask(self, connection: http.client.HTTPConnection, texts: list[int]) -> None:
        """One request, until it is answered or lost."""
        joined = ",".join(self.bodies[text] for text in texts)
        body = f'{{"model":{json.dumps(self.spec["model"])},"encoding_format":"base64","input":[{joined}]}}'.encode()
        started = time.time()
        while True:
            try:
                answer = exchange(connection, body)
                vectors = vectors_of(answer, len(texts), self.right.shape[1])
                break
            except Exception as error:  # whatever it is, there is no answer
                connection.close()
                if time.time() > started + self.spec["patience"]:
                    self.count(f"{type(error).__name__}: {error}"[:200], lost=len(texts))
                    return
                self.count(type(error).__name__, again=1)
                time.sleep(PAUSE_S)
        ended, tokens = time.time(), sum(self.spec["tokens"][text] for text in texts)
        alone = texts[0] if len(texts) == 1 and texts[0] in self.spec["alone"] else -1
        self.done.append((ended, ended - started, len(texts), tokens, alone))
        self.check(texts, vectors)
        if answer.get("usage", {}).get("prompt_tokens") != tokens:
            self.count(f"usage {answer.get('usage')} where there are {tokens} tokens", miscounted=1)

    def check(self, texts: list[int], vectors: np.ndarray) -> None:
        """Right: within the bound of the text's own vector, and nearer to no other's."""
        for text, vector in zip(texts, vectors, strict=True):
            away = float(np.abs(vector - self.right[text]).max())
            if away:  # then the others are looked at
                others = np.abs(self.right - vector).max(axis=1)
                nearest = int(others.argmin())
                if nearest != text and others[nearest] < away:
                    self.count(f"text {text} has the vector of text {nearest}", swapped=1)
                elif not away <= self.spec["bound"]:  # NaN is not
                    self.count(f"text {text} is off by more than {self.spec['bound']}", wrong=1)
            with self.lock:
                self.counts["exact"] += away == 0
                self.worst = max(self.worst, away)

    def count(self, said: str, **counts: int) -> None:
        with self.lock:
            self.said[said] += 1
            self.counts.update(counts)


def exchange(connection: http.client.HTTPConnection, body: bytes) -> dict[str, Any]:
    """The server's JSON; raises RefusedError for any other status than 200."""
    connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RefusedError(f"status {answer.status}: {content[:150].decode(errors='replace')}")
    return json.loads(content)


def vectors_of(answer: dict[str, Any], texts: int, dimensions: int) -> np.ndarray:
    """(texts, dimensions), by the answer's own numbers; raises RefusedError where one is not there."""
    entries = {entry["index"]: np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in answer["data"]}
    if sorted(entries) != list(range(texts)) or len(answer["data"]) != texts:
        raise RefusedError(f"vectors {sorted(entries)} where {texts} were asked for")
    if any(vector.shape != (dimensions,) for vector in entries.values()):
        raise RefusedError(f"vectors of {[len(vector) for vector in entries.values()]} numbers, not {dimensions}")
    return np.stack([entries[text] for text in range(texts)])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    spec = json.loads((folder / "spec.json").read_bytes())
    print(json.dumps(Clients(spec, np.load(folder / "vectors.npy")).run()))
