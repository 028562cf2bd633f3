"""refembed quantize: what is written is the reference's form, is read back by every backend, and keeps the model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import write_checkpoint

import refembed
from refembed.checkpoint import open_checkpoint
from refembed.cli import main
from refembed.cli.verify import BackendPort, bounds_of
from refembed.quantization.folder import quantize_folder
from refembed.reference import Config
from refembed.reference.quantize import FORMS, dequantize, grid_of, largest_level, quantize

WIDE = Config(  # every row a whole number of blocks
    vocabulary=160, width=64, mlp=96, heads=4, key_heads=2, head=16, dense=128, dimensions=64,
    layer_kinds=("sliding_attention", "full_attention"), reach=4, context=64, query_scalar=16.0,
)  # fmt: skip
TEXTS = ["a the", "of", "the a of the a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("wide"), WIDE)
    for name in ("LICENSE", "README.md", "generation_config.json", "2_Dense/NOTICE"):
        (folder / name).write_text(f"what {name} says")
    return folder


@pytest.fixture(scope="module", params=FORMS)
def made(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("quantised") / request.param
    assert main(["quantize", str(folder), str(out), "--format", request.param, "--scales", "largest"]) == 0
    return request.param, out


def test_stored_as_the_chapter_says(made: tuple[str, Path], folder: Path) -> None:
    """Wrong if another reader, who knows QNT-1 to QNT-7 alone, would find other numbers than rounding gives."""
    form, out = made
    stored, floats = load_file(out / "model.safetensors"), load_file(folder / "model.safetensors")
    for name, weight in floats.items():
        grid = grid_of(form, name)
        if grid is None:
            assert stored.pop(name).tobytes() == weight.tobytes()
            continue
        levels, scales = stored.pop(name), stored.pop(f"{name}.scales")
        if grid.bits == 4:  # two's complement halves, by hand: the low one first
            halves = np.stack([levels & 15, levels >> 4], axis=-1).reshape(len(levels), -1).astype(int)
            levels = np.where(halves > 7, halves - 16, halves)
        block = weight.shape[1] // scales.shape[1]
        assert block == (grid.block or weight.shape[1])
        step = scales.astype(float).repeat(block, axis=1)
        assert np.abs(levels * step - weight).max() <= step.max() / 2 + 1e-9
        assert np.abs(levels).max() == largest_level(grid.bits)
    assert not stored


def test_parameters_are_the_references(made: tuple[str, Path], folder: Path) -> None:
    """Wrong if what is computed with is not level * scale of the reference's own rounding."""
    form, out = made
    floats = open_checkpoint(folder).parameters(np.float32)
    ids = np.arange(WIDE.vocabulary)
    for name, value in open_checkpoint(out).parameters(np.float32).items():
        weight = floats[name][ids] if name == "embed_tokens.weight" else floats[name]
        found = value[ids] if name == "embed_tokens.weight" else value
        grid = grid_of(form, name)
        needed = dequantize(quantize(weight, grid)) if grid and weight.ndim == 2 else weight
        np.testing.assert_array_equal(found, needed)


@pytest.mark.parametrize("backend", ["numpy", "torch", "numba"])
def test_every_backend_reads_it(made: tuple[str, Path], backend: str) -> None:
    """Wrong if a backend cannot open a quantised folder, or computes with other weights than NumPy."""
    needed = refembed.load(made[1], backend="numpy", precision="float64").encode(TEXTS)
    found = refembed.load(made[1], backend=backend, precision="float32").encode(TEXTS)
    assert np.abs(found - needed).max() < 1e-5


def test_held_to_its_own_contract(made: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if `refembed verify` judges 8 or 4 bits by other bounds than theirs (spec/protocol.md)."""
    form, out = made
    bounds = {"int8-block": "int8", "int4-block": "int4", "mixed-channel": "int4"}[form]
    assert bounds_of(None, BackendPort(refembed.load(out, backend="numpy"))) == bounds
    assert f"weights are {form}: {bounds}'s bounds apply" in capsys.readouterr().err


def test_other_files_are_those_of_the_float_folder(made: tuple[str, Path], folder: Path) -> None:
    """Wrong if prompts, tokenizer or the terms of use get lost on the way, or config.json says more than the form."""
    form, out = made
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()} == names
    for name in names:
        if name == "config.json":
            settings = json.loads((out / name).read_text())
            assert settings.pop("quantization_config")["form"] == form
            assert settings == json.loads((folder / name).read_text())
        elif not name.endswith(".safetensors"):
            assert (out / name).read_bytes() == (folder / name).read_bytes()


def test_nothing_hidden_or_from_outside_is_copied(folder: Path, tmp_path: Path) -> None:
    """Wrong if a secret beside the model travels with it, or float weights, code, or another checkpoint within it."""
    source, outside = tmp_path / "in", tmp_path / "outside.txt"
    shutil.copytree(folder, source)
    outside.write_text("of somebody else")
    (source / ".env").write_text("a token")
    (source / ".git").mkdir()
    (source / ".git" / "config").write_text("a token")
    (source / "int8").mkdir()
    (source / "int8" / "config.json").write_text("{}")
    for name in (
        "model.onnx",
        "model.onnx_data",
        "pytorch_model.bin",
        "model.F32.GGUF",
        "consolidated.safetensors",
        "modeling_x.py",
    ):
        (source / name).write_bytes(bytes(8))
    (source / "TERMS").symlink_to("LICENSE")
    (source / "out.txt").symlink_to(outside)
    (source / "nowhere.txt").symlink_to("absent")
    quantize_folder(source, tmp_path / "out", "int8-block")
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    found = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert found == {*names, "TERMS"}
    assert not (tmp_path / "out" / "TERMS").is_symlink()


def test_the_hubs_own_links_are_followed(folder: Path, tmp_path: Path) -> None:
    """Wrong if of a model in the hub client's cache, where every file is a link, no terms are copied."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(folder, snapshot)
    blobs.mkdir()
    for number, file in enumerate([file for file in snapshot.rglob("*") if file.is_file()]):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    quantize_folder(snapshot, tmp_path / "out", "int8-block")
    assert (tmp_path / "out" / "LICENSE").read_text() == "what LICENSE says"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_digests_differ(made: tuple[str, Path], folder: Path) -> None:
    """Wrong if vectors kept for the float model would be taken for the quantised one's."""
    assert open_checkpoint(made[1]).digest != open_checkpoint(folder).digest


def test_too_large_a_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if a weight that no scale can hold is cut in silence, or half a folder is left."""
    from safetensors.numpy import save_file

    folder = write_checkpoint(tmp_path / "in", WIDE)
    tensors = dict(load_file(folder / "model.safetensors"))
    tensors["layers.0.mlp.up_proj.weight"][1, 2] = 1e9
    save_file(tensors, folder / "model.safetensors")
    assert main(["quantize", str(folder), str(tmp_path / "out"), "--format", "int4-block"]) == 2
    said = capsys.readouterr().err
    assert "layers.0.mlp.up_proj.weight holds 1e+09, which 4 bits cannot store" in said
    assert "[tensor-too-large]" in said
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(("form", "mean", "least"), [("int8-block", 0.9995, 0.999), ("int4-block", 0.94, 0.85)])
def test_real_weights(
    form: str, mean: float, least: float, weights: Path, tmp_path: Path, real: refembed.Embedder
) -> None:
    """Wrong if the released model in this form is another model."""
    assert main(["quantize", str(weights), str(tmp_path / form), "--format", form]) == 0
    size = sum(file.stat().st_size for file in (tmp_path / form).rglob("*.safetensors"))
    assert size < {"int8-block": 330e6, "int4-block": 180e6}[form]
    texts = ["Which planet is known as the Red Planet?", "Mars is red.", "def f(x): return x", "Grüße aus Zürich"]
    small = refembed.load(tmp_path / form, backend="numpy")
    cosines = np.sum(small.encode_document(texts) * real.encode_document(texts), axis=1)
    assert cosines.mean() > mean
    assert cosines.min() > least
