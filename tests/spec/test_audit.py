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


def rows(text: str) -> list[str]:
    """The lines of the table of claims, and the paragraphs that stand by themselves."""
    return [
        part for line in prose(text).split("\n\n") for part in (line.splitlines() if line.startswith("|") else [line])
    ]


def false_figures(text: str) -> list[str]:
    """Bold figures that no file of their row, or paragraph, holds."""
    wrong = []
    for row in rows(text):
        files = [(SPEC / target).resolve() for _, target in LINK.findall(row)]
        said = " ".join(path.read_text().replace("%", " %").replace("  %", " %") for path in files if path.is_file())
        wrong += [figure for figure in re.findall(r"\*\*([^*]+)\*\*", row) if not holds(said, figure)]
    return wrong


def holds(text: str, figure: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(figure)}(?![\w]|\.\d)", text) is not None


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


def test_every_figure_is_in_a_file_beside_it() -> None:
    """Wrong if a figure of the page is not that of the test or page it comes from."""
    assert len(re.findall(r"\*\*([^*]+)\*\*", PAGE)) >= 15
    assert false_figures(PAGE) == []


def test_every_command_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if a command of the page names a script, an option or a folder that is not there."""
    assert len(commands()) > 20
    assert [(line, why) for line in commands() if (why := refused(line, capsys))] == []


def test_planted_falsities_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if the four tests above would pass a page that is not so."""
    assert missing_tests("[test_nothing](../tests/test_golden.py)") == ["test_nothing"]
    assert missing_tests("[test_quantised_cases](../tests/test_nothing.py)") == ["test_quantised_cases"]
    claim = "| a | b | **{}** | [test_every_tensor_in_float64](../tests/reference/test_reference_transformers.py) |"
    assert false_figures(claim.format("1e-12")) == []
    assert false_figures(claim.format("1e-13")) == ["1e-13"]
    assert false_figures("**1 of 2** of [witness](witness.md)") == ["1 of 2"]
    for command in (
        "python tests/nothing.py",
        "python spec/sbom.py --no-such-option x",
        "refembed verify --no-such-option",
        "pytest tests/nothing",
        "frobnicate",
    ):
        assert refused(command, capsys), command
