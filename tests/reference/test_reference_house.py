"""The reference's house rules: what it may import, how long it may be, how little it branches, what it must say."""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest
from shape_comments import SHAPE

import refembed.reference

FOLDER = Path(refembed.reference.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))
TRAINING = [path for path in FILES if path.name in ("gradients.py", "backward.py", "losses.py")]
PRETRAINING = [path for path in FILES if path.name in ("ul2.py", "decoder.py")]
FORWARD = [path for path in FILES if path.name != "quantize.py" and path not in TRAINING + PRETRAINING]

# At most this many, as it was when written; each is one line with its reason in the code.
MOST_BRANCHES = {ast.If: 0, ast.IfExp: 2, ast.For: 1, ast.While: 0, ast.Try: 0, ast.Match: 0, ast.comprehension: 4}
# The same of the backward pass: the loop over layers; their streams, the kinds' positions, a batch's texts and its sum.
MOST_BRANCHES_BACK = dict.fromkeys(MOST_BRANCHES, 0) | {ast.For: 1, ast.comprehension: 4}
# The same of the losses: equal texts of either side (2), the sides of a batch (4), the lengths (1, 1).
MOST_BRANCHES_LOSSES = dict.fromkeys(MOST_BRANCHES, 0) | {ast.For: 2, ast.comprehension: 7}
# The same of what came before: a text too short (1); the two kinds of layer (1); the loop over layers (1); names and
# their parts (8), the decoder's own parameters and its kinds' positions (2), a batch's examples (2), the sentinels' and
# the pieces of a text (2).
MOST_BRANCHES_PRETRAINING = dict.fromkeys(MOST_BRANCHES, 0) | {
    ast.If: 1, ast.IfExp: 1, ast.For: 1, ast.comprehension: 14
}  # fmt: skip


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that hold code: not blank, not only comment, not docstring."""
    lines: set[int] = set()
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def function_lengths(source: str) -> dict[str, int]:
    """Code lines of every function, its signature counted."""
    lines = code_lines(source)
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return {node.name: len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1))) for node in functions}


def forbidden_imports(source: str) -> list[str]:
    """What a module of the reference may not import: anything but NumPy, the standard library and its own folder."""
    named, hidden = [], []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named += [] if node.level == 1 else ["." * node.level + (node.module or "")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("__import__", "import_module"):
            hidden.append(ast.unparse(node))
    return hidden + [name for name in named if name.split(".")[0] not in {"numpy", *sys.stdlib_module_names}]


def branches(source: str, kind: type) -> int:
    return sum(isinstance(node, kind) for node in ast.walk(ast.parse(source)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports_only_numpy_the_standard_library_and_itself(path: Path) -> None:
    """If this failed, the specification could not be read and run with NumPy alone."""
    assert forbidden_imports(path.read_text()) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import torch",
        "from scipy.special import softmax",
        "from ..errors import RefembedError",
        "from refembed.errors import RefembedError",
        "import refembed.stored",
        "def late():\n    import numba",
        "import importlib\nimportlib.import_module('torch')",
        "torch = __import__('torch')",
    ],
)
def test_a_planted_import_is_noticed(planted: str) -> None:
    """If this failed, the lint above would let another package in."""
    for path in FILES:
        assert forbidden_imports(f"{path.read_text()}\n{planted}\n")


def test_sizes() -> None:
    """If this failed, the reference would no longer be a dozen short files of short functions."""
    sources = {path: path.read_text() for path in FILES}
    assert len(sources) <= 14 + 1  # the one more is __init__, a list of names
    assert sum(len(code_lines(source)) for source in sources.values()) <= 1200
    assert sum(len(code_lines(sources[path])) for path in FORWARD) <= 350
    lengths = {f"{path.name} {name}": n for path, text in sources.items() for name, n in function_lengths(text).items()}
    assert len(lengths) > 30
    assert {name: length for name, length in lengths.items() if length > 25} == {}


def test_lines_are_counted_as_a_person_counts() -> None:
    """If this failed, the sizes above would be of something else."""
    function = (
        'def f(\n    a,\n):\n    """Doc."""\n    # why\n    y = (\n        a\n    )\n    return """\n    two"""\n'
    )
    source = f'"""Module.\n\nwords\n"""\n\nX = 1  # one\n\n\n{function}'
    assert len(code_lines(source)) == 1 + 3 + 3 + 2
    assert function_lengths(source) == {"f": 8}


@pytest.mark.parametrize("kind", MOST_BRANCHES, ids=lambda kind: kind.__name__)
def test_the_forward_hardly_branches(kind: type) -> None:
    """If this failed, the forward would have a case more than the model has; raise the cap only with a reason."""
    assert sum(branches(path.read_text(), kind) for path in FORWARD) <= MOST_BRANCHES[kind]


@pytest.mark.parametrize("kind", MOST_BRANCHES_BACK, ids=lambda kind: kind.__name__)
def test_the_backward_hardly_branches(kind: type) -> None:
    """If this failed, the backward would have a case the forward does not; raise the cap only with a reason."""
    files = [path for path in TRAINING if path.name != "losses.py"]
    assert len(files) == 2
    assert sum(branches(path.read_text(), kind) for path in files) <= MOST_BRANCHES_BACK[kind]


@pytest.mark.parametrize("kind", MOST_BRANCHES_LOSSES, ids=lambda kind: kind.__name__)
def test_the_losses_hardly_branch(kind: type) -> None:
    """If this failed, a loss would have a case its equation does not; raise the cap only with a reason."""
    assert branches((FOLDER / "losses.py").read_text(), kind) <= MOST_BRANCHES_LOSSES[kind]


@pytest.mark.parametrize("kind", MOST_BRANCHES_PRETRAINING, ids=lambda kind: kind.__name__)
def test_pretraining_hardly_branches(kind: type) -> None:
    """If this failed, UL2 or the decoder would have a case its chapter has not; raise the cap only with a reason."""
    assert len(PRETRAINING) == 2
    assert sum(branches(path.read_text(), kind) for path in PRETRAINING) <= MOST_BRANCHES_PRETRAINING[kind]


def test_planted_branches_are_counted() -> None:
    """If this failed, the cap above would not hold anything back."""
    planted = "if a:\n  b = 1 if c else 2\nfor d in e:\n  [f for f in g]\nwhile h:\n  i\n"
    planted += "try:\n  j\nfinally:\n  k\nmatch l:\n  case 1: m\n"
    assert all(branches(planted, kind) == 1 for kind in MOST_BRANCHES)


def test_the_public_names_are_all_there_and_described() -> None:
    """If this failed, `from refembed.reference import *` would break, or a module would have no opening words."""
    for name in refembed.reference.__all__:
        assert hasattr(refembed.reference, name)
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path.name


def test_the_reading_order_names_every_file() -> None:
    """If this failed, a reader following the package's reading order would miss a file."""
    order = ast.get_docstring(ast.parse((FOLDER / "__init__.py").read_text())) or ""
    for path in FILES:
        assert path.stem == "__init__" or re.search(rf"\b{path.stem}\b", order), path.name


def test_shape_lines_are_the_size_this_file_thinks() -> None:
    """If this failed, SHAPE would not match what a reader takes for a shape."""
    for text in ("(tokens, width)", "(n,)", "(..., n/2)", "(...)", "(4, 1, width/4)", "(tokens, count*head)"):
        assert SHAPE.fullmatch(text)
    for text in ("(2k, 2k + 1)", "(A)", "(defects C3, D4)", "(-1/2)", "()", "(1 + w)"):
        assert not SHAPE.fullmatch(text)
