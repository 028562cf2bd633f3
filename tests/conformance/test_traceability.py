"""spec/traceability.md is what its command writes today, and no requirement lacks code or case without a reason."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import traceability
from docstring_lint import chapters
from traceability import Row, misheld, reasons

from refembed.conformance.defects import DEFECTS, Defect
from refembed.conformance.loss_mistakes import MISTAKES

PAGE = Path(traceability.ROOT) / "spec" / "traceability.md"


@cache  # reads all of the code: not while tests are collected
def table() -> list[Row]:
    return traceability.rows()


def test_page_is_what_the_command_writes() -> None:
    """Wrong if code, cases, mutants or mistakes moved; run python tests/conformance/traceability.py --out spec."""
    assert PAGE.read_text() == traceability.page()


def test_a_folder_that_is_not_there_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if the command could write into folders alone that somebody made before."""
    monkeypatch.setattr("sys.argv", ["traceability.py", "--out", str(tmp_path / "new" / "folder")])
    traceability.main()
    assert (tmp_path / "new" / "folder" / "traceability.md").read_text() == PAGE.read_text()


def test_every_requirement_is_on_the_page_once() -> None:
    """Wrong if a requirement were left out, or the chapters not read."""
    found = re.findall(r"^\| \[([A-Z]{3,4}-\d+)\]", PAGE.read_text(), re.MULTILINE)
    assert found == list(traceability.requirements())
    assert len(found) > 100


def test_every_gap_has_its_reason() -> None:
    """Wrong if a requirement lacked code or a golden case in silence, or a reason were about none."""
    assert misheld(table(), reasons()) == []
    assert all(row.code for row in table())


@pytest.mark.parametrize("one", [*DEFECTS, *MISTAKES], ids=lambda one: one.id)
def test_every_known_mistake_stands_in_its_row(one: Defect) -> None:
    """Wrong if a mistake were traced to nothing, to two requirements, or to one of another chapter than it says."""
    (row,) = (row for row in table() if row.id == one.requirement)
    assert row.chapter == one.chapter
    assert one.id in row.mistakes
    cells = [line.rpartition(" | ")[2] for line in PAGE.read_text().splitlines() if line.startswith(f"| [{row.id}]")]
    assert len(cells) == 1
    assert f"`{one.id}`" in cells[0]


@pytest.mark.parametrize(
    ("id", "mistakes"),
    [
        ("OPS-1", []),
        ("MLP-1", ["gate-and-up-swapped"]),
        ("TOK-6", ["special-tokens-as-text"]),
        ("ATT-2", ["scores-scaled-by-width", "scores-not-scaled"]),
        ("LOSS-5", [one.id for one in MISTAKES if one.id.startswith("spread-out-")]),
    ],
)
def test_rows_have_their_own_mistakes(id: str, mistakes: list[str]) -> None:
    """Wrong if a row had another requirement's mistakes, as by a family of the catalogue that both have a part in."""
    assert next(row for row in table() if row.id == id).mistakes == mistakes


def test_a_mistake_in_one_function_stands_where_that_function_does() -> None:
    """Wrong if a mistake that replaces one function, told of by one requirement alone, stood under another."""
    code = {id: names for chapter in chapters().values() for id, names in chapter.code.items()}
    judged = 0
    for one in DEFECTS:
        for name in one.mutation.functions if len(one.mutation.functions) == 1 else ():
            told = [id for id, names in code.items() if name in {named.partition(".")[2] for named in names}]
            judged += len(told) == 1
            assert len(told) != 1 or told == [one.requirement], one.id
    assert judged > 10


def test_each_function_has_mutants_and_some_are_killed() -> None:
    """Wrong if the page's counts of mutants were of another reference than its lines."""
    made = traceability.mutants()
    assert sum(count for count, _ in made.values()) > 2000
    assert all(0 < killed <= count for count, killed in made.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: replace(row, code=[]), "lacks code and golden case, and no reason is given"),
        (lambda row: replace(row, code=[replace(row.code[0], witnesses=())]), "lacks golden case, and no reason is"),
    ],
)
def test_a_planted_gap_is_noticed(change, said: str) -> None:
    """Wrong if a docstring could lose its source or its witness and the table pass."""
    place = next(index for index, row in enumerate(table()) if not row.gap and len(row.code) == 1)
    (found,) = misheld([*table()[:place], change(table()[place]), *table()[place + 1 :]], reasons())
    assert found.startswith(f"{table()[place].id}: {said}")


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"TOK-1": ""}, "TOK-1: the reason names no test"),
        ({"TOK-1": "as tests/test_nothing.py shows"}, "TOK-1: tests/test_nothing.py is not there"),
        ({"EMB-1": "tests/test_tokenizer.py"}, "EMB-1: a reason, and no gap"),
    ],
)
def test_a_planted_reason_is_noticed(held: dict[str, str], said: str) -> None:
    """Wrong if a reason could be empty, name a test that is not there, or excuse what needs no excuse."""
    assert misheld(table(), reasons() | held) == [said]


def test_citations_are_read_as_written() -> None:
    """Wrong if an id of a list or a range were lost, or taken from code that does not say it."""
    source = '"""Of a module (QNT-1)."""\ndef f(x):\n    """Words (TOK-1, 4).\n\n    Source: QNT-1 to QNT-3.\n    """\n'
    known = {row.id for row in table()}
    module, function = traceability.code_of("refembed/f.py", source, known)
    assert (module.name, module.ids, function.name, function.line) == ("", ("QNT-1",), "f", 2)
    assert set(function.ids) == {"TOK-1", "TOK-4", "QNT-1", "QNT-2", "QNT-3"}
    assert traceability.code_of("refembed/f.py", "x = 1  # QNT-1\n", known) == []
    assert Row("QNT-1", "09", [function]).gap == "golden case"
