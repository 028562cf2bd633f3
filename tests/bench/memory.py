"""What a process of the Numba backend holds after each step, in MiB: python tests/bench/memory.py MODEL (on Linux)

Run it twice: the first time compiles, which takes more than anything after it.
"""

import resource
import sys
from pathlib import Path


def say(step: str) -> None:
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS"))
    resident, peak = int(line.split()[1]) / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{step:14}{resident:6.0f} resident{peak:6.0f} at most")


def main() -> None:
    say("Python")
    import numpy  # noqa: F401

    say("NumPy")
    import refembed

    say("refembed")
    import numba  # noqa: F401

    say("Numba")
    model = refembed.load(sys.argv[1], backend="numba")
    say("loaded")
    model.encode(["a short text"], task=None)
    say("a query")
    model.encode(["word " * 1990], task=None)
    say("2,000 tokens")
    model.encode(["word " * 110] * 128, task=None)
    say("128 documents")


if __name__ == "__main__":
    main()
