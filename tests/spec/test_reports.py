"""spec/reports: what verify said of real ports, in one table, and with the golden vectors that are here now."""

import re
from pathlib import Path

import pytest

from refembed.conformance.defects import DEFECTS
from refembed.conformance.suite import golden_folder, open_suite

FOLDER = Path(__file__).resolve().parents[2] / "spec" / "reports"
REPORTS = {file.stem: file.read_text() for file in sorted(FOLDER.glob("*.txt"))}
TABLE = (FOLDER / "README.md").read_text()
ROW = re.compile(r"^\| \[(?P<report>[\w.-]+)\]\((?P=report)\.txt\) \| (?P<cells>.*) \|$", re.MULTILINE)
HEAD = re.compile(
    r"(?P<port>.+) against (?P<suite>\S+) \(golden (?P<golden>\w+)\), (?P<cases>\d+) cases, (?P<contract>\S+)"
)
VERDICT = re.compile(r"^(CONFORMS|DOES NOT CONFORM)$", re.MULTILINE)
USED = re.compile(r"^allowed error used by right answers: at most (\d+ %)", re.MULTILINE)
DIAGNOSIS = re.compile(r"^diagnosis: ([\w-]+)", re.MULTILINE)
LOCAL = re.compile(r"(^|[\s\"'=])(/[\w.-]+){2,}", re.MULTILINE)
RIGHT = {
    "sentence-transformers": "float32",
    "onnxruntime": "float32",
    "llamacpp-f32": "float32-gelu16",
    "llamacpp-f32-fa-off": "float32-gelu16",
    "llamacpp-q8_0": "int8",
    "refembed-q8_0": "int8",
}
WRONG = {"transformers-4.55": "causal", "gguf-without-dense": "dense-missing", "mean-pooled": "dense-missing"}
HALF = 50  # per cent of the allowed error, of which ports at the reference's own precision leave as much


def one(pattern: re.Pattern[str], text: str) -> str:
    """What the pattern finds in a report, a dash where there is nothing."""
    found = pattern.search(text)
    return found[1] if found else "-"


def row(text: str) -> list[str]:
    """The cells of the table that a report settles: contract, verdict, allowed error used, diagnosis."""
    head, verdict = HEAD.match(text), one(VERDICT, text)
    used = one(USED, text) if verdict == "CONFORMS" else "-"
    return [head["contract"] if head else "-", verdict, used, one(DIAGNOSIS, text)]


def faults(table: str, reports: dict[str, str]) -> list[str]:
    """Where table, reports and golden vectors differ."""
    rows = {found["report"]: found["cells"].split(" | ") for found in ROW.finditer(table)}
    found = [f"{name} is in the table or a report, not in both" for name in rows.keys() ^ reports.keys()]
    for name in rows.keys() & reports.keys():
        head = HEAD.match(reports[name])
        if not head:
            found.append(f"{name} begins with no head of a report")
            continue
        suite = open_suite(golden_folder(head["suite"]))
        if (head["golden"], int(head["cases"])) != (suite.edition, len(suite.cases)):
            found.append(
                f"{name} was made with golden {head['golden']}, {suite.edition} is here: run its command again"
            )
        if rows[name][-4:] != row(reports[name]):
            found.append(f"{name}: the table says {rows[name][-4:]}, the report {row(reports[name])}")
    return sorted(found)


def test_table_and_reports_agree() -> None:
    """Wrong if the page promises what no report says, or a report was made with other golden vectors."""
    assert faults(TABLE, REPORTS) == []


def test_right_ports_conform_with_room() -> None:
    """Wrong if a right port in everyday use is accused, or one in float32 is near its bounds."""
    for name, contract in RIGHT.items():
        assert row(REPORTS[name])[:2] == [contract, "CONFORMS"]
        if contract == "float32":
            assert int(row(REPORTS[name])[2].removesuffix(" %")) <= HALF


def test_wrong_setups_are_named() -> None:
    """Wrong if a mistake that people really make is not caught, or goes by another name."""
    assert {name: row(REPORTS[name])[1::2] for name in WRONG} == {
        name: ["DOES NOT CONFORM", defect] for name, defect in WRONG.items()
    }
    assert set(WRONG.values()) <= {defect.id for defect in DEFECTS}


PLANTED = {
    "another verdict": ("DOES NOT CONFORM", "CONFORMS"),
    "another diagnosis": ("diagnosis: causal", "diagnosis: causal-sliding-only"),
    "other golden vectors": ("(golden ", "(golden 0"),
    "fewer cases": (" cases, float32", "0 cases, float32"),
    "another contract": (" cases, float32", " cases, bfloat16"),
    "no head": (" against ", " beside "),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_found(fault: str) -> None:
    """Wrong if the agreement above holds whatever the reports say."""
    was, becomes = PLANTED[fault]
    text = REPORTS["transformers-4.55"]
    assert was in text
    changed = REPORTS | {"transformers-4.55": text.replace(was, becomes, 1)}
    assert [line.split()[0].rstrip(":") for line in faults(TABLE, changed)] == ["transformers-4.55"]


def test_a_report_more_or_less_is_found() -> None:
    """Wrong if a report may lie there unread, or the table cite one that is gone."""
    assert len(faults(TABLE, REPORTS | {"another": REPORTS["onnxruntime"]})) == 1
    assert len(faults(TABLE, {name: text for name, text in REPORTS.items() if name != "onnxruntime"})) == 1


@pytest.mark.parametrize("file", sorted(FOLDER.iterdir()), ids=lambda file: file.name)
def test_reports_are_short_and_of_no_machine(file: Path) -> None:
    """Wrong if a page names folders of the machine it was made on, or is too long to read."""
    assert LOCAL.search(file.read_text()) is None
    assert len(file.read_text().splitlines()) < 60 or file.suffix == ".md"
    assert file.stat().st_size < 40_000
