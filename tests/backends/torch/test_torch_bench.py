"""The benchmarks beside sentence-transformers run, so that a machine with CUDA can run them."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from torch_support import TWIN

from refembed.cli import main

SCRIPT = Path(__file__).parents[2] / "bench" / "torch_backend.py"


@pytest.mark.filterwarnings("ignore:.*were longer than")
def test_the_bench_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if the command of the published figures fails, or its two subjects do not compute the same."""
    words = [TWIN, "--rounds", "1", "--documents", "9", "--examples", "3", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
    run = runpy.run_path(str(SCRIPT))["main"]
    monkeypatch.setitem(run.__globals__, "SIDE", 256)  # of the product that finds the peak
    run()
    said = capsys.readouterr().out
    for subject in ("refembed texts", "refembed ids", "sentence-transformers, 8 at once", "sentence-transformers"):
        (row,) = re.findall(rf"^  {re.escape(subject)} +(\S+) +(\S+) +(\S+)%", said, re.M)
        assert all(float(number) > 0 for number in row)
    ours, theirs = map(float, re.findall(r"loss (\S+)", said))
    assert abs(ours - theirs) < 1e-4 * ours


@pytest.mark.long
def test_training_beside_its_peer(tmp_path: Path) -> None:
    """Wrong if `refembed bench --train` times two models that do not compute the same, or one of them not at all."""
    work = {
        "queries": ["red", "a big planet"],
        "docs": ["Mars is red.", "Jupiter is the largest planet."],
        "long": ["a"],
    }
    (tmp_path / "work.json").write_text(json.dumps(work))
    words = ["--model", TWIN, "--backend", "torch", "--threads", 1, "--rounds", 1, "--workload", tmp_path / "work.json"]
    words += ["--train", 3, "--against", "sentence-transformers", "--json", tmp_path / "out.json"]
    assert main(["bench", *map(str, words)]) == 0
    ours, theirs = (row["training"] for row in json.loads((tmp_path / "out.json").read_text())["subjects"])
    assert abs(ours["loss"] - theirs["loss"]) < 1e-4 * ours["loss"]
    assert ours["tokens_per_s"] > 0 < theirs["tokens_per_s"]
