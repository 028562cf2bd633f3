"""spec/audit.md: every test, command and figure it names is there."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from test_chapters import ROOT, SPEC, fences, prose

from refembed.cli import main

PAGE = (SPEC / "audit.md").read_text()
LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(?:#[^)]*)?\)")
TEST = re.compile(r"test_\w+")
OUTSIDE = {"pip", "git", "sha256sum", "python3", "."}  # programs that are not of this repository
CLAIMS = 20


@cache
def functions_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def missing_tests(text: str) -> list[str]:
    """Tests that a page names and links to, and that are not in that file."""
    named = [(name, (SPEC / target).resolve()) for name, target in LINK.findall(text) if TEST.fullmatch(name)]
    return [name for name, path in named if not path.is_file() or name not in functions_in(path)]


# Every bold figure of the page in its order: the file it stands in, and its one place there, as the group of a pattern.
TRANSFORMERS, REAL = "tests/reference/test_reference_transformers.py", "tests/test_real_weights.py"
ALL = r"^\*\*In all:\*\* {} comparisons come out as the paper, .* has them, {} the other way, {} within the spread\.$"
RECORD = r"^\| embeddinggemma-300m \| transformers \| float32 \| {} \| \d+ \| [\d.]+ % \| {} \|"
ANY = r"\d+"
FIGURES = (
    ("1e-12", TRANSFORMERS, r"def test_every_tensor_in_float64\(.*\n.*\n    check_every_tensor\(name, tokens, (\S+), "),
    ("2049", REAL, r"^LENGTHS = \((?:\d+, )+(\d+)\)"),
    ("4e-6", REAL, r"^PER_NUMBER = (\S+)"),
    ("2e-5", REAL, r"CARD_SIMILARITIES, atol=(\S+), rtol=0\)"),
    ("0.05", REAL, r"correlation == pytest\.approx\(88\.17, abs=(\S+)\)"),
    ("1e-12", "tests/reference/test_reference_backward.py", r"^ALLOWED = (\S+)$"),
    ("1e-9", "tests/reference/test_reference_losses.py", r"^def close\(found: Any, true: Any, within: float = (\S+)\)"),
    (
        "1e-12",
        "tests/reference/test_reference_decoder.py",
        r"def test_with_cross_attention_it_is_transformers_and_torchs(?:.*\n)*? .*\(found - truth\) < (\S+) \*",
    ),
    ("812 of 841", "spec/witness.md", r"^Killed: \*\*(\d+ of \d+), "),
    ("31", "spec/witness.md", r"^Killed: .*; (\d+) more are equivalent\."),
    ("231", "spec/witness.md", r"^Killed: .* equivalent\. (\d+) of the killed raise"),
    ("84 %", "spec/reports/README.md", ""),
    ("91", "spec/confusion.md", RECORD.format(ANY, r"(\d+)")),
    ("91", "spec/confusion.md", RECORD.format(r"(\d+)", ANY)),
    ("11", "spec/ablations.md", ALL.format(r"(\d+)", ANY, ANY)),
    ("5", "spec/ablations.md", ALL.format(ANY, r"(\d+)", ANY)),
    ("6", "spec/ablations.md", ALL.format(ANY, ANY, r"(\d+)")),
    ("1e-12", "golden/generate.py", r"^AGREEMENT = (\S+)$"),
    ("1e-9", "golden/losses_cases.py", r"^AGREED = (\S+)$"),
)


def rows(text: str) -> list[str]:
    """The lines of the table of claims, and the paragraphs that stand by themselves."""
    parts = prose(text).split("\n\n")
    return [row for part in parts for row in (part.splitlines() if part.startswith("|") else [part])]


def figures(text: str) -> list[str]:
    return re.findall(r"\*\*([^*]+)\*\*", prose(text))


def true_figure(file: str, pattern: str) -> str:
    """What stands at a figure's place today."""
    text = (ROOT / file).read_text()
    if not pattern:  # the most that a report of a right port used
        used = re.findall(r"^\| \[.*\| CONFORMS \| (\d+) % \|", text, re.MULTILINE)
        return f"{max(map(int, used))} %"
    (found,) = re.findall(pattern, text, re.MULTILINE)
    return found.strip()


def false_figures(text: str) -> list[tuple[str, str]]:
    """Bold figures of a page that are not those of their places, beside what stands there."""
    true = [true_figure(file, pattern) for _, file, pattern in FIGURES]
    return [pair for pair in zip(figures(text), true, strict=True) if pair[0] != pair[1]]


def refused(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Why a command of the page cannot be run here as it stands; "" if it can."""
    for part in command.split("&&"):
        program, *words = shlex.split(part)
        if program == "python":
            if not (ROOT / words[0]).is_file():
                return f"{words[0]} is not there"
            options = [word for word in words if word.startswith("--")]
            unknown = [option for option in options if f'"{option}"' not in (ROOT / words[0]).read_text()]
        elif program == "refembed":
            with pytest.raises(SystemExit):
                main([words[0], "--help"])
            help_text = capsys.readouterr().out
            unknown = [word for word in words if word.startswith("--") and word not in help_text]
        elif program == "pytest":
            unknown = [word for word in words if word.startswith("tests") and not (ROOT / word).exists()]
        else:
            unknown = [] if program in OUTSIDE else [program]
        if unknown:
            return f"{program} knows no {', '.join(unknown)}"
    return ""


def commands() -> list[str]:
    return [line for language, block in fences(PAGE) if language == "sh" for line in block.splitlines() if line]


def test_every_test_named_is_there() -> None:
    """Wrong if an auditor is sent to a test that is not there."""
    assert sum(bool(TEST.fullmatch(name)) for name, _ in LINK.findall(PAGE)) > CLAIMS
    assert missing_tests(PAGE) == []


def test_every_claim_can_be_repeated() -> None:
    """Wrong if a claim stands there without a test or a page that repeats it, or says not what it was held to."""
    table = PAGE.partition("| --- |")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(table) >= CLAIMS
    for row in table:
        claim, held_to, bound, repeat = (cell.strip() for cell in row.strip("|").split("|"))
        assert claim
        assert held_to
        assert bound
        assert LINK.search(repeat), claim


def test_every_figure_is_that_of_its_place() -> None:
    """Wrong if a figure of the page is not that of the line, or cell, that it comes from."""
    assert figures(PAGE) == [figure for figure, *_ in FIGURES]
    assert false_figures(PAGE) == []
    for figure, file, _ in FIGURES:
        linked = [
            row for row in rows(PAGE) if f"**{figure}**" in row and (ROOT / file).name.removeprefix("README") in row
        ]
        assert linked, f"{figure}: no row of it names {file}"


def test_every_figure_is_held_to_its_place_alone() -> None:
    """Wrong if another number of the same file passed for a figure of the page."""
    for place, (figure, *_) in enumerate(FIGURES):
        parts = re.split(r"\*\*([^*]+)\*\*", PAGE)
        parts[2 * place + 1] = other = "1e-13" if "e-" in figure else "12 of 19" if " of " in figure else "38 %"
        planted = "".join(f"**{part}**" if odd % 2 else part for odd, part in enumerate(parts))
        assert false_figures(planted) == [(other, figure)]


def test_every_command_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if a command of the page names a script, an option or a folder that is not there."""
    assert len(commands()) > 20
    assert [(line, why) for line in commands() if (why := refused(line, capsys))] == []


def test_planted_falsities_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if the tests above would pass a page that is not so."""
    assert missing_tests("[test_nothing](../tests/test_golden.py)") == ["test_nothing"]
    assert missing_tests("[test_quantised_cases](../tests/test_nothing.py)") == ["test_quantised_cases"]
    for command in (
        "python tests/nothing.py",
        "python spec/sbom.py --no-such-option x",
        "refembed verify --no-such-option",
        "pytest tests/nothing",
        "frobnicate",
    ):
        assert refused(command, capsys), command
