"""The embedder on a small checkpoint: order, shapes, options, backends, and the forms a checkpoint folder comes in."""

import dataclasses
import json
import math
import pickle
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from support import SMALL, config_json, random_parameters, write_checkpoint

import refembed
from refembed import embedder, numpy_backend
from refembed.backend import find_backends
from refembed.reference import FULL, SLIDING, embed

TEXTS = some.lists(some.text("the in a", max_size=40), min_size=1, max_size=8)
SAMPLES = ["", "a", "the air in the end", "q" * 25, "in", "xyz " * 6]


@pytest.fixture(scope="module")
def model(small_folder):
    return refembed.load(small_folder, backend="numpy")


def plain_unit(rows) -> list[list[float]]:
    """Each row divided by its length, in plain Python."""
    return [[number / math.sqrt(sum(float(n) ** 2 for n in row)) for number in map(float, row)] for row in rows]


# ------------------------------------------------------------------------------------------------ order, batch, shape
@given(data=some.data(), texts=TEXTS)
def test_order_duplicates_and_batch_change_nothing(model, data, texts: list[str]) -> None:
    """A text's vector depends on the texts beside it, or comes back at another text's place."""
    alone = np.stack([model.encode([text])[0] for text in texts])
    picked = data.draw(some.lists(some.integers(0, len(texts) - 1), max_size=12))
    found = model.encode([texts[index] for index in picked])
    np.testing.assert_allclose(found, alone[picked], atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(at_once=some.integers(1, 60), texts=TEXTS)
def test_scheduling_changes_nothing(model, at_once: int, texts: list[str]) -> None:
    """Results come back in the order of the schedule instead of the order given."""
    expected = model.encode(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder, "TOKENS_AT_ONCE", at_once)
        np.testing.assert_allclose(model.encode(texts), expected, atol=1e-6, rtol=0)


def test_vectors_are_unit_float32(model) -> None:
    """Cosine is taken for the dot product of vectors that are not unit, or rows come in a type twice the size."""
    vectors = model.encode(SAMPLES)
    assert (vectors.shape, vectors.dtype) == ((len(SAMPLES), 40), np.float32)
    assert [sum(float(n) ** 2 for n in row) for row in vectors] == pytest.approx([1] * len(SAMPLES), abs=1e-6)
    assert len({tuple(row) for row in vectors.tolist()}) == len(SAMPLES)


def test_vectors_are_the_references(model) -> None:
    """Between the text and the reference's forward pass something is lost."""
    parameters = {name: p.astype(np.float32).astype(np.float64) for name, p in random_parameters(SMALL).items()}
    expected = [embed(ids, parameters, SMALL) for ids in model.tokenizer([f"title: none | text: {s}" for s in SAMPLES])]
    np.testing.assert_allclose(model.encode(SAMPLES), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"task": "query"}, {"task": None}, {"prompt": "see: "}, {"dimensions": 8}])
def test_a_single_string_is_a_single_vector(model, options) -> None:
    """A string is taken for a list of its letters, or an option is lost on the way."""
    for encode in (model.encode, model.encode_query, model.encode_document):
        alone = encode("the air", **options)
        assert alone.ndim == 1
        np.testing.assert_array_equal(alone, encode(["the air"], **options)[0])


@pytest.mark.parametrize("dimensions", [None, 16])
def test_no_texts_are_no_rows(model, dimensions) -> None:
    """An empty list ends in an error, or in an array that cannot be joined to others."""
    for texts in ([], (), np.array([], dtype=str), iter([])):
        vectors = model.encode(texts, dimensions=dimensions, titles=[], show_progress=True)
        assert (vectors.shape, vectors.dtype) == ((0, dimensions or 40), np.float32)


def test_defaults_of_the_three_ways_to_encode(model) -> None:
    """A query is embedded as a document: retrieval gets worse and nothing says so."""
    query, document = "task: search result | query: the air", "title: none | text: the air"
    written = model.encode([query, document], task=None)
    np.testing.assert_array_equal(model.encode_query("the air"), written[0])
    np.testing.assert_array_equal(model.encode_document("the air"), written[1])
    np.testing.assert_array_equal(model.encode("the air"), written[1])
    np.testing.assert_array_equal(model.encode_query("the air", task="document"), written[1])


@pytest.mark.parametrize("dimensions", [1, 2, 7, 39, 40, np.int64(16), np.uint8(3)])
def test_dimensions_are_the_first_numbers(model, dimensions) -> None:
    """Matryoshka: other numbers than the first are kept, or what is kept is not unit length again (defect D5)."""
    whole = model.encode(SAMPLES)
    found = model.encode(SAMPLES, dimensions=dimensions)
    assert found.shape == (len(SAMPLES), dimensions)
    np.testing.assert_allclose(found, plain_unit(row[: int(dimensions)] for row in whole), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dimensions", [0, -1, 41, 768, True, 1.5, 16.0, "16", [16]])
def test_impossible_dimensions(model, dimensions) -> None:
    """Vectors of another length than asked for come back."""
    with pytest.raises(refembed.RefembedError) as caught:
        model.encode(["a"], dimensions=dimensions)
    assert caught.value.id == "option-dimensions"
    assert repr(dimensions) in str(caught.value)


# --------------------------------------------------------------------------------------------------------- similarity
NUMBERS = some.floats(-100, 100, width=32)


@given(data=some.data(), width=some.integers(1, 5))
def test_similarity_is_the_cosine_of_every_pair(model, data, width: int) -> None:
    """Rows and columns are exchanged, or vectors that are not unit are not normalised."""
    rows = some.lists(NUMBERS, min_size=width, max_size=width).filter(lambda row: max(map(abs, row)) > 1e-3)
    first = data.draw(some.lists(rows, min_size=1, max_size=4))
    second = data.draw(some.lists(rows, min_size=1, max_size=4))
    unit, other = plain_unit(first), plain_unit(second)
    expected = [[sum(a * b for a, b in zip(row, column, strict=True)) for column in other] for row in unit]
    found = model.similarity(np.array(first, np.float32), second)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(refembed.similarity(np.array(first, np.float32), second), found)


def test_similarity_of_single_vectors_and_none(model) -> None:
    """encode("...") does not go straight into similarity, or an empty corpus is an error."""
    one, many = model.encode("a"), model.encode(SAMPLES)
    assert model.similarity(one, many).shape == (1, len(SAMPLES))
    assert model.similarity(many, one).shape == (len(SAMPLES), 1)
    assert model.similarity(one, one)[0, 0] == pytest.approx(1)
    assert model.similarity(many, model.encode([])).shape == (len(SAMPLES), 0)
    assert model.similarity(np.zeros(40), one)[0, 0] == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.ones((2, 3)), np.ones((2, 4))),
        (np.ones((2, 3), int), np.ones((2, 3))),
        (np.ones((1, 2, 3)), np.ones((2, 3))),
        ([["a", "b"]], np.ones((1, 2))),
        (np.ones((2, 3), complex), np.ones((2, 3))),
        (3.0, np.ones((2, 3))),
    ],
)
def test_similarity_of_no_tables(model, first, second) -> None:
    """Numbers come out of what are no vectors."""
    with pytest.raises(refembed.RefembedError) as caught:
        model.similarity(first, second)
    assert caught.value.id == "vectors-invalid"


# -------------------------------------------------------------------------------------------- info, precision, threads
def test_info(model, small_folder) -> None:
    """A report says another model, backend or precision than the one that made the vectors."""
    info = dataclasses.asdict(model.info)
    assert len(info.pop("digest")) == 64
    assert info.pop("threads") >= 1
    assert info == {
        "model": str(small_folder),
        "weights": "float32",
        "backend": "numpy",
        "why": "it was named",
        "precision": "float32",
        "dimensions": 40,
        "context": 64,
    }
    assert "numpy" in repr(model)
    assert "float32" in repr(model)


def test_digest_names_the_model(model, tmp_path) -> None:
    """Two models have one name, or a copy of one has another: golden vectors tied to it accuse the wrong one."""
    other = random_parameters(SMALL)
    other["3_Dense.linear.weight"].flat[3] += 1
    normed = random_parameters(SMALL) | {"norm.weight": random_parameters(SMALL)["norm.weight"] + 1}
    tokenizer = json.loads((model.checkpoint.folder / "tokenizer.json").read_text()) | {"normalizer": None}
    changes = {
        "nothing": {},
        "readme": {"README.md": "other words"},
        "words in config": {"config.json": json.dumps(config_json(SMALL) | {"transformers_version": "0"}, indent=1)},
        "meaning of config": {"config.json": json.dumps(config_json(SMALL) | {"sliding_window": 10})},
        "tokenizer": {"tokenizer.json": json.dumps(tokenizer)},
        "weight": {},
        "dense": {},
    }
    digests = {"the first": model.info.digest}
    for change, files in changes.items():
        folder = write_checkpoint(tmp_path / change, SMALL, {"weight": normed, "dense": other}.get(change))
        for name, content in files.items():
            (folder / name).write_text(content)
        digests[change] = refembed.load(folder, backend="numpy").info.digest
    same = {change for change, digest in digests.items() if digest == digests["the first"]}
    assert same == {"the first", "nothing", "readme", "words in config"}
    assert len(set(digests.values())) == 5


def test_digest_is_the_same_in_another_process(model, small_folder) -> None:
    """The digest depends on the process (hash seed, order of a set), so it names nothing."""
    code = "import sys, refembed; print(refembed.load(sys.argv[1], backend='numpy').info.digest)"
    command = [sys.executable, "-P", "-c", code, str(small_folder)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == model.info.digest


def test_float64(model, small_folder) -> None:
    """precision="float64" computes in float32 somewhere: it is the oracle, the reference's to the last float32 bit."""
    exact = refembed.load(small_folder, backend="numpy", precision="float64")
    assert exact.info.precision == "float64"
    found = exact.encode(SAMPLES, task=None)
    assert found.dtype == np.float32
    parameters = {name: p.astype(np.float32).astype(np.float64) for name, p in random_parameters(SMALL).items()}
    expected = [embed(ids, parameters, SMALL) for ids in exact.tokenizer(SAMPLES)]
    np.testing.assert_allclose(found, expected, atol=0, rtol=2**-23)
    np.testing.assert_allclose(model.encode(SAMPLES, task=None), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["float16", "int8", "double", "", "FLOAT32", 32])
def test_unknown_precision(small_folder, precision) -> None:
    """Vectors of another precision than asked for come back."""
    with pytest.raises(refembed.RefembedError, match=r"numpy computes in float32, float64") as caught:
        refembed.load(small_folder, backend="numpy", precision=precision)
    assert caught.value.id == "precision-unknown"


def blas_threads() -> set[int]:
    import threadpoolctl

    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}


def test_threads(model, small_folder, monkeypatch) -> None:
    """threads=1 leaves the matrix library with all cores, or changes the vectors."""
    import threadpoolctl

    with threadpoolctl.threadpool_limits(None):  # puts back on leaving what it finds here
        one = refembed.load(small_folder, backend="numpy", threads=1)
        assert one.info.threads == 1
        before, seen = blas_threads(), set()
        encode = numpy_backend.embed_batch
        monkeypatch.setattr(numpy_backend, "embed_batch", lambda *call: (seen.update(blas_threads()), encode(*call))[1])
        np.testing.assert_allclose(one.encode(SAMPLES), model.encode(SAMPLES), atol=1e-6, rtol=0)
        assert 1 in seen
        assert blas_threads() == before, "the limit outlived the computation"


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2", [1]])
def test_impossible_threads(small_folder, threads) -> None:
    """A mistyped number of threads is taken for the default."""
    with pytest.raises(refembed.RefembedError) as caught:
        refembed.load(small_folder, backend="numpy", threads=threads)
    assert caught.value.id == "option-threads"


def test_threads_without_threadpoolctl(small_folder, monkeypatch) -> None:
    """The number of threads is silently ignored, instead of an error that says what to install or to set."""
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(refembed.RefembedError, match=r"threadpoolctl.*OPENBLAS_NUM_THREADS=1") as caught:
        refembed.load(small_folder, backend="numpy", threads=1)
    assert caught.value.id == "option-threads"


# --------------------------------------------------------------------------------------------------------- scheduling
@given(lengths=some.lists(some.integers(1, 3000) | some.integers(15_000, 40_000), max_size=60))
def test_schedule_laws(lengths: list[int]) -> None:
    """A text is forgotten or done twice, a group is beyond memory, or short texts wait in groups with long ones."""
    groups = embedder.schedule(lengths)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or sum(lengths[index] for index in group) <= embedder.TOKENS_AT_ONCE
    in_order = [lengths[index] for group in groups for index in group]
    assert in_order == sorted(in_order, reverse=True)
    for group, following in pairwise(groups):
        assert sum(lengths[index] for index in group) + lengths[following[0]] > embedder.TOKENS_AT_ONCE


def test_a_backend_never_sees_more_than_a_group(model, monkeypatch) -> None:
    """All texts go to the backend at once: memory grows with the corpus."""
    seen: list[int] = []
    inner = model.encoder.encode

    def count(batch):
        seen.append(sum(map(len, batch)))
        return inner(batch)

    monkeypatch.setattr(embedder, "TOKENS_AT_ONCE", 100)
    monkeypatch.setattr(model.encoder, "encode", count)
    model.encode(["a" * length for length in range(1, 50)], task=None)
    assert sum(seen) == sum(length + 2 for length in range(1, 50))
    assert max(seen) <= 100


# ----------------------------------------------------------------------------------------------------------- backends
BACKEND = """
import numpy as np

class Encoder:
    threads = 1
    def __init__(self, precision):
        self.precision = precision
    def encode(self, batch):
        return np.eye(40, dtype=np.float32)[[len(ids) % 40 for ids in batch]]
    def trace(self, ids):
        return {}

class Backend:
    name, precisions = "elsewhere", ("float8", "float4")
    def __init__(self, priority, reason=None):
        self.priority, self.reason = priority, reason
    def why_not(self):
        if isinstance(self.reason, Exception):
            raise self.reason
        return self.reason
    def load(self, checkpoint, precision, threads):
        return Encoder(precision)

best, modest = Backend(99), Backend(-5)
unable = Backend(99, "no accelerator; buy one")
stumbling = Backend(99, OSError("driver not loaded"))
none = object()
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution with one backend as pip would: a module and its dist-info, on the path."""

    def install(value: str, name: str = "elsewhere") -> None:
        (tmp_path / "elsewhere_backend.py").write_text(BACKEND)
        (tmp_path / "broken_backend.py").write_text("import a_library_that_is_not_there")
        info = tmp_path / "elsewhere-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[refembed.backends]\n{name} = {value}\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    for name in ("elsewhere_backend", "broken_backend"):
        sys.modules.pop(name, None)


def refused(folder: Path, backend: str) -> refembed.RefembedError:
    with pytest.raises(refembed.RefembedError) as caught:
        refembed.load(folder, backend=backend)
    return caught.value


def test_loopback_equals_numpy(model, small_folder) -> None:
    """A backend behind the registry gets other ids than the built-in one, or its vectors are changed on the way."""
    for precision in ("float32", "float64"):
        numpy = refembed.load(small_folder, backend="numpy", precision=precision)
        loopback = refembed.load(small_folder, backend="loopback", precision=precision)
        assert loopback.info.backend == "loopback"
        np.testing.assert_array_equal(loopback.encode(SAMPLES), numpy.encode(SAMPLES))
        ids = numpy.tokenizer(["the air"])[0]
        mine, theirs = loopback.encoder.trace(ids), numpy.encoder.trace(ids)
        assert list(mine) == list(theirs)
        for name in theirs:
            np.testing.assert_array_equal(mine[name], theirs[name])


def test_installed_backend_is_found_and_taken(install, small_folder) -> None:
    """A third party has to change refembed to add a backend; or the best one is installed and not used."""
    install("elsewhere_backend:best")
    for backend, why in (("elsewhere", "it was named"), (None, "the best that can run here")):
        model = refembed.load(small_folder, backend=backend)
        assert (model.info.backend, model.info.why, model.info.precision) == ("elsewhere", why, "float8")
        np.testing.assert_array_equal(np.argmax(model.encode(["a", "", "aaa"], task=None), axis=1), [3, 2, 5])
    assert refembed.load(small_folder, backend="elsewhere", precision="float4").info.precision == "float4"
    assert find_backends()[0].name == "elsewhere"


def test_backend_below_zero_is_taken_only_when_named(install, small_folder) -> None:
    """A backend made for tests runs somebody's real work."""
    install("elsewhere_backend:modest")
    assert refembed.load(small_folder).info.backend != "elsewhere"
    assert refembed.load(small_folder, backend="elsewhere").info.backend == "elsewhere"


def test_only_backends_below_zero(small_folder, monkeypatch) -> None:
    """With no real backend installed, one made for tests is taken unasked, instead of an error."""
    only = [found for found in find_backends() if found.name == "loopback"]
    monkeypatch.setattr("refembed.backend.find_backends", lambda: only)
    with pytest.raises(refembed.RefembedError, match="none found") as caught:
        refembed.load(small_folder)
    assert caught.value.id == "backend-cannot-run"


def test_backend_that_cannot_run(install, small_folder) -> None:
    """A named backend is silently replaced, or nobody learns why the best one is not used."""
    install("elsewhere_backend:unable")
    error = refused(small_folder, "elsewhere")
    assert error.id == "backend-cannot-run"
    assert "no accelerator; buy one" in str(error)
    info = refembed.load(small_folder).info
    assert info.backend != "elsewhere"
    assert "elsewhere: no accelerator; buy one" in info.why


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("broken_backend:BACKEND", "a_library_that_is_not_there"),
        ("nowhere_to_be_found:BACKEND", "nowhere_to_be_found"),
        ("elsewhere_backend:missing", "missing"),
        ("elsewhere_backend:none", "no refembed backend"),
        ("elsewhere_backend:stumbling", "driver not loaded"),
    ],
)
def test_broken_backend_harms_nobody(install, small_folder, value: str, reason: str) -> None:
    """One badly installed package keeps everybody from loading a model, or hides why it does not work."""
    install(value)
    assert refembed.load(small_folder, backend="numpy").info.backend == "numpy"
    assert refembed.load(small_folder).info.backend != "elsewhere"
    assert reason in {one.name: one.why_not for one in find_backends()}["elsewhere"]
    error = refused(small_folder, "elsewhere")
    assert error.id in ("backend-broken", "backend-cannot-run")
    assert reason in str(error)


def test_broken_backend_is_told_of(install, small_folder) -> None:
    """The fast backend is broken, the slow one runs, and nobody learns why."""
    install("broken_backend:BACKEND")
    assert "elsewhere: cannot be imported: ModuleNotFoundError" in refembed.load(small_folder).info.why


def test_unknown_backend(small_folder) -> None:
    """A mistyped backend is replaced by another, or the error does not say which there are."""
    error = refused(small_folder, "nunpy")
    assert error.id == "backend-unknown"
    assert "numpy" in str(error)
    assert "loopback" in str(error)


# ---------------------------------------------------------------------------------------------------- cost of importing
HEAVY = {"numba", "torch", "transformers", "tokenizers", "huggingface_hub", "sentence_transformers", "pandas", "scipy"}
SLOW = {"importlib.metadata"}  # and of no use before a backend, or another package, is looked for


def run_python(code: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], check=True, capture_output=True, text=True
    ).stdout


def test_import_brings_nothing_heavy() -> None:
    """import refembed costs seconds and hundreds of megabytes for what the caller may never use."""
    found = set(run_python("import sys, refembed; print(*sys.modules)").split())
    assert "numpy" in found
    assert not (HEAVY | SLOW) & found


def test_encoding_brings_no_framework(small_folder) -> None:
    """Embedding on a plain CPU needs PyTorch after all, or a folder on disk starts the hub's client."""
    code = "import sys, refembed; refembed.load(sys.argv[1], backend='numpy').encode(['a']); print(*sys.modules)"
    found = set(run_python(code, str(small_folder)).split())
    assert HEAVY & found <= {"tokenizers"}


def test_import_is_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """import refembed costs 0.6 of numpy's own import or more, both compiled before: the least of up to 20 tries, since
    others compute too.
    """
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    code = """if True:
        import time
        start = time.process_time()
        import numpy
        middle = time.process_time()
        import refembed
        print((time.process_time() - middle) / (middle - start))"""
    run_python(code)  # compiles
    shares = [float(run_python(code))]
    while min(shares) >= 0.6 and len(shares) < 20:
        shares.append(float(run_python(code)))
    assert min(shares) < 0.6, f"{min(shares):.2f} of numpy's"


def test_an_error_survives_a_pool_of_processes() -> None:
    """A worker's error arrives as another one, about unpickling."""
    error = refembed.RefembedError("text-type", "is int, a string is needed", 3)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.id, again.reason, again.index) == (str(error), error.id, error.reason, error.index)


def test_a_pickled_model_carries_no_weights(model) -> None:
    """A pool of processes copies 1.2 GB to each worker, or gets another model."""
    content = pickle.dumps(model)
    assert len(content) < 1000
    again = pickle.loads(content)
    assert (again.info, again.name) == (model.info, model.name)
    np.testing.assert_array_equal(again.encode(SAMPLES), model.encode(SAMPLES))


def test_the_cut_warning_points_at_the_caller(model) -> None:
    """The warning points into refembed, and Python then shows it once for a whole program."""
    for call in (model.encode, model.encode_query, model.encode_document):
        for texts in ("the " * 100, ["the " * 100]):
            with pytest.warns(UserWarning, match="1 of 1 texts were longer than 64 tokens") as caught:
                call(texts)
            assert caught[0].filename == __file__


@pytest.mark.parametrize("answer", [lambda good: good * np.nan, lambda good: good[:1], lambda good: good[:, :3]])
def test_what_is_no_embedding_is_refused(small_folder, monkeypatch, answer) -> None:
    """NaN, or one vector for all texts, passes for embeddings."""
    model = refembed.load(small_folder, backend="numpy")
    encode = model.encoder.encode
    monkeypatch.setattr(model.encoder, "encode", lambda batch: answer(encode(batch)))
    with pytest.raises(refembed.RefembedError) as caught:
        model.encode(["a", "b", "c"])
    assert caught.value.id == "vectors-not-finite"


def test_only_the_named_backend_is_imported(small_folder, monkeypatch) -> None:
    """Naming one backend imports all the others, and their libraries."""
    from importlib.metadata import EntryPoint

    import refembed.backend

    points = [
        EntryPoint("numpy", "refembed.numpy_backend:BACKEND", refembed.backend.GROUP),
        EntryPoint("heavy", "antigravity_that_is_not_there:BACKEND", refembed.backend.GROUP),
        EntryPoint("renamed", "refembed.numpy_backend:BACKEND", refembed.backend.GROUP),
    ]
    monkeypatch.setattr(refembed.backend, "registered", lambda: points)
    opened = []
    monkeypatch.setattr(
        refembed.backend,
        "open_backend",
        lambda name, point: (opened.append(name), refembed.backend.Found(name, None, "x"))[1],
    )
    with pytest.raises(refembed.RefembedError) as caught:
        refembed.load(small_folder, backend="heavy")
    assert (caught.value.id, opened) == ("backend-broken", ["heavy"])


def test_a_revision_is_for_the_hub(small_folder) -> None:
    """A revision of a folder is ignored without a word."""
    with pytest.raises(refembed.RefembedError) as caught:
        refembed.load(small_folder, revision="main")
    assert caught.value.id == "hub-revision"


def test_without_the_hub_client(monkeypatch) -> None:
    """Without the hub's client, a hub id ends in a traceback, and doctor with it."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(refembed.RefembedError) as caught:
        refembed.load("google/embeddinggemma-300m")
    assert caught.value.id == "hub-client-missing"
    from refembed.cli import main

    assert main(["doctor"]) == 0


# ----------------------------------------------------------------------------------------------- forms of a checkpoint
def test_bfloat16_checkpoint(tmp_path) -> None:
    """bfloat16 files are read as other numbers: they must give what the same weights widened to float32 give."""
    import torch
    from safetensors.torch import load_file, save_file

    narrow, wide = write_checkpoint(tmp_path / "narrow"), write_checkpoint(tmp_path / "wide")
    for name in ("model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors"):
        rounded = {key: tensor.to(torch.bfloat16) for key, tensor in load_file(narrow / name).items()}
        save_file(rounded, narrow / name)
        save_file({key: tensor.to(torch.float32) for key, tensor in rounded.items()}, wide / name)
    vectors = {
        (folder.name, precision): refembed.load(folder, backend="numpy", precision=precision).encode(SAMPLES)
        for folder in (narrow, wide)
        for precision in ("float32", "float64")
    }
    for precision in ("float32", "float64"):
        np.testing.assert_array_equal(vectors["narrow", precision], vectors["wide", precision])
    exact = refembed.load(write_checkpoint(tmp_path / "exact"), backend="numpy").encode(SAMPLES)
    assert np.abs(exact - vectors["wide", "float32"]).max() > 1e-4, "rounding did nothing: this test would see nothing"


def with_config(folder: Path, remove: tuple[str, ...] = (), **values) -> Path:
    """A small checkpoint whose config.json lacks some keys and has others."""
    config = {key: value for key, value in config_json(SMALL).items() if key not in remove}
    write_checkpoint(folder)
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


@pytest.mark.parametrize("key", ["sliding_window_pattern", "_sliding_window_pattern"])
def test_layer_kinds_by_pattern(model, tmp_path, key: str) -> None:
    """Older folders, which say "every third layer is full" in one number, get the wrong layers full."""
    assert SMALL.layer_kinds == (SLIDING, SLIDING, FULL, SLIDING)
    older = refembed.load(with_config(tmp_path, ("layer_types",), **{key: 3}), backend="numpy")
    np.testing.assert_array_equal(older.encode(SAMPLES), model.encode(SAMPLES))
    other = refembed.load(with_config(tmp_path, ("layer_types",), **{key: 2}), backend="numpy")
    assert other.config.layer_kinds == (SLIDING, FULL, SLIDING, FULL)


def test_layer_types_come_before_the_pattern(model, tmp_path) -> None:
    """A folder with both keys, like the released one, follows the older."""
    both = refembed.load(with_config(tmp_path, _sliding_window_pattern=2), backend="numpy")
    assert both.config.layer_kinds == SMALL.layer_kinds


@pytest.mark.parametrize(
    ("window", "reach", "warns"),
    [(512, 256, False), (257, 256, False), (129, 128, True), (65, 64, True), (8, 4, False), (2, 1, False)],
)
def test_window_and_reach(tmp_path, window: int, reach: int, warns: bool) -> None:
    """512 is the width of both sides and reaches 256; 257 is the same after one rewriting; less was shrunk unseen."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = refembed.load(with_config(tmp_path, sliding_window=window), backend="numpy")
    assert model.config.reach == reach
    assert [f"sliding_window is {window}" in str(one.message) for one in caught] == [True] * warns


def write_sentence_transformers_files(folder: Path) -> None:
    """What makes the small checkpoint a folder that sentence-transformers loads, as the released one has it."""
    names = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    paths = ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    identity = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
    config = config_json(SMALL) | {"query_pre_attn_scalar": int(SMALL.query_scalar)}  # which transformers insists on
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    files = {
        "config.json": config,
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": SMALL.context, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "find: "}, "similarity_fn_name": "cosine"},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **special},
        "1_Pooling/config.json": {
            "word_embedding_dimension": SMALL.width,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_cls_token": False,
            "include_prompt": True,
        },
        "2_Dense/config.json": {"in_features": SMALL.width, "out_features": SMALL.dense, **identity},
        "3_Dense/config.json": {"in_features": SMALL.dense, "out_features": SMALL.dimensions, **identity},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))


def test_folder_saved_by_sentence_transformers(tmp_path) -> None:
    """A finetuned model saved by sentence-transformers is refused, or read as another.

    Its config.json is of a newer form, and its tokenizer.json carries the cutting and padding of the last batch.
    """
    from sentence_transformers import SentenceTransformer

    folder = write_checkpoint(tmp_path / "first")
    write_sentence_transformers_files(folder)
    texts = ["the air in the end", "q" * 40, "a", "in the " * 8]
    peer = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    theirs = {task: peer.encode(texts, prompt_name=task) for task in ("query", None)}
    peer.save_pretrained(str(tmp_path / "saved"))
    for name in ("first", "saved"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = refembed.load(tmp_path / name, backend="numpy")
        assert model.config.reach == SMALL.reach
        assert model.config.context == SMALL.context
        for task, expected in theirs.items():
            np.testing.assert_allclose(model.encode(texts, task=task), expected, atol=1e-5, rtol=0, err_msg=name)
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(again.encode(texts), theirs[None], atol=1e-6, rtol=0)
    assert json.loads((tmp_path / "saved" / "config.json").read_text()).keys() - config_json(SMALL).keys()
