"""The house rules of refembed/adapters: small, read by nothing else, each with an example; and the page of examples."""

import ast
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from test_reference_house import code_lines

import refembed

ROOT = Path(__file__).parents[2]
FOLDER = Path(refembed.__file__).parent / "adapters"
FILES = {str(file.relative_to(FOLDER)): file for file in sorted(FOLDER.rglob("*.py"))}


def imports(source: str) -> set[str]:
    """Every name of a module that an import anywhere in a file gives, relative ones from their last dot on."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module or ''}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_is_small_and_says_what_it_is(file: Path) -> None:
    """Wrong if an adapter outgrows the sixty lines that keep it thin, or a reader is not told what it is for."""
    assert len(code_lines(file.read_text())) < 60
    assert ast.get_docstring(ast.parse(file.read_text()))


def test_nothing_imports_them() -> None:
    """Wrong if the library, a backend or a command can no longer be read, or run, without somebody else's package."""
    packages = [FOLDER.parent, FOLDER.parents[1] / "backends"]
    others = [file for package in packages for file in package.rglob("*.py") if FOLDER not in file.parents]
    assert len(others) > 80
    found = {file.name: imports(file.read_text()) for file in others}
    assert not {name: names for name, names in found.items() if any("adapters" in one for one in names)}


PLANTED = [
    "from .adapters import langchain",
    "from ..adapters.langchain import RefembedEmbeddings",
    "from refembed import adapters",
    "def f():\n    import refembed.adapters.langchain",
]


@pytest.mark.parametrize("planted", PLANTED)
def test_the_check_sees_imports(planted: str) -> None:
    """Wrong if the test above passes whatever is imported."""
    assert any("adapters" in one for one in imports(planted))


# ------------------------------------------------------------------------------------------------------------ examples
ID = '"google/embeddinggemma-300m"'
PAGE = (ROOT / "spec/tools.md").read_text()
BLOCKS = re.findall(r"^## ([^\n]*)\n\n```py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
EXAMPLES = ["langchain.py", "llama_index.py", "scikit_learn.py", "sentence_transformers/__init__.py"]
EXAMPLES += ["sentence_transformers/util.py"]


def run(example: str) -> dict[str, Any]:
    """The names that an example leaves, on the built-in model in place of the real one."""
    names: dict[str, Any] = {}
    assert ID in example
    exec(example.replace(ID, ""), names)
    return names


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("tool", "example"), BLOCKS, ids=[tool for tool, _ in BLOCKS])
def test_the_pages_examples_run(tool: str, example: str) -> None:
    """Wrong if the page's example of a tool does not run as written, or finds something else than Mars."""
    names = run(example)
    if tool == "sentence-transformers":
        assert names["scores"][0][0] > names["scores"][0][1]
        assert names["hits"][0][0]["corpus_id"] == 0
    else:
        (found,) = names["found"]
        text = {"LangChain": "page_content", "LlamaIndex": "text"}.get(tool)
        assert (getattr(found, text) == "Mars looks red.") if text else (found == "space")


def test_every_tool_has_its_example() -> None:
    """Wrong if a tool's section lost its example, and with it what the test above runs."""
    assert [tool for tool, _ in BLOCKS] == ["sentence-transformers", "LangChain", "LlamaIndex", "scikit-learn"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXAMPLES)
def test_docstrings_examples_run(name: str) -> None:
    """Wrong if the example at the head of a module does not run as written."""
    said = ast.get_docstring(ast.parse(FILES[name].read_text())) or ""
    run(dedent("".join(line for line in said.splitlines(keepends=True) if line.startswith("    ") or line == "\n")))
