"""`refembed embed` over many rows, killed on its way: python tests/bench/bulk.py [--rows 200000] [--kills 5]

Writes that many distinct lines of JSON, embeds them with the built-in model in one go, and again killed by SIGKILL at
times of no plan. Prints rows, rate, bytes, whether both outputs are the same, and the most memory a process had
(ru_maxrss) for a tenth of the rows and for all.
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SENTENCES = Path(__file__).parents[2] / "refembed" / "bench" / "texts.txt"
JOB = [sys.executable, "-m", "refembed", "embed", "--title-field", "title", "--id-field", "id"]


def write_rows(file: Path, count: int, seed: int = 0) -> None:
    """Rows of 3 to 11 words; one in a thousand is at fault."""
    chance, words = random.Random(seed), SENTENCES.read_text().split()
    with file.open("w") as handle:
        for number in range(count):
            start, length = chance.randrange(len(words) - 12), chance.randrange(3, 12)
            row = {"id": number, "title": words[start], "text": " ".join(words[start : start + length])}
            handle.write((json.dumps(row) if number % 1000 != 500 else "no row") + "\n")


def measured(argv: list[str]) -> tuple[float, int]:
    """Seconds and peak MiB of a command that ends by itself."""
    started = time.monotonic()
    process = subprocess.Popen([*JOB, *argv], stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1, "1: some rows were at fault"
    return time.monotonic() - started, used.ru_maxrss // 1024


def killed(argv: list[str], kills: int, seconds: float) -> Iterator[list[str]]:
    """Kill it so often, each time after a random part of this time, and let it end; where each run went on."""
    chance = random.Random(1)
    for left in reversed(range(kills + 1)):
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen([*JOB, *argv], stderr=said)
            if left:
                time.sleep(seconds / (kills + 1) * chance.uniform(0.6, 1.2))
                process.send_signal(signal.SIGKILL)
            assert process.wait() == (-signal.SIGKILL if left else 1), "it was too quick to be killed"
            said.seek(0)
            yield re.findall(r"going on after ([\d,]+) rows", said.read().decode())


def digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--format", default="npy")
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--folder", type=Path, help="where to write (a temporary one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        os.chdir(folder)
        write_rows(Path("in.jsonl"), given.rows)
        with open("in.jsonl") as whole, open("tenth.jsonl", "w") as tenth:
            tenth.writelines(line for _, line in zip(range(given.rows // 10), whole, strict=False))
        usual = ["--backend", given.backend]
        _, small = measured(["-i", "tenth.jsonl", "-o", f"tenth.{given.format}", *usual])
        seconds, large = measured(["-i", "in.jsonl", "-o", f"whole.{given.format}", "--faults", "whole.faults", *usual])
        print(f"{given.rows} rows in {seconds:.0f} s, {given.rows / seconds:.0f}/s", flush=True)
        print(f"peak MiB: {small} for {given.rows // 10} rows, {large} for {given.rows}", flush=True)
        argv = ["-i", "in.jsonl", "-o", f"killed.{given.format}", "--faults", "killed.faults", *usual]
        for went_on in killed(argv, given.kills, seconds):
            print("killed run went on after", *went_on or ["nothing"], flush=True)
        same = [digest(Path(f"whole.{end}")) == digest(Path(f"killed.{end}")) for end in (given.format, "faults")]
        size, listed = Path(f"whole.{given.format}").stat().st_size, len(Path("whole.faults").read_text().splitlines())
        print(f"{given.kills} kills; the same bytes: output {same[0]} ({size}), faults {same[1]} ({listed} rows)")
        assert all(same)


if __name__ == "__main__":
    main()
