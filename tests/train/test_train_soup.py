"""Averaging checkpoints: the mean of the files' own numbers, and nothing that is not of one model."""

import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from refembed_torch.model import TorchModel
from refembed_torch.saving import save_model
from refembed_torch.train import soup as module
from refembed_torch.train.soup import run_soup, soup
from safetensors import numpy as arrays
from safetensors import torch as tensors
from support import SMALL, random_parameters, write_checkpoint
from train_support import write_rows

import refembed
from refembed.errors import RefembedError
from refembed.layout import write_checkpoint as write_released
from refembed.prompts import PROMPTS

FILES = ("model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors")


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Three checkpoints of one shape."""
    return [
        write_checkpoint(tmp_path / name, SMALL, random_parameters(SMALL, seed, np.float32))
        for seed, name in enumerate("abc")
    ]


def in_bfloat16(folder: Path) -> Path:
    """The same checkpoint in bfloat16, beside it."""
    model = TorchModel(SMALL, source=folder)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in stored(folder).items()})
    save_model(model, folder.with_name(f"{folder.name}-bfloat16"), "bfloat16")
    return folder.with_name(f"{folder.name}-bfloat16")


def stored(folder: Path, library: object = arrays) -> dict[str, np.ndarray]:
    """Every tensor as the safetensors library reads it, the dense matrices by their folder's name too."""
    found = {}
    for name in FILES:
        before = f"{name.split('/')[0]}." if "/" in name else ""
        found |= {before + key: value for key, value in library.load_file(folder / name).items()}
    return found


# ------------------------------------------------------------------------------------------------------------ the mean
@pytest.mark.parametrize("weights", [(), (1, 1, 1), (2, 0, 6), (0.1, 0.7, 0.30001)])
def test_the_mean_is_numpys(parts: list[Path], weights: tuple[float, ...], tmp_path: Path) -> None:
    """Wrong if a tensor is left out, weighted as another, or averaged in float32."""
    soup(parts, tmp_path / "soup", weights)
    read, found = [stored(folder) for folder in parts], stored(tmp_path / "soup")
    assert set(found) == set(read[0])
    for name, array in found.items():
        expected = np.average([one[name].astype(np.float64) for one in read], axis=0, weights=weights or None)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected.astype(np.float32), err_msg=name)


def test_pieces_are_put_together(parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, a matrix larger than what is averaged at once would lack numbers or have them twice."""
    soup(parts, tmp_path / "soup")
    monkeypatch.setattr(module, "PIECE", 701)
    soup(parts, tmp_path / "pieces")
    for file in FILES:
        assert (tmp_path / "soup" / file).read_bytes() == (tmp_path / "pieces" / file).read_bytes()


@pytest.mark.parametrize(
    ("first", "asked", "expected"), [(1, "", "bfloat16"), (0, "", "float32"), (0, "bfloat16", "bfloat16")]
)
def test_precision(parts: list[Path], first: int, asked: str, expected: str, tmp_path: Path) -> None:
    """Wrong if bfloat16 files are read as other numbers, a mean is not rounded to the nearest, or the soup of bfloat16
    models is twice their size. PyTorch rounds the expected numbers.
    """
    folders = [parts[0], in_bfloat16(parts[1])][:: -1 if first else 1]
    soup(folders, tmp_path / "soup", (), asked)
    read, found = [stored(folder, tensors) for folder in folders], stored(tmp_path / "soup", tensors)
    for name, tensor in found.items():
        mean = sum(one[name].double() for one in read) / 2
        assert torch.equal(tensor, mean.float().to(getattr(torch, expected))), name
    assert json.loads((tmp_path / "soup/config.json").read_text())["dtype"] == expected


def test_a_soup_of_copies_is_the_model(small_folder: Path, tmp_path: Path) -> None:
    """If this failed, the folder would not open, or lack something that vectors depend on."""
    soup([small_folder] * 3, tmp_path / "soup", (0.1, 0.2, 0.7))
    before, after = (refembed.load(folder, backend="numpy") for folder in (small_folder, tmp_path / "soup"))
    for task in ("document", "STS"):
        np.testing.assert_array_equal(before.encode(["a text"], task=task), after.encode(["a text"], task=task))


def test_one_tensor_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, averaging three released models would need several times the memory of their largest tensor."""
    monkeypatch.setattr(module, "PIECE", 1000)
    config = replace(SMALL, mlp=4000, layer_kinds=SMALL.layer_kinds * 2)
    folders = [
        write_checkpoint(tmp_path / str(seed), config, random_parameters(config, seed, np.float32)) for seed in range(2)
    ]
    matrix, whole = 4000 * 48 * 4, (folders[0] / "model.safetensors").stat().st_size
    tracemalloc.start()
    soup(folders, tmp_path / "soup")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * matrix < 0.2 * whole


# ------------------------------------------------------------------------------------------------------------ refusals
def changed(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("field", "a and .*c: config field sliding_base is 10000.0 and 5.0"),
        ("shape", "config field mlp is 80 and 96"),
        ("tokenizer", "tokenizer.json differs in 'model'"),
        ("prompts", "prompt mine is None and 'x: '"),
    ],
)
def test_other_models_are_refused_by_name(parts: list[Path], what: str, match: str, tmp_path: Path) -> None:
    """If this failed, models that do not belong together would give a model that is neither, or nobody would know why
    they are refused.
    """
    other = parts[2]
    if what == "field":
        changed(other / "config.json", rope_local_base_freq=5.0)
    elif what == "shape":
        shutil.rmtree(other)
        config = replace(SMALL, mlp=96)
        write_checkpoint(other, config, random_parameters(config))
    elif what == "tokenizer":
        model = json.loads((other / "tokenizer.json").read_text())["model"]
        changed(other / "tokenizer.json", model=model | {"merges": model["merges"][:-1]})
    else:
        (other / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS | {"mine": "x: "}}))
        shutil.copy(other / "config_sentence_transformers.json", parts[0])
        changed(parts[0] / "config_sentence_transformers.json", prompts=PROMPTS)
        shutil.copy(parts[0] / "config_sentence_transformers.json", parts[1])
    with pytest.raises(RefembedError, match=match) as found:
        soup(parts, tmp_path / "soup")
    assert found.value.id == "soup-mismatch"
    assert not (tmp_path / "soup").exists()


def test_a_tokenizer_written_otherwise_is_the_same(parts: list[Path], tmp_path: Path) -> None:
    """If this failed, a folder that a library has saved again, with its limit of length, would be refused."""
    changed(parts[1] / "tokenizer.json", truncation={"max_length": 64}, padding=None)
    soup(parts, tmp_path / "soup")
    assert (tmp_path / "soup/tokenizer.json").read_bytes() == (parts[0] / "tokenizer.json").read_bytes()


def test_numbers_that_are_none_are_refused(parts: list[Path], tmp_path: Path) -> None:
    """If this failed, one broken checkpoint would break the soup, or half a folder would be left."""
    bad = random_parameters(SMALL, 1, np.float32)
    bad["layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    write_checkpoint(parts[1], SMALL, bad)
    with pytest.raises(RefembedError, match=r"b/model.safetensors: layers\.1\.mlp\.up_proj\.weight holds NaN"):
        soup(parts, tmp_path / "soup")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("count", "weights", "match"),
    [
        (1, [], "folders has 1, at least 2"),
        (3, [1.0, 2.0], "2 numbers for 3"),
        (2, [1.0, -1.0], "at least 0"),
        (2, [0.0, 0.0], "not all 0"),
        (2, [1.0, float("nan")], "at least 0"),
    ],
)
def test_weights_that_give_no_mean(parts: list[Path], count: int, weights: list[float], match: str) -> None:
    """If this failed, a soup would be of fewer models than it says, or no mean. A file says where it is wrong."""
    with pytest.raises(ValueError, match=match):
        soup(parts[:count], parts[0] / "soup", weights)
    with pytest.raises(RefembedError, match=rf"soup\.toml: .*{match}"):
        run_soup({"out": "soup", "folders": list(map(str, parts[:count])), "weights": weights}, parts[0] / "soup.toml")


# ----------------------------------------------------------------------------------------------------------- the stage
def test_killed_while_writing(parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, a killed soup could be taken for a whole one, or stand in the way of the next try."""
    table = {"out": "stage", "folders": list(map(str, parts))}

    def write(place: Path, *rest: object) -> None:
        write_released(place, *rest)
        raise KeyboardInterrupt

    for name in ("write_checkpoint", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(
                module, name, write if name == "write_checkpoint" else lambda *_: exec("raise KeyboardInterrupt")
            )
            with pytest.raises(KeyboardInterrupt):
                run_soup(table, tmp_path / "soup.toml")
        assert not (tmp_path / "stage/result.json").exists()
    result = run_soup(table, tmp_path / "soup.toml")
    time = (tmp_path / "stage/model/model.safetensors").stat().st_mtime_ns
    assert run_soup(table, tmp_path / "soup.toml") == result == json.loads((tmp_path / "stage/result.json").read_text())
    assert (tmp_path / "stage/model/model.safetensors").stat().st_mtime_ns == time
    assert result["weights"] == [1, 1, 1]
    with pytest.raises(RefembedError, match="stage holds a finished run with other settings"):
        run_soup(table | {"weights": [1, 2, 3]}, tmp_path / "soup.toml")


def test_the_soup_and_its_parts_are_measured(parts: list[Path], tmp_path: Path) -> None:
    """If this failed, nobody would see whether a soup is better than its parts. One of copies is as good as each."""
    rows = write_rows(tmp_path / "rows.jsonl", 60)
    data = {"set": [{"file": str(rows)}], "held_out": 12, "context": 32}
    table = {"folders": [str(parts[0])] * 2, "data": data, "loss": {"lengths": [40, 16]}, "out": "stage"}
    held_out = run_soup(table, tmp_path / "soup.toml")["held_out"]
    assert held_out["soup"] == held_out["parts"][0] == held_out["parts"][1]
    assert held_out["soup"]["loss"] > 0
