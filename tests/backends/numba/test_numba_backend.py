"""The Numba backend against the reference: agreement, and results that depend on nothing but the text."""

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from support import (
    LENGTHS,
    SMALL,
    checkpoint_of,
    configs,
    quantised,
    random_ids,
    texts_of,
    widened,
    write_checkpoint,
)

import refembed
from refembed import backend
from refembed.checkpoint import Checkpoint, open_checkpoint
from refembed.cli import main
from refembed.quantization.folder import quantize_folder
from refembed.reference import FULL, SLIDING, Config, collector, embed
from refembed.reference.quantize import FORMS

pytest.importorskip("numba")
from numba.core.caching import IndexDataCacheFile
from refembed_numba import encoder as numba_encoder
from refembed_numba.backend import BACKEND
from refembed_numba.compiled import compiled
from refembed_numba.encoder import NumbaEncoder, passes
from refembed_numba.team import RUNS_HELD, Team

ROOT = Path(__file__).parents[3]


BLOCKS = replace(SMALL, width=64, mlp=96, heads=2, head=48, dense=96, dimensions=32)  # rows are whole blocks of 32


@pytest.fixture(scope="module")
def small() -> Checkpoint:
    return checkpoint_of(SMALL)


@pytest.fixture(scope="module")
def kinds(small: Checkpoint) -> dict[str, tuple[Checkpoint, str]]:
    """A checkpoint and a precision for every way in which weights are kept."""
    blocks = checkpoint_of(BLOCKS)
    stored = {form: (quantised(blocks, form), "int8") for form in FORMS}
    return {"float32": (small, "float32"), "int8": (small, "int8")} | stored


# ----------------------------------------------------------------------------------------------------------- agreement
@settings(max_examples=60, deadline=None)
@given(config=configs(3, 80, 150), lengths=LENGTHS, seed=some.integers(0, 99))
def test_vectors_are_the_references(config: Config, lengths: list[int], seed: int) -> None:
    """Wrong if any shape, window, head grouping or length is computed as something else than the reference says.

    What a float32 computation may be off by depends on the random model; the reference run in float32 says how much.
    """
    checkpoint = checkpoint_of(config, seed)
    exact, single = widened(checkpoint, np.float64), widened(checkpoint, np.float32)
    texts = texts_of(config, lengths)
    found = NumbaEncoder(checkpoint, "float32", 1).encode(texts)
    for ids, vector in zip(texts, found, strict=True):
        expected = embed(ids, exact, config)
        spread = np.abs(embed(ids, single, config) - expected).max()
        assert np.abs(vector - expected).max() <= 1e-6 + 4 * spread


@settings(max_examples=60, deadline=None)
@given(
    config=configs(2, 96, 160, step=32), form=some.sampled_from(FORMS), lengths=LENGTHS, seed=some.integers(0, 99)
)  # fmt: skip
def test_stored_levels_give_the_references_vectors(config: Config, form: str, lengths: list[int], seed: int) -> None:
    """Wrong if a form's levels, scales or places are taken for others; the truth is the reference with the same levels.

    Rounding the rows alone costs a random model up to 0.005; a block's scale taken for its neighbour's, 0.1.
    """
    checkpoint = quantised(checkpoint_of(config, seed), form)
    texts, exact = texts_of(config, lengths), widened(checkpoint, np.float64)
    found = NumbaEncoder(checkpoint, "int8", 1).encode(texts)
    expected = np.stack([embed(ids, exact, config) for ids in texts])
    assert (found * expected).sum(1).min() >= 0.99


@pytest.mark.parametrize("name", ["small-q8_0.gguf", "small-q4_0.gguf"])
def test_gguf_blocks(name: str) -> None:
    """Wrong if llama.cpp's blocks are unpacked into others: the lowest levels, scales below zero, a table of 8 bits."""
    checkpoint = open_checkpoint(ROOT / "tests" / "gguf" / name)
    assert checkpoint.quantized
    texts, exact = texts_of(checkpoint.config, [3, 20, 60]), widened(checkpoint, np.float64)
    expected = np.stack([embed(ids, exact, checkpoint.config) for ids in texts])
    assert (NumbaEncoder(checkpoint, "int8", 2).encode(texts) * expected).sum(1).min() >= 0.998


def test_layers_that_are_stored_otherwise() -> None:
    """Wrong if a matrix of 8 bits, or of floats, is packed among those of 4 bits as one of them.

    llama-quantize keeps some layers of a file in more bits.
    """
    floats = checkpoint_of(BLOCKS)
    eight, tensors = quantised(floats, "int8-block").tensors, dict(quantised(floats, "int4-block").tensors)
    for name in ("layers.1.self_attn.k_proj.weight", "layers.2.mlp.up_proj.weight", "2_Dense.linear.weight"):
        tensors[name] = eight[name]
    tensors |= {name: floats.tensors[name] for name in ("layers.1.self_attn.q_proj.weight", "3_Dense.linear.weight")}
    checkpoint, texts = replace(floats, tensors=tensors), texts_of(BLOCKS, [3, 20, 60])
    exact = widened(checkpoint, np.float64)
    expected = np.stack([embed(ids, exact, BLOCKS) for ids in texts])
    assert (NumbaEncoder(checkpoint, "int8", 2).encode(texts) * expected).sum(1).min() >= 0.998


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_kept_as_they_are_stored(kinds: dict[str, tuple[Checkpoint, str]], form: str) -> None:
    """Wrong if 4 bits become 8 in memory, or a dense matrix becomes floats."""
    checkpoint, precision = kinds[form]
    model = NumbaEncoder(checkpoint, precision, 1)
    matrices = (model.model.qkv, model.model.output, model.model.expand, model.model.contract, *model.dense)
    bits = {"int8-block": [8] * 6, "int4-block": [4] * 6, "mixed-channel": [8, 8, 4, 4, 4, 4]}[form]
    for matrix, needed, layers in zip(matrices, bits, [len(BLOCKS.layer_kinds)] * 4 + [1] * 2, strict=True):
        assert matrix.numbers.dtype == (np.int32 if needed == 8 else np.uint32)
        assert matrix.numbers.nbytes == layers * matrix.depth * matrix.columns * needed // 8


def test_trace_is_the_references(small: Checkpoint) -> None:
    """Wrong if a stage has another stage's numbers, name or place in the order."""
    ids, kept = random_ids(SMALL, 30), {}
    embed(ids, widened(small, np.float64), SMALL, collector(kept))
    found = NumbaEncoder(small, "float32", 2).trace(ids)
    assert [name for name in kept if name in found] == list(found)
    missing = {name.split(".", 2)[-1] for name in kept if name not in found}
    fused_away = ("attention.query_norm", "attention.key_norm", "attention.scores", "attention.weights")
    assert missing == {*fused_away, "attention.update", "mlp.gate", "mlp.up", "mlp.update"}
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, kept[name], atol=2e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_twin_conforms(precision: str, capsys: pytest.CaptureFixture) -> None:
    """Wrong if the backend does not pass the suite that every port is judged by."""
    assert main(["verify", "--backend", "numba", "--precision", precision]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_real_weights(weights: Path, real: refembed.Embedder, precision: str) -> None:
    """Wrong if the released model's vectors are off by more than 1e-6, or in int8 by more than its cosine contract."""
    model = refembed.load(weights, backend="numba", precision=precision)
    texts = ["Mars looks red.", "Venus is hot. " * 20, "", "def f(x): return x", "Der Mond ist aufgegangen. " * 80]
    found, expected = model.encode(texts), real.encode(texts)
    if precision == "float32":
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    cosines = (found * expected).sum(1)
    assert cosines.min() >= 0.998
    assert cosines.mean() >= 0.999


@pytest.mark.parametrize("form", ["int4-block", pytest.param("mixed-channel", marks=pytest.mark.long)])
def test_real_weights_quantised(weights: Path, tmp_path: Path, form: str) -> None:
    """Wrong if the released model's vectors in this form lose more than chapter 9 says to rounded activations."""
    quantize_folder(weights, tmp_path / form, form)
    model, truth = (refembed.load(tmp_path / form, backend=name) for name in ("numba", "numpy"))
    assert (model.info.precision, model.info.weights) == ("int8", form)
    texts = ["Mars looks red.", "Venus is hot. " * 20, "", "def f(x): return x", "Der Mond ist aufgegangen. " * 20]
    cosines = (model.encode(texts) * truth.encode(texts)).sum(1)
    assert cosines.min() >= 0.995  # of many texts 0.9954 was measured, tests/bench/LOG.md
    assert cosines.mean() >= 0.999


# ------------------------------------------------------------------------------------------ what may not change results
@settings(max_examples=30, deadline=None)
@given(
    data=some.data(),
    lengths=LENGTHS,
    threads=some.integers(1, 4),
    at_once=some.integers(1, 200),
    many=some.sampled_from([0, 1, 15, 10**9]),
    kind=some.sampled_from(["float32", "int8", *FORMS]),
)
def test_bits_depend_on_the_text_alone(
    kinds: dict[str, tuple[Checkpoint, str]], data: some.DataObject, lengths: list[int], threads: int, at_once: int,
    many: int, kind: str,
) -> None:  # fmt: skip
    """Wrong if the company, the order, the number of threads, the cut into passes or into tasks by rows or by columns
    changes one bit of a vector.
    """
    checkpoint, precision = kinds[kind]
    texts = texts_of(checkpoint.config, lengths)
    alone = NumbaEncoder(checkpoint, precision, 1)
    expected = np.concatenate([alone.encode([ids]) for ids in texts])
    picked = data.draw(some.lists(some.integers(0, len(texts) - 1), max_size=12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba_encoder, "TOKENS_A_THREAD", at_once)
        patch.setattr(numba_encoder, "MANY", many)
        found = NumbaEncoder(checkpoint, precision, threads).encode([texts[index] for index in picked])
    np.testing.assert_array_equal(found, expected[picked])


def test_bits_at_the_released_sizes() -> None:
    """Wrong if bits hold still only where a matrix is smaller than a panel: full width, short window."""
    config = replace(Config(), vocabulary=160, layer_kinds=(SLIDING, FULL), context=400, reach=100)
    floats = checkpoint_of(config)
    texts = texts_of(config, [18, 399, 1, 120])
    made = [(quantised(floats, form), "int8") for form in FORMS]
    for checkpoint, precision in [(floats, "float32"), (floats, "int8"), *made]:
        one, three = (NumbaEncoder(checkpoint, precision, threads) for threads in (1, 3))
        expected = np.concatenate([one.encode([ids]) for ids in texts])
        np.testing.assert_array_equal(three.encode(texts), expected)
        np.testing.assert_array_equal(one.encode(texts[::-1])[::-1], expected)


@given(lengths=some.lists(some.integers(1, 2048), max_size=40), room=some.integers(1, 4096))
def test_passes_laws(lengths: list[int], room: int) -> None:
    """Wrong if a text is left out or comes twice, or a pass grows with the number of texts."""
    groups = list(passes(lengths, room))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or sum(lengths[index] for index in group) <= room


# ----------------------------------------------------------------------------------------------- threads and processes
def test_calls_from_many_threads(small: Checkpoint) -> None:
    """Wrong if two calls at once mix their numbers, or wait for each other for ever."""
    model, texts = NumbaEncoder(small, "float32", 2), texts_of(SMALL, [5, 60, 33])
    expected, found = model.encode(texts), {}

    def call(number: int) -> None:
        found[number] = [model.encode(texts) for _ in range(5)]

    callers = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert len(found) == 6
    for results in found.values():
        np.testing.assert_array_equal(results, [expected] * 5)


def test_turns_are_made_as_texts_need_them(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a table of turns that grows while others read it changes a bit, or goes by the context in place of the
    texts."""
    texts = texts_of(SMALL, [1, 60, 3, 20, 33, 17])
    needed = np.concatenate([NumbaEncoder(small, "float32", 1).encode([text]) for text in texts])
    monkeypatch.setattr(numba_encoder, "FIRST_TURNS", 2 * SMALL.head)
    model = NumbaEncoder(replace(small, config=replace(SMALL, context=2**24)), "float32", 2)
    assert model.turns.size == 2 * 2 * SMALL.head
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: model.encode([text]), texts * 10))
    np.testing.assert_array_equal(np.concatenate(found), np.tile(needed, (10, 1)))
    assert model.turns.size < 2 * 2 * 60 * SMALL.head


def test_a_thread_that_does_not_come() -> None:
    """Wrong if a thread that the system keeps waiting holds the others up, or collects the arrays of every run."""
    team, stopped, ran = Team(3), threading.Event(), []
    team.run(lambda number: number == 1 and stopped.wait(60))
    for _ in range(50):
        team.run(lambda number: ran.append(number))
    assert ran.count(0) == 50
    assert len(team.handed) <= RUNS_HELD * 2
    stopped.set()


def test_threads_that_come_late(small: Checkpoint) -> None:
    """Wrong if a step waits for threads in place of tasks, or one that comes when all is done spoils the next."""
    model, gate, texts = NumbaEncoder(small, "float32", 3), threading.Event(), texts_of(SMALL, [5, 60])
    expected, found = NumbaEncoder(small, "float32", 1).encode(texts), []
    for _ in range(2):
        model.team.others.submit(gate.wait, 60)
    caller = threading.Thread(target=lambda: found.extend(model.encode(texts) for _ in range(3)), daemon=True)
    caller.start()
    caller.join(30)
    gate.set()
    np.testing.assert_array_equal([*found, model.encode(texts)], [expected] * 4)


def test_threads_that_cannot_be_started(small: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a system at its limit of threads leaves those that did start waiting for ever."""
    started, start = [], threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)
        started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(refembed.RefembedError, match="take fewer than 5") as caught:
        NumbaEncoder(small, "float32", 5)
    assert caught.value.id == "option-threads"
    for thread in started:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_fork(small: Checkpoint) -> None:
    """Wrong if a forked child waits for threads that only its parent has, or dies."""
    model, texts = NumbaEncoder(small, "float32", 2), texts_of(SMALL, [5, 60])
    expected = model.encode(texts)
    queue = multiprocessing.get_context("fork").Queue()
    child = multiprocessing.get_context("fork").Process(target=lambda: queue.put(model.encode(texts)))
    child.start()
    np.testing.assert_array_equal(queue.get(timeout=60), expected)
    child.join(60)
    assert child.exitcode == 0


def test_in_a_spawned_pool(tmp_path: Path) -> None:
    """Wrong if an embedder cannot be sent to another process, or gives other vectors there."""
    model = refembed.load(write_checkpoint(tmp_path / "small"), backend="numba", threads=1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(model.encode, (["the air", "a"],)).get(timeout=120)
    np.testing.assert_array_equal(found, model.encode(["the air", "a"]))


# ---------------------------------------------------------------------------------------------------- being a backend
def test_chosen_where_none_is_named(monkeypatch: pytest.MonkeyPatch, small_folder: Path) -> None:
    """Wrong if the fast backend is there and the slow one is taken."""
    monkeypatch.undo()  # conftest's choice of NumPy
    model = refembed.load(small_folder)
    assert (model.info.backend, model.info.precision) == ("numba", "float32")
    assert refembed.load(small_folder, threads=3).info.threads == 3


def test_a_quantised_folder_runs_as_it_is_stored(tmp_path: Path) -> None:
    """Wrong if it becomes floats unasked, cannot become floats, or its other precision is lost in pickling."""
    folder = write_checkpoint(tmp_path / "floats", BLOCKS)
    quantize_folder(folder, tmp_path / "int4", "int4-block")
    usual, floats = (refembed.load(tmp_path / "int4", backend="numba", precision=one) for one in (None, "float32"))
    assert [(model.info.precision, model.info.weights) for model in (usual, floats)] == [
        ("int8", "int4-block"),
        ("float32", "int4-block"),
    ]
    assert refembed.load(folder, backend="numba").info.weights == "float32"
    assert pickle.loads(pickle.dumps(floats)).info.precision == "float32"


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if compiled code that cannot be kept costs the call it was compiled for, or another error is hidden."""
    errors = [OSError(errno.ENOSPC, "No space left on device"), TypeError("not to be pickled")]

    def save(self: IndexDataCacheFile, signature: object, data: object) -> None:
        raise errors[0]

    monkeypatch.setattr(IndexDataCacheFile, "save", save)

    def add(one: int, other: int) -> int:
        return one + other

    assert compiled(add)(1, 2) == 3
    errors.pop(0)
    with pytest.raises(TypeError):
        compiled(add)(1, 2)


def test_why_not(monkeypatch: pytest.MonkeyPatch, small_folder: Path) -> None:
    """Wrong if a machine that cannot run it gets another backend in silence, or a traceback."""
    monkeypatch.undo()  # conftest's choice of NumPy
    monkeypatch.setattr("refembed_torch.backend.TorchBackend.priority", -1)
    monkeypatch.setattr("refembed_numba.backend.find_spec", lambda name: None)
    with pytest.raises(refembed.RefembedError, match=r"refembed\[numba\]"):
        refembed.load(small_folder, backend="numba")
    model = refembed.load(small_folder)
    assert model.info.backend == "numpy"
    assert "refembed[numba]" in model.info.why
    monkeypatch.undo()
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert "riscv64" in str(BACKEND.why_not())


def test_found_without_importing_numba() -> None:
    """Wrong if loading another backend pays for importing Numba."""
    code = "import sys; from refembed.backend import find_backends; find_backends(); print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert {one.name for one in backend.find_backends()} >= {"numba", "numpy"}


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """Wrong if a machine whose cache folder cannot be made cannot import the kernels."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    code = (
        "import numpy as np; from refembed_numba.compiled import compiled; from refembed_numba.kernels import exp\n"
        "print(compiled(lambda x: exp(x))(np.float32(0)))"
    )
    environment = {**os.environ, "REFEMBED_CACHE": str(blocked)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "1.0", done.stderr
