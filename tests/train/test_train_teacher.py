"""Teachers: whose vectors come out, and that none is computed twice, not even by a run that was killed."""

import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refembed_torch.model import load_model
from refembed_torch.saving import save_model
from refembed_torch.train import distributed, teacher
from refembed_torch.train.config import read
from refembed_torch.train.data import Batches, DataSettings, SetSettings
from refembed_torch.train.teacher import Store, Teacher, TeacherSettings, open_teacher
from safetensors.numpy import save_file

import refembed
from refembed import backend
from refembed.embedder import DEFAULT_MODEL
from refembed.errors import RefembedError

TWIN = Path(__file__).parents[2] / "golden" / "twin" / "checkpoint"
TEXTS = ["mars is red", "venus is hot", "the moon is near", "jupiter is large", "saturn has rings", "the sun shines"]


def letters(texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array([2, *map(ord, text), 1]) for text in texts]


def batches_of(folder: Path, hard: int = 1, **options: Any) -> Batches:
    """Six rows whose negative is another's positive, the second with a title."""
    rows = [
        {"task": "qa", "query": f"{text[:6]}?", "positive": text, "negative": [TEXTS[index - 1], TEXTS[index - 2]]}
        for index, text in enumerate(TEXTS)
    ]
    rows[1]["positive_title"] = "Venus"
    file = folder / "set.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Batches(DataSettings((SetSettings(file),), batch=4, hard=hard, held_out=0, **options), 0, letters)


def model_teacher(batches: Batches, place: Path, **options: Any) -> Teacher:
    settings = {"kind": "refembed", "folder": str(DEFAULT_MODEL), "backend": "numpy", **options}
    return open_teacher(read(TeacherSettings, settings, place / "x.toml"), batches, place / "teacher")


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call of the model had."""
    calls: list[int] = []
    whole = teacher.RefembedModel.__call__

    def counted(self: teacher.RefembedModel, sides: Sequence[tuple[str, str, str]]) -> Any:
        calls.append(len(sides))
        return whole(self, sides)

    monkeypatch.setattr(teacher.RefembedModel, "__call__", counted)
    return calls


def test_vectors_are_those_of_the_public_interface(tmp_path: Path) -> None:
    """Wrong if a text goes to the teacher without its prompt or title, or vectors come in another order than texts."""
    batches = batches_of(tmp_path, hard=2)
    found_teacher = model_teacher(batches, tmp_path)
    model = refembed.load(DEFAULT_MODEL, backend="numpy")
    assert found_teacher.width == model.config.dimensions
    for index in range(3):
        batch = batches(index)
        queries, positives, negatives = found_teacher(batch)
        rows = [example.row for example in batch.examples]
        expected = model.encode([f"{TEXTS[row][:6]}?" for row in rows], task="question answering")
        np.testing.assert_allclose(queries, expected, atol=1e-6)
        titles = ["Venus" if row == 1 else None for row in rows]
        expected = model.encode_document([TEXTS[row] for row in rows], titles=titles)
        np.testing.assert_allclose(positives, expected, atol=1e-6)
        for place in (0, 1):
            expected = model.encode_document([TEXTS[row - 1 - place] for row in rows])
            np.testing.assert_allclose(negatives[:, place], expected, atol=1e-6)
        assert queries.dtype == positives.dtype == negatives.dtype == np.float32


def test_without_negatives(tmp_path: Path) -> None:
    """Wrong if a batch of pairs does not give an empty table of negatives of the right shape."""
    batches = batches_of(tmp_path, hard=0)
    found = model_teacher(batches, tmp_path)(batches(0))
    width = refembed.load(DEFAULT_MODEL, backend="numpy").config.dimensions
    assert [side.shape for side in found] == [(4, width), (4, width), (4, 0, width)]


def test_texts_are_cut_to_the_context(tmp_path: Path) -> None:
    """Wrong if the teacher reads more of a text than the student, or loses its end token."""
    batches = batches_of(tmp_path, hard=0, context=4)
    found = model_teacher(batches, tmp_path)
    batch = batches(0)
    queries = found(batch).queries
    model = refembed.load(DEFAULT_MODEL, backend="numpy")
    ids = model.prepare([example.query for example in batch.examples], task="question answering")
    assert all(len(one) > 4 for one in ids if not isinstance(one, RefembedError))
    cut = [np.append(one[:3], 1) for one in ids if not isinstance(one, RefembedError)]
    np.testing.assert_allclose(queries, model.encoder.encode(cut), atol=1e-6)


def test_nothing_is_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if an example's vectors are computed again in a later pass, or by a run that goes on; or differ then."""
    calls = calls_of(monkeypatch)
    batches = batches_of(tmp_path)
    first = model_teacher(batches, tmp_path)
    start = batches.positions()
    expected = [first(batches(index)) for index in range(6)]
    assert sum(calls) == 6 * 3
    batches.seek(start)
    again = model_teacher(batches, tmp_path)
    for index in range(6):
        for one, other in zip(again(batches(index)), expected[index], strict=True):
            np.testing.assert_array_equal(one, other)
    assert sum(calls) == 6 * 3


@pytest.mark.parametrize("change", ["file", "hard", "context", "prompts", "model", "precision"])
def test_vectors_of_other_circumstances_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Wrong if what was kept is used although the file, negatives, context, prompts or the model changed."""
    calls = calls_of(monkeypatch)
    batches = batches_of(tmp_path)
    model_teacher(batches, tmp_path)(batches(0))
    before = len(calls)
    options: dict[str, Any] = {}
    if change == "file":
        file = tmp_path / "set.jsonl"
        file.write_text(file.read_text().replace("mars", "pars"))
        other = Batches(batches.settings, 0, letters)
    elif change == "prompts":
        one = SetSettings(tmp_path / "set.jsonl", query_task="query")
        other = Batches(DataSettings((one,), batch=4, hard=1, held_out=0), 0, letters)
    elif change in ("hard", "context"):
        other = batches_of(tmp_path, **{change: {"hard": 2, "context": 30}[change]})
    else:
        other = batches_of(tmp_path)
        options = {"folder": str(tmp_path / "model")} if change == "model" else {"precision": "float64"}
        shutil.copytree(DEFAULT_MODEL, tmp_path / "model")
        dense = tmp_path / "model" / "3_Dense" / "model.safetensors"
        stored = dense.read_bytes()
        dense.write_bytes(stored[:-2] + bytes([stored[-2] ^ 1]) + stored[-1:])  # the last bit of one number
    model_teacher(other, tmp_path, **options)(other(0))
    assert len(calls) == before + 1


def test_vectors_of_another_backend_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a run that goes on where another backend is the best mixes its vectors with the first one's."""
    calls = calls_of(monkeypatch)
    batches = batches_of(tmp_path)
    batch, found = batches(0), []
    for name in ("numpy", "torch", "numpy"):
        chosen = backend.choose_backend(name)[0]
        monkeypatch.setattr(type(chosen), "priority", 10 + len(found))  # the best from now on
        model_teacher(batches, tmp_path, backend="")(batch)
        found.append(len(calls))
    assert found == [1, 2, 2]
    model_teacher(batches, tmp_path, backend="numpy")(batch)
    assert len(calls) == 2  # named or found: the same one


def test_a_folder_is_digested_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a teacher's weights are read anew for every set."""
    digested: list[Path] = []
    monkeypatch.setattr(teacher, "digest_of_folder", lambda folder: digested.append(folder) or "digest")
    model = object.__new__(teacher.SentenceTransformersModel)
    model.settings, model.context = TeacherSettings("sentence-transformers", tmp_path), 8
    assert model.marks == model.marks
    assert digested == [tmp_path]


def test_a_text_that_the_teacher_cannot_read_is_placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a run ends at a text without saying in which line of which file it stands."""
    batches = batches_of(tmp_path)
    found = model_teacher(batches, tmp_path)
    batch = batches(0)

    def fault(self: teacher.RefembedModel, sides: Sequence[tuple[str, str, str]]) -> Any:
        raise RefembedError("text-token", "spells <x>", 7)  # the second text of the third example

    monkeypatch.setattr(teacher.RefembedModel, "__call__", fault)
    row = batch.examples[2].row
    with pytest.raises(RefembedError, match=rf"set\.jsonl:{row + 1}: the teacher: spells <x>"):
        found(batch)


def test_store_survives_a_kill_at_any_byte(tmp_path: Path) -> None:
    """Wrong if a file that was cut short gives other numbers than were written, keeps part of a lot, or cannot be
    written on."""
    file = tmp_path / "rows"
    rng = np.random.default_rng(0)
    lots = [
        ([5, 2], rng.standard_normal((2, 3, 4))),
        ([9], rng.standard_normal((1, 3, 4))),
        ([1, 0], rng.standard_normal((2, 3, 4))),
    ]
    store = Store(file, (3, 4))
    ends = [0]
    for rows, vectors in lots:
        store.add(rows, vectors.astype(np.float32))
        ends.append(file.stat().st_size)
    whole = file.read_bytes()
    for length in range(0, len(whole) + 1, 7):
        file.write_bytes(whole[:length])
        found = Store(file, (3, 4))
        complete = sum(end <= length for end in ends[1:])
        assert set(found.places) == {row for rows, _ in lots[:complete] for row in rows}
        found.add([77], np.full((1, 3, 4), 7, np.float32))
        found = Store(file, (3, 4))
        for rows, vectors in lots[:complete]:
            np.testing.assert_array_equal(found.get(rows), vectors.astype(np.float32))
        assert (found.get([77, 77]) == 7).all()


def test_store_drops_what_was_damaged(tmp_path: Path) -> None:
    """Wrong if a flipped bit, or zeros where a crash left a hole, pass for vectors."""
    file = tmp_path / "rows"
    store = Store(file, (2, 2))
    store.add([1], np.ones((1, 2, 2), np.float32))
    store.add([2], np.ones((1, 2, 2), np.float32))
    size = file.stat().st_size // 2
    whole = bytearray(file.read_bytes())
    for damage in (whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:], whole[:size] + bytes(size)):
        file.write_bytes(damage)
        assert set(Store(file, (2, 2)).places) == {1}


def test_a_killed_run_asks_for_the_same_lots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if after a kill within a lot the model is asked for a part of it, where a text may get another last bit."""
    calls = calls_of(monkeypatch)
    batches = batches_of(tmp_path)
    start = batches.positions()
    found = model_teacher(batches, tmp_path)
    found(batches(0))
    (file,) = (tmp_path / "teacher").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    batches.seek(start)
    model_teacher(batches, tmp_path)(batches(0))
    assert calls == [12, 12]


def test_processes_share_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if under torchrun an example is computed by no process or by two, or rows come in another order."""
    calls = calls_of(monkeypatch)
    batches = batches_of(tmp_path, hard=1)
    batch = batches(0)
    alone = model_teacher(batches, tmp_path / "alone")(batch)
    del calls[:]
    parts: list[torch.Tensor] = []
    for rank in range(3):
        here = distributed.World(rank, 3, torch.device("cpu"))
        monkeypatch.setattr(teacher, "world", lambda here=here: here)
        monkeypatch.setattr(teacher, "gather_rows", lambda rows: parts.append(rows) or rows)
        model_teacher(batches, tmp_path / "together")(batch)
    rows = torch.cat(parts).numpy()
    assert sum(calls) == 12
    assert len(list((tmp_path / "together" / "teacher").iterdir())) == 3
    for found, expected in zip((rows[:, 0], rows[:, 1], rows[:, 2:]), alone, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def tables(hard: int = 2, rows: int = 6, width: int = 5) -> dict[str, np.ndarray]:
    """Vectors that say whose they are: side, line, negative."""
    found = {
        side: np.repeat(place + np.arange(rows)[:, None] / 10, width, 1).astype(np.float32)
        for place, side in enumerate(("queries", "positives"), 1)
    }
    negatives = 3 + np.arange(rows)[:, None] / 10 + np.arange(hard) / 100
    return found | {"negatives": np.repeat(negatives[..., None], width, 2).astype(np.float32)}


def write_tables(folder: Path, form: str, found: dict[str, np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    if form == "safetensors":
        save_file(found, folder / "set.safetensors")
    else:
        for side, table in found.items():
            np.save(folder / f"set.{side}.npy", table.astype(form))


def file_teacher(batches: Batches, folder: Path) -> Teacher:
    return open_teacher(TeacherSettings("file", folder), batches, folder / "unused")


@pytest.mark.parametrize("form", ["safetensors", "float32", "float64", "float16"])
def test_vectors_from_files_by_line(tmp_path: Path, form: str) -> None:
    """Wrong if an example gets another line's vectors, or its negatives in another order."""
    write_tables(tmp_path / "vectors", form, tables())
    batches = batches_of(tmp_path, hard=2)
    found = file_teacher(batches, tmp_path / "vectors")
    assert found.width == 5
    batch = batches(0)
    rows = np.array([example.row for example in batch.examples])
    for place, side in enumerate(found(batch)[:2], 1):
        np.testing.assert_allclose(side, np.repeat(place + rows[:, None] / 10, 5, 1), atol=2e-3)
    negatives = found(batch).negatives
    np.testing.assert_allclose(negatives[:, 1], np.repeat(3.01 + rows[:, None] / 10, 5, 1), atol=2e-3)
    assert negatives.shape == (4, 2, 5)
    assert not (tmp_path / "vectors" / "unused").exists()


def without(key: str) -> dict[str, np.ndarray]:
    return {side: table for side, table in tables().items() if side != key}


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (without("positives"), "positives of set are neither"),
        (without("negatives"), "negatives of set are neither"),
        (tables(rows=3), r"queries of set are a table \(3, 5\); . rows or more needed"),
        (tables(hard=1), "2 vectors in each needed"),
        (without("negatives") | {"negatives": np.ones((6, 5), np.float32)}, "3 axes needed"),
        (tables() | {"queries": np.ones((6, 4), np.float32)}, "vectors of 4 and 5 numbers"),
        (tables() | {"queries": np.full((6, 5), np.nan, np.float32)}, r"no vectors for .*set\.jsonl:\d"),
    ],
)
@pytest.mark.parametrize("form", ["safetensors", "float32"])
def test_files_that_do_not_fit(tmp_path: Path, form: str, found: dict[str, np.ndarray], reason: str) -> None:
    """Wrong if vectors that are missing, of other shapes or not finite are trained on."""
    write_tables(tmp_path / "vectors", form, found)
    batches = batches_of(tmp_path, hard=2)
    with pytest.raises(RefembedError, match=reason) as caught:
        file_teacher(batches, tmp_path / "vectors")(batches(0))
    assert caught.value.id == "train-data"


def test_files_of_too_few_rows_are_found_out_before_training(tmp_path: Path) -> None:
    """Wrong if a table that ends before the set's file does ends the run only when that line comes, hours later."""
    write_tables(tmp_path / "vectors", "float32", tables(rows=5))
    with pytest.raises(RefembedError, match=r"queries of set are a table \(5, 5\); 6 rows or more needed"):
        file_teacher(batches_of(tmp_path), tmp_path / "vectors")


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    """Wrong if a pickle is opened, whole numbers pass for vectors, or a file that is not there gives a traceback."""
    batches = batches_of(tmp_path, hard=0)
    folder = tmp_path / "vectors"
    with pytest.raises(RefembedError, match="the teacher's folder"):
        file_teacher(batches, folder)
    folder.mkdir()
    with pytest.raises(RefembedError, match=r"neither in .*set\.safetensors nor in .*set\.queries\.npy"):
        file_teacher(batches, folder)
    (folder / "set.queries.npy").write_bytes(pickle.dumps(np.ones((6, 5), np.float32)))
    with pytest.raises(RefembedError, match=r"set\.queries\.npy: .*pickle"):
        file_teacher(batches, folder)
    np.save(folder / "set.queries.npy", np.ones((6, 5), np.int64))
    with pytest.raises(RefembedError, match="int64, floats needed"):
        file_teacher(batches, folder)


def test_sentence_transformers_teacher(tmp_path: Path) -> None:
    """Wrong if the vectors are not what sentence-transformers' own interface gives for the texts, by its prompts for
    queries and documents or by the student's."""
    from sentence_transformers import SentenceTransformer

    save_model(load_model(TWIN, device="cpu"), tmp_path / "model")
    file = tmp_path / "model" / "config_sentence_transformers.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"default_prompt_name": "clustering"}))  # not to be added
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu", local_files_only=True)
    ours = refembed.load(tmp_path / "model", backend="numpy")
    batches = batches_of(tmp_path)
    batch = batches(0)
    asked, answers = [example.query for example in batch.examples], [example.positive for example in batch.examples]
    titles = [example.positive_title for example in batch.examples]
    own = [f"{title}\n{text}" if title else text for title, text in zip(titles, answers, strict=True)]
    expected = {
        "own": (model.encode_query(asked), model.encode_document(own)),
        "refembed": (
            ours.encode(asked, task="question answering"),
            ours.encode_document(answers, titles=[title or None for title in titles]),
        ),
    }
    for prompts, (queries, positives) in expected.items():
        table = {"kind": "sentence-transformers", "folder": str(tmp_path / "model"), "prompts": prompts}
        found = open_teacher(read(TeacherSettings, table, tmp_path / "x.toml"), batches, tmp_path / "teacher")
        assert found.width == queries.shape[1]
        np.testing.assert_allclose(found(batch).queries, queries, atol=1e-5)
        np.testing.assert_allclose(found(batch).positives, positives, atol=1e-5)
    assert not np.allclose(expected["own"][0], expected["refembed"][0], atol=1e-3)


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    """Wrong if a folder without a model gives a traceback, or is looked for on the hub."""
    batches = batches_of(tmp_path)
    for kind in ("refembed", "sentence-transformers"):
        settings = read(TeacherSettings, {"kind": kind, "folder": "."}, tmp_path / "x.toml")
        with pytest.raises(RefembedError, match=str(tmp_path)):
            open_teacher(settings, batches, tmp_path / "teacher")
