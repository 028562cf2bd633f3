"""Training data: what is read, refused and held out, in which order batches come, and that any place is found again."""

import gzip
import json
import re
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from refembed_torch.train import data
from refembed_torch.train.chance import generator
from refembed_torch.train.config import read
from refembed_torch.train.data import Batch, Batches, DataSettings, Example, SetSettings, mixed, read_examples

from refembed.embedder import DEFAULT_MODEL
from refembed.errors import RefembedError
from refembed.prompts import PROMPTS
from refembed.reference import Config
from refembed.tokenizer import Tokenizer


def row(query: str = "a", positive: str = "b", **more: Any) -> dict[str, Any]:
    return {"task": "qa", "query": query, "positive": positive, **more}


def write(file: Path, rows: Iterable[dict[str, Any] | bytes]) -> Path:
    """A file of JSON objects, or of lines as they are; gzipped where its name says so."""
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in rows]
    text = b"".join(line + b"\n" for line in lines)
    file.write_bytes(gzip.compress(text, 1) if file.suffix == ".gz" else text)
    return file


def numbered(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [row(f"q{index}", f"p{index}", negative=f"n{index}") for index in range(start, start + count)]


def letters(texts: Sequence[str]) -> list[np.ndarray]:
    """A tokenizer of one token a letter, between 2 and 1."""
    return [np.array([2, *map(ord, text), 1]) for text in texts]


def batches_of(files: Sequence[Path], seed: int = 0, rates: Sequence[float] = (), **options: Any) -> Batches:
    rates = rates or [1.0] * len(files)
    sets = tuple(SetSettings(file, rate) for file, rate in zip(files, rates, strict=True))
    return Batches(DataSettings(sets, **{"held_out": 0, **options}), seed, letters)


def rows_of(batch: Batch) -> list[int]:
    return [example.row for example in batch.examples]


@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz"])
def test_rows_as_written(tmp_path: Path, name: str) -> None:
    """Wrong if a field, a list of negatives, a title or a row's number in the file is not what the file says."""
    file = write(
        tmp_path / name,
        [
            b"\xef\xbb\xbf" + json.dumps(row("é", "b")).encode(),
            b"  ",
            row("c", "d", negative="e", score=None, source="web"),
            row("f", "g", negative=["h", "i"], negative_title=["T", None], positive_title="P"),
        ],
    )
    assert list(read_examples(SetSettings(file))) == [
        Example("é", "b", (), 0, "qa", "", "", ()),
        Example("c", "d", ("e",), 2, "qa", "", "", ("",)),
        Example("f", "g", ("h", "i"), 3, "qa", "", "P", ("T", "")),
    ]


MALFORMED = {
    "not JSON": b"{",
    "a JSON object is needed, not list": b"[1]",
    "not valid UTF-8": b'{"query": "\xff"}',
    "has no 'query'": b'{"positive": "b", "task": "qa"}',
    "has no 'positive'": b'{"query": "b", "task": "qa"}',
    "'query' is int": b'{"query": 1, "positive": "b", "task": "qa"}',
    "'positive' is list": b'{"query": "a", "positive": ["b"], "task": "qa"}',
    "'positive' is empty": b'{"query": "a", "positive": " ", "task": "qa"}',
    "'task' is dict": b'{"query": "a", "positive": "b", "task": {}}',
    "'negative' is int": b'{"query": "a", "positive": "b", "task": "qa", "negative": ["c", 1]}',
    "'query' is not valid Unicode": b'{"query": "\\ud800", "positive": "b", "task": "qa"}',
    "1 titles for 2 negatives": json.dumps(row(negative=["c", "d"], negative_title=["t"])).encode(),
    "a negative is the positive": json.dumps(row(negative=["c", "b"])).encode(),
    "has a title, which only": json.dumps(row(query_title="t")).encode(),
    "longer than 1048576 bytes": json.dumps(row("a" * 2**20)).encode(),
    "not JSON: maximum recursion": b"[" * 100_000,
}


@pytest.mark.parametrize("reason", MALFORMED)
def test_malformed_lines_are_counted_and_placed(tmp_path: Path, reason: str) -> None:
    """Wrong if a bad line becomes an example, sinks others, or is reported elsewhere than where it stands."""
    rows = [*numbered(120), MALFORMED[reason], *numbered(80, 120)]
    file = write(tmp_path / "set.jsonl", rows)
    with pytest.warns(UserWarning, match=rf"1 of 201 lines are malformed: .*set\.jsonl:121: {re.escape(reason)}"):
        batches = batches_of([file])
    contents = batches.sources["set"].contents
    assert (contents.lines, contents.malformed, contents.trained) == (201, 1, 200)
    assert {found for index in range(4) for found in rows_of(batches(index))} <= {*range(120), *range(121, 201)}


def test_too_many_malformed_lines_stop_the_run(tmp_path: Path) -> None:
    """Wrong if one line in a hundred stops a run, or one more does not, or the report hides how many there are."""
    bad = [b"?"] * 10
    just = write(tmp_path / "just.jsonl", numbered(990) + bad)
    with pytest.warns(
        UserWarning, match=r"10 of 1000 lines .*:991: not JSON.*:993: not JSON[^;]*; and 7 more\. They"
    ) as said:
        batches_of([just])
    (warning,) = said
    assert len(str(warning.message)) < len(str(just)) + 200  # the folder once, not before every line
    with pytest.raises(RefembedError, match=r"10 of 999 lines are malformed.*More than 1% is too many") as caught:
        batches_of([write(tmp_path / "more.jsonl", numbered(989) + bad)])
    assert caught.value.id == "train-data"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row(), row(score=0.5)], r"set.jsonl:2 has a score: graded pairs are for evaluation only"),
        ([row(), row(score=0)], r"set.jsonl:2 has a score"),
        ([row(task="chess")], r"set.jsonl:1: task 'chess' has no prompts"),
        ([{"query": "a", "positive": "b"}], r"task '' has no prompts"),
        ([], "no example to train on"),
    ],
)
def test_files_that_cannot_be_trained_on(tmp_path: Path, rows: list[dict[str, Any]], reason: str) -> None:
    """Wrong if graded pairs, tasks without prompts or empty files are trained on, or refused without their place."""
    with pytest.raises(RefembedError, match=reason) as caught:
        batches_of([write(tmp_path / "set.jsonl", rows)])
    assert caught.value.id == "train-data"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Wrong if a missing, damaged or foreign file gives anything but an error that names it."""
    whole = write(tmp_path / "whole.jsonl.gz", numbered(2000))
    short = tmp_path / "short.jsonl.gz"
    short.write_bytes(whole.read_bytes()[:-200])
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_text("{}")
    for file in (tmp_path / "none.jsonl", short, plain, tmp_path):
        with pytest.raises(RefembedError, match=re.escape(str(file))):
            batches_of([file])


def test_sets_in_a_training_file(tmp_path: Path) -> None:
    """Wrong if TOML cannot say it, or a rate below 0, an unknown prompt, two sets of a name or no rate passes."""
    one = {"file": "a.jsonl", "rate": 2, "query_task": "classification"}
    found = read(DataSettings, {"set": [one], "hard": 1}, tmp_path / "run.toml")
    assert found.set == (SetSettings(tmp_path / "a.jsonl", 2.0, "", "classification"),)
    for bad in ([one | {"rate": -1}], [one | {"query_task": "chess"}], [one, one], [one | {"rate": 0}], []):
        with pytest.raises(RefembedError, match=r"run\.toml"):
            read(DataSettings, {"set": bad}, tmp_path / "run.toml")


def test_a_rate_of_0_is_held_out_only(tmp_path: Path) -> None:
    """Wrong if a set of rate 0 is drawn, or nothing of it can be measured; it may even be all held out."""
    files = [write(tmp_path / f"{name}.jsonl", numbered(40)) for name in "ab"]
    batches = batches_of(files, rates=[1, 0], batch=4, held_out=8)
    assert {batches(index).name for index in range(50)} == {"a"}
    assert batches.held_out()["b"]
    assert batches.positions()["b"] == 0


def test_a_set_smaller_than_a_batch(tmp_path: Path) -> None:
    """Wrong if a small set cannot be used, or an example stands twice in a batch where the pass has it once."""
    batches = batches_of([write(tmp_path / "set.jsonl", numbered(5))], batch=8)
    assert [sorted(rows_of(batches(index))) for index in range(20)] == [[0, 1, 2, 3, 4]] * 20


@settings(max_examples=60)
@given(
    count=some.integers(1, 60),
    batch=some.integers(1, 12),
    buffer=some.sampled_from([1, 3, 1000]),
    pools=some.integers(1, 8),
    seed=some.integers(0, 99),
)
def test_nothing_is_lost_where_a_pass_ends(
    tmp_path_factory: pytest.TempPathFactory, count: int, batch: int, buffer: int, pools: int, seed: int
) -> None:
    """Wrong if an example is dropped or repeated at a pass's end: after any pools of batches, all have come equally
    often, or the first of an unfinished pass once more."""
    file = write(tmp_path_factory.mktemp("set") / "set.jsonl", numbered(count))
    batches = batches_of([file], seed, batch=batch, buffer=buffer)
    seen = Counter(found for index in range(pools * data.POOL) for found in rows_of(batches(index)))
    passes, rest = divmod(seen.total(), count)
    assert seen.total() == pools * data.POOL * min(batch, count)
    assert sorted(seen[index] for index in range(count)) == [passes] * (count - rest) + [passes + 1] * rest


@settings(max_examples=60)
@given(
    counts=some.lists(some.integers(1, 70), min_size=1, max_size=3),
    batch=some.integers(1, 12),
    buffer=some.sampled_from([1, 4, 20, 1000]),
    hard=some.integers(0, 1),
    held_out=some.sampled_from([0, 3]),
    kills=some.lists(some.integers(0, 12), min_size=1, max_size=3),
    seed=some.integers(0, 99),
)
def test_seek_goes_on_as_if_nothing_had_happened(
    tmp_path_factory: pytest.TempPathFactory,
    counts: list[int],
    batch: int,
    buffer: int,
    hard: int,
    held_out: int,
    kills: list[int],
    seed: int,
) -> None:
    """Wrong if a run that goes on after kills reads other batches than one that was never killed."""
    folder = tmp_path_factory.mktemp("sets")
    files = [write(folder / f"{index}.jsonl", numbered(count)) for index, count in enumerate(counts)]
    options = {"batch": batch, "buffer": buffer, "hard": hard, "held_out": held_out}
    try:
        whole = batches_of(files, seed, **options)
    except RefembedError:  # a small set of which all is held out
        return
    expected = [whole(index) for index in range(sum(kills) + 3)]
    found, positions = [], None
    for steps in [*kills, 3]:
        part = batches_of(files, seed, **options)
        if positions is not None:
            part.seek(positions)
        found += [part(index) for index in range(len(found), len(found) + steps)]
        positions = json.loads(json.dumps(part.positions()))
        part(len(found))  # read after the last state: lost
    assert [(one.name, one.examples) for one in found] == [(one.name, one.examples) for one in expected]
    for one, other in zip(found, expected, strict=True):
        for ids, same in zip((*one.queries, *one.negatives), (*other.queries, *other.negatives), strict=True):
            np.testing.assert_array_equal(ids, same)


def test_seek_refuses_other_sets_and_parts_of_batches(tmp_path: Path) -> None:
    """Wrong if a state of other data or batch sizes is taken for one of this run."""
    batches = batches_of([write(tmp_path / "set.jsonl", numbered(50))], batch=4)
    for positions in ({"other": 8}, {}, batches.positions() | {"set": 6}):
        with pytest.raises(RefembedError) as caught:
            batches.seek(positions)
        assert caught.value.id == "train-state"


def test_order_depends_on_seed_and_file_only(tmp_path: Path) -> None:
    """Wrong if another set in the mixture, the context or the tokenizer changes the order of a set's examples, or
    another seed or pass does not."""
    files = [write(tmp_path / f"{name}.jsonl", numbered(64)) for name in "ab"]

    def order(
        seed: int = 0, files: Sequence[Path] = files[:1], name: str = "a", **options: Any
    ) -> list[tuple[int, ...]]:
        batches = batches_of(files, seed, batch=8, **options)
        return [tuple(rows_of(one)) for one in map(batches, range(80)) if one.name == name][:16]

    base = order()
    assert len(base) == 16
    assert order(context=5) == base
    assert order(files=files) == base
    assert not set(base) & set(order(seed=1))
    assert not set(base) & set(order(files=files, name="b"))  # rows that belong together do not meet every time
    assert not set(base[:8]) & set(base[8:])
    assert sorted(chain(*base[:8])) == sorted(chain(*base[8:])) == list(range(64))


def test_shuffle_draws_every_order_alike() -> None:
    """Wrong if the shuffle prefers some orders: of four items in the buffer, each of 24 comes as often as any."""
    found = Counter(tuple(data.shuffled("abcd", 9, generator(0, "test", index))) for index in range(4800))
    deviation = sum((times - 200) ** 2 / 200 for times in found.values())
    assert len(found) == 24
    assert deviation < 60  # chi-squared of 23 degrees: beyond it once in 30,000


@given(count=some.integers(0, 40), buffer=some.integers(1, 12), seed=some.integers(0, 9))
def test_shuffle_with_a_small_buffer(count: int, buffer: int, seed: int) -> None:
    """Wrong if an item is lost, comes twice, or comes before the buffer can have reached it."""
    found = list(data.shuffled(range(count), buffer, generator(seed, "test")))
    assert sorted(found) == list(range(count))
    assert all(item < place + buffer for place, item in enumerate(found))


def test_a_sorted_file_is_mixed(tmp_path: Path) -> None:
    """Wrong if a short run on a file sorted by language, longer than the buffer, learns the first languages alone; or
    if a pass that is read in parts loses an example or repeats one."""
    file = write(tmp_path / "set.jsonl", [row(f"q{index}", f"p{index}") for index in range(1600)])
    batches = batches_of([file], batch=10, buffer=160)
    found = [rows_of(batches(index)) for index in range(160)]
    assert sorted(chain(*found)) == list(range(1600))
    beginning = np.bincount(np.array(found[:16]).reshape(-1) // 160, minlength=10)  # of 10 languages, a tenth of a pass
    assert ((beginning - 16) ** 2 / 16).sum() < 32  # chi-squared of 9 degrees: beyond it once in 5,000
    longer = batches_of([file], batch=10, buffer=2)  # more parts would be too many readings
    assert sorted(chain(*(rows_of(longer(index)) for index in range(160)))) == list(range(1600))
    assert longer.sources["set"].parts == data.READINGS


def test_batches_are_of_even_length(tmp_path: Path) -> None:
    """Wrong if batches of a pool overlap in length, or come shortest first, which would be a schedule of its own."""
    lengths = np.random.default_rng(0).integers(1, 500, 256)
    file = write(tmp_path / "set.jsonl", [row(f"q{index}", "x" * length) for index, length in enumerate(lengths)])
    batches = batches_of([file], batch=8)
    pools = [[sorted(lengths[rows_of(batches(8 * pool + place))]) for place in range(8)] for pool in range(4)]
    for pool in pools:
        ordered = sorted(pool)
        assert all(shorter[-1] <= longer[0] + 2 for shorter, longer in pairwise(ordered))
    assert any(pool != sorted(pool) for pool in pools)
    assert len({tuple(np.argsort([one[0] for one in pool])) for pool in pools}) > 1


def test_few_examples_stand_twice_in_a_batch(tmp_path: Path) -> None:
    """Wrong if passes are mixed before sorting by length, where the two of an example would always be neighbours."""
    file = write(tmp_path / "set.jsonl", [row(f"q{index}", "x" * 3 * index + "y") for index in range(50)])
    batches = batches_of([file], batch=8)
    found = [rows_of(batches(index)) for index in range(800)]  # 128 ends of a pass
    assert sum(len(rows) - len(set(rows)) for rows in found) <= 64


def test_length_counts_bytes() -> None:
    """Wrong if a text in a script of long UTF-8 counts as short as one of as many Latin letters."""
    assert data.bytes_of(Example("ab", "語", ("é",), 0)) == 2 + 3 + 2


def test_each_batch_is_of_one_set_and_rates_hold(tmp_path: Path) -> None:
    """Wrong if a batch mixes sets, or a set's share of 3000 batches is further from its rate than chance has it."""
    rates = [1.0, 3.0, 0.5, 0.0]
    files = [write(tmp_path / f"{index}.jsonl", numbered(20, 100 * index)) for index in range(4)]
    batches = batches_of(files, rates=rates, batch=2)
    seen: Counter[str] = Counter()
    for index in range(3000):
        batch = batches(index)
        seen[batch.name] += 1
        assert {int(example.query[1:]) // 100 for example in batch.examples} == {int(batch.name)}
    for name, rate in enumerate(rates):
        share = rate / 4.5
        assert abs(seen[str(name)] - 3000 * share) <= 4 * (3000 * share * (1 - share)) ** 0.5


def test_even_shares_worked_by_hand() -> None:
    """Wrong if a type of many sets gets more than one of few, or a group of rate 0 takes a share."""
    rates, groups = [1, 3, 2, 5, 0], ["a", "a", "b", "c", "d"]
    assert data.shares_of(rates, groups, True) == pytest.approx([1 / 12, 3 / 12, 1 / 3, 1 / 3, 0])
    assert data.shares_of(rates, groups, False) == pytest.approx([1 / 11, 3 / 11, 2 / 11, 5 / 11, 0])


def test_groups_are_types_of_task_unless_named(tmp_path: Path) -> None:
    """Wrong if even shares go by file, or by another type than that of most rows."""
    rows = [[row(f"q{index}", task=task) for index in range(9)] for task in ("qa", "bitext", "bitext", "definition")]
    rows[1][0] = row("x", task="qa")
    files = [write(tmp_path / f"{index}.jsonl", own) for index, own in enumerate(rows)]
    sets = tuple(SetSettings(file, group="qq" if index == 3 else "") for index, file in enumerate(files))
    batches = Batches(DataSettings(sets, held_out=0, even=True), 0, letters)
    assert batches.shares == pytest.approx([1 / 3, 1 / 6, 1 / 6, 1 / 3])


def test_held_out_is_never_trained_on(tmp_path: Path) -> None:
    """Wrong if an example for measuring is trained on, also where its query stands in other rows in other spelling."""
    rows = [row(f"Some Query {index}", f"p{index}") for index in range(400)]
    rows += [row(f" some  query {index}", f"other p{index}") for index in range(0, 400, 2)]
    batches = batches_of([write(tmp_path / "set.jsonl", rows)], held_out=60, batch=16)
    held = {data.folded(example.query) for example in batches.held_out()["set"]}
    trained = {data.folded(example.query) for index in range(80) for example in batches(index).examples}
    assert not held & trained
    assert len(held | trained) == 400
    assert 30 <= len(batches.held_out()["set"]) <= 90


def test_held_out_part_is_the_same_in_every_stage(tmp_path: Path) -> None:
    """Wrong if one stage trains on what another measures with: the part may not hang on seed, order or negatives."""
    rows = numbered(600)
    for one in rows[::3]:
        del one["negative"]
    first = write(tmp_path / "set.jsonl", rows)
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / "set.jsonl", rows[::-1])

    def held(file: Path, seed: int, hard: int) -> set[str]:
        return {example.query for example in batches_of([file], seed, held_out=50, hard=hard).held_out()["set"]}

    pairs = held(first, 0, 0)
    assert held(other, 1, 0) == pairs
    assert held(first, 0, 1) == pairs & {one["query"] for one in rows if "negative" in one}


def test_a_small_set_is_not_all_held_out(tmp_path: Path) -> None:
    """Wrong if asking for 100 examples of a set of 50 leaves nothing to train on."""
    batches = batches_of([write(tmp_path / "set.jsonl", numbered(50))], held_out=100)
    assert batches.sources["set"].contents.trained >= 30


def test_hard_negatives(tmp_path: Path) -> None:
    """Wrong if an example lacks the negatives asked for, has others than its first, or they are not grouped by it."""
    rows = [
        row(f"q{index}", f"p{index}", negative=[f"n{index}.{rank}" for rank in range(index % 4)]) for index in range(80)
    ]
    batches = batches_of([write(tmp_path / "set.jsonl", rows)], hard=2, batch=5)
    for index in range(16):
        batch = batches(index)
        for place, example in enumerate(batch.examples):
            assert example.row % 4 >= 2
            assert example.negatives == (f"n{example.row}.0", f"n{example.row}.1")
            own = ["".join(map(chr, ids[1:-1])) for ids in batch.negatives[2 * place : 2 * place + 2]]
            assert own == [f"title: none | text: {text}" for text in example.negatives]
    with pytest.raises(RefembedError, match="no example with 4 negatives"):
        batches_of([tmp_path / "set.jsonl"], hard=4)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    config = json.loads((DEFAULT_MODEL / "config.json").read_text())
    sizes: Any = {"vocabulary": config["vocab_size"], "bos": config["bos_token_id"], "eos": config["eos_token_id"]}
    blank: Any = dict.fromkeys(("width", "mlp", "heads", "key_heads", "head", "dense", "dimensions", "reach"), 1)
    return Tokenizer(
        DEFAULT_MODEL / "tokenizer.json", Config(**sizes, **blank, layer_kinds=(), context=64, query_scalar=1.0)
    )


@pytest.mark.parametrize(
    ("fields", "own", "expected"),
    [
        (
            {"task": "qa", "positive_title": "Mars", "negative": "n"},
            {},
            ["task: question answering | query: a", "title: Mars | text: b", "title: none | text: n"],
        ),
        ({"task": "bitext"}, {}, ["task: search result | query: a", "task: search result | query: b"]),
        ({"task": "code_retrieval"}, {}, ["task: code retrieval | query: a", "title: none | text: b"]),
        (
            {"task": "chess", "query_title": "Go"},
            {"query_task": "document", "positive_task": "clustering"},
            ["title: Go | text: a", "task: clustering | query: b"],
        ),
        ({"task": "qa"}, {"query_task": "fact checking"}, ["task: fact checking | query: a", "title: none | text: b"]),
    ],
)
def test_tokens_are_those_of_the_prompted_texts(
    tmp_path: Path, tokenizer: Tokenizer, fields: dict[str, Any], own: dict[str, str], expected: list[str]
) -> None:
    """Wrong if a text is trained on behind another prompt or title than it will be used with."""
    file = write(tmp_path / "set.jsonl", [row(**fields)])
    chosen = DataSettings((SetSettings(file, **own),), held_out=0, hard=int("negative" in fields))
    batch = Batches(chosen, 0, tokenizer)(0)  # type: ignore[arg-type]
    library = tokenizer.library
    for ids, text in zip((*batch.queries, *batch.positives, *batch.negatives), expected, strict=True):
        assert ids.tolist() == [2, *library.encode(text, add_special_tokens=False).ids, 1]


def test_long_texts_keep_their_end_token(tmp_path: Path) -> None:
    """Wrong if a text has more tokens than the context, or loses EOS when it is cut."""
    batch = batches_of([write(tmp_path / "set.jsonl", [row("q", "x" * 100)])], context=12)(0)
    assert batch.positives[0].tolist() == [2, *map(ord, "title: non"), 1]


def test_a_text_without_tokens_is_left_out(tmp_path: Path) -> None:
    """Wrong if a text that spells a token without a vector ends a run, or its example's other texts stay."""

    def tokenize(texts: Sequence[str]) -> list[Any]:
        return [
            RefembedError("text-token", "spells <x>") if "<x>" in text else ids
            for text, ids in zip(texts, letters(texts), strict=True)
        ]

    file = write(
        tmp_path / "set.jsonl", [row("q0", negative="n"), row("q1", "<x>", negative="n"), row("q2", negative="n")]
    )
    batches = Batches(DataSettings((SetSettings(file),), held_out=0, hard=1), 0, tokenize)
    with pytest.warns(UserWarning, match=r"set\.jsonl:2: spells <x>; it is left out"):
        batch = batches(0)
    assert sorted(rows_of(batch)) == [0, 2]
    assert len(batch.queries) == len(batch.positives) == len(batch.negatives) == 2
    assert batches.positions()["set"] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches(1)  # of the next pass, which says nothing new


def test_many_texts_without_tokens_are_few_warnings(tmp_path: Path) -> None:
    """Wrong if a file that spells such a token in each line says so for each, or a batch of nothing goes on to the
    losses, whose error would name no file.
    """
    file = write(tmp_path / "set.jsonl", numbered(12))

    def tokenize(texts: Sequence[str]) -> list[Any]:
        return [RefembedError("text-token", "spells <x>")] * len(texts)

    batches = Batches(DataSettings((SetSettings(file),), held_out=0), 0, tokenize)
    with (
        pytest.warns(UserWarning, match="it is left out") as said,
        pytest.raises(RefembedError, match=r"set\.jsonl: all examples of a batch were left out"),
    ):
        batches(0)
    assert len(said) == data.PLACES
    assert "of more such lines" in str(said[-1].message)


def test_a_negative_that_the_context_makes_the_positive_is_left_out(tmp_path: Path) -> None:
    """Wrong if a text is pushed away as the hard negative of what it answers, since both are the same up to the cut."""
    long = "x" * 40
    rows = [row("q0", long + "a", negative=long + "b"), row("q1", "c", negative=long)]
    batches = batches_of([write(tmp_path / "set.jsonl", rows)], hard=1, context=30)
    with pytest.warns(UserWarning, match=r"set\.jsonl:1: cut to 30 tokens a negative is the positive; it is left out"):
        assert rows_of(batches(0)) == [1]
    assert len(batches_of([tmp_path / "set.jsonl"], hard=1, context=80)(0).examples) == 2


def test_a_file_that_changes_stops_the_run(tmp_path: Path) -> None:
    """Wrong if rows that come or go during a run shift the order without a word."""
    file = write(tmp_path / "set.jsonl", numbered(30))
    batches = batches_of([file], batch=10)
    write(file, numbered(20))
    with pytest.raises(RefembedError, match="has changed: 20 examples to train on, 30 at first"):
        list(map(batches, range(9)))


def test_a_file_changed_between_kill_and_resume_is_refused(tmp_path: Path) -> None:
    """Wrong if a run goes on in a file of as many lines but other ones, where every position means something else."""
    file = write(tmp_path / "set.jsonl", numbered(30))
    batches = batches_of([file], batch=10)
    batches(0)
    positions = json.loads(json.dumps(batches.positions()))
    write(file, numbered(30)[::-1])
    with pytest.raises(RefembedError, match=r"set\.jsonl was changed since the state was kept") as caught:
        batches_of([file], batch=10).seek(positions)
    assert caught.value.id == "train-state"
    write(file, numbered(30))
    batches_of([file], batch=10).seek(positions)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Wrong if more rows of a file are in memory than the buffer, a pool of batches and the held-out part."""

    def peak(rows: int) -> int:
        file = write(tmp_path / f"{rows}.jsonl.gz", (row(f"q{index}", "p" * 400) for index in range(rows)))
        tracemalloc.start()
        batches = batches_of([file], batch=4, buffer=100, held_out=10)
        for index in range(rows // 4 + 1):
            batches(index)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(3000) < 1.3 * peak(900)


def test_table_of_tasks(data: Path) -> None:
    """Wrong if a training file has a task without prompts or a malformed line at its beginning, or scores are taken."""
    for file in sorted((data / "train").glob("*.jsonl.gz")):
        examples = read_examples(SetSettings(file))
        if file.name.startswith("sts_scored"):
            with pytest.raises(RefembedError, match="has a score"):
                next(examples)
        else:
            assert all(isinstance(one, Example) for one in islice(examples, 300))


def test_prompts_of_the_table_exist() -> None:
    """Wrong if the table names a prompt that refembed has not."""
    for task, kind in data.TASKS.items():
        assert {kind.query, kind.positive} <= set(PROMPTS), task


@pytest.mark.long
def test_every_training_file_is_readable(data: Path) -> None:
    """Wrong if any training file has more malformed lines than are let through, or a task the table has not."""
    for file in sorted((data / "train").glob("*.jsonl.gz")):
        if not file.name.startswith("sts_scored"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                contents = batches_of([file], held_out=100).sources[SetSettings(file).name].contents
            assert 60 <= len(contents.held_out) <= 150
            assert contents.malformed <= contents.lines // 1000


def test_rates_of_a_mixture(tmp_path: Path) -> None:
    """Wrong if an expert were trained at other rates than its mixture's, or a mixture of other sets were taken."""
    file = tmp_path / "mixtures.json"
    file.write_text('[{"score": 2, "rates": {"a": 1, "b": 0}}, {"score": 1, "rates": {"a": 0.25, "b": 0.75}}]')
    sets = (SetSettings(tmp_path / "a.jsonl"), SetSettings(tmp_path / "b.jsonl.gz", rate=5.0))
    found = mixed(DataSettings(sets, mixture=file, expert=1))
    assert [one.rate for one in found.set] == [0.25, 0.75]
    (tmp_path / "zero.json").write_text('[{"rates": {"a": 0, "b": 0}}]')
    for wrong in (
        DataSettings(sets, mixture=file, expert=2),
        DataSettings(sets[:1], mixture=tmp_path / "none.json"),
        DataSettings(sets, mixture=tmp_path / "zero.json"),
    ):
        with pytest.raises(RefembedError, match="has no mixture") as caught:
            mixed(wrong)
        assert caught.value.id == "train-config"
