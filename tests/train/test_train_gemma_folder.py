"""A decoder-only Gemma 3's folder: transformers' are read, ours it opens, wrong ones are refused in words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gemma_support import KINDS, WINDOW, gemma_model, texts_of, write_gemma_folder
from refembed_torch.train.decoder import CausalModel, fill
from refembed_torch.train.gemma_folder import causal_shapes, open_gemma, write_gemma
from safetensors.torch import load_file, save_file

from refembed.errors import RefembedError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("gemma")
    return folder, write_gemma_folder(folder)


@pytest.fixture
def folder(made: tuple[Path, Any], tmp_path: Path) -> Path:
    """One to spoil."""
    return Path(shutil.copytree(made[0], tmp_path / "gemma"))


def change(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_what_transformers_writes_is_read(made: tuple[Path, Any]) -> None:
    """Wrong if a size, a window or a weight is read as another than it was written."""
    folder, peer = made
    found = open_gemma(folder)
    config = found.config
    assert (config.width, config.heads, config.key_heads, config.head, config.query_scalar) == (24, 4, 2, 8, 11.0)
    assert (config.layer_kinds, 2 * config.reach, config.sliding_base, config.full_base) == (KINDS, WINDOW, 1e4, 1e6)
    assert found.tensors.keys() == causal_shapes(config).keys()
    for name in found.tensors:
        assert torch.equal(found.load(name), peer.get_parameter(f"model.{name}"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_transformers_opens_what_is_written(made: tuple[Path, Any], tmp_path: Path, precision: str) -> None:
    """Wrong if the decoder that pretraining makes is another model elsewhere: its logits, and its tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    start = open_gemma(made[0])
    tensors = {name: start.load(name) for name in start.tensors}
    write_gemma(tmp_path / "ours", start.config, tensors, made[0], precision)
    again = open_gemma(tmp_path / "ours")
    assert again.config == start.config
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert type(peer).__name__ == "Gemma3ForCausalLM"
    model, text = CausalModel(again.config), texts_of([4 * WINDOW])[0]
    fill(model, again.load)
    with torch.no_grad():
        ours = model.states([text]) @ model.get_parameter("embed_tokens.weight").T
        torch.testing.assert_close(ours, peer(torch.from_numpy(text)[None]).logits[0], atol=2e-5, rtol=1e-5)
        exact = gemma_model()(torch.from_numpy(text)[None]).logits[0]
    assert (ours - exact).abs().max() < (1e-4 if precision == "float32" else 0.2)
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("the window")["input_ids"][0] == start.config.bos


def test_shards_and_bfloat16_are_read(tmp_path: Path, made: tuple[Path, Any]) -> None:
    """Wrong if a larger decoder, which comes in several files, or one in bfloat16 is not the same model."""
    peer = gemma_model().to(torch.bfloat16)
    peer.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    found = open_gemma(tmp_path)
    for name in found.tensors:
        assert torch.equal(found.load(name), peer.get_parameter(f"model.{name}").float())


def test_names_without_prefix_and_a_stored_head_are_read(folder: Path) -> None:
    """Wrong if a folder that stores the tied head, or leaves the prefix out, is refused: it is the same model."""
    file = folder / "model.safetensors"
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors | {"lm_head.weight": tensors["embed_tokens.weight"].clone()}, file)
    found = open_gemma(folder)
    assert found.tensors.keys() == causal_shapes(found.config).keys()


def test_older_keys_are_read(folder: Path) -> None:
    """Wrong if a released folder, whose config.json transformers 4 wrote, is read otherwise than one of today."""
    expected = open_gemma(folder).config
    values = json.loads((folder / "config.json").read_text())
    for key in ("rope_parameters", "layer_types", "_sliding_window_pattern"):
        del values[key]
    values |= {"rope_theta": 1_000_000, "rope_local_base_freq": 10_000, "rope_scaling": None}
    values |= {"sliding_window_pattern": 3, "eos_token_id": [1, 106]}
    (folder / "config.json").write_text(json.dumps(values))
    assert open_gemma(folder).config == expected


def drop(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors")

    return spoil


def add(name: str, *shape: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors | {name: torch.zeros(shape)}, folder / "model.safetensors")

    return spoil


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index(**places: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))

    return spoil


def nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, folder / "model.safetensors")


WRONG: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "bidirectional": (lambda f: change(f, use_bidirectional_attention=True), "config-unsupported", "bidirectional"),
    "other model": (lambda f: change(f, model_type="gemma2"), "config-model-type", "gemma2"),
    "untied": (lambda f: change(f, tie_word_embeddings=False), "config-unsupported", "tie_word_embeddings"),
    "capped": (lambda f: change(f, final_logit_softcapping=30.0), "config-unsupported", "final_logit"),
    "odd window": (lambda f: change(f, sliding_window=7), "config-range", "sliding_window is 7"),
    "absurd size": (lambda f: change(f, hidden_size=2**40), "config-range", "hidden_size"),
    "uneven heads": (lambda f: change(f, num_key_value_heads=3), "config-heads", "4 heads on 3"),
    "other width": (lambda f: change(f, intermediate_size=41), "tensor-shape", "mlp"),
    "more layers": (
        lambda f: change(f, num_hidden_layers=4, layer_types=[*KINDS, KINDS[0]]), "tensor-missing", "layers.3"
    ),
    "missing": (drop("model.norm.weight"), "tensor-missing", "model.norm.weight"),
    "unexpected": (add("model.extra.weight", 3), "tensor-unexpected", "extra"),
    "other head": (add("lm_head.weight", 900, 24), "tensor-unexpected", "lm_head"),
    "pickle": (pickled, "weights-pickle", "pytorch_model.bin"),
    "elsewhere": (index(a="../a.safetensors"), "json-not-object", "weight_map"),
    "no shard": (index(a="a.safetensors"), "file-missing", "a.safetensors"),
    "no folder": (shutil.rmtree, "folder-missing", "not a folder"),
    "not finite": (nan, "tensor-not-finite", "norm.weight"),
}  # fmt: skip


def load_all(folder: Path) -> None:
    found = open_gemma(folder)
    for name in found.tensors:
        found.load(name)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_folders_are_refused(folder: Path, case: str) -> None:
    """Wrong if another model is trained in silence, a pickle is opened, or a traceback is all one gets."""
    spoil, id, words = WRONG[case]
    spoil(folder)
    with pytest.raises(RefembedError, match=words) as caught:
        load_all(folder)
    assert caught.value.id == id


def test_nothing_is_written_of_what_is_not_finite(made: tuple[Path, Any], tmp_path: Path) -> None:
    """Wrong if a run that has gone astray leaves a folder that looks like a model."""
    start = open_gemma(made[0])
    tensors = {name: start.load(name) for name in start.tensors}
    tensors["norm.weight"][0] = torch.inf
    for precision in ("float32", "bfloat16"):
        with pytest.raises(RefembedError, match=r"norm\.weight"):
            write_gemma(tmp_path / "ours", start.config, tensors, made[0], precision)
    assert not list(tmp_path.iterdir())
