"""The confusion matrix counts what it is given, and the page in spec/ agrees with itself.

That the ports are really run, the command that writes the page shows; here its scoring is given invented verdicts.
"""

import math
import re
import sys
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from confusion import (
    CONTROL,
    DEFECT,
    LONGEST,
    OTHER,
    PAIR,
    PROMISED,
    RIGHT,
    SHORT_CASES,
    Group,
    Made,
    MistakenPort,
    Trial,
    broken,
    cases_for,
    exceptions,
    grouped,
    judged,
    load,
    main,
    page,
    save,
    source_digest,
    tally,
)

from refembed.conformance.defects import DEFECTS
from refembed.conformance.diagnose import Explanation
from refembed.conformance.suite import golden_folder, open_suite
from refembed.conformance.verify import Outcome, Report

PAGE = Path(__file__).parents[2] / "spec" / "confusion.md"
KEPT = PAGE.with_suffix(".json")
LARGEST = 200_000  # bytes of the kept trials
MADE = Made({"numpy": "2"}, {"twin": "edition"}, {"c": "digest"})
BY_ID = {defect.id: defect for defect in DEFECTS}
IDS = list(BY_ID)[:40]


def run(kind: str, id: str, *named: str, conforms: bool = False, counts: bool = True, verdict: str = "wrong") -> Trial:
    """What the command keeps of an invented report."""
    explanations = [Explanation(BY_ID[name], 0.5, 1e5, ("a",), 1.0) for name in named]
    outcome = Outcome("vectors", "a", "right" if conforms else verdict)
    report = Report("port", "twin", "edition", "digest", "float32", 1, 91, 91, [outcome], explanations)
    return Trial.of(report, "twin", "c", kind, id, counts)


def good() -> list[Trial]:
    """A run that keeps every promise, in which 38 of 40 mistakes are named first and three are hidden."""
    return [
        run(RIGHT, "", conforms=True),
        run(CONTROL, "same", conforms=True),
        *(run(DEFECT, id, id, "zeros") for id in IDS[:38]),
        *(run(DEFECT, id, "zeros", id) for id in IDS[38:]),
        run(DEFECT, "gelu-exact", conforms=True, counts=False),
        run(DEFECT, "scores-capped", counts=False),
        run(DEFECT, "cut-without-eos", "cut-without-eos", counts=False),
        *(run(OTHER, f"other-{number}") for number in range(10)),
        *(run(PAIR, f"causal+{id}", *(["causal"] if id < "m" else [])) for id in IDS[1:11]),
    ]


def changed(old: str, new: Trial) -> list[Trial]:
    return [new if one.id == old else one for one in good()]


def test_tallies_are_right() -> None:
    """Wrong if a verdict is counted as another."""
    runs = good()
    assert tally(runs, DEFECT, counts=True) == {"first": 38, "third": 2}
    assert tally(runs, DEFECT, counts=False) == {"conforms": 1, "unknown": 1, "first": 1}
    assert tally(runs, OTHER) == {"unknown": 10}
    assert tally(runs, PAIR).total() == 10
    assert set(tally(runs, PAIR)) == {"first", "unknown"}
    assert tally(runs, RIGHT, CONTROL) == {"conforms": 2}
    assert [one.id for one in exceptions(runs)] == IDS[38:]
    assert broken(runs) == []


@pytest.mark.parametrize(
    ("old", "new", "said", "promise"),
    [
        (IDS[0], run(DEFECT, IDS[0], "zeros"), "wrong", "39 of 40 mistakes are among"),
        (IDS[0], run(DEFECT, IDS[0], conforms=True), "conforms", "39 of 40 mistakes are among"),
        (IDS[0], run(DEFECT, IDS[0]), "unknown", "39 of 40 mistakes are among"),
        (IDS[0], run(DEFECT, IDS[0], "zeros", "gelu-exact", "dense-tanh", IDS[0]), "wrong", "39 of 40"),
        (IDS[0], run(DEFECT, IDS[0], "zeros", IDS[0]), "third", "37 of 40 mistakes are named first"),
        ("gelu-exact", run(DEFECT, "gelu-exact", "zeros", counts=False), "wrong", "hides in the contract"),
        (
            "gelu-exact",
            run(DEFECT, "gelu-exact", "zeros", "gelu-exact", counts=False),
            "third",
            "hides in the contract",
        ),
        ("other-0", run(OTHER, "other-0", "zeros"), "wrong", "outside the catalogue are called"),
        ("other-0", run(OTHER, "other-0", conforms=True), "conforms", "conforms"),
        (f"causal+{IDS[1]}", run(PAIR, f"causal+{IDS[1]}", "zeros", "causal"), "wrong", "third name"),
        (f"causal+{IDS[1]}", run(PAIR, f"causal+{IDS[1]}", conforms=True), "conforms", "conforms"),
        ("", run(RIGHT, ""), "accused", "accused"),
        ("same", run(CONTROL, "same", "zeros"), "accused", "accused"),
        (IDS[0], run(DEFECT, IDS[0], IDS[0], verdict="failed"), "failed", "failed to answer"),
    ],
)
def test_planted_exception_breaks_its_promise(old: str, new: Trial, said: str, promise: str) -> None:
    """Wrong if a mistake that was missed, or taken for another, goes unnoticed."""
    runs = changed(old, new)
    assert new.said == said
    assert new in exceptions(runs)
    assert any(promise in sentence for sentence in broken(runs)), broken(runs)
    assert "## Promises broken" in page(runs, MADE, ())


@pytest.mark.parametrize("kind", [RIGHT, DEFECT, OTHER, PAIR])
def test_nothing_run_is_no_promise_kept(kind: str) -> None:
    """Wrong if a matrix without entries counts as a perfect one."""
    assert broken([one for one in good() if one.kind != kind])


def whole() -> list[Trial]:
    """The good trials, of every group that is promised."""
    return [
        replace(one, suite=suite, port=port, precision=precision)
        for suite, port, precision in sorted(PROMISED)
        for one in good()
    ]


def test_page_of_nothing_keeps_no_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if an empty file becomes a page on which every promise is kept, and an exit status of 0."""
    assert len(judged([], PROMISED)) == 7
    assert judged([], ())
    for promised in (PROMISED, ()):
        assert "Every promise is kept." not in page([], MADE, promised)
    save(tmp_path / "empty.json", [], MADE)
    monkeypatch.setattr(sys, "argv", ["confusion.py", "--merge", str(tmp_path / "empty.json"), "--out", str(tmp_path)])
    assert main() == 1
    assert "embeddinggemma-300m transformers float32: was not run" in (tmp_path / "confusion.md").read_text()


@pytest.mark.parametrize("group", sorted(PROMISED), ids=" ".join)
def test_missing_group_is_a_broken_promise(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong if a page without a port, a precision or the released model says that every promise is kept."""
    assert judged(whole(), PROMISED) == []
    rest = [one for one in whole() if (one.suite, one.port, one.precision) != group]
    assert judged(rest, PROMISED) == [f"{' '.join(group)}: was not run"]
    assert judged(rest, ()) == []  # a part alone
    for trials, status in ((rest, 1), (whole(), 0)):
        save(tmp_path / "part.json", trials, MADE)
        monkeypatch.setattr(sys, "argv", ["confusion.py", "--merge", str(tmp_path / "part.json")])
        assert main() == status
        assert ("was not run" in capsys.readouterr().out) == bool(status)


def test_near_relative_may_be_named_at_a_coarse_precision_only() -> None:
    """Wrong if a mistake outside the catalogue may be called by a name in float32, or one that was goes unlisted."""
    called = replace(run(OTHER, "other-0", "zeros"), precision="int8", counts=False)
    coarse = [replace(one, precision="int8", counts=one.counts and one.kind != OTHER) for one in good()]
    coarse = [called if one.id == "other-0" else one for one in coarse]
    assert broken(coarse) == []
    assert called in exceptions(coarse)
    assert "| other, coarse | other-0 | zeros |" in page(coarse, MADE, ())
    assert check_page(page(coarse, MADE, ())) == 1


@pytest.mark.parametrize(
    "given",
    [
        ["--ports", "rust"],
        ["--ports", "c,"],
        ["--ports", ""],
        ["--precisions", "float64"],
        ["--precisions", "float32,int3"],
        ["--suite", "embeddinggemma-300m", "--ports", "c"],
        ["--only", "causal", "--out", "."],
    ],
)
def test_unknown_names_are_refused(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong if a misspelled port or precision is not run, and nobody hears of it."""
    monkeypatch.setattr(sys, "argv", ["confusion.py", *given])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert given[-2] in capsys.readouterr().err


# which cases are asked


def test_rivals_are_asked_too() -> None:
    """Wrong if a mistake of the released model is asked other cases than its rivals, so that they cannot win."""
    suite = open_suite(golden_folder("embeddinggemma-300m"))

    def asked(kind: str, *ids: str) -> set[str]:
        patterns = cases_for(suite, kind, ids)
        return {case.id for case in suite.cases if any(fnmatchcase(case.id, pattern) for pattern in patterns)}

    tokens = {case.id: sum(map(len, suite.tokens(case))) for case in suite.cases}

    def stored(*families: str, longest: float = LONGEST) -> set[str]:
        chosen = [id for id, defect in BY_ID.items() if defect.family.startswith(families)]
        return {case for id in chosen for case in suite.defect_vectors(id) if tokens[case] <= longest}

    short = asked(OTHER, "layers-swapped")
    assert short == asked(CONTROL, "dense-before-mean") == asked(DEFECT, "pool-last") == asked(DEFECT, "prompt-e5")
    assert short >= stored("D", "A", "G")
    assert len(short) > len(SHORT_CASES)
    assert max(tokens[case] for case in short) <= 80
    assert asked(DEFECT, "window-ignored") == short | stored("B")
    assert asked(DEFECT, "pads-pooled") == short | stored("C")
    assert asked(DEFECT, "mask-dropped-without-padding") == short | stored("B", "C", longest=math.inf)
    assert asked(DEFECT, "cut-at-a-half") == short | stored("E6", longest=math.inf)
    assert asked(PAIR, "rotary-scaled", "pool-without-bos") == short | stored("F")
    assert asked(PAIR, "text-stripped", "window-halved-1") == short | stored("B")
    assert asked(RIGHT, "") == short | stored("", longest=math.inf)
    assert asked(OTHER, "window-of-three-quarters") == short | stored("B")


# keeping


def test_saved_trials_are_the_same_and_merge(tmp_path: Path) -> None:
    """Wrong if a merged page differs from one made at once, or keeps an older trial of a group beside the new one."""
    first, second = good(), changed(IDS[0], run(DEFECT, IDS[0], "zeros"))
    save(tmp_path / "a", first, MADE)
    save(tmp_path / "b", second, Made({"numpy": "2"}, {"real": "other"}, {"transformers": "1"}))
    assert load([tmp_path / "a"]) == (first, MADE)
    both = Made({"numpy": "2"}, {"twin": "edition", "real": "other"}, {"c": "digest", "transformers": "1"})
    assert load([tmp_path / "a", tmp_path / "b"]) == (second, both)


@pytest.mark.parametrize("part", ["versions", "suites", "ports"])
def test_trials_of_two_editions_do_not_merge(tmp_path: Path, part: str) -> None:
    """Wrong if one page mixes golden vectors, sources or libraries, and says that it is of one."""
    save(tmp_path / "a", good(), MADE)
    older = dict.fromkeys(getattr(MADE, part), "older")
    save(tmp_path / "b", good(), replace(MADE, **{part: older}))
    with pytest.raises(SystemExit, match="older here"):
        load([tmp_path / "a", tmp_path / "b"])


PORT = """
import json, os, sys
mistake = ""
for line in sys.stdin:
    request = json.loads(line)
    mistake = request.get("defect", mistake) if request["call"] == "start" else mistake
    if request["call"] == "tokenize" and request["texts"] == ["end"]:
        os._exit(3)
    print(json.dumps({"ids": mistake, "can": ["embed"]}), flush=True)
"""


def test_port_keeps_its_mistake_when_it_ends(tmp_path: Path) -> None:
    """Wrong if a port that crashed goes on as a right one, and its mistake counts as missed."""
    (tmp_path / "port.py").write_text(PORT)
    port = MistakenPort(f"{sys.executable} {tmp_path / 'port.py'}", 20)
    try:
        port.make("causal")
        assert port.tokenize([""]) == "causal"
        with pytest.raises(Exception, match="status 3"):
            port.tokenize(["end"])
        assert port.tokenize([""]) == "causal"
        port.make("")
        assert port.tokenize([""]) == ""
    finally:
        port.close()


# the page


def tables(text: str) -> dict[str, list[dict[str, str]]]:
    """The rows of each table, under its heading."""
    found = {}
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
        found[part.partition("\n")[0]] = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]] if rows else []
    return found


def check_page(text: str) -> int:
    """How many groups a page has, each of whose totals agrees with its lines."""
    found = tables(text)
    where = ("suite", "port", "precision")

    def of(row: dict[str, str], heading: str) -> list[dict[str, str]]:
        return [one for one in found.get(heading, []) if all(one[key] == row[key] for key in where)]

    for row, (diagonal,) in zip(
        found["Mistakes of the catalogue"],
        (of(row, "On the diagonal") for row in found["Mistakes of the catalogue"]),
        strict=True,
    ):
        count, first, three = (int(row[key]) for key in ("count", "first", "first three"))
        cells = [cell.split(" of ") for key, cell in diagonal.items() if key not in where and cell != "-"]
        off = of(row, "Off the diagonal")
        assert sum(int(part) for part, _ in cells) == first, row
        assert sum(int(whole) for _, whole in cells) == count, row
        assert count - first == sum(one["kind"] == "defect" for one in off), row
        assert count - three == sum(int(row[key]) for key in ("conform", "unknown", "other name only")), row
        assert int(row["hidden"]) == len(of(row, "Hidden by the contract")), row
        assert row["share"] == f"{100 * first / count:.1f} %"
        (rest,) = of(row, "Everything else")
        bad = int(rest["named"]) + int(rest["third name"]) + int(rest["accused"])
        assert bad <= sum(one["kind"] != "defect" for one in off), row
        bad -= sum(one["kind"] == "other, coarse" for one in off)  # near relatives, which may be named
        kept = first >= 0.95 * count and three == count and bad == 0
        assert kept or "## Promises broken" in text, row
    return len(found["Mistakes of the catalogue"])


def test_page_agrees_with_itself() -> None:
    """Wrong if the totals that spec/confusion.md shows are not those of its own lines."""
    assert check_page(PAGE.read_text()) == len(PROMISED)


def test_page_is_the_kept_trials() -> None:
    """Wrong if spec/confusion.md says something else than confusion.json beside it, or the latter is too large."""
    assert PAGE.read_text() == page(*load([KEPT]))
    assert KEPT.stat().st_size < LARGEST


def test_kept_trials_are_of_todays_golden_vectors_and_ports() -> None:
    """Wrong if golden vectors or a port changed since the confusion matrix was last made."""
    trials, made = load([KEPT])
    assert set(made.suites) == {trial.suite for trial in trials} == {suite for suite, _, _ in PROMISED}
    assert set(made.ports) == {trial.port for trial in trials} == {port for _, port, _ in PROMISED}
    remake = "run the commands at the head of spec/confusion.md"
    assert made.suites == {name: open_suite(golden_folder(name)).edition for name in made.suites}, remake
    assert made.ports == {port: source_digest(port) for port in made.ports}, remake


def test_page_that_disagrees_is_found() -> None:
    """Wrong if the test above passes whatever the page says."""
    text = page(good(), MADE, ())
    assert check_page(text) == len(grouped(good())) == 1
    assert "Every promise is kept." in text
    for old, new in (("| 40 | 38 |", "| 40 | 39 |"), ("| 95.0 % |", "| 97.5 % |"), (f"| {IDS[39]} |", "| - |\n|")):
        assert old in text
        with pytest.raises((AssertionError, ValueError)):
            check_page(text.replace(old, new, 1))
