"""refembed serve at full load, beside the library's own bulk rate and llama.cpp's server.

python tests/bench/serve.py FOLDER [--backend numba --precision int8 --threads 2] [--seconds 600] [--clients 32]
python tests/bench/serve.py FOLDER --kill 5 --seconds 120
LLAMA_SERVER=PROGRAM python tests/bench/serve.py FOLDER --against llama.cpp=FILE.gguf

Clients in a second process ask without pause for refembed bench's texts, 1 to 8 in a request, in another mixture at
every pass; each vector is compared with the library's. The library embeds the same texts, on as many threads, before
and after each server's turn; with --turns that is done over and over, the servers staying up, and ratios are medians of
the turns', for machines that are not quiet. Ends with status 1 where a bar is missed. For Linux: it reads /proc.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from clients import one_pass

import refembed
from refembed.bench.workload import make_workload

READY_S = 300  # for a server to start, where the machine compiles or reads it for the first time
BULK_S = 10  # the least time of a reading of the library's rate
PARTS = 4  # of the texts, each of all lengths and some thousand tokens: a reading ends soon on a busy machine, too
WARM = 0.1  # of a turn's time, before what is counted for rates, latencies and memory
PATIENCE_S = 180  # for which clients ask again, where the server is killed
BOUND, BOUND_OTHERS = 1e-6, 0.05  # largest difference from the library's vector, refembed's server and others'
# the bars: of the library's rate; p95 over p50; memory in the last quarter over that in the first
RATE, SLOWER, GROWTH = 0.85, 3.0, 1.05
COUNTS = ("wrong", "lost", "swapped", "miscounted")
LLAMA = ["--embedding", "--pooling", "mean", "-b", "2048", "-ub", "2048"]


@dataclass
class Served:
    """A server to be measured.

    command  without the port
    bound    the largest difference from the library's vectors
    kills    in a turn; killed: so far
    turns    what clients found, and the library's rate and processor time before and after
    samples  time, resident MiB, processor seconds
    """

    name: str
    command: list[str]
    bound: float
    kills: int = 0
    killed: int = 0
    process: subprocess.Popen[bytes] | None = None
    turns: list[dict[str, Any]] = field(default_factory=list)
    samples: list[tuple[float, float, float]] = field(default_factory=list)

    def start(self, port: int) -> None:
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self.process = subprocess.Popen([*self.command, "--port", str(port)], stdout=self.said, stderr=self.said)
        self.port, self.url = port, f"http://127.0.0.1:{port}"

    def ready(self, text: str) -> str:
        """Its name for the model, once it has embedded a text."""
        ends = time.time() + READY_S
        while time.time() < ends and self.process and self.process.poll() is None:
            with suppress(OSError):
                model = asked(f"{self.url}/v1/models")["data"][0]["id"]
                asked(f"{self.url}/v1/embeddings", {"model": model, "input": text})
                return model
            time.sleep(0.1)
        self.said.seek(0)
        last = self.said.read().decode(errors="replace").strip()[-500:]
        sys.exit(f"{self.name} does not answer: {' '.join(self.command)}\n{last}")

    def sample(self) -> None:
        """Its memory and processor time now."""
        with suppress(OSError, IndexError):  # killed, and not yet there again
            about = Path(f"/proc/{self.process.pid}")
            resident = int((about / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
            times = (about / "stat").read_text().rpartition(")")[2].split()[11:13]
            self.samples.append((time.time(), resident, sum(map(int, times)) / os.sysconf("SC_CLK_TCK")))

    def listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return True
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def asked(url: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
        return json.load(answer)


class Library:
    """The library's vectors and its rate on the same texts."""

    def __init__(self, model: refembed.Embedder) -> None:
        count = lambda text: len(model.tokenizer([text])[0])  # noqa: E731
        work = make_workload(None, model.checkpoint.prompts, model.config.context, count)
        kinds = ("queries", "documents", "long")
        self.model = model
        self.texts = [text for kind in kinds for text in work[kind]]
        self.tokens = [size for kind in kinds for size in work["tokens"][kind]]
        middle = np.argsort(work["tokens"]["documents"])[len(work["documents"]) // 2]
        self.alone = {"a query": 0, "a document": len(work["queries"]) + int(middle)}
        self.vectors = model.encode(self.texts, task=None)
        every = sorted(one_pass(len(self.texts), list(self.alone.values())), key=lambda text: self.tokens[text])
        self.parts = cycle([every[first::PARTS] for first in range(PARTS)])

    def rate(self) -> tuple[float, float]:
        """Tokens a second of the texts of a pass, a part of them in one call; and processor seconds a token."""
        tokens, started, spent = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() < started + BULK_S:
            part = next(self.parts)
            self.model.encode([self.texts[text] for text in part], task=None)
            tokens += sum(self.tokens[text] for text in part)
        return tokens / (time.perf_counter() - started), (time.process_time() - spent) / tokens


@contextmanager
def watched(served: Served, seconds: float) -> Iterator[None]:
    """Look at the server twice a second; kill it and start it again `kills` times, evenly spread."""
    over = threading.Event()
    moments = [time.time() + seconds * (number + 1) / (served.kills + 1) for number in range(served.kills)]

    def watch() -> None:
        while not over.wait(0.5):
            served.sample()
            if moments and time.time() > moments[0] and served.listens():
                moments.pop(0)
                over.wait(0.5)  # clients have come
                served.kill()
                served.killed += 1
                served.start(served.port)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def turn(served: Served, spec: dict[str, Any], vectors: np.ndarray) -> dict[str, Any]:
    """What clients found of a server that is up, in the time that spec gives."""
    model = served.ready(max(spec["texts"], key=len))
    spec |= {"url": served.url, "model": model, "bound": served.bound, "patience": PATIENCE_S if served.kills else 0}
    with watched(served, spec["seconds"]):
        return ask(spec, vectors)


@contextmanager
def running(measured: Sequence[Served]) -> Iterator[None]:
    try:
        for served in measured:
            served.start(free_port())
        yield
    finally:
        for served in measured:
            if served.process:
                served.kill()


def ask(spec: dict[str, Any], vectors: np.ndarray) -> dict[str, Any]:
    """What the clients, in a process of their own, found of a server that runs."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "spec.json").write_text(json.dumps(spec))
        np.save(Path(folder, "vectors.npy"), vectors)
        command = [sys.executable, Path(__file__).with_name("clients.py"), folder]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def summary(served: Served, seconds: float, alone: dict[str, int]) -> dict[str, Any]:
    """The numbers of the table, over all turns; ratios to the library are the turns' median."""
    rates, costs, done, memory = [], [], [], []
    counts: Counter[str] = Counter()
    for found in served.turns:
        begins, ends = found["started"] + WARM * seconds, found["started"] + seconds
        counted = [one for one in found["done"] if begins <= one[0] < ends]
        samples = [one for one in served.samples if begins <= one[0] < ends]
        tokens = sum(one[3] for one in counted)
        rate, spent = np.mean(found["library"], axis=0)
        rates.append((tokens / (ends - begins), tokens / (ends - begins) / rate))
        if not served.kills:  # else samples are of several processes
            spent_here = samples[-1][2] - samples[0][2]
            costs.append(spent_here / max(tokens, 1) / spent)
            cores = spent_here / (samples[-1][0] - samples[0][0])
            beside = ", ".join(f"{speed:.0f} on {speed * cost:.2f}" for speed, cost in found["library"])
            print(
                f"{served.name}: {rates[-1][0]:.0f} tokens/s on {cores:.2f} cores; the library before, after: {beside}"
            )
        done += counted
        memory += [one[1] for one in samples]
        counts.update(found["counts"])
    row: dict[str, Any] = {"killed": served.killed, "requests": sum(len(found["done"]) for found in served.turns)}
    row |= {"texts": sum(one[2] for found in served.turns for one in found["done"])}
    row |= {name: counts[name] for name in (*COUNTS, "again", "exact")}
    row["largest difference"] = max(found["worst"] for found in served.turns)
    for name, text in alone.items():
        took = [one[1] for one in done if one[4] == text] or [np.nan]
        row[f"{name}, p50 s"], row[f"{name}, p95 s"] = np.quantile(took, 0.5), np.quantile(took, 0.95)
        row[f"{name}, p95/p50"] = row[f"{name}, p95 s"] / row[f"{name}, p50 s"]
    shares = [share for _, share in rates]
    row |= {"tokens/s": np.mean([rate for rate, _ in rates]), "of the library's rate": np.median(shares)}
    row |= {"least of the turns": min(shares), "most of the turns": max(shares)}
    row["processor time, of the library's"] = np.median(costs or [np.nan])
    quarter = -(-len(memory) // 4)
    row |= {"MiB, first quarter": np.mean(memory[:quarter]), "MiB, last quarter": np.mean(memory[-quarter:])}
    return row | {"clients' processor s": sum(found["processor"] for found in served.turns)}


def missed(row: dict[str, Any], alone: Sequence[str], kills: int) -> list[str]:
    """The bars that refembed's server does not reach."""
    bars = [(f"{row[name]} {name}", row[name] == 0) for name in COUNTS]
    bars.append((f"{row['requests']} requests answered", row["requests"] > 0))
    if kills:  # what they broke off was asked again, or they did not come under load
        bars.append((f"killed {row['killed']} times, {kills} needed", row["killed"] == kills))
        bars.append((f"{row['again']} requests asked again, {kills} or more needed", row["again"] >= kills))
    else:
        share, grown = row["of the library's rate"], row["MiB, last quarter"] / row["MiB, first quarter"]
        ratios = [(name, row[f"{name}, p95/p50"]) for name in alone]
        bars.append((f"{share:.1%} of the library's rate, {RATE:.0%} needed", share >= RATE))
        bars.append((f"memory grew to {grown:.3f} of the first quarter's, {GROWTH} allowed", grown <= GROWTH))
        bars += [(f"{name}: p95 is {r:.2f} times p50, under {SLOWER} needed", r < SLOWER) for name, r in ratios]
    return [text for text, held in bars if not held]


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One column a server, and each other's ratio to the first."""
    first = next(iter(rows.values()))
    lines = [["", *rows, *(f"{name} / first" for name in list(rows)[1:])]]
    for key in first:
        values = [row[key] for row in rows.values()]
        ratios = [value / values[0] if values[0] else np.nan for value in values[1:]]
        lines.append([key, *(shown(value) for value in values), *(shown(ratio) for ratio in ratios)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)


def shown(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def servers(options: argparse.Namespace) -> list[Served]:
    command = [sys.executable, "-m", "refembed", "serve", "--model", options.model, "--host", "127.0.0.1"]
    for name in ("backend", "precision", "threads"):
        command += [f"--{name}", str(getattr(options, name))] if getattr(options, name) else []
    found = [Served("refembed", command, BOUND, options.kill)]
    for against in options.against:
        name, _, file = against.partition("=")
        program = shutil.which(os.environ.get("LLAMA_SERVER") or "llama-server")
        if name != "llama.cpp" or not program:
            sys.exit(f"--against {against}: llama.cpp=FILE.gguf, and $LLAMA_SERVER or PATH to lead to its llama-server")
        threads = ["-t", str(options.threads), "-tb", str(options.threads)] if options.threads else []
        found.append(Served(name, [program, "-m", file, *LLAMA, *threads, *options.llama.split()], BOUND_OTHERS))
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the checkpoint's folder")
    parser.add_argument("--backend")
    parser.add_argument("--precision")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--turns", type=int, default=1, help="the seconds are cut into so many")
    parser.add_argument("--kill", type=int, default=0, metavar="N", help="times a turn that refembed's is killed")
    parser.add_argument("--against", action="append", default=[], metavar="llama.cpp=FILE.gguf")
    parser.add_argument("--llama", default="-np 4 -c 8192", help="further options of llama.cpp's server")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    settings = {name: getattr(options, name) for name in ("backend", "precision", "threads")}
    library = Library(refembed.load(options.model, **settings))
    about = library.model.info
    options.threads = options.threads or about.threads
    print(
        f"{options.model}, {about.backend} {about.precision}, {about.threads} threads; {options.clients} clients, "
        f"{options.seconds:.0f} s; {len(library.texts)} texts of {min(library.tokens)} to {max(library.tokens)} tokens"
    )
    spec = {"texts": library.texts, "tokens": library.tokens, "alone": list(library.alone.values())}
    spec |= {"clients": options.clients, "seconds": options.seconds / options.turns}
    measured = servers(options)
    with running(measured):
        rate = library.rate()
        for _ in range(options.turns):
            for served in measured:
                served.turns.append(turn(served, spec, library.vectors))
                before, rate = rate, library.rate()
                served.turns[-1]["library"] = [before, rate]
    rows = {served.name: summary(served, spec["seconds"], library.alone) for served in measured}
    print(table(rows))
    for served in measured:
        for found in served.turns:
            for said, times in found["said"]:
                print(f"{served.name}: {times} times: {said}")
    wanting = missed(rows["refembed"], list(library.alone), options.kill * options.turns)
    for bar in wanting:
        print(f"MISSED: {bar}")
    return 1 if wanting else 0


if __name__ == "__main__":
    sys.exit(main())
