"""How fast and how large the built-in model is: python tests/bench/default_speed.py TEXTS [BACKEND]

TEXTS has a text in each line; a thousand are taken. It needs nothing but refembed: a plain install can be measured.
"""

import resource
import sys
import time
from pathlib import Path


def peak() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most"


def main(texts: Path, backend: str | None = None) -> None:
    started = time.perf_counter()
    import refembed

    model = refembed.load(backend=backend)
    model.encode_query("Mars is often called the Red Planet.")
    print(f"{model.info.backend}, {model.info.precision}: first vector after {time.perf_counter() - started:.2f} s")
    lines = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()][:1000]
    times = []
    for line in lines[:201]:
        started = time.perf_counter()
        model.encode_query(line)
        times.append(time.perf_counter() - started)
    print(f"a query: {sorted(times)[len(times) // 2] * 1000:.2f} ms, the median")
    started = time.perf_counter()
    model.encode(lines)
    words = sum(len(line.split()) for line in lines) / len(lines)
    print(f"{len(lines)} texts of {words:.1f} words: {time.perf_counter() - started:.2f} s, {peak()}")
    model.encode("word " * (model.config.context - 8))
    print(f"and one of nearly {model.config.context} tokens: {peak()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
