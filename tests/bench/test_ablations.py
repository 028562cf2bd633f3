"""The ablations: that they run and go on, that the page is what the kept logs say, and by the rule it states."""

import gzip
import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ablations
import ablations_page
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from refembed_torch.train import loop
from refembed_torch.train.state import digest
from scipy.stats import ttest_1samp

LINES = [json.loads(line) for line in ablations.RUNS.read_text().splitlines()]
POINTS = some.floats(-100, 100).map(lambda value: round(value, 3))


def test_the_page_is_what_the_logs_say(tmp_path: Path) -> None:
    """Wrong if a table or plot was changed by hand, or the logs were and the page was not made anew."""
    ablations_page.write_all(tmp_path)
    made = {file.relative_to(tmp_path): file.read_bytes() for file in tmp_path.rglob("*.*")}
    spec = ablations_page.PAGE.parent
    assert made == {name: (spec / name).read_bytes() for name in made}
    assert {file.name for file in ablations.RUNS.parent.glob("*.svg")} == {name.name for name in made if name.parts[1:]}


def test_every_run_is_in_the_logs() -> None:
    """Wrong if a run of the three seeds has no figures: a mean would then be of fewer than the page says."""
    stages = [stage["name"] for stage in ablations.recipe(Path(), "")["stage"]]
    assert [f"{line['run']}-{line['seed']}" if line["seed"] else line["run"] for line in LINES] == stages
    assert {len(rows) for rows in ablations_page.figures_of(LINES).values()} == {len(ablations.SEEDS)}
    assert ablations.RUNS.stat().st_size < 200_000


@given(some.lists(POINTS, min_size=3, max_size=3, unique=True))
def test_the_rule_is_students_test(differences: list[float]) -> None:
    """Wrong if the verdict is not that of the one-sided t-test, to whichever side, at one in twenty."""
    chances = {
        word: ttest_1samp(differences, 0, alternative=side).pvalue
        for word, side in ((ablations_page.AGREES, "greater"), (ablations_page.OPPOSES, "less"))
    }
    if min(abs(chance - 0.05) for chance in chances.values()) > 1e-4:  # of the constant's last digit
        said = [word for word, chance in chances.items() if chance < 0.05]
        assert ablations_page.verdict(differences) == (said[0] if said else ablations_page.OPEN)


def test_a_claims_sum_is_taken_seed_by_seed() -> None:
    """Wrong if seeds are compared across, tasks weigh unevenly, or a figure that is not there counts as something."""
    names = list(ablations.TASKS)
    figures = {
        run: [{name: base + seed + place for place, name in enumerate(names)} for seed in range(3)]
        for run, base in (("one", 10.0), ("other", 7.5))
    }
    terms = ablations_page.over("one", "other")
    assert ablations_page.sums(figures, terms) == [2.5] * 3
    assert ablations_page.sums(figures, {("one", ""): 1.0}) == [11.0, 12.0, 13.0]
    assert ablations_page.sums(figures, ablations_page.over("one", "other", "int8")) == []
    for rows in figures.values():
        for row in rows:
            row |= {f"{name} int8": row[name] * (0.9 if rows is figures["one"] else 0.5) for name in names}
    less = ablations_page.sums(figures, ablations_page.loses_less("one", "other", "int8"))
    assert less == pytest.approx([-1.1 + 4.25, -1.2 + 4.75, -1.3 + 5.25])


# ---------------------------------------------------------------------------------------------------------- a tiny run
def text(chance: random.Random, words: int) -> str:
    return " ".join("".join(chance.choices(("na", "ro", "ki"), k=3)) for _ in range(words))


def write(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(line + "\n" for line in lines).encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def write_data(folder: Path) -> None:
    """Files in the form of the real ones, of words that mean nothing."""
    chance = random.Random(0)
    write(folder / "train/raw_text/en.tsv.gz", [f"source\t{text(chance, 40)}" for _ in range(400)])
    for name in {*ablations.TRIPLES, *ablations.PAIRS}:
        rows = [
            {"task": "definition", "query": text(chance, 3), "positive": text(chance, 9)}
            | ({"negative": text(chance, 9)} if place % 2 else {})
            for place in range(120)
        ]
        write(folder / f"train/{name}.jsonl.gz", [json.dumps(row) for row in rows])
    pairs = [f"{chance.random() * 5:.1f}\t{text(chance, 5)}\t{text(chance, 5)}" for _ in range(20)]
    write(folder / "eval/stsb_multi_mt/en-test.tsv", ["score\tsentence1\tsentence2", *pairs])
    for split in ("train", "test"):
        rows = [f"label{place % 2}\t{text(chance, 5)}" for place in range(20)]
        write(folder / f"eval/banking77/{split}.tsv", ["label\ttext", *rows])
    places = range(12)
    xquad = folder / "eval/xquad_r"
    for name, letter in (("paragraphs", "p"), ("queries", "q")):
        rows = [{"_id": f"en-{letter}{place}", "lang": "en", "text": text(chance, 9)} for place in places]
        write(xquad / f"{name}.jsonl.gz", [json.dumps(row | {"answer": "a"} if letter == "q" else row) for row in rows])
    judged = [f"en-q{place}\ten-p{place}\t1" for place in places]
    write(xquad / "qrels_paragraphs.tsv.gz", ["query-id\tcorpus-id\tscore", *judged])


class Here:
    """A pool of no process, whose work is done when it is handed over."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., float], *given: Any) -> "Future[float]":
        ended: Future[float] = Future()
        ended.set_result(work(*given))
        return ended


@pytest.mark.long
def test_a_tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if the runs the page is made of would not run, or what has ended would be trained again.

    They run in this process, and without plots, which take longer; the second time as the command runs them.
    """
    write_data(tmp_path / "data")
    work, only = tmp_path / "work", ("soup-1", "attention-1", "aware-1")
    threads = torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setattr(ablations, "ProcessPoolExecutor", Here)
        patch.setattr(loop.plot, "curves", lambda *_: None)
        ablations.run(work, tmp_path / "data", 1, 0.004, only)
    torch.set_num_threads(threads)
    figures = ablations_page.figures_of(list(ablations.log_lines(work)))
    assert set(figures) == {"pairs", *ablations.EXPERTS, "soup", "attention", "aware"}
    held = {ablations.HELD, f"{ablations.HELD} {ablations.INT4}"}
    for run, rows in figures.items():
        beside = {f"{task} {ablations.INT4}" for task in ablations.TASKS} if run == "aware" else set()
        plain = {ablations.HELD}
        measured = plain if run in ("pairs", "attention", "soup") else held - plain if run == "aware" else held
        assert [set(row) for row in rows] == [{*ablations.TASKS, *measured, *beside}]
        assert all(-100 <= value <= 100 for value in rows[0].values())
    made = {file: digest(file) for file in work.rglob("*.*") if file.is_file()}
    ablations.run(work, tmp_path / "data", 1, 0.004, only)
    assert {file: digest(file) for file in work.rglob("*.*") if file.is_file()} == made
