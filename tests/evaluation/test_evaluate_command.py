"""refembed evaluate as one uses it, and the vectors it scores."""

import json
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sets_for_tests import (
    bitext_folder,
    labelled_folder,
    pairs_folder,
    parallel_folder,
    retrieval_folder,
    sentence,
    write_table,
)

import refembed
from refembed.cli import main
from refembed.embedder import DEFAULT_MODEL
from refembed.errors import RefembedError
from refembed.evaluation import tasks
from refembed.evaluation.tasks import Choice, evaluate
from refembed.evaluation.vectors import TextEncoder

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model() -> refembed.Embedder:
    return refembed.load(DEFAULT_MODEL, backend="numpy")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in this process, on the built-in model by NumPy: exit status, standard output and standard error."""

    def command(*argv: object) -> tuple[int, str, str]:
        options = ("--model", DEFAULT_MODEL, "--backend", "numpy")
        try:
            status = main([str(one) for one in ("evaluate", *argv, *options)])
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return command


# -------------------------------------------------------------------------------------------------------------- command
def test_json_says_what_was_measured(run: Run, tmp_path: Path, model) -> None:
    """Wrong if a score is printed without the model, precision, context or number of examples that it depends on."""
    status, out, err = run(pairs_folder(tmp_path / "sts"), "--language", "en", "--format", "json", "--context", "1024")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert {key: report[key] for key in ("digest", "backend", "precision", "context", "dimensions", "cut")} == {
        "digest": model.info.digest,
        "backend": "numpy",
        "precision": "float32",
        "context": 1024,
        "dimensions": model.config.dimensions,
        "cut": 0,
    }
    (result,) = report["results"]
    assert (result["set"], result["task"], result["language"], result["split"]) == ("sts", "sts", "en", "test")
    assert result["examples"] == 30
    assert report["texts"] <= 60
    assert 0 < result["seconds"] <= report["seconds"]
    expected = evaluate(TextEncoder(model), tmp_path / "sts", Choice(languages=["en"]))[0].scores
    assert result["scores"] == pytest.approx(expected)


def test_table_of_several_folders(run: Run, tmp_path: Path) -> None:
    """Wrong if a folder, a language or the mean over languages is left out of the table."""
    folders = (
        pairs_folder(tmp_path / "sts"),
        labelled_folder(tmp_path / "intents"),
        retrieval_folder(tmp_path / "docs"),
    )
    status, out, err = run(*folders)
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()[2:]]
    assert [row[:5] for row in rows] == [
        ["set", "task", "language", "split", "examples"],
        ["sts", "sts", "de", "test", "30"],
        ["sts", "sts", "en", "test", "30"],
        ["sts", "sts", "mean", "test", "60"],
        ["intents", "classification", "-", "test", "60"],
        ["docs", "retrieval", "-", "test", "25"],
    ]
    assert [row[6] for row in rows[1:]] == ["spearman"] * 3 + ["accuracy", "ndcg@10"]


def test_output_file(run: Run, tmp_path: Path) -> None:
    """Wrong if -o leaves something on standard output, or the ending .json is not obeyed."""
    folder, out = labelled_folder(tmp_path / "intents"), tmp_path / "out.json"
    assert run(folder, "--task", "clustering", "-o", out) == (0, "", "")
    assert json.loads(out.read_text())["results"][0]["task"] == "clustering"


MISTAKES = [
    (["--task", "bitext"], "has no task 'bitext'; it has sts", "set-choice"),
    (["--language", "xx"], "has no language 'xx'; it has de, en", "set-choice"),
    (["--split", "train"], "has no split 'train'; it has dev, test", "set-choice"),
    (["--context", "1"], "context is 1", "option-context"),
    (["--dimensions", "1000"], "dimensions is 1000", "option-dimensions"),
    (["--prompt-task", "cooking"], "no task 'cooking'", "option-task"),
    (["--collection", "sentences"], "has no collection 'sentences'", "set-choice"),
    (["-o", "missing/out.json"], "missing/out.json", "output-unwritable"),
]


@pytest.mark.parametrize(("options", "reason", "id"), MISTAKES, ids=[mistake[2] for mistake in MISTAKES])
def test_wrong_use(run: Run, tmp_path: Path, options: list[str], reason: str, id: str) -> None:
    """Wrong if a mistake gives anything but status 2 and one line with what is wrong."""
    status, out, err = run(pairs_folder(tmp_path / "sts"), *options)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert reason in err
    assert f"[{id}]" in err


def test_files_are_read_before_the_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a damaged file is found only after minutes of embedding another folder."""
    monkeypatch.setattr("refembed.cli.evaluate.load_model", lambda given: pytest.fail("loaded"))
    good = pairs_folder(tmp_path / "good")
    bad = write_table(tmp_path / "bad" / "test.tsv", ("score", "sentence1", "sentence2"), [("high", "a", "b")]).parent
    status, _, err = run(good, bad)
    assert (status, err.count("\n")) == (2, 1)
    assert "bad/test.tsv:2: score is no number" in err


@pytest.mark.parametrize(("rows", "id"), [([("1", "a", "b")], "set-unusable"), ([], "set-unknown")])
def test_too_few_examples(run: Run, tmp_path: Path, rows: list[tuple[str, ...]], id: str) -> None:
    """Wrong if a set too small for a score gives a traceback, or a score."""
    write_table(tmp_path / "sts" / "en-test.tsv", ("score", "sentence1", "sentence2"), rows)
    status, out, err = run(tmp_path / "sts")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"[{id}]" in err


def test_an_undefined_score_is_null(run: Run, tmp_path: Path) -> None:
    """Wrong if a score that does not exist becomes NaN, which is no JSON, or a number."""
    rows = [(3, "a", "b"), (3, "the end", "in air")]
    write_table(tmp_path / "sts" / "en-test.tsv", ("score", "sentence1", "sentence2"), rows)
    status, out, _ = run(tmp_path / "sts", "--format", "json")
    assert status == 0
    assert json.loads(out)["results"][0]["scores"] == {"spearman": None, "pearson": None}
    assert "spearman -" in run(tmp_path / "sts")[1]


def test_classification_needs_training_texts(run: Run, tmp_path: Path) -> None:
    """Wrong if a classifier is tested on what it learnt from, or a missing training split gives a traceback."""
    folder = labelled_folder(tmp_path / "intents")
    assert "no classification of split 'all'; it has test" in run(folder, "--split", "all")[2]
    (folder / "train.tsv").unlink()
    status, _, err = run(folder)
    assert (status, err.count("\n")) == (2, 1)
    assert "has no split 'train'" in err


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    """Wrong if every command pays for the libraries of this one, or needs them."""
    heavy = ("sklearn", "scipy", "pytrec_eval", "mteb", "torch", "refembed.adapters")
    code = f"import sys, refembed.cli.evaluate; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---------------------------------------------------------------------------------------------------------------- tasks
class Recorder:
    """Encodes as the model, and keeps what was asked."""

    def __init__(self, model: refembed.Embedder) -> None:
        self.encode, self.asked = TextEncoder(model), []

    def __call__(self, texts, task, titles=None):
        self.asked.append((task, list(titles or []), len(texts)))
        return self.encode(texts, task, titles)


@pytest.mark.parametrize(
    ("make", "choice", "asked"),
    [
        (pairs_folder, Choice(languages=["en"]), [("STS", [], 60)]),
        (bitext_folder, Choice(languages=["deu"]), [("BitextMining", [], 80)]),
        (labelled_folder, Choice(task="clustering"), [("Clustering", [], 60)]),
        (retrieval_folder, Choice(prompt="code retrieval"), [("document", ["titles"], 60), ("code retrieval", [], 25)]),
    ],
    ids=["sts", "bitext", "clustering", "retrieval"],
)
def test_prompts(model, tmp_path: Path, make, choice: Choice, asked) -> None:
    """Wrong if a task's texts get another task's prompt, or documents lose their titles."""
    record = Recorder(model)
    evaluate(record, make(tmp_path), choice)
    assert [(task, ["titles"] * any(titles), count) for task, titles, count in record.asked] == asked


def test_classification_prompts(model, tmp_path: Path) -> None:
    """Wrong if training texts that no experiment learns from are embedded, or get another prompt than those judged."""
    record = Recorder(model)
    evaluate(record, labelled_folder(tmp_path, train=200))
    (task, _, trained), tested = record.asked
    assert task == "Classification"
    assert tested == ("Classification", [], 60)
    assert 5 * 8 < trained <= 5 * 8 * 10


def test_documents_are_embedded_once(model, tmp_path: Path) -> None:
    """Wrong if every language embeds again the documents that all of them ask."""
    record = Recorder(model)
    results = evaluate(record, parallel_folder(tmp_path), Choice(documents="all"))
    assert [result.language for result in results] == ["de", "en", "mean"]
    assert [count for task, _, count in record.asked if task == "document"] == [12]


def test_mean_over_languages() -> None:
    """Wrong if a language counts by its size, or one without a score is counted as nought."""
    of = [tasks.Result("s", "sts", lang, "test", count, scores, 1.0) for lang, count, scores in (
        ("de", 1, {"a": 10.0}), ("en", 99, {"a": 20.0, "b": 7.0}))]  # fmt: skip
    mean = tasks.mean(of)
    assert (mean.language, mean.examples, mean.scores, mean.seconds) == ("mean", 100, {"a": 15.0, "b": 7.0}, 2.0)


# -------------------------------------------------------------------------------------------------------------- vectors
def test_texts_are_cut_as_transformers_cuts_them(model) -> None:
    """Wrong if a text longer than the context is not cut at its end, or loses EOS."""
    from transformers import PreTrainedTokenizerFast

    text = sentence(random.Random(0), 400)
    peer = PreTrainedTokenizerFast(tokenizer_file=str(DEFAULT_MODEL / "tokenizer.json"))
    ids = peer("task: clustering | query: " + text, truncation=True, max_length=64)["input_ids"]
    assert (ids[0], ids[-1], len(ids)) == (2, 1, 64)
    encode = TextEncoder(model, 64)
    found = encode([text, "short"], "clustering")
    assert (encode.cut, encode.texts) == (1, 2)
    np.testing.assert_allclose(found[0], model.encode_tokens([np.array(ids)], model.config.dimensions)[0], atol=1e-6)
    np.testing.assert_allclose(found[1], model.encode("short", task="clustering"), atol=1e-6)


def test_each_distinct_text_is_embedded_once(model) -> None:
    """Wrong if a text that comes again costs again, or gets the vector of the same text under another title."""
    encode = TextEncoder(model, dimensions=128)
    texts, titles = ["the end", "in", "the end", "the end"], ["hat", "", "ink", "hat"]
    found = encode(texts, "document", titles)
    assert encode.texts == 3
    np.testing.assert_allclose(
        found, model.encode_document(texts, titles=[*titles[:1], None, *titles[2:]], dimensions=128), atol=1e-6
    )
    np.testing.assert_array_equal(found[0], found[3])


def test_context_is_never_beyond_the_models(model) -> None:
    """Wrong if more tokens are asked for than the model was made for, or longer texts are not counted as cut."""
    encode = TextEncoder(model, 4096)
    assert encode.context == 2048
    with warnings.catch_warnings(action="error"):  # the report says it
        found = encode(["a hat " * 2000], "STS")
    assert (encode.cut, encode.tokens) == (1, 2048)
    with pytest.warns(UserWarning, match="cut"):
        np.testing.assert_array_equal(found[0], model.encode("a hat " * 2000, task="STS"))
    for context in (1, 0, -5, True, 512.0, "512"):
        with pytest.raises(RefembedError, match="context is"):
            TextEncoder(model, context)  # type: ignore[arg-type]


def test_a_text_that_cannot_be_embedded_is_shown(model) -> None:
    """Wrong if the one bad text of thousands is not named."""
    with pytest.raises(RefembedError, match=r"the text 'bad .*' is not valid Unicode"):
        TextEncoder(model)(["good", "bad \ud800"], "STS")
