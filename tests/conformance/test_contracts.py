"""Which contract `refembed verify --backend` holds a checkpoint to, and what the backend computes in for it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

import refembed.backend
from refembed.cli import main
from refembed.conformance.suite import golden_folder
from refembed.layout import BFLOAT16, write_tensors
from refembed.numpy_backend import NumpyBackend, NumpyEncoder
from refembed.quantization.folder import quantize_folder

TWIN = golden_folder("twin") / "checkpoint"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def bfloat16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twin with every number rounded to the nearest bfloat16."""
    folder = tmp_path_factory.mktemp("bfloat16") / "twin"
    shutil.copytree(TWIN, folder)
    for file in folder.rglob("*.safetensors"):
        bits = {name: tensor.view(np.uint32) for name, tensor in load_file(file).items()}
        even = {name: (one + 0x7FFF + (one >> 16 & 1)) >> 16 for name, one in bits.items()}
        write_tensors(file, {name: one.astype(BFLOAT16) for name, one in even.items()})
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twin in the one quantised form that its rows, of 48 and 72 numbers, can have."""
    folder = tmp_path_factory.mktemp("mixed") / "twin"
    quantize_folder(TWIN, folder, "mixed-channel")
    return folder


def held_to(*options: object) -> tuple[int, str, str]:
    """The command's status, whose bounds applied, and the port's name, which says what it computed in."""
    status = main(["verify", *map(str, options), "--json", "report.json"])
    report = json.loads(Path("report.json").read_bytes())
    return status, report["precision"], report["port"].rpartition("=")[2].rstrip(">")


@pytest.mark.parametrize("backend", ["numpy", "numba", "torch"])
def test_a_bfloat16_copy_conforms(backend: str, bfloat16: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if right vectors of rounded weights are accused of a mistake, or bounds are widened without a word."""
    assert held_to("--backend", backend, "--checkpoint", bfloat16) == (0, "bfloat16", "float32")
    note = "weights are bfloat16: bfloat16's bounds apply"
    assert note in capsys.readouterr().err
    status, bounds, computed = held_to("--backend", backend, "--checkpoint", bfloat16, "--precision", "float32")
    assert (status, bounds, computed) == (1, "float32", "float32")
    assert note not in capsys.readouterr().err


@pytest.mark.parametrize(("backend", "computed"), [("numpy", "float32"), ("numba", "int8"), ("torch", "float32")])
def test_a_quantised_twin_conforms(
    backend: str, computed: str, mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong if a quantised checkpoint is held to bounds of floats, or is not run as its backend usually does."""
    assert held_to("--backend", backend, "--checkpoint", mixed) == (0, "int4", computed)
    assert "weights are mixed-channel: int4's bounds apply" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backend", "precision", "bounds", "computed"),
    [
        ("numpy", "float64", "float32", "float64"),
        ("numpy", "float32", "float32", "float32"),
        ("numpy", "float32-gelu16", "float32-gelu16", "float32"),
        ("numpy", "bfloat16", "bfloat16", "float32"),
        ("numpy", "int8", "int8", "float32"),
        ("numpy", "int4", "int4", "float32"),
        ("numba", "bfloat16", "bfloat16", "float32"),
        ("numba", "int8", "int8", "int8"),
        ("numba", "int4", "int4", "float32"),
        ("torch", "bfloat16", "bfloat16", "bfloat16"),
        ("torch", "int8", "int8", "float32"),
        ("torch", "int4", "int4", "float32"),
    ],
)
def test_a_named_contract_is_asked_of_every_backend(backend: str, precision: str, bounds: str, computed: str) -> None:
    """Wrong if a contract ends in "precision-unknown", or a backend that has this precision computes in another."""
    options = ("--backend", backend, "--precision", precision, "--levels", "vectors")
    assert held_to(*options) == (0, bounds, computed)


@pytest.mark.parametrize(
    ("precision", "status", "bounds", "computed"),
    [("int4", 0, "int4", "int8"), ("int8", 1, "int8", "int8"), ("float32", 1, "float32", "float32")],
)
def test_a_named_contract_goes_before_stored_weights(
    precision: str, status: int, bounds: str, computed: str, mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong if who asks for narrower bounds does not get them, or is told that others apply."""
    options = ("--backend", "numba", "--checkpoint", mixed, "--precision", precision, "--levels", "vectors")
    assert held_to(*options) == (status, bounds, computed)
    assert "bounds apply" not in capsys.readouterr().err


@pytest.mark.parametrize(("backend", "precision"), [("numba", "float64"), ("torch", "float64")])
def test_a_precision_of_floats_is_never_another(
    backend: str, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong if a backend answers in a lower precision than was named."""
    assert main(["verify", "--backend", backend, "--precision", precision]) == 2
    assert "precision-unknown" in capsys.readouterr().err


def test_a_low_default_is_not_held_to_bounds_of_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a backend that usually computes in less than float32 is said not to conform for that."""

    class Low(NumpyBackend):
        name, precisions = "low", ("int8", "float32")

        def load(self, checkpoint, precision, threads):
            encoder = NumpyEncoder(checkpoint, "float32", threads)
            encoder.precision = precision
            return encoder

    point = SimpleNamespace(name="low", value="low", load=Low)
    monkeypatch.setattr(refembed.backend, "registered", lambda: [point])
    assert held_to("--backend", "low", "--levels", "vectors") == (0, "float32", "float32")
    assert held_to("--backend", "low", "--levels", "vectors", "--precision", "int8") == (0, "int8", "int8")
