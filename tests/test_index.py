"""An index against dictionaries and the library's own vectors: what is found, what a kill leaves, who may write."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.index import Given
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import refembed
from refembed import RefembedError, nearest, open_index, quantize_vectors
from refembed.cli import main
from refembed.index import index as index_module
from refembed.vectors import shorten

WORDS = ["the", "end", "in", "air", "birds", "a", "mars", "red", "planet", "hot", "never"]
FORMS = [None, "int8", "binary"]
TEXTS = [f"{WORDS[one % 11]} {WORDS[one * 7 % 11]} {WORDS[one * one % 11]} {one}" for one in range(40)]


@pytest.fixture(scope="module")
def model(small_folder: Path) -> refembed.Embedder:
    return refembed.load(small_folder, backend="numpy")


@pytest.fixture(scope="module")
def vector(model: refembed.Embedder) -> Callable[[str], np.ndarray]:
    """A text's vector, embedded by the library alone and once."""
    kept: dict[str, np.ndarray] = {}
    return lambda text: kept[text] if text in kept else kept.setdefault(text, model.encode_document(text))


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for is not what is tested, but where it is."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph from the sixth text on."""
    monkeypatch.setattr(index_module, "EXACT_ROWS", 5)


def ids_of(texts: list[str]) -> list[str]:
    return [f"id {one}" for one in range(len(texts))]


def texts_of(index: Any) -> dict[str, str]:
    return {id: text for id, text, _ in index}


def best_scores(query: np.ndarray, table: np.ndarray, form: str | None, k: int, size: int) -> np.ndarray:
    """What vectors.nearest finds in the same vectors, all of which it scores."""
    coarse = shorten(quantize_vectors(table, form), size)
    finer = shorten(quantize_vectors(table, "int8" if form else None), size)
    return nearest(query, coarse, k, rescore=4, finer=finer)[1]


# --------------------------------------------------------------------------------------------------------------- search
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [40, 16])
def test_exact_search(model, tmp_path: Path, form: str | None, size: int) -> None:
    """Wrong if another text is found than all vectors compared in float64 say, or with another score."""
    index = open_index(tmp_path / "index", model, form)
    for start in range(0, 40, 8):
        index.add(ids_of(TEXTS)[start : start + 8], TEXTS[start : start + 8])
    query = model.encode_query("the red planet", dimensions=size)
    table = model.encode_document(TEXTS)
    coarse = shorten(quantize_vectors(table, form), size)
    finer = shorten(quantize_vectors(table, "int8" if form else None), size)
    for k in (1, 7, 100):
        places, scores = nearest(query, coarse, k, finer=finer)
        for asked in ("the red planet", query):
            found = index.search(asked, k, dimensions=size)
            assert [hit.text for hit in found] == [TEXTS[place] for place in places]
            np.testing.assert_allclose([hit.score for hit in found], scores, atol=1e-6)
    if form == "binary":
        places, scores = nearest(query, coarse, 5, rescore=0)
        found = index.search(query, 5, dimensions=size, rescore=0)
        np.testing.assert_allclose([hit.score for hit in found], scores, atol=1e-6)


def random_vectors(count: int, size: int, clusters: int = 0, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    table = random.standard_normal((count, size), np.float32)
    if clusters:
        centres = random.standard_normal((clusters, size), np.float32)
        table = centres[random.integers(clusters, size=count)] + np.float32(0.5) * table
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def recall_of(folder: Path, count: int, size: int, form: str | None, clusters: int, asked: int) -> float:
    """The part of the ten nearest of all, by NumPy, that a search with a graph finds too; a fifth is removed."""
    table = random_vectors(count + asked, size, clusters)
    table, queries = table[:count], table[count:]
    index: Any = open_index(folder, Given(table), form)  # type: ignore[arg-type]
    texts = [str(one) for one in range(count)]
    for start in range(0, count, count // 3):
        index.add(texts[start : start + count // 3], texts[start : start + count // 3])
    assert (index.keys >= index.state.graph.until).sum() <= index_module.EXACT_ROWS, "compared one by one"
    index.remove(texts[: count // 5])
    assert index.graph(size) is not None
    found = [{int(hit.text) for hit in index.search(query, 10)} for query in queries]
    kept = table[count // 5 :]
    true = [set((np.argsort(-(kept @ query))[:10] + count // 5).tolist()) for query in queries]
    return float(np.mean([len(a & b) / 10 for a, b in zip(found, true, strict=True)]))


@pytest.mark.parametrize("clusters", [0, 50])
def test_a_graph_finds_most(tmp_path: Path, monkeypatch, clusters: int) -> None:
    """Wrong if the graph leaves out more than one in a hundred of the ten nearest, of random vectors even."""
    monkeypatch.setattr(index_module, "EXACT_ROWS", 500)
    assert recall_of(tmp_path / "index", 3000, 32, None, clusters, asked=40) > 0.99


@pytest.mark.long
@pytest.mark.parametrize(("form", "clusters"), [(None, 0), (None, 500), ("int8", 500)])
def test_a_large_graph_finds_most(tmp_path: Path, monkeypatch, form: str | None, clusters: int) -> None:
    """Wrong if of 60,000 vectors more is missed than was measured: random ones have no near neighbours to speak of."""
    monkeypatch.setattr(index_module, "EXACT_ROWS", 20_000)
    found = recall_of(tmp_path / "index", 60_000, 128, form, clusters, asked=100)
    print(f"recall@10 of 60,000 vectors of 128 numbers, {form or 'float32'}, {clusters or 'no'} clusters: {found:.3f}")
    assert found > (0.95 if clusters else 0.7)


def test_many_removed_take_no_place(model, tmp_path: Path, few: None) -> None:
    """Wrong if texts removed since the graph was made are found, or leave fewer than k to be found."""
    index = open_index(tmp_path / "index", model)
    index.add(ids_of(TEXTS), TEXTS)
    made = index.state.graph
    query = model.encode_document(TEXTS[0])
    near = [hit.id for hit in index.search(query, 18)]
    index_module.LEAST_SEEN, before = 1, index_module.LEAST_SEEN
    try:
        index.remove(near)
        assert made
        assert index.state.graph == made
        found = {hit.id for hit in index.search(query, 22)}
        assert len(found) == 22
        assert not found & set(near)
    finally:
        index_module.LEAST_SEEN = before


def test_without_usearch(model, tmp_path: Path, few: None, monkeypatch) -> None:
    """Wrong if an index cannot be used where usearch is not installed, or is slow there without a word."""
    with_graph, without = open_index(tmp_path / "with", model), open_index(tmp_path / "without", model)
    with_graph.add(ids_of(TEXTS), TEXTS)
    expected = with_graph.search("the end", 5)
    monkeypatch.setattr(index_module, "graphs", cache(index_module.graphs.__wrapped__))
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    monkeypatch.delitem(sys.modules, "refembed.adapters.usearch")
    with pytest.warns(UserWarning, match=r"each of 40 texts is compared.*pip install 'refembed\[index\]'"):
        without.add(ids_of(TEXTS), TEXTS)
    assert without.state.graph is None
    for folder in ("with", "without"):
        index = open_index(tmp_path / folder, model)
        with pytest.warns(UserWarning, match="usearch package is not installed"):
            assert index.search("the end", 5) == expected


def test_a_search_looks_for_usearch_once(model, tmp_path: Path, few: None, monkeypatch) -> None:
    """Wrong if every query pays for another try to import it."""
    index = open_index(tmp_path / "index", model)
    index.add(ids_of(TEXTS), TEXTS)
    expected = index.search("the end", 5)
    monkeypatch.setattr("refembed.index.index.plugins", None)
    assert index.search("the end", 5) == expected


def test_nothing_heavy_is_imported(small_folder: Path, tmp_path: Path) -> None:
    """Wrong if every command, or a search in a small index, pays for usearch, or needs it."""
    code = f"""
import sys, refembed.cli
index = refembed.open_index({str(tmp_path / "index")!r}, refembed.load({str(small_folder)!r}, backend="numpy"))
index.add(["a"], ["the end"])
assert index.search("the end")[0].id == "a"
print([name for name in sys.modules if "usearch" in name])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -------------------------------------------------------------------------------------------------------------- changes
CHANGES = st.one_of(
    st.tuples(st.just("add"), st.dictionaries(st.sampled_from("abcdefghijkl"), st.sampled_from(TEXTS), max_size=9)),
    st.tuples(st.just("remove"), st.lists(st.sampled_from("abcdefghijklz"), max_size=6)),
    st.tuples(st.sampled_from(["compact", "open"]), st.none()),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(CHANGES, max_size=6), form=st.sampled_from(FORMS), query=st.sampled_from(TEXTS))
def test_any_changes(model, vector, few, tmp_path_factory, changes: list[Any], form: str | None, query: str) -> None:
    """Wrong if, after some changes, the index holds or finds other texts than a dictionary with the same changes."""
    folder = tmp_path_factory.mktemp("any") / "index"
    truth: dict[str, str] = {}
    index = open_index(folder, model, form)
    for name, what in changes:
        if name == "add":
            done = index.add(list(what), list(what.values()))
            assert done.put == sum(truth.get(id) != text for id, text in what.items())
            truth |= what
        elif name == "remove":
            assert index.remove(what) == len(set(what) & set(truth))
            truth = {id: text for id, text in truth.items() if id not in what}
        elif name == "compact":
            index.compact()
        else:
            index = open_index(folder, model, form)
        assert texts_of(index) == truth
        assert len(index) == len(truth)
    found = index.search(vector(query), 4)
    assert all(truth[hit.id] == hit.text for hit in found)
    assert len({hit.id for hit in found}) == len(found) == min(4, len(truth))
    if truth:
        table = np.stack([vector(text) for text in truth.values()])
        np.testing.assert_allclose(
            [hit.score for hit in found], best_scores(vector(query), table, form, 4, 40), atol=1e-6
        )
    if folder.exists():
        index.check()
        named = {stored.file for stored in index.state.files} | {"index.json", "lock"}
        assert {file.name for file in folder.iterdir()} == named


def test_what_is_there_is_not_embedded_again(model, tmp_path: Path, monkeypatch) -> None:
    """Wrong if a text is embedded again for having another id, or a changed title is not."""
    index, counts = open_index(tmp_path / "index", model, "binary"), []
    encode = model.encode_tokens
    monkeypatch.setattr(model, "encode_tokens", lambda batch, *rest: counts.append(len(batch)) or encode(batch, *rest))
    assert index.add(["a", "b", "c"], ["the end", "in the air", "the end"]) == (3, 2, 0, None)
    assert index.add(["a", "d"], ["the end", "in the air"]) == (1, 0, 0, None)
    assert index.add(["a", "b"], ["the end", "in the air"], titles=["birds", None]) == (1, 1, 0, None)
    assert [row[0] for row in index] == ["b", "c", "d", "a"]
    index.remove(["c"])
    assert open_index(tmp_path / "index", model).add(["c"], ["the end"])[:2] == (1, 1), "removed with its vector"
    assert sum(counts) == 4


def test_a_removed_vector_is_not_used_again(model, vector, tmp_path: Path) -> None:
    """Wrong if a text that was removed, its row gone, comes back with the vector of what stands there now."""
    index = open_index(tmp_path / "index", model)
    index.add(["a", "b", "c"], TEXTS[:3])
    index.remove(["a"])
    index.compact()
    assert index.add(["d"], TEXTS[:1]) == (1, 1, 0, None)
    (hit,) = index.search(vector(TEXTS[0]), 1)
    assert (hit.id, hit.score) == ("d", pytest.approx(1, abs=1e-6))


def test_segments_stay_few(tmp_path: Path) -> None:
    """Wrong if an index that grows by single texts has a file for each, or writes all of it each time."""
    index: Any = open_index(tmp_path / "index", Given(random_vectors(100, 8)))  # type: ignore[arg-type]
    written = 0
    for one in range(100):
        before = {stored.file for stored in index.state.files}
        index.add([str(one)], [str(one)])
        written += sum(len(part.keys) for part in index.state.segments if part.stored.file not in before)
        assert len(index.state.segments) <= 7
    assert written < 100 * 8
    index.compact()
    index.remove([str(one) for one in range(49)])
    assert sum(len(part.keys) for part in index.state.segments) == 100
    index.remove([str(one) for one in range(51)])
    assert sum(len(part.keys) for part in index.state.segments) == 49, "what is mostly removed is still there"


def test_a_fault_changes_nothing(model, tmp_path: Path) -> None:
    """Wrong if half of a call is kept, or ids that are none are."""
    index = open_index(tmp_path / "index", model)
    for ids, texts in ((["a", "b"], ["fine", 3]), (["a"], ["fine", "fine"]), ([1], ["fine"])):
        with pytest.raises(RefembedError):
            index.add(ids, texts)  # type: ignore[arg-type]
    assert not (tmp_path / "index").exists()


# ------------------------------------------------------------------------------------------------------- kills, writers
def begun(folder: Path, model: Any) -> dict[str, str]:
    index = open_index(folder, model)
    index.add(ids_of(TEXTS)[:8], TEXTS[:8])
    index.add(["x"], ["the end"])
    return texts_of(index)


def put_more(index: Any) -> None:
    index.add(["id 0", "new", "newer", "newest"], [TEXTS[20], TEXTS[21], TEXTS[22], TEXTS[23]])


CUTS: dict[str, Callable[[Any], object]] = {
    "add": put_more,
    "remove": lambda index: index.remove(ids_of(TEXTS)[:7]),
    "compact": lambda index: index.compact(),
}
STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def die_at(step: int, done: Callable[[], object]) -> bool:
    """Do something in a copy of this process that dies before a step on the disk; whether it came to the end."""
    child = os.fork()
    if not child:
        left = [step]

        def count(event: str = "", arguments: tuple[Any, ...] = ()) -> None:
            writes = event != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
            if event in STEPS and writes:
                left[0] -= 1
                if left[0] < 0:
                    if event == "open" and arguments[2] & os.O_TRUNC and os.path.exists(arguments[0]):
                        os.truncate(arguments[0], 0)  # it dies with the file open, before the first byte
                    os._exit(9)

        sys.addaudithook(count)
        os.fsync = lambda handle: count("os.rename")  # type: ignore[assignment]
        try:
            done()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), status
    return status == 0


@pytest.mark.parametrize("name", CUTS)
def test_killed_anywhere(model, tmp_path: Path, few: None, name: str) -> None:
    """Wrong if a kill between any two steps leaves something else than the state before or after, or stops the next."""
    base = tmp_path / "base"
    old = begun(base, model)
    whole = shutil.copytree(base, tmp_path / "whole")
    CUTS[name](index := open_index(whole, model))
    new, seen = texts_of(index), set()
    for step in range(100):
        folder = shutil.copytree(base, tmp_path / str(step))
        finished = die_at(step, lambda folder=folder: CUTS[name](open_index(folder, model)))
        index = open_index(folder, model)
        index.check()
        state = index.state.generation
        assert texts_of(index) == (old if state == 2 else new)
        seen.add(state)
        found = index.search("the end", 3)
        assert all(texts_of(index)[hit.id] == hit.text for hit in found)
        index.add(["after"], ["birds"])
        named = {stored.file for stored in index.state.files} | {"index.json", "lock"}
        assert {file.name for file in folder.iterdir()} == named, "leftovers"
        if finished:
            break
    assert finished
    assert step > 8
    assert seen == {2, 3}


def test_killed_at_the_first(model, tmp_path: Path) -> None:
    """Wrong if a kill while an index is begun leaves a folder that can neither be used nor begun again."""
    for step in range(50):
        folder = tmp_path / str(step)
        finished = die_at(step, lambda folder=folder: open_index(folder, model).add(["a"], ["the end"]))
        index = open_index(folder, model)
        assert texts_of(index) in ({}, {"a": "the end"})
        index.add(["b"], ["birds"])
        assert {"b"} <= set(texts_of(open_index(folder)))
        if finished:
            break
    assert finished


def test_on_the_disk_before_it_is_named(model, tmp_path: Path, few: None, monkeypatch) -> None:
    """Wrong if the manifest may reach the disk before a file that it names, or a file's name."""
    steps: list[str] = []
    rename = Path.replace
    monkeypatch.setattr("os.fsync", lambda handle: steps.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name))
    monkeypatch.setattr(Path, "replace", lambda old, new: (steps.append("rename"), rename(old, new))[1])
    index = open_index(tmp_path / "index", model)
    index.add(ids_of(TEXTS), TEXTS)
    assert sorted(steps[:2]) == sorted(stored.file for stored in index.state.files)
    assert steps[2] == steps[5] == "index"
    assert steps[3].startswith(".refembed-")
    assert steps[4] == "rename"


def hold(folder: Path, ready: Any, leave: Any) -> None:
    from refembed.index.folder import writing

    with writing(folder):
        ready.set()
        leave.wait(20)


def test_two_writers(model, tmp_path: Path) -> None:
    """Wrong if two processes change an index at once, or a search waits for either."""
    folder = tmp_path / "index"
    old = begun(folder, model)
    fork = multiprocessing.get_context("fork")
    ready, leave = fork.Event(), fork.Event()
    other = fork.Process(target=hold, args=(folder, ready, leave))
    other.start()
    assert ready.wait(20)
    index = open_index(folder, model)
    for change in CUTS.values():
        with pytest.raises(RefembedError, match="is being changed by another process") as raised:
            change(index)
        assert raised.value.id == "index-in-use"
    assert texts_of(index) == old
    assert index.search("the end", 1)
    other.kill()
    other.join()
    put_more(index)
    assert texts_of(open_index(folder, model)) == texts_of(index) != old


def test_others_changes_are_seen(model, tmp_path: Path) -> None:
    """Wrong if a change is made on top of an older state than the last, and what another has put in is lost."""
    first, second = (open_index(tmp_path / "index", model) for _ in range(2))
    first.add(["a", "b"], ["the end", "birds"])
    second.add(["c"], ["in the air"])
    assert set(texts_of(second)) == {"a", "b", "c"}
    first.remove(["a", "c"])
    assert set(texts_of(second)) == {"a", "b", "c"}, "as it was opened"
    second.refresh()
    assert set(texts_of(second)) == set(texts_of(open_index(tmp_path / "index"))) == {"b"}


@pytest.fixture
def writer(small_folder: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that changes an index without end, always so that each text's id is its own, six at a time."""
    code = f"""
import refembed, itertools
from refembed.index import index
index.EXACT_ROWS = 5
made = refembed.open_index({str(tmp_path / "index")!r}, refembed.load({str(small_folder)!r}, backend="numpy"))
for turn in itertools.count():
    texts = [f"the end {{turn}} {{one}}" for one in range(6)]
    made.update([(text, text, None) for text in texts], made.model.prepare(texts), list(made.known()[0]))
    print(turn, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "0\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.filterwarnings("error")
def test_readers_while_it_is_written(writer, model, tmp_path: Path, few: None) -> None:
    """Wrong if a reader ever sees half of a change, or misses a file that a writer has removed."""
    seen = set()
    query = model.encode_query("the end")
    until = time.monotonic() + 30
    while len(seen) < 8 and time.monotonic() < until:
        index = open_index(tmp_path / "index", model)
        found = index.search(query, 10)
        assert len({hit.id.split()[2] for hit in found}) == 1, "texts of two changes"
        assert len(found) == 6
        assert all(hit.id == hit.text for hit in found)
        seen.add(index.state.generation)
    assert len(seen) == 8
    assert writer.poll() is None
    writer.kill()
    writer.wait()
    index = open_index(tmp_path / "index", model)
    index.check()
    assert len(index) == 6
    index.add(["after"], ["the kill"])


# --------------------------------------------------------------------------------------------------------------- damage
def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, Path.unlink])
def test_damage_is_named(model, tmp_path: Path, harm: Callable[[Path], object]) -> None:
    """Wrong if an index with a file cut short or gone answers as if nothing were, or does not say which file."""
    begun(tmp_path / "index", model)
    file = next((tmp_path / "index").glob("segment-*"))
    harm(file)
    with pytest.raises(RefembedError, match=rf"{file.name}: .*add the texts again") as raised:
        open_index(tmp_path / "index", model)
    assert raised.value.id == "index-damaged"


def test_a_changed_byte_is_found(model, tmp_path: Path, few: None) -> None:
    """Wrong if a changed byte passes a check."""
    begun(tmp_path / "index", model)
    index = open_index(tmp_path / "index", model)
    index.check()
    for stored in index.state.files:
        flipped(tmp_path / "index" / stored.file)
        with pytest.raises(RefembedError, match=rf"{stored.file}: its SHA-256"):
            index.check()
        flipped(tmp_path / "index" / stored.file)


def test_damage_is_not_written_anew(model, tmp_path: Path) -> None:
    """Wrong if a change takes vectors over from a damaged file, and gives them a digest that says they are sound."""
    begun(tmp_path / "index", model)
    index = open_index(tmp_path / "index", model)
    segment = index.state.segments[0]
    file = tmp_path / "index" / segment.stored.file
    content = bytearray(file.read_bytes())
    content[content.find(segment.vectors.tobytes()) + 5] ^= 1
    file.write_bytes(content)
    with pytest.raises(RefembedError, match=rf"{file.name}: its SHA-256"):
        index.compact()


def test_a_lost_graph_loses_nothing(model, tmp_path: Path, few: None) -> None:
    """Wrong if a graph that is gone or damaged, which can be made again, takes the texts with it, or is used."""
    index = open_index(tmp_path / "index", model)
    index.add(ids_of(TEXTS), TEXTS)
    expected = index.search("the end", 5)
    next((tmp_path / "index").glob("graph-*")).unlink()
    gone = r"graph-.*every text is compared until 'refembed index compact"
    with pytest.warns(UserWarning, match=gone):
        index = open_index(tmp_path / "index", model)
    assert index.search("the end", 5) == expected
    with pytest.warns(UserWarning, match=gone):
        index.compact()
    file = next((tmp_path / "index").glob("graph-*"))
    file.write_bytes(b"\0" * file.stat().st_size)
    index = open_index(tmp_path / "index", model)
    with pytest.raises(RefembedError, match=r"graph-.*refembed index compact .* makes it anew"):
        index.search("the end", 5)
    index.compact()
    assert index.search("the end", 5) == expected


@pytest.mark.parametrize(
    ("part", "value", "id"),
    [
        ("version", 2, "index-newer"),
        ("format", "another", "index-damaged"),
        ("quantize", "int8", "index-damaged"),
        ("dimensions", 39, "index-damaged"),
        ("removed", None, "index-damaged"),
        ("segments", [{"file": "../a", "bytes": 1, "sha256": ""}], "index-damaged"),
    ],
)
def test_manifests_that_cannot_be(model, tmp_path: Path, part: str, value: Any, id: str) -> None:
    """Wrong if a manifest of another time, or that contradicts its files, is believed or gives a traceback."""
    begun(tmp_path / "index", model)
    manifest = tmp_path / "index" / "index.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {part: value}))
    with pytest.raises(RefembedError) as raised:
        open_index(tmp_path / "index", model)
    assert raised.value.id == id


def test_another_model_is_refused(model, tmp_path: Path) -> None:
    """Wrong if vectors of two models are compared, or texts added that no query will ever find."""
    begun(tmp_path / "index", model)
    twin = Path(refembed.__file__).parents[1] / "golden" / "twin" / "checkpoint"
    with pytest.raises(RefembedError, match=r"was made with .*, not with .*twin") as raised:
        open_index(tmp_path / "index", refembed.load(twin, backend="numpy"))
    assert raised.value.id == "index-model"
    with pytest.raises(RefembedError, match="keeps float32 vectors, not int8"):
        open_index(tmp_path / "index", model, "int8")
    with pytest.raises(RefembedError, match="no index") as raised:
        open_index(tmp_path / "none")
    assert raised.value.id == "index-missing"
    with pytest.raises(RefembedError, match="1 ids for 2 texts") as raised:
        open_index(tmp_path / "new", model).add(["a"], ["one", "two"])
    assert raised.value.id == "index-ids"
    with pytest.raises(RefembedError, match=r"ids is the string 'ab'; .*\['ab'\]"):
        open_index(tmp_path / "index", model).remove("ab")


# --------------------------------------------------------------------------------------------------------- command line
def test_index_command(small_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Wrong if a folder's texts are not those of the files put in, by their ids, or cannot be searched by its name."""
    monkeypatch.chdir(tmp_path)
    use = ["--model", str(small_folder)]

    def run(*argv: str) -> tuple[int, str, str]:
        status = main(list(argv))
        return status, *capsys.readouterr()

    Path("notes.txt").write_text("the end\n\nin the air\n")
    rows = [{"key": "7", "text": "birds"}, {"key": "seven", "text": "a"}, {"text": "none"}]
    Path("more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("search", "made", "the end", *use)[0] == 2, "no such file"
    assert run("index", "list", "made")[0] == 2
    out = run("index", "add", "made", "notes.txt", "--quantize", "binary", *use)
    assert out == (0, "notes.txt: 2 put in, 2 embedded, 0 removed; 2 texts in all\n", "")
    status, out, err = run("index", "add", "made", "more.jsonl", "--id-field", "key")
    assert (status, out) == (1, "more.jsonl: 2 put in, 2 embedded, 0 removed; 4 texts in all\n")
    assert "left out more.jsonl:3" in err
    listed = "notes.txt:1\tthe end\nnotes.txt:3\tin the air\n7\tbirds\nseven\ta\n"
    assert run("index", "list", "made") == (0, listed, "")
    assert run("search", "made", "the end", "-k", "2", "--rescore", "8")[1].count("\n") == 2
    assert run("search", "made", "the end", "--quantize", "int8")[0] == 2
    Path("notes.txt").write_text("in the air\n")
    assert run("index", "add", "made", "notes.txt")[1].startswith("notes.txt: 1 put in, 0 embedded, 1 removed; 3 ")
    assert run("index", "add", "made", "./notes.txt")[1].startswith("./notes.txt: 0 put in, 0 embedded, 0 removed; 3 ")
    assert run("index", "remove", "made", "seven", ".//notes.txt", "eight")[:2] == (1, "2 removed; 1 texts in all\n")
    assert run("index", "list", "made")[1] == "7\tbirds\n"
    assert "texts: 1\n" in run("index", "show", "made", "--check")[1]
    assert run("index", "compact", "made")[0] == 0
    assert run("index", "compact", "made", "what")[0] == run("index", "add", "made")[0] == 2
    assert run("index", "add", ".", "notes.txt", *use)[0] == 2, "among other files"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["made", "more.jsonl", "notes.txt"]
