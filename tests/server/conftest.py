"""One server for most tests: the twin, with limits that a small request reaches."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Running

import refembed

TWIN = Path(__file__).parents[2] / "golden" / "twin" / "checkpoint"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twin with one more token, <image>, that has no row in the table."""
    copy = tmp_path_factory.mktemp("serve") / "twin"
    shutil.copytree(TWIN, copy)
    file = copy / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 768, "content": "<image>"})
    file.write_text(json.dumps(tokenizer))
    return copy


@pytest.fixture(scope="session")
def model(folder: Path) -> refembed.Embedder:
    """The same in this process: what the server must agree with."""
    return refembed.load(folder, backend="numpy")


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[Running]:
    running = Running(folder, "--max-texts", "40", "--max-bytes", "60000")
    yield running
    running.close()
