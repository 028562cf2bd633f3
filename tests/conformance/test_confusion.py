"""The confusion matrix counts what it is given, and the page in spec/ agrees with itself.

That the ports are really run, the command that writes the page shows; here its scoring is given invented verdicts.
"""

import re
import sys
from pathlib import Path

import pytest
from confusion import (
    CONTROL,
    DEFECT,
    OTHER,
    PAIR,
    RIGHT,
    MistakenPort,
    Run,
    broken,
    exceptions,
    grouped,
    load,
    page,
    save,
    tally,
)

from refembed.conformance.defects import DEFECTS
from refembed.conformance.diagnose import Explanation
from refembed.conformance.verify import Outcome, Report

PAGE = Path(__file__).parents[2] / "spec" / "confusion.md"
BY_ID = {defect.id: defect for defect in DEFECTS}
IDS = list(BY_ID)[:40]


def run(kind: str, id: str, *named: str, conforms: bool = False, counts: bool = True, verdict: str = "wrong") -> Run:
    """What the command keeps of an invented report."""
    explanations = [Explanation(BY_ID[name], 0.5, 1e5, ("a",), 1.0) for name in named]
    outcome = Outcome("vectors", "a", "right" if conforms else verdict)
    report = Report("port", "twin", "edition", "digest", "float32", 1, 91, 91, [outcome], explanations)
    return Run.of(report, "twin", "c", kind, id, counts)


def good() -> list[Run]:
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


def changed(old: str, new: Run) -> list[Run]:
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
def test_planted_exception_breaks_its_promise(old: str, new: Run, said: str, promise: str) -> None:
    """Wrong if a mistake that was missed, or taken for another, goes unnoticed."""
    runs = changed(old, new)
    assert new.said == said
    assert new in exceptions(runs)
    assert any(promise in sentence for sentence in broken(runs)), broken(runs)
    assert "## Promises broken" in page(runs, {})


@pytest.mark.parametrize("kind", [RIGHT, DEFECT, OTHER, PAIR])
def test_nothing_run_is_no_promise_kept(kind: str) -> None:
    """Wrong if a matrix without entries counts as a perfect one."""
    assert broken([one for one in good() if one.kind != kind])


def test_saved_runs_are_the_same_and_merge(tmp_path: Path) -> None:
    """Wrong if a merged page differs from one made at once, or keeps an older run of a group beside the new one."""
    first, second = good(), changed(IDS[0], run(DEFECT, IDS[0], "zeros"))
    save(tmp_path / "a", first)
    save(tmp_path / "b", second)
    assert load([tmp_path / "a"])[0] == first
    assert load([tmp_path / "a", tmp_path / "b"])[0] == second


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
        kept = first >= 0.95 * count and three == count and bad == 0
        assert kept or "## Promises broken" in text, row
    return len(found["Mistakes of the catalogue"])


def test_page_agrees_with_itself() -> None:
    """Wrong if the totals that spec/confusion.md shows are not those of its own lines."""
    if not PAGE.exists():
        pytest.skip("spec/confusion.md is not written yet")
    assert check_page(PAGE.read_text()) >= 1


def test_page_that_disagrees_is_found() -> None:
    """Wrong if the test above passes whatever the page says."""
    text = page(good(), {"numpy": "2"})
    assert check_page(text) == len(grouped(good())) == 1
    assert "Every promise is kept." in text
    for old, new in (("| 40 | 38 |", "| 40 | 39 |"), ("| 95.0 % |", "| 97.5 % |"), (f"| {IDS[39]} |", "| - |\n|")):
        assert old in text
        with pytest.raises((AssertionError, ValueError)):
            check_page(text.replace(old, new, 1))
