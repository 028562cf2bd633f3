"""The benchmark beside sentence-transformers runs, so that a machine with CUDA can run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

from torch_support import TWIN

SCRIPT = Path(__file__).parents[2] / "bench" / "torch_backend.py"


def test_the_bench_runs() -> None:
    """Wrong if the command of the published figures fails, or its two subjects do not compute the same."""
    done = subprocess.run(
        [sys.executable, SCRIPT, TWIN, "--rounds", "1", "--documents", "9", "--examples", "3", "--device", "cpu"],
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for subject in ("refembed texts", "refembed ids", "sentence-transformers, 8 at once", "sentence-transformers"):
        (row,) = re.findall(rf"^  {re.escape(subject)} +(\S+) +(\S+) +(\S+)%", done.stdout, re.M)
        assert all(float(number) > 0 for number in row)
    ours, theirs = map(float, re.findall(r"loss (\S+)", done.stdout))
    assert abs(ours - theirs) < 1e-4 * ours
