"""Embeddings in 8 bits and in one: golden cases, sentence-transformers, and the laws they promise."""

import json
from pathlib import Path

import numpy as np
import pytest
import vectors_cases
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays

import refembed
from refembed.cli import main
from refembed.reference import l2_normalize, truncate
from refembed.reference.quantize import binary_similarity, binary_vectors, int8_vectors, signs
from refembed.vectors import nearest, quantize_vectors, similarity

GOLDEN = json.loads(vectors_cases.FILE.read_text())
TWIN = Path(__file__).parents[1] / "golden" / "twin" / "checkpoint"
CASES = {case["case"]: case for case in GOLDEN["cases"]}
numbers = some.floats(-1, 1, width=32).map(lambda number: 0.0 if abs(number) < 1e-20 else number)
tables = some.integers(1, 6).flatmap(lambda rows: arrays(np.float32, (rows, 24), elements=numbers))


def unit(rows: int, dimensions: int = 64, seed: int = 0) -> np.ndarray:
    return l2_normalize(np.random.default_rng(seed).standard_normal((rows, dimensions))).astype(np.float32)


def test_golden_is_the_scripts() -> None:
    """Wrong if golden/vectors was changed otherwise than by its script."""
    assert vectors_cases.FILE.read_text() == vectors_cases.content()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, dtype: type) -> None:
    """Wrong if levels, bits or signs are others than exact fractions give."""
    case = CASES[name]
    embedding = np.array(case["embedding"], dtype)
    assert int8_vectors(embedding).tolist() == case["int8"]
    assert binary_vectors(embedding).tolist() == case["binary"]
    assert signs(binary_vectors(embedding)).tolist() == case["signs"]


def test_golden_similarity() -> None:
    """Wrong if counting bits is not the cosine of ones and minus ones."""
    for size, similar in GOLDEN["binary_similarity"].items():
        bits = np.array([case["binary"] for case in GOLDEN["cases"] if len(case["signs"]) == int(size)], np.uint8)
        assert binary_similarity(bits, bits).tolist() == similar


def test_bits_are_sentence_transformers() -> None:
    """Wrong if an index made with sentence-transformers' ubinary cannot be asked with our vectors."""
    from sentence_transformers.util import quantize_embeddings

    vectors = unit(50)
    np.testing.assert_array_equal(quantize_vectors(vectors, "binary"), quantize_embeddings(vectors, "ubinary"))


@given(tables)
def test_levels_are_near(vectors: np.ndarray) -> None:
    """Wrong if a level is more than half a step from its number, or the largest is not the last level."""
    levels, largest = int8_vectors(vectors), np.abs(vectors).max(axis=1, keepdims=True).astype(np.float64)
    assert (np.abs(levels * largest / 127 - vectors) <= largest / 254 * (1 + 1e-5)).all()
    assert (np.abs(levels).max(axis=1) == np.where(largest[:, 0] > 0, 127, 0)).all()


@given(tables, tables)
def test_counting_bits_is_the_cosine_of_signs(first: np.ndarray, second: np.ndarray) -> None:
    """Wrong if two binary tables are compared otherwise than the vectors they stand for."""
    one, other = binary_vectors(first), binary_vectors(second)
    expected = signs(one).astype(float) @ signs(other).T.astype(float) / 24
    np.testing.assert_allclose(similarity(one, other), expected, atol=1e-7)


@given(tables, some.sampled_from([8, 16]))
def test_cut_bits_are_bits_of_the_cut(vectors: np.ndarray, size: int) -> None:
    """Wrong if an index of bits cannot be shortened without the model."""
    kept = vectors[np.abs(vectors[:, :size]).max(axis=1) > 1e-3]
    np.testing.assert_array_equal(binary_vectors(truncate(kept, size)), binary_vectors(kept)[:, : size // 8])


@pytest.mark.parametrize("quantize", [None, "int8", "binary"])
def test_similarity_takes_every_table(quantize: str | None) -> None:
    """Wrong if similarity is another than the cosine with the vector that a row stands for."""
    queries, documents = unit(3), unit(40, seed=1)
    table = quantize_vectors(documents, quantize)
    meant = {None: documents, "int8": table, "binary": 2.0 * (documents > 0) - 1}[quantize].astype(np.float64)
    expected = queries.astype(np.float64) @ l2_normalize(meant).T
    np.testing.assert_allclose(similarity(queries, table), expected, atol=1e-6)
    np.testing.assert_allclose(similarity(table, queries), expected.T, atol=1e-6)


@given(some.integers(1, 30), some.integers(0, 40))
def test_rescoring_all_is_the_ranking_by_floats(k: int, seed: int) -> None:
    """Wrong if rescoring gives a document that the second step ranks lower, or other scores."""
    documents, query = unit(30, seed=seed), unit(1, seed=seed + 1000)[0]
    bits = binary_vectors(documents)
    for finer in (None, documents):
        scores = similarity(query, bits if finer is None else finer)[0]
        places, found = nearest(query, bits, k, rescore=30, finer=finer)
        assert places.tolist() == np.argsort(-scores, kind="stable")[:k].tolist()
        np.testing.assert_array_equal(found, scores[places])


def test_a_query_may_be_quantised_too() -> None:
    """Wrong if a query as an index keeps it finds others than its signs do, or nothing compared gives no table."""
    table, query = unit(40), unit(1, seed=1)
    bits, levels = binary_vectors(table), int8_vectors(query)
    for asked in (binary_vectors(query), binary_vectors(query)[0]):
        places, scores = nearest(asked, bits, 5)
        np.testing.assert_array_equal(places, nearest(query, bits, 5, rescore=0)[0])
        np.testing.assert_array_equal(scores, similarity(asked, bits)[0, places])
    np.testing.assert_array_equal(nearest(levels, bits, 5)[0], nearest(levels.astype(np.float32), bits, 5)[0])
    np.testing.assert_array_equal(nearest(query, table, 5)[0], nearest(query[0], table, 5)[0])
    assert similarity(bits[:0], bits).shape == (0, 40)
    np.testing.assert_array_equal(quantize_vectors(table.tolist(), "binary"), bits)


def test_rescoring_looks_at_few() -> None:
    """Wrong if more documents than k * rescore are scored, or others than those of the fewest differing bits."""
    documents, query = unit(200), unit(1, seed=9)[0]
    bits = binary_vectors(documents)
    few = np.argsort(np.count_nonzero((documents > 0) != (query > 0), axis=1), kind="stable")[:20]
    places, _ = nearest(query, bits, 5, rescore=4)
    assert set(places.tolist()) <= set(few.tolist())
    plain, scores = nearest(query, bits, 5, rescore=0)
    assert plain.tolist() == few[:5].tolist()
    np.testing.assert_array_equal(scores, similarity(binary_vectors(query), bits)[0][plain])


@given(some.sets(some.integers(0, 29)), some.integers(1, 30), some.sampled_from([np.nan, np.inf]))
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_rows_without_a_number_take_no_place(bad: set[int], k: int, number: float) -> None:
    """Wrong if a row that `refembed embed` left without an embedding is found, or found in another's stead."""
    table, query = unit(30), unit(1, seed=9)[0]
    scores = similarity(query, table)[0]
    needed = [place for place in np.argsort(-scores, kind="stable").tolist() if place not in bad][:k]
    bits = binary_vectors(table)
    table[sorted(bad), 3] = number
    places, found = nearest(query, table, k)
    assert places.tolist() == needed
    np.testing.assert_array_equal(found, scores[places])
    places, _ = nearest(query, bits, k, rescore=30, finer=table)
    assert places.tolist() == needed


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_bits_of_rows_without_a_number_take_no_place() -> None:
    """Wrong if bits made of NaN win the first step, and the rows they kept out are lost in the second."""
    table, query = unit(40), unit(1, seed=9)[0]
    table[:20] = query
    bits = binary_vectors(table)
    table[:20, 0] = np.nan
    places, _ = nearest(query, bits, 4, rescore=2, finer=table)
    rest, _ = nearest(query, bits[20:], 4, rescore=2, finer=table[20:])
    assert places.tolist() == (rest + 20).tolist()


@pytest.mark.parametrize("quantize", [None, "int8", "binary"])
def test_lists_are_tables(quantize: str | None) -> None:
    """Wrong if vectors read from JSON end in an AttributeError."""
    table, query = unit(9), unit(1, seed=9)[0]
    kept = quantize_vectors(table, quantize)
    given = kept.tolist() if quantize is None else kept
    places, scores = nearest(query.tolist(), given, 3, finer=table.tolist() if quantize == "binary" else None)
    needed, expected = nearest(query, kept, 3, finer=table if quantize == "binary" else None)
    assert places.tolist() == needed.tolist()
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("quantize", ["int8", "binary"])
def test_encode(quantize: str) -> None:
    """Wrong if encode keeps something else of a vector than quantising it afterwards."""
    model = refembed.load(TWIN)
    texts, options = ["Mars looks red.", ""], {"dimensions": 16}
    expected = quantize_vectors(model.encode(texts, **options), quantize)
    found = model.encode_document(texts, quantize=quantize, **options)
    assert found.dtype == (np.int8 if quantize == "int8" else np.uint8)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(model.encode(texts[0], quantize=quantize, **options), expected[0])


@pytest.mark.parametrize("quantize", ["int8", "binary"])
def test_files(quantize: str, tmp_path: Path) -> None:
    """Wrong if a file holds other numbers, or other types, than encode gives."""
    from safetensors.numpy import load_file

    model = refembed.load(TWIN)
    expected = model.encode(["red", "hot"], quantize=quantize)
    for ending in ("npy", "safetensors", "jsonl"):
        out = str(tmp_path / f"out.{ending}")
        assert main(["embed", "red", "hot", "--model", str(TWIN), "--quantize", quantize, "-o", out]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    np.testing.assert_array_equal(load_file(tmp_path / "out.safetensors")["embeddings"], expected)
    rows = [json.loads(line)["embedding"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows == expected.tolist()


@pytest.mark.parametrize(
    "options", [["--quantize", "int8"], ["--quantize", "binary"], ["--quantize", "binary", "--dimensions", "16"]]
)
def test_search(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if a small index finds other passages than its own vectors say, or is made again each time."""
    corpus = tmp_path / "notes.txt"
    corpus.write_text("".join(f"the planet {word}\n" for word in ("red", "hot", "is", "never", "on", "ever")))
    command = ["search", str(corpus), "red", "-k", "2", "--model", str(TWIN), *options]
    assert main(command) == 0
    first = capsys.readouterr().out
    kept = tmp_path / "notes.txt.refembed"
    before = {(file.name, file.stat().st_mtime_ns) for file in kept.iterdir()}
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert {(file.name, file.stat().st_mtime_ns) for file in kept.iterdir()} == before
    model, size = refembed.load(TWIN), 16 if "--dimensions" in options else None
    texts = corpus.read_text().splitlines()
    table = model.encode_document(texts, quantize=options[1], dimensions=size)
    finer = model.encode_document(texts, quantize="int8")[:, :size]  # kept beside bits, at full length
    places, scores = nearest(model.encode_query("red", dimensions=size), table, 2, finer=finer)
    assert [line.split("\t")[2] for line in first.splitlines()] == [texts[place] for place in places]
    np.testing.assert_allclose([float(line.split("\t")[0]) for line in first.splitlines()], scores, atol=1e-4)


def test_another_form_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if bits kept from an earlier search are read as floats."""
    (tmp_path / "notes.txt").write_text("red\nhot\n")
    command = ["search", str(tmp_path / "notes.txt"), "red", "--model", str(TWIN)]
    assert main([*command, "--quantize", "binary"]) == main(command) == 0
    capsys.readouterr()
    assert main([*command, "--backend", "numpy"]) == 0
    scores = [float(line.split("\t")[0]) for line in capsys.readouterr().out.splitlines()]
    model = refembed.load(TWIN)
    expected = similarity(model.encode_query("red"), model.encode_document(["red", "hot"]))[0]
    np.testing.assert_allclose(sorted(scores), sorted(expected), atol=1e-4)


def test_an_option_without_its_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if somebody believes to have rescored what was not."""
    (tmp_path / "notes.txt").write_text("red\n")
    assert main(["search", str(tmp_path / "notes.txt"), "red", "--model", str(TWIN), "--rescore", "8"]) == 2
    assert "--quantize binary" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "id"),
    [
        (lambda: quantize_vectors(unit(2), "int4"), "option-quantize"),
        (lambda: quantize_vectors(unit(2, 12), "binary"), "option-quantize"),
        (lambda: quantize_vectors(np.full((2, 8), np.nan), "int8"), "vectors-invalid"),
        (lambda: quantize_vectors(np.ones((2, 8), int), "int8"), "vectors-invalid"),
        (lambda: similarity(unit(2), np.ones((2, 64), np.int32)), "vectors-invalid"),
        (lambda: similarity(unit(2), np.ones((2, 64), np.uint8)), "vectors-invalid"),
        (lambda: nearest(unit(1)[0], unit(3), 0), "option-k"),
        (lambda: nearest(unit(1)[0], unit(3), 1, rescore=-1), "option-k"),
        (lambda: nearest(unit(1)[0], binary_vectors(unit(3)), 1, finer=unit(2)), "vectors-invalid"),
        (lambda: nearest(unit(1)[0], [[1.0], [1.0, 2.0]], 1), "vectors-invalid"),
        (lambda: nearest(unit(1)[0], [[1] * 64], 1), "vectors-invalid"),  # whole numbers: a form that nothing says
        (lambda: nearest(unit(1)[0] * np.nan, unit(3), 1), "vectors-invalid"),
        (lambda: nearest(None, unit(3), 1), "vectors-invalid"),
        (lambda: nearest(None, binary_vectors(unit(3)), 1), "vectors-invalid"),
        (lambda: nearest(unit(2), unit(3), 1), "vectors-invalid"),
        (lambda: nearest(unit(1)[0], unit(3), 1.0), "option-k"),
        (lambda: nearest(unit(1)[0], unit(3), None), "option-k"),
        (lambda: refembed.load(TWIN).encode("red", quantize="float8"), "option-quantize"),
        (lambda: refembed.load(TWIN).encode("red", quantize="binary", dimensions=12), "option-quantize"),
    ],
)
def test_refused(call, id: str) -> None:
    """Wrong if a form, a table or a number that cannot be meant is taken for another."""
    with pytest.raises(refembed.RefembedError) as caught:
        call()
    assert caught.value.id == id
