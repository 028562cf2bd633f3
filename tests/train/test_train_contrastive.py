"""Stages prefinetune and finetune: the losses of the right texts, figures that mean what they say, and learning."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from refembed_torch.forward import unit
from refembed_torch.train import config, loop
from refembed_torch.train.contrastive import (
    Contrastive,
    FinetuneSettings,
    PrefinetuneSettings,
    run,
    run_finetune,
    run_prefinetune,
    search_scores,
)
from refembed_torch.train.data import Batch
from train_support import write_rows

import refembed
from refembed.checkpoint import open_checkpoint
from refembed.errors import RefembedError
from refembed.prompts import PROMPTS
from refembed.reference import embed, losses

TWIN = Path(__file__).parents[2] / "golden" / "twin" / "checkpoint"


def tables(tmp_path: Path, model: Path, rows: Path, **others: Any) -> dict[str, Any]:
    """A training file's tables; those of others are laid over, key by key."""
    chosen: dict[str, Any] = {
        "run": {"out": str(tmp_path / "run"), "steps": 3},
        "model": {"folder": str(model)},
        "data": {"set": [{"file": str(rows)}], "batch": 6, "hard": 1, "held_out": 8, "context": 64},
        "optimizer": {"learning_rate": 1e-3},
        "loss": {"lengths": [40, 16], "temperature": 0.2},
    }
    for name, table in others.items():
        chosen[name] = chosen.get(name, {}) | table if isinstance(table, dict) else table
    return chosen


def settings_of(*given: Any, **others: Any) -> FinetuneSettings:
    return config.read(FinetuneSettings, tables(*given, **others), Path("test.toml"))


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without curves, which take longer than the training."""
    monkeypatch.setattr("refembed_torch.train.plot.curves", lambda *_: None)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", 60)


# --------------------------------------------------------------------------------------------------------------- a step
def reference_vectors(folder: Path, batch: Batch) -> losses.Batch:
    """Raw vectors of a batch's texts, with the prompts that package_search has."""
    checkpoint = open_checkpoint(folder)
    parameters = {name: tensor.load(np.float64) for name, tensor in checkpoint.tensors.items()}
    tokenizer = refembed.load(folder, backend="numpy").tokenizer

    def side(prompt: str, texts: list[str]) -> NDArray[Any]:
        found = []
        for ids in tokenizer([PROMPTS[prompt] + text for text in texts]):
            trace: dict[str, Any] = {}
            embed(ids, parameters, checkpoint.config, trace=trace.__setitem__)
            found.append(trace["projected"])
        return np.array(found)

    examples = batch.examples
    negatives = side("document", [text for one in examples for text in one.negatives])
    return losses.Batch(
        side("query", [one.query for one in examples]),
        side("document", [one.positive for one in examples]),
        negatives.reshape(len(examples), -1, checkpoint.config.dimensions),
    )


@pytest.mark.parametrize(("chunk", "width"), [(0, 0), (70, 24), (0, 40)])
def test_the_loss_is_the_references(tmp_path: Path, small_folder: Path, chunk: int, width: int) -> None:
    """Wrong if a text gets another's prompt, place or teacher's vector, a shared text is not masked, or a setting does
    not arrive. width: of the teacher's vectors; 0 for no teacher.
    """
    same = [{"query": f"q {i % 4}", "positive": f"p {i % 5}", "negative": [f"n {i}", f"m {i}"]} for i in range(20)]
    file = tmp_path / "same.jsonl"
    file.write_text("".join(json.dumps({"task": "package_search"} | row) + "\n" for row in same))
    chance = np.random.default_rng(0)
    teacher = losses.Batch(*(chance.standard_normal((20, *hard, width or 1)) for hard in ((), (), (2,))))
    for name, vectors in teacher._asdict().items():
        np.save(tmp_path / f"same.{name}.npy", vectors)
    weights = {"contrastive": 0.7, "spread_out": 3.0, "matching": 2.0}
    chosen = {"lengths": [40, 8], "temperature": 0.3, "alpha": 2.0, **weights}
    more = {"teacher": {"kind": "file", "folder": str(tmp_path)}} if width else {}
    data = {"held_out": 0, "hard": 2}
    settings = settings_of(tmp_path, small_folder, file, loss=chosen, data=data, chunk=chunk, **more)
    batch, stage = Contrastive(settings).batches(0), Contrastive(settings)
    found = stage.step(0)
    student = reference_vectors(small_folder, batch)
    rows = [example.row for example in batch.examples]
    goal = losses.Batch(*(side[rows] for side in teacher)) if width else student
    mapping = dict(stage.module.named_parameters()).get("mapping.weight")
    assert (mapping is not None) == (width == 24)
    matrix = np.eye(40) if mapping is None else mapping.detach().numpy().astype(float)
    mask = losses.false_negative_mask([one.query for one in batch.examples], [one.positive for one in batch.examples])
    assert not mask.all()
    expected = losses.total(student, mask, goal, matrix, [40, 8], 0.3, 2.0, losses.Weights(**weights))
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["tokens"] == sum(map(len, [*batch.queries, *batch.positives, *batch.negatives]))
    assert mapping is None or mapping.grad is not None


def test_a_teacher_of_the_same_mind(tmp_path: Path, small_folder: Path, rows: Path) -> None:
    """Wrong if the teacher reads other texts than the student, or pairs without negatives cannot have one."""
    teacher = {"kind": "refembed", "folder": str(small_folder), "backend": "numpy"}
    alone, taught = (
        Contrastive(settings_of(tmp_path, small_folder, rows, data={"hard": 0}, **more)).step(0)["loss"]
        for more in ({}, {"teacher": teacher, "loss": {"matching": 1e3}})
    )
    assert taught == pytest.approx(alone, rel=1e-6)


def test_finetuning_lowers_the_loss(tmp_path: Path, small_folder: Path, rows: Path) -> None:
    """Wrong if gradients point elsewhere than downhill, or the trained model is not what is measured and kept."""
    table = tables(
        tmp_path,
        small_folder,
        rows,
        run={"steps": 20, "measure_every": 0},
        data={"batch": 12},
        optimizer={"learning_rate": 5e-3},
    )
    held_out = run_finetune(table, tmp_path / "f.toml")["held_out"]
    assert held_out["after"]["loss"] < held_out["before"]["loss"] - 0.5
    assert held_out["after"]["ndcg@10"] > held_out["before"]["ndcg@10"] + 10
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["set"] for line in lines if "held_out" not in line] == ["rows"] * 20
    again = tables(tmp_path, tmp_path / "run" / "model", rows, run={"out": str(tmp_path / "again")})
    figures = Contrastive(config.read(FinetuneSettings, again, tmp_path / "f.toml")).measure()
    assert figures == pytest.approx(held_out["after"], rel=1e-4)


def test_prefinetuning_weighs_types_of_task_evenly(tmp_path: Path, small_folder: Path, rows: Path) -> None:
    """Wrong if a type of task of which there is much data crowds the others out."""
    other = write_rows(tmp_path / "other.jsonl", 60)
    third = write_rows(tmp_path / "third.jsonl", 60)
    sets = [{"file": str(rows)}, {"file": str(other)}, {"file": str(third), "group": "title and body"}]
    table = tables(tmp_path, small_folder, rows, data={"set": sets, "hard": 0})
    chosen = config.read(PrefinetuneSettings, table, tmp_path / "f.toml")
    assert Contrastive(chosen).batches.shares == pytest.approx([0.25, 0.25, 0.5])
    assert run_prefinetune(table, tmp_path / "f.toml")["steps"] == 3


def test_prefinetuning_takes_pairs(tmp_path: Path, small_folder: Path, rows: Path) -> None:
    """Wrong if hard negatives are silently left out, or slow the stage that is meant for large batches."""
    with pytest.raises(RefembedError, match="finetune"):
        run_prefinetune(tables(tmp_path, small_folder, rows), tmp_path / "f.toml")


@pytest.mark.parametrize(
    ("others", "what"),
    [
        ({"loss": {"lengths": [768]}}, "lengths"),
        ({"loss": {"lengths": []}}, "lengths"),
        ({"loss": {"lengths": [16, 16]}}, "none twice"),
        ({"loss": {"contrastive": 0.0, "spread_out": 0.0}}, "no loss is left"),
        ({"data": {"batch": 1, "hard": 0}}, "no loss is left"),
        ({"data": {"context": 4096}}, r"data\.context is 4096, the model's"),
        ({"loss": {"temperature": 0.0}}, "temperature"),
        ({"loss": {"alpha": -1.0}}, "alpha"),
        ({"chunk": -1}, "chunk"),
        ({"pooler": "max"}, "pooler"),
        ({"quantization": "int3"}, "quantization"),
    ],
)
def test_settings_that_cannot_be(
    tmp_path: Path, small_folder: Path, rows: Path, others: dict[str, Any], what: str
) -> None:
    """Wrong if a setting that makes no sense is found after an hour, or never."""
    with pytest.raises(RefembedError, match=what) as error:
        run_finetune(tables(tmp_path, small_folder, rows, **others), tmp_path / "f.toml")
    assert error.value.id == "train-config"


def test_a_missing_library_is_named_at_once(
    tmp_path: Path, small_folder: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong if training runs for hours and fails at its first held-out figure."""
    monkeypatch.setattr("refembed.evaluation.metrics.find_spec", lambda module: None)
    with pytest.raises(RefembedError, match=r"refembed\[evaluate\]") as error:
        Contrastive(settings_of(tmp_path, small_folder, rows))
    assert error.value.id == "evaluate-missing"


# -------------------------------------------------------------------------------------------------------------- figures
def batch_of(queries: list[int], positives: list[int]) -> Batch:
    """Texts that are told apart by a number."""
    return Batch("set", (), [np.array([one]) for one in queries], [np.array([one]) for one in positives], [])


def test_scores_by_hand() -> None:
    """Wrong if a query is asked twice, a text stored twice counts as two, or ranks are off by one.

    Three different positives a, b and c; the first query stands there twice, with positives a and b.
    """
    batch = batch_of([1, 1, 2], [7, 8, 9])
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    positives = unit(torch.tensor([[1.0, 0.1], [-1.0, 0.2], [0.5, 0.9]]))
    # the first query finds a at 1, c at 2, b at 3; the second c at 1
    first = (1 + 1 / np.log2(4)) / (1 + 1 / np.log2(3))
    assert search_scores(queries, positives, batch) == pytest.approx({"ndcg@10": 50 * (first + 1), "mrr@10": 100.0})
    # the second query's positive is now a, which it finds at rank 2
    batch = batch_of([1, 1, 2], [7, 8, 7])
    positives[2] = positives[0]
    found = search_scores(queries, positives, batch)
    second = 1 / np.log2(3)
    assert found == pytest.approx({"ndcg@10": 50 * (1 + second), "mrr@10": 75.0})


def test_a_set_without_held_out_examples(tmp_path: Path, small_folder: Path, rows: Path) -> None:
    """Wrong if a set of which nothing is kept makes training fail."""
    assert Contrastive(settings_of(tmp_path, small_folder, rows, data={"held_out": 0})).measure() == {}


def test_many_held_out_examples(
    tmp_path: Path, small_folder: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, a run whose batches fit into memory would end where its held-out examples do not."""
    stage = Contrastive(settings_of(tmp_path, small_folder, rows))
    whole, calls, forward = stage.measure(), [], stage.model.forward

    def counted(texts: list[NDArray[Any]]) -> torch.Tensor:
        calls.append(sum(map(len, texts)))
        return forward(texts)

    monkeypatch.setattr("refembed_torch.train.contrastive.MEASURED", 60)
    monkeypatch.setattr(stage.model, "forward", counted)
    assert stage.measure() == pytest.approx(whole, rel=1e-5)
    assert len(calls) > 4
    assert max(calls) <= 60


def test_a_second_run_leaves_the_first_ones_vectors(tmp_path: Path, small_folder: Path, rows: Path) -> None:
    """If this failed, a run that is refused its folder would first cut off what the one there has just stored of its
    teacher's vectors; and a finished run would load model and data to say no more than that.
    """
    teacher = {"kind": "refembed", "folder": str(small_folder), "backend": "numpy"}
    chosen = settings_of(tmp_path, small_folder, rows, run={"steps": 1}, teacher=teacher)
    result = run(chosen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refembed_torch.train.contrastive.Contrastive", lambda _: pytest.fail("it was loaded"))
        assert run(chosen) == result
    (store,) = (chosen.run.out / "teacher").iterdir()
    with store.open("ab") as handle:
        handle.write(b"half a lot")
    before = store.read_bytes()
    with loop.alone(chosen.run.out), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "HELD", set())  # as another process sees it
        with pytest.raises(RefembedError, match="another process"):
            run(chosen)
    assert store.read_bytes() == before


def test_figures_are_means_over_sets(tmp_path: Path, small_folder: Path, rows: Path) -> None:
    """Wrong if one set's figure stands for all, or a large set drowns a small one."""
    other = write_rows(tmp_path / "other.jsonl", 30, seed=5)
    found = Contrastive(
        settings_of(tmp_path, small_folder, rows, data={"set": [{"file": str(rows)}, {"file": str(other)}]})
    ).measure()
    for key in ("loss", "ndcg@10", "mrr@10"):
        assert found[key] == pytest.approx((found[f"{key} rows"] + found[f"{key} other"]) / 2)
        assert found[f"{key} rows"] != found[f"{key} other"]


# -------------------------------------------------------------------------------------------------------------- poolers
def test_a_new_attention_pooler_is_the_mean(tmp_path: Path, small_folder: Path, rows: Path) -> None:
    """Wrong if training with another pooler starts from noise, or cannot leave the mean."""
    texts = Contrastive(settings_of(tmp_path, small_folder, rows)).batches(0).positives
    mean, attention = (
        Contrastive(settings_of(tmp_path, small_folder, rows, pooler=one)) for one in ("mean", "attention")
    )
    with torch.no_grad():
        torch.testing.assert_close(attention.model(texts), mean.model(texts), rtol=1e-5, atol=1e-6)
    optimizer = torch.optim.SGD(attention.module.parameters(), 0.1)
    for index in range(2):  # the key's gradient is nothing as long as the query is
        optimizer.zero_grad()
        attention.step(index)
        optimizer.step()
    for name in ("query", "key.weight", "value.weight"):
        assert attention.model.get_parameter(f"pooling.{name}").grad.abs().max() > 1e-6


@pytest.mark.parametrize("pooler", ["", "first", "last"])
def test_the_product_opens_in_sentence_transformers(tmp_path: Path, rows: Path, pooler: str) -> None:
    """Wrong if what was trained is saved otherwise than as trained, or so that nothing else reads it."""
    from sentence_transformers import SentenceTransformer

    stage = Contrastive(settings_of(tmp_path, TWIN, rows, loss={"lengths": [48]}, pooler=pooler))
    optimizer = torch.optim.SGD(stage.module.parameters(), 1e-2)
    stage.step(0)
    optimizer.step()
    stage.finish(tmp_path / "model")
    peer = SentenceTransformer(str(tmp_path / "model"), device="cpu", local_files_only=True)
    texts = [example.positive for example in stage.batches.held_out()["rows"]]
    expected = peer.encode(texts, prompt_name="document", normalize_embeddings=True)
    tokens = stage.batches.tokenize([PROMPTS["document"] + text for text in texts])
    with torch.no_grad():
        np.testing.assert_allclose(stage.model.encode(tokens).numpy(), expected, atol=5e-6)


def test_an_attention_pooler_is_kept(tmp_path: Path, small_folder: Path, rows: Path) -> None:
    """Wrong if a model that no library can open is lost at the end of its training."""
    from safetensors.torch import load_file

    stage = Contrastive(settings_of(tmp_path, small_folder, rows, pooler="attention"))
    stage.finish(tmp_path / "model")
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == dict(stage.model.named_parameters()).keys()
    assert all(torch.equal(found[name], parameter) for name, parameter in stage.model.named_parameters())


# -------------------------------------------------------------------------------------------- another library's trainer
def peer_losses(chosen: FinetuneSettings, batches: list[Batch], out: Path) -> list[float]:
    """Of the same examples in the same order: sentence-transformers' trainer, its own AdamW, linear schedule, tokens,
    prompts and loss.
    """
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from torch.utils.data import BatchSampler, SequentialSampler

    options = {"device": "cpu", "local_files_only": True, "model_kwargs": {"dtype": torch.float32}}
    peer = SentenceTransformer(str(chosen.model.folder), **options)
    peer.max_seq_length = chosen.data.context
    examples = [example for batch in batches for example in batch.examples]
    size = len(batches[0].examples)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(out),
        max_steps=len(batches),
        per_device_train_batch_size=size,
        learning_rate=chosen.optimizer.learning_rate,
        max_grad_norm=0.0,
        prompts={"query": PROMPTS["query"], "positive": PROMPTS["document"]},
        batch_sampler=lambda dataset, **_: BatchSampler(SequentialSampler(dataset), size, True),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    pairs = {"query": [one.query for one in examples], "positive": [one.positive for one in examples]}
    loss = MultipleNegativesRankingLoss(peer, scale=1 / chosen.loss.temperature)
    trainer = SentenceTransformerTrainer(peer, arguments, train_dataset=Dataset.from_dict(pairs), loss=loss)
    seen: list[float] = []
    compute = trainer.compute_loss

    def keep(*given: Any, **others: Any) -> Any:  # the log rounds
        found = compute(*given, **others)
        seen.append((found[0] if isinstance(found, tuple) else found).item())
        return found

    trainer.compute_loss = keep
    trainer.train()
    return seen


def own_losses(chosen: FinetuneSettings) -> tuple[list[float], list[Batch]]:
    """Those of a whole run, and the batches they are of; no text stands in a batch twice."""
    run(chosen)
    lines = [json.loads(line) for line in (chosen.run.out / "log.jsonl").read_text().splitlines()]
    stage = Contrastive(chosen)
    batches = [stage.batches(index) for index in range(chosen.run.steps)]
    assert all(stage.mask(batch).all() for batch in batches)
    return [line["loss"] for line in lines if "loss" in line], batches


def pairs_settings(tmp_path: Path, model: Path, file: Path, steps: int, rate: float, **data: Any) -> FinetuneSettings:
    whole = open_checkpoint(model).config.dimensions
    chosen = tables(
        tmp_path, model, file,
        run={"steps": steps, "measure_every": 0},
        data={"hard": 0, **data},
        optimizer={"learning_rate": rate, "warm_up": 0.0, "clip": 0.0},
        # so high that no loss comes near 1e-3, where float32's rounding of log(1 + x), 1e-7, is what would be compared
        loss={"lengths": [whole], "temperature": 0.1, "alpha": 0.0, "spread_out": 0.0},
    )  # fmt: skip
    return config.read(PrefinetuneSettings, chosen, tmp_path / "f.toml")


def test_losses_are_another_trainers(tmp_path: Path) -> None:
    """Wrong if a step, its rate, its loss, prompts or tokens differ from what everybody else's training does."""
    rows = write_rows(tmp_path / "rows.jsonl", 150)  # enough for one pass: a second may bring a text twice
    chosen = pairs_settings(tmp_path, TWIN, rows, 12, 1e-3, batch=8)
    found, batches = own_losses(chosen)
    expected = peer_losses(chosen, batches, tmp_path / "peer")
    assert found[0] > found[-1]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


# --------------------------------------------------------------------------------------------------------- real weights
@pytest.mark.long
def test_losses_with_real_weights_are_another_trainers(tmp_path: Path, weights: Path, data: Path) -> None:
    """Wrong if fifty steps of the released model's training are not what sentence-transformers makes of them.

    Five minutes on a busy two-core machine, and 10 GB.
    """
    file = data / "train" / "wordnet_gloss.jsonl.gz"
    chosen = pairs_settings(tmp_path, weights, file, 50, 1e-5, batch=8, held_out=10)
    found, batches = own_losses(chosen)
    expected = peer_losses(chosen, batches, tmp_path / "peer")
    assert min(expected) > 5e-3
    print("largest relative difference", np.max(np.abs(np.divide(found, expected) - 1)), "least loss", min(found))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.long
def test_finetuning_real_weights_improves_held_out_retrieval(tmp_path: Path, weights: Path, data: Path) -> None:
    """Wrong if a short finetuning on real triples spoils the released model instead of fitting it to them."""
    file = data / "train" / "tldr_command_en.jsonl.gz"
    table = tables(
        tmp_path, weights, file,
        run={"steps": 30, "measure_every": 0},
        data={"batch": 16, "held_out": 200},
        optimizer={"learning_rate": 2e-6},  # ten times as much makes both figures worse, with batches so small
        loss={"lengths": [768, 512, 256, 128], "temperature": 0.02},
        chunk=1024,
    )  # fmt: skip
    held_out = run_finetune(table, tmp_path / "f.toml")["held_out"]
    assert held_out["after"]["loss"] < held_out["before"]["loss"]
    assert held_out["after"]["ndcg@10"] > held_out["before"]["ndcg@10"]
    assert refembed.load(tmp_path / "run" / "model", backend="torch").encode("a").shape == (768,)


FULL_SIZE = """
import resource, sys, time
import numpy as np, torch
from refembed.reference import Config
from refembed_torch import losses
from refembed_torch.model import random_model
from refembed_torch.train.config import Optimizer
from refembed_torch.train.gradcache import add_gradients
from refembed_torch.train.loop import adamw, clip

chance, config = np.random.default_rng(0), Config()
model = random_model(config, device="cpu", checkpointing=True)
optimizer = adamw(model, Optimizer(1e-5))
examples, lengths = 8, (24, 512, 512)
texts = [chance.integers(4, config.vocabulary, length) for length in lengths for _ in range(examples)]
mask = torch.ones(examples, examples, dtype=torch.bool)
start = time.perf_counter()
loss = lambda vectors: losses.total(losses.split(vectors, examples), mask)
value = add_gradients(model, texts, loss, int(sys.argv[1]))
clip(model, 1.0)
optimizer.step()
print(float(value), time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.long
@pytest.mark.parametrize("chunk", [0, 1024])
def test_a_full_size_step_fits_in_16_gib(chunk: int) -> None:
    """Wrong if 300 million parameters, their gradients and AdamW's two moments need a larger machine, with 8 triples
    of 512 tokens.
    """
    command = [sys.executable, "-c", FULL_SIZE, str(chunk)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)  # busy machines are slow
    assert done.returncode == 0, done.stderr
    value, seconds, gib = map(float, done.stdout.split())
    assert np.isfinite(value)
    print(f"chunk {chunk}: {seconds:.0f} s, {gib:.1f} GiB")
    assert gib < 16
