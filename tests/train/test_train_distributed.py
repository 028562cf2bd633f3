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
from refembed_torch.train import loop
from refembed_torch.train.command import run_stage
from refembed_torch.train.config import load
from safetensors.torch import load_file
from support import SMALL, write_checkpoint
from train_support import as_toml, write_rows

NARROW = replace(SMALL, dimensions=24)  # a teacher whose vectors the student's have to be mapped to
pytestmark = pytest.mark.long
WORKER = Path(__file__).with_name("distributed_worker.py")


def launch(processes: int, deeds: list[str]) -> None:
    """The worker under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    # by number, since --standalone asks for the machine's own name, which need not lead anywhere
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*command, WORKER, *deeds], env=environment, capture_output=True, text=True, timeout=120)
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
    run = {"out": folder / "fsdp-run", "steps": 2, "save_every": 1, "measure_every": 1, "parallel": "fsdp"}
    tables["chunk"] = 100
    (again := folder / "again.toml").write_text(as_toml({"stage": "finetune"} | tables | {"run": run}))
    tables["data"]["set"] += [{"file": write_rows(folder / "others.jsonl", 40, seed=1)}]
    mixtures = [folder / f"mixtures-{name}.toml" for name in ("alone", "ddp")]
    for trials, file in enumerate(mixtures):
        run = {"out": folder / file.stem, "steps": 1}
        search = {"trials": trials, "grid": 0, "dirichlet": 1, "score": "loss", "experts": 2}
        file.write_text(as_toml({"stage": "mixtures"} | tables | {"run": run, "search": search}))
    work(files.pop("alone"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.plot, "curves", lambda *_: None)  # take longer than the training
        run_stage(load(mixtures[0]), mixtures[0])
    deeds = [*(f"work={file}" for file in files.values()), f"stage={mixtures[1]}"]
    launch(2, [*deeds, f"stage={again}", f"undo={again}", f"stage={again}"])
    return {name: folder / name for name in ("alone", *files, "fsdp-run", "mixtures-alone", "mixtures-ddp")}


@pytest.mark.parametrize("way", ["ddp", "ddp-whole", "fsdp"])
def test_two_processes_compute_what_one_does(runs: dict[str, Path], way: str) -> None:
    """Wrong if negatives are not shared across processes, a gradient is divided by their number once too often or
    too seldom, or a text that two of them compute counts twice.
    """
    alone, together = (json.loads((runs[name] / "numbers.json").read_text()) for name in ("alone", way))
    assert together["gradient_length"] == pytest.approx(alone["gradient_length"], rel=1e-5)
    assert together["step"].pop("set") == alone["step"].pop("set")
    assert together["step"] == pytest.approx(alone["step"], rel=1e-5)
    assert together["held_out"] == pytest.approx(alone["held_out"], rel=1e-5)
    expected, found = (load_file(runs[name] / "gradients.safetensors") for name in ("alone", way))
    assert found.keys() == expected.keys()
    assert "mapping.weight" in found
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        assert largest > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-5 * largest, msg=name)


def test_a_run_in_parts_goes_on(runs: dict[str, Path]) -> None:
    """If this failed, a model that is held in parts would go on without what the optimizer knows of it: its held-out
    figures are measured just before a state is kept, which leaves the module's parameters whole.
    """
    out = runs["fsdp-run"]
    for file in ("model.safetensors", "2_Dense/model.safetensors"):
        expected, found = (load_file(out / name / file) for name in ("unbroken", "model"))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    kept = load_file(out / "state" / "00000002" / "tensors.safetensors")
    parameters = [name.removeprefix("parameter ") for name in kept if name.startswith("parameter ")]
    assert len(kept) == 4 * len(parameters)
    assert all(kept[f"exp_avg {name}"].abs().max() > 0 and kept[f"step {name}"] == 2 for name in parameters)


def test_a_search_of_two_processes(runs: dict[str, Path]) -> None:
    """Wrong if processes train different mixtures, which would wait for each other for ever, or score them apart."""
    alone, together = (
        [json.loads(line) for line in (runs[name] / "trials.jsonl").read_text().splitlines()[1:]]
        for name in ("mixtures-alone", "mixtures-ddp")
    )
    assert [trial["kind"] for trial in together] == ["start", "dirichlet", "search"]
    assert [trial["shares"] for trial in together[:2]] == [trial["shares"] for trial in alone]
    assert [trial["score"] for trial in together[:2]] == pytest.approx([trial["score"] for trial in alone], rel=1e-5)
    assert len(json.loads((runs["mixtures-ddp"] / "mixtures.json").read_text())) == 2


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_the_product_is_whole(runs: dict[str, Path], way: str) -> None:
    """Wrong if a model that is held in parts is written in parts, or by every process at once."""
    for file in ("model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors"):
        expected, found = (load_file(runs[name] / "model" / file) for name in ("alone", way))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
