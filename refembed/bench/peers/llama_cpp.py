"""llama.cpp through its own llama-bench, found on PATH or named by $LLAMA_BENCH. --against llama.cpp=FILE.gguf

It times prompts of so many tokens, without texts, so nothing is tokenised and there are no vectors to compare.
"""

import json
import os
import re
import shutil
import subprocess
from statistics import median
from typing import Any

from ..child import peak_memory

BATCHES = (128, 512)  # tokens a call: of these the better for documents
REPETITIONS = 3


class LlamaBench:
    def __init__(self, program: str, file: str, threads: int) -> None:
        self.program, self.file, self.threads = program, file, threads
        self.version = None

    def start(self, text: str) -> dict[str, Any]:
        self.seconds([8])
        return {"started": False}

    def round(self, tokens: dict[str, list[int]], **_: Any) -> dict[str, Any]:
        query, (long,) = round(sum(tokens["queries"]) / len(tokens["queries"])), tokens["long"][:1]
        found = self.seconds([query, *BATCHES, long])
        total = sum(tokens["documents"])
        documents = {f"pp{size}": total / size * median(found[size]) for size in BATCHES}
        return {
            "query": found[query],
            "documents": documents,
            "long": found[long],
            "vectors": None,
            "memory": peak_memory(of_children=True),
            "version": self.version,
        }

    def seconds(self, sizes: list[int]) -> dict[int, list[float]]:
        """Seconds of every repetition by number of tokens; a batch must hold the longest, attention being full."""
        longest = str(max(sizes))
        command = [self.program, "-m", self.file, "-p", ",".join(map(str, sizes)), "-n", "0", "-t", str(self.threads)]
        command += ["-b", longest, "-ub", longest, "-r", str(REPETITIONS), "--embeddings", "1", "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603  the user's own program
        table = re.search(r"\[.*\]", done.stdout, re.DOTALL)
        if done.returncode or not table:
            raise RuntimeError(f"{self.program} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        rows = json.loads(table[0])
        self.version = rows[0].get("build_commit")
        return {row["n_prompt"]: [1e-9 * spent for spent in row["samples_ns"]] for row in rows}


def load(spec: dict[str, Any]) -> LlamaBench:
    program = shutil.which(os.environ.get("LLAMA_BENCH") or "llama-bench")
    if not program:
        raise FileNotFoundError("llama-bench is not on PATH; name the program in LLAMA_BENCH")
    return LlamaBench(program, spec["path"], spec["threads"])
