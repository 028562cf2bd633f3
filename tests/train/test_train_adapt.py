"""Stages pretrain and adapt: their losses and gradients, their rows of tokens, and what they leave behind."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gemma_support import gemma_model, write_gemma_folder, write_text
from language_worker import work
from refembed_torch.model import load_model
from refembed_torch.train.adapt import (
    Adapt,
    AdaptSettings,
    Fresh,
    LanguageStage,
    Pretrain,
    PretrainSettings,
    Untrained,
    run_adapt,
    run_pretrain,
)
from refembed_torch.train.config import Model, Optimizer, Run
from refembed_torch.train.gemma_folder import causal_shapes, open_gemma
from refembed_torch.train.raw_text import TextFile, TextSettings
from safetensors.torch import load_file
from torch.nn import functional

import refembed
from refembed.checkpoint import open_checkpoint
from refembed.errors import RefembedError
from refembed.reference.ul2 import DENOISERS

CONTEXT = 32


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder's folder and a file of text; not to be changed."""
    folder = tmp_path_factory.mktemp("adapt")
    write_gemma_folder(folder / "gemma")
    write_text(folder / "en.tsv.gz", 120)
    return folder


def text_of(place: Path, **options: int) -> TextSettings:
    given: dict[str, Any] = {"context": CONTEXT, "batch": 6, "held_out": 12} | options
    return TextSettings((TextFile(place / "en.tsv.gz"),), **given)


def pretrain_settings(place: Path, **options: int) -> PretrainSettings:
    text, run = text_of(place, **options), Run(place / "unused", 3, seed=7)
    return PretrainSettings(run, Optimizer(1e-3), text, Model(place / "gemma"))


def adapt_settings(place: Path, text: Mapping[str, int] | None = None, **options: Any) -> AdaptSettings:
    run = Run(place / "unused", 3, seed=7)
    return AdaptSettings(run, Optimizer(1e-3), text_of(place, **(text or {})), Model(place / "gemma"), **options)


def gradients(stage: LanguageStage, index: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    stage.module.zero_grad(set_to_none=True)
    numbers = stage.step(index)
    return numbers, {name: parameter.grad.clone() for name, parameter in stage.module.named_parameters()}


def test_pretraining_measures_what_transformers_does(place: Path) -> None:
    """Wrong if the held-out loss is not the mean over all tokens of all held-out paragraphs of transformers' model."""
    stage, peer = Pretrain(pretrain_settings(place, context=60)), gemma_model()
    losses = []
    with torch.no_grad():
        for text in stage.texts.held_out():
            ids = torch.from_numpy(stage.tokenizer([text])[0])
            assert len(ids) <= 60
            losses.append(functional.cross_entropy(peer(ids[None]).logits[0, :-1], ids[1:], reduction="none"))
    assert len(losses) > 5
    assert stage.measure()["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_long_paragraphs_go_on_in_another_sequence(place: Path) -> None:
    """Wrong if a long paragraph's end is never learned, or a cut is learned as an end."""
    stage = Pretrain(pretrain_settings(place, context=8))
    ids = np.arange(100, 119)
    rows = [row.columns[0] for row in stage.rows_of(ids, "here")]
    assert [len(row) for row in rows] == [8, 8, 7]
    assert all(row[0] == 2 for row in rows)
    np.testing.assert_array_equal(np.concatenate([row[1:] for row in rows]), [*ids, 1])


def test_rows_of_ul2_hold_the_whole_text(place: Path) -> None:
    """Wrong if the encoder and decoder are given other tokens than the paragraph's: putting each span back where its
    sentinel stands gives the text, and no sequence is longer than the context.
    """
    stage = Adapt(adapt_settings(place))
    marks = set(stage.sentinels.tolist())
    assert set(stage.modes) == {"R", "S", "X"}
    modes = set()
    for text in stage.texts.held_out():
        ids = stage.tokenizer([text])[0][1:-1]
        assert len(ids) <= CONTEXT - 3
        (row,) = stage.rows_of(ids, "here", text)
        inputs, targets = (column.tolist() for column in row.columns)
        assert (inputs[0], inputs[-1], targets[-1]) == (2, 1, 1)
        assert len(inputs) <= CONTEXT
        modes.add(inputs[1])
        spans: dict[int, list[int]] = {}
        for token in targets[:-1]:
            if token in marks:
                spans[token] = last = []
            else:
                last.append(token)
        whole = [part for token in inputs[2:-1] for part in (spans[token] if token in marks else [token])]
        assert whole == ids.tolist()
        assert row.targets == len(targets)
    assert modes <= set(stage.modes.values())
    assert len(modes) > 1


def test_only_denoisers_with_a_rate_are_used(place: Path) -> None:
    """Wrong if the mixture of the settings is not the one trained with."""
    stage = Adapt(adapt_settings(place, denoisers=dict.fromkeys(DENOISERS, 0.0) | {"s-25": 2.0}))
    for text in stage.texts.held_out():
        (row,) = stage.rows_of(stage.tokenizer([text])[0][1:-1], "here", text)
        assert row.columns[0][1] == stage.modes["S"]
        assert row.columns[1][0] == stage.sentinels[0]
        assert not np.isin(row.columns[1][1:], stage.sentinels).any()


@pytest.mark.parametrize("kind", [Pretrain, Adapt])
def test_parts_do_not_change_a_step(place: Path, kind: type[LanguageStage]) -> None:
    """Wrong if a step that goes through in parts, for less memory, has another gradient than one that does not; or if
    it is not that of the mean over all targets, of which parts have unequal numbers.
    """
    made = {Pretrain: pretrain_settings, Adapt: adapt_settings}[kind](place)
    one, many = (kind(replace(made, text=replace(made.text, parts=parts))) for parts in (1, 9))  # some are empty
    (numbers, whole), (other, parts) = gradients(one, 0), gradients(many, 0)
    assert numbers == pytest.approx(other, rel=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
    rows = one.rows(kind(made).texts.take(0), "step", 0)
    assert numbers["tokens"] == sum(row.targets for row in rows)
    with torch.no_grad():
        each = [float(one.module(*[[column] for column in row.columns])) for row in rows]
    assert numbers["loss"] == pytest.approx(sum(each) / numbers["tokens"], rel=1e-5)


@pytest.mark.parametrize("kind", [Pretrain, Adapt])
def test_a_step_is_a_function_of_its_number(place: Path, kind: type[LanguageStage]) -> None:
    """Wrong if a resumed run, whose stage begins anew and seeks, would make other steps than one never killed."""
    made = {Pretrain: pretrain_settings, Adapt: adapt_settings}[kind](place)
    whole, again = kind(made), kind(made)
    for index in range(3):
        gradients(whole, index)
        whole.measure()
    again.seek(whole.positions())
    (numbers, expected), (other, found) = gradients(whole, 3), gradients(again, 3)
    assert numbers == other
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert numbers != gradients(again, 4)[0]


@pytest.mark.parametrize("initialisation", ["encoder-decoder", "decoder", "random"])
def test_the_encoder_opens_everywhere(place: Path, tmp_path: Path, initialisation: str) -> None:
    """Wrong if what adaptation leaves is no checkpoint: other weights than the encoder's, a dense head of other sizes,
    or a folder that sentence-transformers opens to other vectors.
    """
    from sentence_transformers import SentenceTransformer

    given = adapt_settings(place, dense=40, dimensions=20, context=48, initialisation=initialisation)
    stage = Adapt(given) if initialisation == "encoder-decoder" else Untrained(given)
    if isinstance(stage, Adapt):
        with torch.no_grad():
            for parameter in stage.module.parameters():
                parameter.mul_(1.01)
    stage.finish(tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    start = open_gemma(place / "gemma")
    assert model.config == replace(start.config, dense=40, dimensions=20, context=48)
    for name in causal_shapes(start.config):
        held, copied = model.get_parameter(name), start.load(name)
        if isinstance(stage, Adapt):
            assert torch.equal(held, stage.module.get_parameter(name))
        else:
            assert torch.equal(held, copied) == (initialisation == "decoder"), name
    ours = refembed.load(tmp_path / "model", backend="numpy")
    texts = ["the window of a layer", "a", "is wider than one token and so this text has to be longer"]
    peer = SentenceTransformer(str(tmp_path / "model"), device="cpu", model_kwargs={"dtype": torch.float32})
    expected = peer.encode(texts, prompt_name="document", normalize_embeddings=True)
    np.testing.assert_allclose(ours.encode(texts), expected, atol=2e-6)
    stage.finish(tmp_path / "again")
    assert open_checkpoint(tmp_path / "again").digest == open_checkpoint(tmp_path / "model").digest


def test_what_does_not_fit_is_refused(place: Path, tmp_path: Path) -> None:
    """Wrong if a run begins that can only fail later: too long a context, a tokenizer without sentinels, unknown
    denoisers, two beginnings or none.
    """
    with pytest.raises(RefembedError, match=r"text\.context is 65, the model has positions for 64"):
        Pretrain(pretrain_settings(place, context=65))
    with pytest.raises(ValueError, match="denoisers gives rates"):
        adapt_settings(place, denoisers={"r3": 1.0})
    with pytest.raises(ValueError, match="above 0"):
        adapt_settings(place, denoisers={"s-25": 0.0})
    made = pretrain_settings(place)
    with pytest.raises(ValueError, match="needs one of the tables"):
        replace(made, fresh=Fresh())
    with pytest.raises(ValueError, match="needs one of the tables"):
        replace(made, model=None)
    write_gemma_folder(tmp_path / "gemma")
    tokenizer = json.loads((tmp_path / "gemma" / "tokenizer.json").read_text())
    for entry in tokenizer["added_tokens"]:
        entry["content"] = entry["content"].replace("unused", "used")
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {name.replace("unused", "used"): id for name, id in vocabulary.items()}
    (tmp_path / "gemma" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RefembedError, match=r"has 0 of the tokens <unused3> .* UL2 needs \d+ for 32 tokens"):
        Adapt(replace(adapt_settings(place), model=Model(tmp_path / "gemma")))


@pytest.mark.long
def test_real_text_is_learned(data: Path, tmp_path: Path) -> None:
    """Wrong if either stage learns nothing from real text: held-out losses fall, from a fresh decoder to an encoder
    that refembed opens, by the same tables that a TOML file has.
    """
    with gzip.open(data / "train" / "raw_text" / "en.tsv.gz") as source, gzip.open(tmp_path / "en.tsv.gz", "w") as few:
        few.writelines(islice(source, 1500))
    text = {"file": [{"path": "en.tsv.gz"}], "context": 64, "batch": 8, "held_out": 40}
    fresh = {
        "vocabulary": 1500,
        "sample": 1000,
        "width": 48,
        "mlp": 96,
        "head": 16,
        "layers": 3,
        "every": 3,
        "window": 32,
    }
    tables = {
        "run": {"out": "decoder", "steps": 30, "seed": 1, "measure_every": 0},
        "optimizer": {"learning_rate": 1e-2},
        "text": text,
        "fresh": fresh,
    }
    result = run_pretrain(tables, tmp_path / "pretrain.toml")
    before, after = (result["held_out"][when]["loss"] for when in ("before", "after"))
    assert after < before - 1.2
    tables = {
        "run": {"out": "encoder", "steps": 30, "seed": 1, "measure_every": 0},
        "optimizer": {"learning_rate": 5e-3},
        "text": text,
        "model": {"folder": "decoder/model"},
    }
    result = run_adapt(tables, tmp_path / "adapt.toml")
    before, after = (result["held_out"][when]["loss"] for when in ("before", "after"))
    assert after < before - 0.6
    vectors = refembed.load(tmp_path / "encoder" / "model", backend="numpy").encode(["a window", "a library"])
    assert vectors.shape == (2, 48)


def test_an_untrained_encoder_runs_by_the_same_table(place: Path) -> None:
    """Wrong if the comparison of the paper, from a decoder without UL2, cannot be run, or runs twice."""
    tables = {
        "run": {"out": str(place / "decoder-only"), "steps": 1},
        "optimizer": {"learning_rate": 1e-3},
        "text": {"file": [{"path": "en.tsv.gz"}], "context": CONTEXT},
        "model": {"folder": "gemma"},
        "initialisation": "decoder",
    }
    result = run_adapt(tables, place / "adapt.toml")
    assert result["steps"] == 0
    stamp = open_checkpoint(place / "decoder-only" / "model").stamp
    assert run_adapt(tables, place / "adapt.toml") == result
    assert open_checkpoint(place / "decoder-only" / "model").stamp == stamp


def test_a_folder_in_use_is_left_alone(place: Path, tmp_path: Path) -> None:
    """Wrong if a second run writes its tokenizer into the folder of one that goes on."""
    fcntl = pytest.importorskip("fcntl")
    tables = {
        "run": {"out": str(tmp_path), "steps": 1},
        "optimizer": {"learning_rate": 1e-3},
        "text": {"file": [{"path": str(place / "en.tsv.gz")}], "context": CONTEXT},
        "fresh": {"vocabulary": 900, "width": 12, "mlp": 8, "layers": 1, "head": 4, "context": CONTEXT},
    }
    with (tmp_path / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(RefembedError, match="another process is training"):
            run_pretrain(tables, tmp_path / "pretrain.toml")
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


def test_paragraphs_without_tokens_are_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if text is left out of training in silence."""
    stage = Pretrain(pretrain_settings(place))
    whole = stage.tokenizer

    def tokenize(texts: list[str]) -> list[Any]:
        return [RefembedError("text-token", "spells <x>"), *whole(texts[1:])]

    monkeypatch.setattr(stage, "tokenizer", tokenize)
    with pytest.warns(UserWarning, match="a paragraph spells <x>; it is left out: 'bad one'"):
        assert len(stage.rows(["bad one", "the window"], "here")) == 1


@pytest.mark.long
def test_two_processes_make_the_step_of_one(place: Path, tmp_path: Path) -> None:
    """Wrong if a target is weighed by whose process it falls to, or whole parameters differ from sharded ones: two
    processes in two parts each, of a batch that neither divides, against one process.
    """
    files = {}
    for stage in ("pretrain", "adapt"):
        for way in ("alone", "ddp", "fsdp"):
            out = tmp_path / f"{stage}-{way}"
            out.mkdir()
            text = {"file": [{"path": str(place / "en.tsv.gz")}], "context": CONTEXT, "batch": 7, "held_out": 12}
            tables = {
                "stage": stage,
                "run": {"out": str(out), "steps": 1, "parallel": way.replace("alone", "ddp")},
                "optimizer": {"learning_rate": 1e-3},
                "text": text | ({} if way == "alone" else {"parts": 2}),
                "model": {"folder": str(place / "gemma")},
            }
            files[out] = tmp_path / f"{out.name}.json"
            files[out].write_text(json.dumps(tables))
    launch(2, [file for out, file in files.items() if "alone" not in out.name])
    for stage in ("pretrain", "adapt"):
        alone = tmp_path / f"{stage}-alone"
        work(files[alone])
        expected = load_file(alone / "gradients.safetensors")
        numbers = json.loads((alone / "numbers.json").read_text())
        for way in ("ddp", "fsdp"):
            out = tmp_path / f"{stage}-{way}"
            assert json.loads((out / "numbers.json").read_text()) == pytest.approx(numbers, rel=1e-5)
            found = load_file(out / "gradients.safetensors")
            assert found.keys() == expected.keys()
            for name, gradient in expected.items():
                largest = float(gradient.abs().max())
                torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=f"{out} {name}")
            assert load_file(out / "model" / "model.safetensors").keys()


def launch(processes: int, files: list[Path]) -> None:
    """The worker under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    worker = Path(__file__).with_name("language_worker.py")
    done = subprocess.run([*command, worker, *files], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
