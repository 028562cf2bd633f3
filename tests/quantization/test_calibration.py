"""Scales of least error, GPTQ and calibration: they lose less than plain rounding, and are still the form."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save_file
from support import SMALL, checkpoint_of, sampled, texts_of, write_checkpoint
from test_quantize_folder import WIDE

import refembed
from refembed.cli import main
from refembed.cli import quantize as quantize_command
from refembed.quantization.calibrate import Calibration
from refembed.quantization.gptq import gptq, loss, refit, round_again
from refembed.quantization.scales import least_error_scales
from refembed.quantization.texts import MOST_TOKENS, calibration_texts
from refembed.reference import encode_tokens
from refembed.reference.operations import rms_norm
from refembed.reference.quantize import FORMS, Grid, dequantize, fake_quantize, largest_level, quantize

GRIDS = [Grid(4, 8), Grid(4, None), Grid(8, 8), Grid(8, None)]
WORDS = ["a", "the", "of", "in", "to", "is", "was", "on", "as", "by"]


def correlated(columns: int, seed: int = 0) -> np.ndarray:
    """Inputs of a few strong directions and some noise, as real ones are."""
    random = np.random.default_rng(seed)
    strong = random.standard_normal((400, 6)) @ random.standard_normal((6, columns))
    return strong + 0.2 * random.standard_normal((400, columns))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@given(weight=arrays(np.float32, (3, 16), elements=some.floats(-1e4, 1e4, width=32)), data=some.data())
def test_least_error_scales_lose_no_more(grid: Grid, weight: np.ndarray, data: some.DataObject) -> None:
    """Wrong if a scale that was searched for is worse than the one that costs no search, or is no scale."""
    importance = data.draw(arrays(np.float32, 16, elements=some.floats(0, 100, width=32)))
    scales = least_error_scales(weight, grid, importance)
    assert scales.dtype == np.float16
    assert ((scales >= 0) & np.isfinite(scales)).all()

    def error(scales: np.ndarray | None) -> np.ndarray:
        lost = importance * (fake_quantize(weight, grid, scales) - weight).astype(float) ** 2
        return lost.reshape(3, -1, grid.block or 16).sum(axis=-1)

    assert (error(scales) <= error(None) * (1 + 1e-5) + 1e-30).all()


def test_least_error_scales_gain() -> None:
    """Wrong if the search finds nothing where there is something to find: a twelfth of the error of normal numbers."""
    weight = np.random.default_rng(0).standard_normal((64, 768)).astype(np.float32)
    for grid, most in ((Grid(4, 32), 0.92), (Grid(4, None), 0.80)):
        plain, found = (
            np.mean((fake_quantize(weight, grid, scales) - weight) ** 2)
            for scales in (None, least_error_scales(weight, grid))
        )
        assert found < most * plain


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gptq_changes_products_less(grid: Grid) -> None:
    """Wrong if what GPTQ makes of a matrix is no better for its inputs than rounding, which does not know them."""
    weight, x = np.random.default_rng(1).standard_normal((24, 64)), correlated(64)

    def changed(found: np.ndarray) -> float:
        return float(np.linalg.norm(x @ weight.T - x @ found.T))

    found = gptq(weight, x.T @ x, grid)
    assert np.abs(found.levels).max() <= largest_level(grid.bits)
    rounded = fake_quantize(weight, grid, least_error_scales(weight, grid))
    assert changed(dequantize(found, np.float64)) < 0.6 * changed(rounded)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gptq_of_unrelated_inputs_is_rounding(grid: Grid) -> None:
    """Wrong if GPTQ moves a number where no other could make good for it."""
    weight = np.random.default_rng(2).standard_normal((12, 64))
    needed = quantize(weight, grid, least_error_scales(weight, grid))
    found = gptq(weight, np.eye(64), grid, rounds=0)
    np.testing.assert_array_equal(found.levels, needed.levels)
    np.testing.assert_array_equal(found.scales, needed.scales)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_round_makes_it_worse(grid: Grid) -> None:
    """Wrong if a step of refinement is none."""
    weight, x = np.random.default_rng(3).standard_normal((24, 64)), correlated(64, seed=3)
    hessian = x.T @ x + np.eye(64)
    found = quantize(weight, grid)
    for _ in range(3):
        before = loss(weight, hessian, found)
        found = refit(weight, hessian, found)
        middle = loss(weight, hessian, found)
        assert (middle <= before * (1 + 1e-9)).all()
        found = round_again(weight, hessian, found, grid)
        assert (loss(weight, hessian, found) <= middle * (1 + 1e-9)).all()


def test_columns_without_inputs() -> None:
    """Wrong if inputs that are always zero, or no inputs at all, make GPTQ divide by zero."""
    weight = np.random.default_rng(4).standard_normal((4, 64)).astype(np.float32)
    x = correlated(64).astype(np.float32)
    x[:, 10:20] = 0
    for hessian in (x.T @ x, np.zeros((64, 64), np.float32)):
        found = dequantize(gptq(weight, hessian, Grid(4, 32)))
        assert np.abs(found - weight).max() < 1
    zeros = gptq(np.zeros((4, 64), np.float32), x.T @ x, Grid(4, 32))
    assert not zeros.levels.any()
    assert np.isfinite(zeros.scales).all()


def test_the_exact_run_is_the_model() -> None:
    """Wrong if the texts go through another model than the reference's, or in another order."""
    checkpoint, batch = checkpoint_of(SMALL), texts_of(SMALL, [3, 12, 1, 20])
    calibration = Calibration(checkpoint, "mixed-channel", batch)
    calibration.run(show_progress=False)
    parameters = checkpoint.parameters(np.float32)
    for ids, text in zip(batch, calibration.texts, strict=True):
        states = rms_norm(calibration.exact.states[text], parameters["norm.weight"], SMALL.epsilon)
        assert np.abs(states - encode_tokens(ids, parameters, SMALL)).max() < 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("wide"), WIDE)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = (" ".join(random.choice(WORDS, random.integers(1, 12))) for _ in range(300))
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return file


@pytest.mark.parametrize("form", sampled(sorted(FORMS)))
def test_calibrated_folder(form: str, folder: Path, texts: Path, tmp_path: Path) -> None:
    """Wrong if calibrating gives vectors no nearer the float model's than rounding, or another folder every time."""
    command = ["quantize", str(folder), "--format", form]
    for out, options in (("plain", ["--scales", "largest"]), ("once", ["--calibrate", str(texts)])):
        assert main([*command[:2], str(tmp_path / out), *command[2:], *options]) == 0
    assert main([*command[:2], str(tmp_path / "twice"), *command[2:], "--calibrate", str(texts)]) == 0
    for name in ("model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
        stored, plain = load_file(tmp_path / "once" / name), load_file(tmp_path / "plain" / name)
        assert {key: (x.dtype, x.shape) for key, x in stored.items()} == {
            key: (x.dtype, x.shape) for key, x in plain.items()
        }
    words = [f"{first} {second}" for first in WORDS for second in WORDS]
    needed, *found = (
        refembed.load(path, backend="numpy").encode_document(words)
        for path in (folder, tmp_path / "plain", tmp_path / "once")
    )
    lost = [1 - np.mean(np.sum(vectors * needed, axis=1)) for vectors in found]
    assert lost[1] < 0.7 * lost[0]


def changed(folder: Path, out: Path, name: str, change: Callable[[np.ndarray], None]) -> Path:
    """A copy of a folder in which one tensor of model.safetensors is another."""
    shutil.copytree(folder, out)
    tensors = {key: tensor.copy() for key, tensor in load_file(out / "model.safetensors").items()}
    change(tensors[name])
    save_file(tensors, out / "model.safetensors")
    return out


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    "name",
    sampled(
        [
            "embed_tokens.weight",
            *(f"layers.0.self_attn.{one}_proj.weight" for one in "qkvo"),
            *(f"layers.1.mlp.{one}_proj.weight" for one in ("gate", "up", "down")),
        ]
    ),
)
def test_a_matrix_of_zeros(name: str, folder: Path, texts: Path, tmp_path: Path) -> None:
    """Wrong if inputs or outputs that are always zero are divided by, or a finite matrix is said to be none."""
    source = changed(folder, tmp_path / "in", name, lambda tensor: tensor.fill(0))
    out = tmp_path / "out"
    assert main(["quantize", str(source), str(out), "--format", "int8-block", "--calibrate", str(texts)]) == 0
    stored, given = load_file(out / "model.safetensors"), load_file(source / "model.safetensors")
    assert not stored[name].any()
    assert all(np.isfinite(tensor).all() for tensor in stored.values())
    if name != "embed_tokens.weight":  # then every vector is zeros before it is given unit length
        exact, found = (refembed.load(one, backend="numpy").encode_document(WORDS) for one in (source, out))
        assert np.sum(exact * found, axis=1).min() > 0.99
    else:
        weight = "layers.0.post_attention_layernorm.weight"
        np.testing.assert_allclose(stored[weight], given[weight], atol=1e-6)  # nothing was learned of it


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    "name", ["embed_tokens.weight", "layers.0.mlp.up_proj.weight", "layers.1.mlp.down_proj.weight"]
)
def test_a_number_too_large_for_a_scale(
    name: str, folder: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong if it ends in an error without the tensor's name, or in one that calls a finite number none."""

    def large(tensor: np.ndarray) -> None:
        tensor[:, 3] = 1e30

    source, out = changed(folder, tmp_path / "in", name, large), tmp_path / "out"
    assert main(["quantize", str(source), str(out), "--format", "int4-block", "--calibrate", str(texts)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"model.safetensors: {name} holds 1e+30" in said
    assert said.endswith("[tensor-too-large]")
    assert not out.exists()


def test_as_many_tokens_as_are_asked_for(folder: Path, tmp_path: Path) -> None:
    """Wrong if who gives what the help asks for is told afterwards that less, or more, was used."""
    assert f"{MOST_TOKENS:,} tokens" in str(quantize_command.__doc__)
    file = tmp_path / "many.txt"
    file.write_text("a the of in\n" * 4000)
    batch = calibration_texts(folder, str(file))
    assert 0 <= sum(map(len, batch)) - MOST_TOKENS < len(batch[-1])


@pytest.mark.parametrize(
    ("name", "content", "id"),
    [
        ("empty.txt", b"", "calibration-texts"),
        ("blank.txt", b" \n\n", "calibration-texts"),
        ("fields.jsonl", b'{"words": "a"}\n', "calibration-texts"),
        ("binary.txt", b"\xff\xfe\n", "calibration-texts"),
        ("cut.txt.gz", b"\x1f\x8b\x08", "input-missing"),
        ("texts.csv", b"a\n", "input-format"),
        ("absent.txt", None, "input-missing"),
    ],
)
def test_bad_calibration_files(
    name: str, content: bytes | None, id: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong if a file that calibrates nothing passes, or leaves a folder."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    out = tmp_path / "out"
    command = ["quantize", str(folder), str(out), "--format", "int4-block", "--calibrate", str(tmp_path / name)]
    assert main(command) == 2
    assert id in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} <= {name}


def test_few_texts_are_said_to_be_few(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if somebody who calibrates on a line, or on one long text, is not told that it is worse than nothing."""
    (tmp_path / "one.txt").write_text("a line\n")
    command = ["quantize", str(folder), str(tmp_path / "out"), "--format", "int4-block", "--calibrate"]
    assert main([*command, str(tmp_path / "one.txt")]) == 0
    assert "are few to calibrate on" in capsys.readouterr().err
