"""Several processes: what they compute together is what one computes alone."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_worker import work
from safetensors.torch import load_file
from support import SMALL, write_checkpoint
from train_support import as_toml, write_rows

NARROW = replace(SMALL, dimensions=24)  # a teacher whose vectors the student's have to be mapped to
WORKER = Path(__file__).with_name("distributed_worker.py")


def launch(processes: int, files: list[Path]) -> None:
    """The worker under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    # by number, since --standalone asks for the machine's own name, which need not lead anywhere
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*command, WORKER, *files], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the results of one process, and of two in each way."""
    folder = tmp_path_factory.mktemp("distributed")
    tables: dict[str, Any] = {
        "model": {"folder": write_checkpoint(folder / "start")},
        "teacher": {"kind": "refembed", "folder": write_checkpoint(folder / "teacher", NARROW), "backend": "numpy"},
        "data": {
            "set": [{"file": write_rows(folder / "rows.jsonl", 40)}],
            # 15 texts, which two processes cannot share evenly, and other numbers of held-out ones
            "batch": 5, "hard": 1, "held_out": 7, "context": 64,
        },
        "optimizer": {"learning_rate": 1e-3},
        "loss": {"lengths": [40, 16], "temperature": 0.2},
    }  # fmt: skip
    files = {}
    for name, chunk, way in (("alone", 0, "ddp"), ("ddp", 100, "ddp"), ("ddp-whole", 0, "ddp"), ("fsdp", 100, "fsdp")):
        out = folder / name
        out.mkdir()
        files[name] = folder / f"{name}.toml"
        files[name].write_text(as_toml(tables | {"run": {"out": out, "steps": 1, "parallel": way}, "chunk": chunk}))
    work(files.pop("alone"))
    launch(2, list(files.values()))
    return {name: folder / name for name in ("alone", *files)}


@pytest.mark.parametrize("way", ["ddp", "ddp-whole", "fsdp"])
def test_two_processes_compute_what_one_does(runs: dict[str, Path], way: str) -> None:
    """Wrong if negatives are not shared across processes, a gradient is divided by their number once too often or
    too seldom, or a text that two of them compute counts twice.
    """
    alone, together = (json.loads((runs[name] / "numbers.json").read_text()) for name in ("alone", way))
    assert together["gradient_length"] == pytest.approx(alone["gradient_length"], rel=1e-5)
    assert together["step"] == pytest.approx(alone["step"], rel=1e-5)
    assert together["held_out"] == pytest.approx(alone["held_out"], rel=1e-5)
    expected, found = (load_file(runs[name] / "gradients.safetensors") for name in ("alone", way))
    assert found.keys() == expected.keys()
    assert "mapping.weight" in found
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        assert largest > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-5 * largest, msg=name)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_the_product_is_whole(runs: dict[str, Path], way: str) -> None:
    """Wrong if a model that is held in parts is written in parts, or by every process at once."""
    for file in ("model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors"):
        expected, found = (load_file(runs[name] / "model" / file) for name in ("alone", way))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
