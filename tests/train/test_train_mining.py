"""Hard negatives: what is taken, what never, and that the file of them is whole."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from refembed_torch.train import mining
from refembed_torch.train.data import Example, SetSettings, read_examples
from refembed_torch.train.mining import MineSettings, Pool, run_mine

import refembed
from refembed.embedder import DEFAULT_MODEL
from refembed.errors import RefembedError


def write(file: Path, rows: list[dict[str, Any] | str]) -> Path:
    lines = [one if isinstance(one, str) else json.dumps({"task": "qa", **one}) for one in rows]
    text = "".join(line + "\n" for line in lines).encode()
    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
    return file


def mined(file: Path, **options: Any) -> list[Example]:
    """The rows of the file that the stage writes, in a folder of its own for other options."""
    out = file.parent / "-".join(["out", file.stem, *map(str, options.values())]).replace("/", "_")
    table = {"out": str(out), "set": [{"file": str(file)}], "how": "bm25", **options}
    run_mine(table, file.parent / "mine.toml")
    found = list(read_examples(SetSettings(out / file.name)))
    assert all(isinstance(one, Example) for one in found)
    return [one for one in found if isinstance(one, Example)]


ANIMALS: list[dict[str, Any] | str] = [
    {"query": "red cat", "positive": "a red cat sat"},
    {"query": "blue cat", "positive": "the blue cat ran"},
    {"query": "red dog", "positive": "one red dog barked"},
    {"query": "green fish", "positive": "some green fish swam"},
]


@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz"])
def test_words_worked_by_hand(tmp_path: Path, name: str) -> None:
    """Wrong if BM25's best text is not the one with the most telling words: cat stands in two texts, and so does red;
    nothing shares a word with the fish."""
    found = mined(write(tmp_path / name, ANIMALS), negatives=3)
    assert [set(one.negatives) for one in found] == [
        {"the blue cat ran", "one red dog barked"},
        {"a red cat sat"},
        {"a red cat sat"},
        set(),
    ]
    assert [(one.query, one.positive, one.task) for one in found][3] == ("green fish", "some green fish swam", "qa")


def test_scores_are_bm25s_own_formula() -> None:
    """Wrong if the score is not sum of idf * tf / (tf + k1 (1 - b + b length / mean length)), Lucene's form of BM25."""
    texts = ["a b b", "b c", "c c d e"]
    ranking = mining.Bm25()
    ranking.index([("document", text, "") for text in texts])
    (found,) = ranking.scores([("query", "B d zebra", "")])
    expected = []
    for text in texts:
        words, score = text.split(), 0.0
        for word in ("b", "d"):
            with_it = sum(word in one.split() for one in texts)
            idf = np.log(1 + (3 - with_it + 0.5) / (with_it + 0.5))
            times = words.count(word)
            score += idf * times / (times + 0.9 * (1 - 0.4 + 0.4 * len(words) / 3))
        expected.append(score)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_words_of_scripts_without_spaces() -> None:
    """Wrong if a sentence of Han or Thai letters counts as one word, which hardly any other text shares."""
    assert mining.words("Red-Cat 42 été 猫が abc語de ก") == [
        "red", "cat", "42", "été", "猫", "が", "abc", "語", "de", "ก"
    ]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> refembed.Embedder:
    return refembed.load(DEFAULT_MODEL, backend="numpy")


def test_model_takes_the_nearest_text(tmp_path: Path, model: refembed.Embedder) -> None:
    """Wrong if the negative is not what the model's own public interface ranks first among the texts far enough below
    the positive."""
    texts = [
        "mars is red",
        "venus is hot",
        "the moon is near",
        "jupiter is large",
        "saturn has rings",
        "the sun shines",
    ]
    rows: list[dict[str, Any] | str] = [{"query": f"{text[:6]}?", "positive": text} for text in texts]
    file = write(tmp_path / "set.jsonl", rows)
    found = mined(file, how="model", model=str(DEFAULT_MODEL), backend="numpy", negatives=2, margin=0.1)
    queries = model.encode([f"{text[:6]}?" for text in texts], task="question answering")
    scores = model.similarity(queries, model.encode_document(texts))
    taken = 0
    for index, one in enumerate(found):
        below = [place for place in np.argsort(-scores[index]) if scores[index, place] <= 0.9 * scores[index, index]]
        assert one.negatives == tuple(texts[place] for place in below if place != index)[:2]
        taken += len(one.negatives)
    assert taken >= 4


def test_texts_without_a_vector_are_neither_mined_nor_mined_for(
    tmp_path: Path, model: refembed.Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong if a query that has no vector gets any text as its hard negative, or a text that has none is one: of both
    no cosine is known. Texts go to the model in lots, too."""
    rows: list[dict[str, Any] | str] = [{"query": f"q {text}", "positive": f"p {text}"} for text in "abcdef"]
    rows[1] = {"query": "q <x>", "positive": "p b"}
    rows[4] = {"query": "q e", "positive": "p <x>"}
    one = SetSettings(write(tmp_path / "set.jsonl", rows))
    chosen = MineSettings(tmp_path / "out", (one,), model=DEFAULT_MODEL, backend="numpy", negatives=9, margin=0)
    ranking, whole = mining.ByModel(chosen), mining.ByModel(chosen)

    def tokenize(texts: list[str]) -> list[Any]:
        found = model.tokenizer(texts)
        return [
            RefembedError("text-token", "spells <x>") if "<x>" in text else ids
            for text, ids in zip(texts, found, strict=True)
        ]

    monkeypatch.setattr(ranking.model, "tokenizer", tokenize)
    monkeypatch.setattr(mining, "TEXTS_AT_ONCE", 2)
    pool = Pool(one)
    for table in (ranking, whole):
        table.index(pool.documents)
    np.testing.assert_allclose(ranking.stored[[0, 5]], whole.stored[[0, 5]], atol=1e-6)
    examples = [found for found in read_examples(one) if isinstance(found, Example)]
    scores = ranking.scores([mining.sides_of(one, example)[0] for example in examples])
    found = [
        [text for _, text, _ in pool.negatives(example, row, chosen, ranking.least)]
        for example, row in zip(examples, scores, strict=True)
    ]
    assert found[1] == found[4] == []
    assert any(found)
    assert not any("p <x>" in texts for texts in found)


@settings(max_examples=60)
@given(
    rows=some.lists(
        some.tuples(some.integers(0, 4), some.integers(0, 6), some.lists(some.integers(7, 9), max_size=2)),
        min_size=1,
        max_size=12,
    ),
    negatives=some.integers(1, 4),
    first=some.integers(1, 4),
    more=some.integers(0, 5),
    margin=some.sampled_from([0.0, 0.1, 0.5]),
    seed=some.integers(0, 99),
)
def test_what_is_never_taken(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int, list[int]]],
    negatives: int,
    first: int,
    more: int,
    margin: float,
    seed: int,
) -> None:
    """Wrong if a negative answers the query, is the query, scores within the margin, lies outside the ranks asked for,
    stands there twice, or a better one was passed over. Against a plain search over all texts."""
    folder = tmp_path_factory.mktemp("mine")
    spelled = ["{}", " {}  ", "{} "]  # the same text to whoever reads it
    objects: list[dict[str, Any] | str] = [
        {
            "query": f"q {query}",
            "positive": spelled[index % 3].format(f"P {positive}"),
            "negative": [f"n {one}" for one in set(own)],
        }
        for index, (query, positive, own) in enumerate(rows)
    ]
    one = SetSettings(write(folder / "set.jsonl", objects))
    chosen = MineSettings(
        folder / "out", (one,), "bm25", negatives=negatives, first=first, last=first + more, margin=margin
    )
    pool = Pool(one)
    examples = [found for found in read_examples(one) if isinstance(found, Example)]
    scores = np.random.default_rng(seed).permutation(len(examples) * len(pool.documents)).astype(np.float32)
    for example, row in zip(examples, scores.reshape(len(examples), -1), strict=True):
        found = [text for _, text, _ in pool.negatives(example, row, chosen, -np.inf)]
        answers = {other.positive.strip() for other in examples if other.query == example.query}
        texts = [text for _, text, _ in pool.documents]
        goal = row[pool.columns["document", example.positive, ""]]
        open_ones = sorted(
            (-score, text) for score, text in zip(row, texts, strict=True) if text.strip() not in answers
        )
        ranked = [text for score, text in open_ones[first - 1 : first + more] if -score <= goal - margin * goal]
        different = [text for place, text in enumerate(ranked) if text.strip() not in map(str.strip, ranked[:place])]
        assert found == different[: max(0, negatives - len(example.negatives))]


def test_own_negatives_come_first_and_once(tmp_path: Path) -> None:
    """Wrong if a row loses the negative it had, has it twice, or gets more than were asked for."""
    rows = [*ANIMALS]
    rows[0] = {"query": "red cat", "positive": "a red cat sat", "negative": "One red dog barked"}
    file = write(tmp_path / "set.jsonl", rows)
    assert mined(file, negatives=3)[0].negatives == ("One red dog barked", "the blue cat ran")
    assert mined(file, negatives=1)[0].negatives == ("One red dog barked",)


def test_the_query_itself_is_no_negative(tmp_path: Path) -> None:
    """Wrong if, where queries and positives are of one kind, a query gets its own words as the hardest negative."""
    rows: list[dict[str, Any] | str] = [
        {"query": "my card is lost", "positive": "I lost my card, the card is lost"},
        {"query": "where is it", "positive": "My card is  lost"},
    ]
    assert mined(write(tmp_path / "set.jsonl", rows), margin=0)[0].negatives == ()


def test_titles_go_with_their_texts(tmp_path: Path) -> None:
    """Wrong if a mined text loses its title, or a title shifts to another text."""
    rows: list[dict[str, Any] | str] = [
        {"query": "red cat", "positive": "sat", "positive_title": "cat", "negative": "none of it"},
        {"query": "blue cat", "positive": "ran", "positive_title": "cats and a cat"},
    ]
    first, second = mined(write(tmp_path / "set.jsonl", rows), negatives=2, margin=0)
    assert first.negatives == ("none of it", "ran")
    assert first.negative_titles == ("", "cats and a cat")
    assert second.positive_title == "cats and a cat"


def test_texts_of_zero_in_common_are_no_negatives(tmp_path: Path) -> None:
    """Wrong if BM25 fills up with texts that share nothing with the query, which are not hard."""
    rows: list[dict[str, Any] | str] = [{"query": f"word{index}", "positive": f"word{index} !"} for index in range(9)]
    rows += [{"query": "...", "positive": "!!!"}]
    assert not any(one.negatives for one in mined(write(tmp_path / "set.jsonl", rows)))


def test_a_killed_mining_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a kill leaves a part of a file, a set is mined again that was mined whole, or what goes on writes other
    bytes than what was never killed."""
    names = ["first.jsonl.gz", "second.jsonl"]
    table = {"set": [{"file": str(write(tmp_path / name, ANIMALS))} for name in names], "how": "bm25", "negatives": 3}

    def run(out: str) -> dict[str, Any]:
        return run_mine({"out": out, **table}, tmp_path / "mine.toml")

    expected = run("unbroken")
    monkeypatch.setattr(mining, "QUERIES_AT_ONCE", 1)
    whole, asked = mining.Bm25.scores, list[str]()

    def killed(self: mining.Bm25, queries: Any) -> Any:
        asked.append(queries[0][1])
        if asked.count("red dog") == 2:
            raise KeyboardInterrupt
        return whole(self, queries)

    monkeypatch.setattr(mining.Bm25, "scores", killed)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    assert sorted(one.name for one in (tmp_path / "killed").iterdir()) == [".lock", names[0], "log.jsonl"]
    asked.clear()
    assert run("killed")["sets"] == expected["sets"]
    assert len(asked) == len(ANIMALS)  # of the second set alone
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    assert (tmp_path / "killed" / names[0]).read_bytes()[4:8] == bytes(4)  # gzip's place for the time of writing
    assert run("killed")["sets"] == expected["sets"]
    assert len(asked) == len(ANIMALS)
    write(tmp_path / names[1], ANIMALS[:3])
    with pytest.raises(RefembedError, match="finished run with other settings"):
        run("killed")


def test_files_of_others_stay(tmp_path: Path) -> None:
    """Wrong if mining writes over a file that it has not made."""
    file = write(tmp_path / "set.jsonl", ANIMALS)
    (tmp_path / "out-set").mkdir()
    (tmp_path / "out-set" / file.name).write_text("mine")
    with pytest.raises(RefembedError, match=r"holds set\.jsonl, which no run made"):
        mined(file)
    assert (tmp_path / "out-set" / file.name).read_text() == "mine"


def test_malformed_lines_are_left_out_and_reported(tmp_path: Path) -> None:
    """Wrong if a bad line is written again, or goes without a word, or too many of them do not stop the stage."""
    rows = [{"query": f"cat {index}", "positive": f"cat {index} here"} for index in range(100)]
    file = write(tmp_path / "set.jsonl", ["{", *rows])
    with pytest.warns(UserWarning, match=r"set\.jsonl:1: not JSON"):
        assert len(mined(file)) == 100
    for number, bad in enumerate((["{", *rows[:50]], [])):
        with pytest.raises(RefembedError) as caught:
            mined(write(tmp_path / f"{number}.jsonl", bad))
        assert caught.value.id == "train-data"
    with pytest.raises(RefembedError, match=r"none\.jsonl: No such file") as caught:
        mined(tmp_path / "none.jsonl")
    assert caught.value.id == "train-data"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"how": "model"}, "names none"),
        ({"set": []}, "names no set"),
        ({"set": [{"file": "set.jsonl"}, {"file": "more/set.jsonl"}]}, "two sets are called set"),
        ({"out": "."}, "would be replaced"),
        ({"first": 5, "last": 4}, "last is 4"),
        ({"negatives": 0}, "negatives is 0"),
        ({"how": "magic"}, "'magic'"),
        ({"margin": -0.1}, "margin is -0.1"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    """Wrong if settings that mine nothing, or over their own source, are found out late or never."""
    with pytest.raises(RefembedError, match=reason):
        mined(write(tmp_path / "set.jsonl", ANIMALS), **options)


def test_result_counts_rows(tmp_path: Path) -> None:
    """Wrong if the stage's result, from which a recipe's reader learns what mining found, miscounts."""
    file = write(tmp_path / "set.jsonl", ANIMALS)
    table = {"out": "new/er", "set": [{"file": "set.jsonl"}], "how": "bm25"}
    assert run_mine(table, tmp_path / "mine.toml")["sets"] == {"set": {"rows": 4, "with_negatives": 3}}
    assert (tmp_path / "new" / "er" / file.name).exists()
