"""A trained model as a folder that everybody opens."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from refembed_torch.model import TorchModel, load_model, random_model
from refembed_torch.saving import save_model
from support import SMALL, write_checkpoint
from torch_support import TWIN

import refembed
from refembed import layout
from refembed.checkpoint import open_checkpoint

TEXTS = ["Which planet is red?", "a", "the quick brown fox"]


@pytest.fixture
def trained() -> TorchModel:
    """The twin after something was learned: every number is another."""
    model = load_model(TWIN, device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01).add_(1e-4)
    return model


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_sentence_transformers_opens_it(trained: TorchModel, tmp_path: Path, precision: str) -> None:
    """Wrong if a saved folder opens nowhere else, or gives other vectors, prompts or limits there."""
    from sentence_transformers import SentenceTransformer

    save_model(trained, tmp_path / "saved", precision)
    ours = refembed.load(tmp_path / "saved", backend="numpy")
    peer = SentenceTransformer(
        str(tmp_path / "saved"), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    expected = peer.encode(TEXTS, prompt_name="document", normalize_embeddings=True)
    np.testing.assert_allclose(ours.encode(TEXTS), expected, atol=2e-6)
    assert dict(peer.prompts) == dict(ours.checkpoint.prompts) == dict(open_checkpoint(TWIN).prompts)
    assert peer.max_seq_length == ours.config.context


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_numbers_come_back(trained: TorchModel, tmp_path: Path, precision: str) -> None:
    """Wrong if a number is stored as another than the nearest of its precision, or under another name."""
    save_model(trained, tmp_path / "saved", precision)
    again = load_model(tmp_path / "saved", device="cpu")
    assert again.config == trained.config
    assert json.loads((tmp_path / "saved/config.json").read_text())["dtype"] == precision
    for name, parameter in trained.named_parameters():
        expected = parameter.to(getattr(torch, precision)).float()
        assert torch.equal(again.get_parameter(name), expected), name


def test_transformers_reads_the_same_window(trained: TorchModel, tmp_path: Path) -> None:
    """Wrong if another library takes the window, the bases or the kinds of layers for others than they are."""
    from transformers import AutoConfig

    save_model(trained, tmp_path / "saved")
    found, expected = (AutoConfig.from_pretrained(folder) for folder in (tmp_path / "saved", TWIN))
    for config in (found, expected):
        config._name_or_path = ""
    assert found.to_dict() == expected.to_dict()


@pytest.mark.parametrize("stored", [16, 9])
def test_the_window_is_written_as_released(tmp_path: Path, stored: int) -> None:
    """Wrong if a window that a library rewrote on saving (16 as 9) is passed on, to be halved by the next one."""
    shutil.copytree(TWIN, tmp_path / "rewritten")
    file = tmp_path / "rewritten" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sliding_window": stored}))
    with pytest.warns(UserWarning, match="sliding_window") if stored % 2 else pytest.MonkeyPatch.context():
        model = load_model(tmp_path / "rewritten", device="cpu")
        save_model(model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["sliding_window"] == 16


def test_the_released_window() -> None:
    """Wrong if the released model is saved with another window than the released 512."""
    from refembed.reference import Config

    assert layout.config_json(Config(), "float32")["sliding_window"] == 512


@pytest.mark.parametrize("pooler", ["mean", "first", "last"])
def test_poolers_come_back(tmp_path: Path, pooler: str) -> None:
    """Wrong if a model saved with one pooler is read, here or by sentence-transformers, with another."""
    from sentence_transformers import SentenceTransformer

    model = random_model(replace(open_checkpoint(TWIN).config, pooler=pooler), device="cpu")
    save_model(model, tmp_path / "saved", tokenizer=TWIN)
    ours = refembed.load(tmp_path / "saved", backend="torch")
    assert ours.config.pooler == pooler
    peer = SentenceTransformer(str(tmp_path / "saved"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(ours.encode(TEXTS, task=None), peer.encode(TEXTS), atol=5e-6)


def test_a_folder_without_settings_of_its_tokenizer(tmp_path: Path) -> None:
    """Wrong if a tokenizer that is one file alone is saved without what other libraries need beside it."""
    model = load_model(write_checkpoint(tmp_path / "plain", SMALL), device="cpu")
    save_model(model, tmp_path / "saved")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "saved" / name).exists()
    np.testing.assert_array_equal(
        refembed.load(tmp_path / "saved", backend="numpy").encode("the air"),
        refembed.load(tmp_path / "plain", backend="numpy").encode("the air"),
    )


# --------------------------------------------------------------------------------------------- whole or not at all
def left_over(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def test_nothing_is_left_of_a_failure(trained: TorchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a disk that fills up leaves half a checkpoint, under its name or another."""
    write = layout.write_tensors

    def fill_up(file: Path, tensors: object) -> None:
        write(file, {})
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layout, "write_tensors", fill_up)
    with pytest.raises(refembed.RefembedError, match="No space left") as caught:
        save_model(trained, tmp_path / "saved")
    assert caught.value.id == "output-unwritable"
    assert left_over(tmp_path) == []


def test_a_tokenizer_of_more_pieces_is_refused(tmp_path: Path) -> None:
    """Wrong if a folder is written that nothing can open, after hours of training."""
    config = open_checkpoint(TWIN).config
    model = random_model(replace(config, vocabulary=config.vocabulary - 1), device="cpu")
    with pytest.raises(refembed.RefembedError) as caught:
        save_model(model, tmp_path / "saved", tokenizer=TWIN)
    assert caught.value.id == "tokenizer-vocabulary"
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("dtype", [np.float64, np.int16])
def test_types_that_nobody_reads_are_not_written(tmp_path: Path, dtype: type) -> None:
    """Wrong if numbers of another type are labelled float32, so that other numbers are read."""
    with pytest.raises(refembed.RefembedError, match=str(np.dtype(dtype))) as caught:
        layout.write_tensors(tmp_path / "file", {"good": np.ones(3, np.float32), "bad": np.ones(3, dtype)})
    assert caught.value.id == "tensor-dtype"
    assert left_over(tmp_path) == []


def test_nothing_is_overwritten(trained: TorchModel, tmp_path: Path) -> None:
    """Wrong if saving twice to one name mixes or loses a checkpoint."""
    (tmp_path / "saved").mkdir()
    save_model(trained, tmp_path / "saved")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "saved").rglob("*")}
    with pytest.raises(refembed.RefembedError, match="new folder"):
        save_model(trained, tmp_path / "saved")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "saved").rglob("*")} == before
    assert left_over(tmp_path) == ["saved"]


def test_what_cannot_be_a_checkpoint(trained: TorchModel, tmp_path: Path) -> None:
    """Wrong if NaN is saved, a pooler is lost without a word, or a tokenizer is made up."""
    with torch.no_grad():
        trained.get_parameter("layers.2.mlp.up_proj.weight")[0, 0] = torch.nan
    pooled = random_model(replace(SMALL, pooler="attention"), device="cpu")
    for model, tokenizer, id in (
        (trained, None, "tensor-not-finite"),
        (pooled, TWIN, "pooling-unsupported"),
        (random_model(SMALL, device="cpu"), None, "folder-missing"),
    ):
        with pytest.raises(refembed.RefembedError) as caught:
            save_model(model, tmp_path / "saved", tokenizer=tokenizer)
        assert caught.value.id == id
    with pytest.raises(refembed.RefembedError, match="float16"):
        save_model(load_model(TWIN, device="cpu"), tmp_path / "saved", "float16")
    assert left_over(tmp_path) == []
