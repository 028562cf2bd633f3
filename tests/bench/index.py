"""What a search in an index costs and finds: python tests/bench/index.py [--rows 10000 100000] [--graph]

Vectors of 256 numbers, a thousand clusters of them (a vector is its centre and noise of the same length), are put into
an index in each form and searched by a process of its own, one query at a time, after one that warms it. Recall is of
the ten nearest by NumPy in float32; memory is the process's peak, mapped pages counted. --graph makes a graph of
usearch as well, which takes minutes; what making took is in seconds of one core.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from refembed import open_index
from refembed.index import index as index_module

SIZE, QUERIES, K, CLUSTERS = 256, 30, 10, 1000
KEPT_AT_ONCE = 50_000


class Given:
    """A model whose n-th text has the n-th of given vectors."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors, self.name = vectors, "given"
        self.config = type("Config", (), {"dimensions": vectors.shape[1]})
        self.checkpoint = type("Checkpoint", (), {"stamp": "", "digest": "", "folder": None})
        self.backend = self.encoder = type("Backend", (), {"name": "given", "precision": "float32"})

    def prepare(self, texts: list[str], **_: Any) -> list[np.ndarray]:
        return [np.array([int(text)]) for text in texts]

    def encode_tokens(self, batch: list[np.ndarray], *_: Any) -> np.ndarray:
        return self.vectors[[int(ids[0]) for ids in batch]]


def clustered(count: int) -> np.ndarray:
    """Unit vectors (count, SIZE) float32."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((CLUSTERS, SIZE), np.float32)
    table = np.empty((count, SIZE), np.float32)
    for start in range(0, count, KEPT_AT_ONCE):
        some = table[start : start + KEPT_AT_ONCE]
        some[:] = centres[random.integers(CLUSTERS, size=len(some))]
        some += random.standard_normal(some.shape, np.float32)
        some /= np.linalg.norm(some, axis=1, keepdims=True)
    return table


def search(folder: str, queries: str) -> None:
    """In a process of its own: what it finds, and what that takes."""
    start = time.perf_counter()
    index = open_index(folder)
    opened, found, took, used = time.perf_counter() - start, [], [], []
    for query in np.load(queries):
        start, before = time.perf_counter(), time.process_time()
        hits = index.search(query, K)
        took.append(1000 * (time.perf_counter() - start))
        used.append(1000 * (time.process_time() - before))
        found.append([int(hit.id) for hit in hits])
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count what the parent had when it started this
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(
        json.dumps(
            {
                "opened": opened,
                "first": took[0],
                "median": float(np.median(took[1:])),
                "least": min(took),
                "used": float(np.median(used[1:])),
                "peak": peak,
                "found": found,
            }
        )
    )


def measure(name: str, folder: Path, queries: Path, true: list[set[int]], made: float) -> None:
    child = [sys.executable, __file__, "--search", str(folder), str(queries)]
    found = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    recall = np.mean([len(a & set(b)) / K for a, b in zip(true, found["found"], strict=True)])
    size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    times = f"{found['median']:6.1f} | {found['used']:6.1f} | {found['first']:6.0f} | {1000 * found['opened']:4.0f}"
    print(
        f"| {len(open_index(folder)):>7,} | {name:<14} | {times} | {recall:.3f} | {found['peak']:5.0f} | {size:5.0f} | "
        f"{made:5.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 500_000])
    parser.add_argument("--graph", action="store_true", help="make a graph as well, of the float32 index")
    parser.add_argument("--search", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.search:
        search(*given.search)
        return
    print("| rows | form | query ms | CPU ms | first | open ms | recall@10 | peak MiB | disk MiB | made, CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for count in given.rows:
        table = clustered(count + QUERIES)
        true = [set(np.argsort(-(table[:count] @ query))[:K].tolist()) for query in table[count:]]
        with tempfile.TemporaryDirectory() as place:
            np.save(queries := Path(place) / "queries.npy", table[count:])
            for form in ("float32", "int8", "binary"):
                index_module.EXACT_ROWS, start = count, time.process_time()
                index: Any = open_index(Path(place) / form, Given(table), None if form == "float32" else form)  # type: ignore[arg-type]
                for first in range(0, count, KEPT_AT_ONCE):
                    ids = [str(one) for one in range(first, min(first + KEPT_AT_ONCE, count))]
                    index.add(ids, ids)
                measure(form, Path(place) / form, queries, true, time.process_time() - start)
                if given.graph and form == "float32":
                    index_module.EXACT_ROWS, start = 0, time.process_time()
                    index.compact()
                    measure("float32, graph", Path(place) / form, queries, true, time.process_time() - start)


if __name__ == "__main__":
    main()
