"""Folders to sets: what is read, what is chosen of it, and what a damaged file is told."""

import json
from pathlib import Path

import pytest
from sets_for_tests import bitext_folder, labelled_folder, pairs_folder, parallel_folder, retrieval_folder, write_table

from refembed.errors import RefembedError
from refembed.evaluation.sets import open_folder


def test_languages_and_splits_come_from_names(tmp_path: Path) -> None:
    """Wrong if pairs of another language or split are judged."""
    (found,) = open_folder(pairs_folder(tmp_path / "sts"), "test")
    assert (found.form, len(found.rows)) == ("pairs", 120)
    assert {lang: len(rows) for lang, rows in found.select("test").items()} == {"de": 30, "en": 30}
    chosen = found.select("dev", ["en"])["en"]
    assert {(Path(row["place"]).name.partition(":")[0], row["lang"]) for row in chosen} == {("en-dev.tsv", "en")}
    assert len(found.select("all", ["de"])["de"]) == 60


def test_splits_come_from_a_column(tmp_path: Path) -> None:
    """Wrong if a table with a split column, like SICK's, is judged whole where one split is asked for."""
    rows = [("train", 1, "NEUTRAL", "a", "b"), ("test", 4.5, "NEUTRAL", "c", 'he said "no'), ("test", 2, "X", "", "e")]
    write_table(tmp_path / "sick" / "sick.tsv", ("split", "score", "nli", "sentence1", "sentence2"), rows)
    (found,) = open_folder(tmp_path / "sick", "test")
    assert [row["sentence2"] for row in found.select("test")[""]] == ['he said "no', "e"]
    assert [row["score"] for row in found.select("all")[""]] == [1, 4.5, 2]


def test_forms(tmp_path: Path) -> None:
    """Wrong if a set is taken for one of another form."""
    folders = {
        "pairs": pairs_folder(tmp_path / "1"),
        "labelled": labelled_folder(tmp_path / "2"),
        "bitext": bitext_folder(tmp_path / "3"),
        "retrieval": retrieval_folder(tmp_path / "4"),
    }
    assert {form: open_folder(folder, "test")[0].form for form, folder in folders.items()} == {f: f for f in folders}


def test_judgements_of_the_split(tmp_path: Path) -> None:
    """Wrong if the queries of one split are judged by another's, or a missing split goes unnoticed."""
    folder = retrieval_folder(tmp_path)
    (folder / "queries.jsonl").rename(folder / "queries-test.jsonl")
    (folder / "queries-dev.jsonl").write_text('{"_id": "only", "text": "the end"}\n')
    (folder / "qrels.tsv").rename(folder / "qrels-test.tsv")
    write_table(folder / "qrels-dev.tsv", ("query-id", "corpus-id", "score"), [("only", "d0", 1)])
    for split, count in (("dev", 1), ("test", 25)):
        (found,) = open_folder(folder, split)
        ((_, search),) = found.searches(split)
        assert len(search.queries) == len(search.relevant) == count
    with pytest.raises(RefembedError, match="has no split 'train'; it has dev, test"):
        open_folder(folder, "train")


def test_documents_of_the_querys_language(tmp_path: Path) -> None:
    """Wrong if a German question is asked of English paragraphs too, or an English one answers it."""
    (found,) = open_folder(parallel_folder(tmp_path), "test")
    assert found.name == f"{tmp_path.name}/paragraphs"
    searches = dict(found.searches("test"))
    assert list(searches) == ["de", "en"]
    assert {row["_id"] for row in searches["de"].documents} == {f"de-p{number}" for number in range(6)}
    assert searches["de"].relevant == {f"de-{number}": {f"de-p{number}": 1} for number in range(4)}
    assert [query["answers"] for query in searches["de"].queries] == [[f"de answer {number}"] for number in range(4)]


@pytest.mark.parametrize(("of", "spoken"), [("en", ("en",)), ("all", ("de", "en"))])
def test_documents_of_another_language(tmp_path: Path, of: str, spoken: tuple[str, ...]) -> None:
    """Wrong if a question asked of another language's paragraphs keeps its own language's as the relevant ones."""
    (found,) = open_folder(parallel_folder(tmp_path), "test")
    ((_, search),) = found.searches("test", ["de"], of)
    assert {row["lang"] for row in search.documents} == set(spoken)
    assert search.relevant["de-2"] == {f"{lang}-p2": 1 for lang in spoken}
    assert search.queries[2]["answers"] == [f"{lang} answer 2" for lang in spoken]


def test_like_numbers_are_no_translations(tmp_path: Path) -> None:
    """Wrong if the queries xx-1 and yy-1 of a set whose documents have other ids are taken for one question."""
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "en0", "lang": "en", "text": "a", "title": null}\n{"_id": "en1", "lang": "en", "text": "b"}\n'
    )
    queries = [
        {"_id": f"{lang}-1", "lang": lang, "text": "q", "split": "test", "answers": [lang]} for lang in ("bem", "swa")
    ]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    write_table(tmp_path / "qrels.tsv", ("query-id", "corpus-id", "score"), [("bem-1", "en0", 1), ("swa-1", "en1", 1)])
    (found,) = open_folder(tmp_path, "test")
    searches = dict(found.searches("test"))
    assert len(searches["swa"].documents) == 2, "no document is in Swahili, so all are asked"
    assert searches["swa"].relevant == {"swa-1": {"en1": 1}}
    assert searches["swa"].queries[0]["answers"] == ["swa"]


def test_queries_without_relevant_documents_do_not_count(tmp_path: Path) -> None:
    """Wrong if a query that nothing answers, or that is judged to have no answer, counts as missed."""
    folder = retrieval_folder(tmp_path, queries=2)
    with (folder / "queries.jsonl").open("a") as file:
        file.write('{"_id": "none", "text": "a"}\n{"_id": "nought", "text": "b"}\n')
    with (folder / "qrels.tsv").open("a") as file:
        file.write("nought\td0\t0\n")
    (found,) = open_folder(folder, "test")
    ((_, search),) = found.searches("test")
    assert {query["_id"] for query in search.queries} == set(search.relevant) == {"q0", "q1"}


PAIRS = "score\tsentence1\tsentence2\n"
DAMAGED = [
    ("en-test.tsv", PAIRS + "1\ta\tb\n2\tc\n", "line-columns", r"en-test.tsv:3: 2 columns, 3 needed"),
    ("en-test.tsv", PAIRS + "one\ta\tb\n", "line-columns", r"en-test.tsv:2: score is no number"),
    ("en-test.tsv", PAIRS + "nan\ta\tb\n", "line-columns", r"en-test.tsv:2: score is no number"),
    ("en-test.tsv", PAIRS.encode() + b"1\t\xff\tb\n", "line-encoding", r"en-test.tsv:2: not valid UTF-8"),
    ("en-test.tsv", PAIRS, "set-unknown", "one of: score, sentence1, sentence2; label, text"),
    ("en-test.tsv", "a\tb\n1\t2\n", "set-unknown", "all have one of"),
    ("notes.txt", "hello\n", "set-unknown", "no qrels.tsv"),
    ("en-test.tsv.gz", "no gzip at all\n", "input-missing", "en-test.tsv.gz"),
    ("corpus.jsonl", '{"_id": "d0", "text": 3}\n', "line-field", r"corpus.jsonl:1: 'text' is int, a text is needed"),
    ("corpus.jsonl", '{"text": "a"}\n', "line-field", r"corpus.jsonl:1: '_id' is NoneType"),
    ("corpus.jsonl", '{"_id": "d0", "text": "a"}\n\n[1]\n', "line-json", r"corpus.jsonl:3: a JSON object is needed"),
    ("corpus.jsonl", '{"_id": "d0"\n', "line-json", r"corpus.jsonl:1: not JSON"),
    ("queries.jsonl", '{"_id": "q0", "text": "a", "answers": "x"}\n', "line-field", r"queries.jsonl:1: 'answers'"),
    ("qrels.tsv", "query-id\tcorpus-id\tscore\nq0\td999\t1\n", "set-ids", r"qrels.tsv:2: one of its two ids"),
    ("qrels.tsv", "query-id\tcorpus-id\tscore\nq999\td0\t1\n", "set-ids", r"qrels.tsv:2: one of its two ids"),
    ("qrels.tsv", "query-id\tcorpus-id\tscore\nq0\td0\t0.9\n", "line-columns", r"qrels.tsv:2: score 0.9 is no grade"),
    (
        "corpus.jsonl",
        '{"_id": "d0", "text": "a"}\n{"_id": "d0", "text": "b"}\n',
        "set-ids",
        r"corpus.jsonl:2: _id 'd0' is also at .*corpus.jsonl:1",
    ),
    ("qrels.tsv", "query\tdocument\nq0\td0\n", "set-unknown", r"qrels.tsv:2: columns query-id"),
    ("queries.jsonl", None, "set-unknown", "needs queries.jsonl beside it"),
]


@pytest.mark.parametrize(("name", "content", "id", "reason"), DAMAGED, ids=[f"{d[0]}-{d[3]}" for d in DAMAGED])
def test_damaged_files(tmp_path: Path, name: str, content: str | bytes | None, id: str, reason: str) -> None:
    """Wrong if a damaged file raises something else than one line that names the file, its line and what is needed."""
    folder = tmp_path if "test" in name or "notes" in name else retrieval_folder(tmp_path)
    (folder / f"{name}.gz").unlink(missing_ok=True)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RefembedError, match=reason) as caught:
        open_folder(folder, "test")
    assert caught.value.id == id


def test_choices_that_are_not_there(tmp_path: Path) -> None:
    """Wrong if a language, split or kind of documents the set does not have gives an empty or another result."""
    (found,) = open_folder(pairs_folder(tmp_path / "sts"), "test")
    with pytest.raises(RefembedError, match="has no split 'train'; it has dev, test"):
        found.select("train")
    with pytest.raises(RefembedError, match="has no language 'fr'; it has de, en"):
        found.select("test", ["en", "fr"])
    (found,) = open_folder(parallel_folder(tmp_path / "xquad"), "test")
    with pytest.raises(RefembedError, match="has no documents in 'fr'; it has all, de, en"):
        list(found.searches("test", of="fr"))
    with pytest.raises(RefembedError, match="is no folder"):
        open_folder(tmp_path / "missing", "test")


def test_a_file_there_twice(tmp_path: Path) -> None:
    """Wrong if one of a file and its .gz is taken, and the other one changed without effect."""
    (retrieval_folder(tmp_path) / "corpus.jsonl").write_text('{"_id": "d0", "text": "a"}\n')
    with pytest.raises(RefembedError, match=r"corpus\.jsonl is there plain and as \.gz"):
        open_folder(tmp_path, "test")


def test_the_folders_of_the_data(data: Path) -> None:
    """Wrong if a set the data folder holds is read short, or as another form."""
    counts = {}
    for folder in sorted((data / "eval").iterdir()):
        for found in open_folder(folder, "test"):
            judged = sum(map(len, found.relevant.values()))
            counts[found.name] = (found.form, len(found.rows), len(found.documents), judged)
    assert counts == {
        "afriqa": ("retrieval", 7054, 6154, 7054),
        "banking77": ("labelled", 13083, 0, 0),
        "cosqa": ("retrieval", 500, 6267, 500),
        "cranfield": ("retrieval", 225, 1400, 1837),
        "sick": ("pairs", 9927, 0, 0),
        "stsb_multi_mt": ("pairs", 11 * (1500 + 1379), 0, 0),
        "tatoeba": ("bitext", 88877, 0, 0),
        "xquad_r/paragraphs": ("retrieval", 13090, 2640, 13090),
        "xquad_r/sentences": ("retrieval", 13090, 13014, 13090),
    }
