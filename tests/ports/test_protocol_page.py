"""spec/protocol.md: its programs are written out and run, its dialogue is held, its tables are true."""

import json
import os
import re
import subprocess
import sys
import time
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiled_port import CHECKPOINT, STRICT, compile_port

from refembed.conformance.port import CALLS, DIALECTS, PATHS, HttpPort
from refembed.conformance.suite import STORED, golden_folder, open_suite
from refembed.conformance.verify import LEVELS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "spec" / "protocol.md").read_text()
SUITE = open_suite(golden_folder("twin"))
MINUTE, LINES = 60, 30  # what a first verdict may take of time and of code


def blocks(language: str, page: str = PAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def programs() -> dict[str, str]:
    """File name, from the first line's comment -> content."""
    return {block.partition("\n")[0].removeprefix("# "): block for block in blocks("py")}


def commands() -> list[tuple[str, str]]:
    """(command, output printed below it), in the order of the page."""
    lines = [line for block in blocks("console") for line in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(line.partition("\n")[0], line.partition("\n")[2]) for line in lines]


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading or behind a header cell."""
    table = PAGE[PAGE.index(heading) :].partition("| --- |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[1:]]


def dialogue() -> list[tuple[str, str]]:
    """(what verify says, what the port answers), "" at the end."""
    (block,) = blocks("text")
    said = re.findall(r"^> (.*)\n(?:< (.*)\n)?", block, re.MULTILINE)
    assert len(said) == block.count("\n> ") + 1
    return said


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_port(tmp_path_factory.mktemp("port") / "twin", *STRICT)


@pytest.fixture
def desk(tmp_path: Path) -> dict[str, Any]:
    """A folder with the page's programs and this source's tests/, and `refembed` and `python` on the path."""
    for name, content in programs().items():
        (tmp_path / name).write_text(content)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "bin").mkdir()
    for name, words in (("refembed", "-m refembed"), ("python", "")):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        script.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return {"cwd": tmp_path, "env": os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}}


@pytest.mark.long
def test_the_commands_print_what_stands_below_them(desk: dict[str, Any], twin: Path) -> None:
    """Wrong if somebody who follows the page sees something else; twin: skipped where there is no compiler."""
    for command, expected in commands():
        if command.startswith("pip install"):
            continue
        done = subprocess.run(command, shell=True, capture_output=True, text=True, **desk)
        status = 1 if "DOES NOT CONFORM" in expected else 0
        assert done.returncode == status, command + done.stdout + done.stderr
        assert OutputChecker().check_output(expected, done.stdout, ELLIPSIS), command + "\n" + done.stdout


def test_the_first_verdict_is_quick_and_short(desk: dict[str, Any]) -> None:
    """Wrong if a verdict on the twin takes a minute, or a port more than 30 lines around its embed function."""
    assert all(len(content.splitlines()) <= LINES for content in programs().values())
    begin = time.monotonic()
    command = next(command for command, _ in commands() if "--call" in command)
    subprocess.run(command, shell=True, check=True, capture_output=True, **desk)
    assert time.monotonic() - begin < MINUTE


def test_the_dialogue_is_held(twin: Path) -> None:
    """Wrong if the lines of the page are not what the C port answers."""
    said = [line for line, _ in dialogue()]
    sent = "".join(line + "\n" for line in said).encode()
    done = subprocess.run([twin, CHECKPOINT], input=sent, capture_output=True, check=True)
    answers = done.stdout.decode().splitlines()
    for answer, (_, shown) in zip(answers, dialogue()[:-1], strict=True):
        if "..." in shown:
            assert set(re.findall(r'"([^"]+)"', shown)) <= {"stages", *json.loads(answer)["stages"]}
        elif "vectors" in shown:
            vectors = (json.loads(line)["vectors"] for line in (answer, shown))
            np.testing.assert_allclose(*vectors, atol=2e-6)
        else:
            assert json.loads(answer) == json.loads(shown)


def test_the_dialogue_is_what_verify_says(desk: dict[str, Any], twin: Path) -> None:
    """Wrong if verify sends a call of another form than the page shows."""
    log = desk["cwd"] / "log"
    program = f"sh -c 'tee {log} | {twin} {CHECKPOINT}'"
    words = [sys.executable, "-m", "refembed", "verify", "--cases", "prompt-titled", "--command", program]
    subprocess.run(words, check=True, capture_output=True)
    shown = {form(json.loads(line)) for line, _ in dialogue()}
    assert {form(json.loads(line)) for line in log.read_text().splitlines()} == shown


def form(message: Any) -> str:
    """A message without its values."""
    if isinstance(message, dict):
        return str(sorted((key, message[key] if key == "call" else form(message[key])) for key in message))
    return str([form(message[0])]) if isinstance(message, list) else "value"


def test_the_calls_are_all_there() -> None:
    """Wrong if a call is added and the page does not say so."""
    table = " ".join(cell for row in rows("| call | is asked") for cell in row[:2])
    assert set(re.findall(r"`(\w+)`", table)) >= CALLS


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_table_of_dialects_is_true(dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if verify sends a server something else than the page says, or does not understand what it says."""
    (row,) = (row for row in rows("| dialect | path") if row[0] == f"`{dialect}`")
    path, sent, answered = (cell.strip("`") for cell in row[1:])
    bodies: list[Any] = []
    monkeypatch.setattr(HttpPort, "post", lambda self, body: bodies.append(body) or json.loads(answered))
    vectors = HttpPort("http://127.0.0.1", dialect).embed(SUITE.cases[0], ["text"])
    assert (path, vectors, bodies) == (PATHS[dialect], [[0.6, 0.8]], [json.loads(sent)])


def test_the_tables_name_what_there_is() -> None:
    """Wrong if a level, a precision, a file or a member of the manifest is missing from the page."""
    assert [row[0] for row in rows("| level | compared")] == list(LEVELS)
    assert [row[0].strip("`") for row in rows("| file | tensors")] == list(STORED)
    members = " ".join(row[0] for row in rows("| member | what"))
    assert set(re.findall(r"`(\w+)`", members)) == set(SUITE.manifest)
    contracts = " ".join(re.findall(r"^- (\*\*.*?):", PAGE, re.MULTILINE))
    assert re.findall(r"\*\*([a-z0-9-]+)\*\*", contracts) == list(SUITE.cases[0].bounds)
