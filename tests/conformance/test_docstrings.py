"""Every function of the reference says its shapes, its source and its witness, and a false word in it is noticed.

The shapes are held to real calls by test_reference_shapes.py; that witnesses fail when they must, by
tests/conformance.
"""

import json
from functools import cache
from pathlib import Path

import docstring_lint as lint
import pytest
from shape_comments import read

FILES = sorted(lint.FOLDER.glob("*.py"))
PAGES = lint.chapters()


@cache
def cases() -> dict[str, set[str]]:
    """Folder of golden/ -> its cases."""
    found = {}
    for path in (lint.ROOT / "golden").glob("*/*.json"):
        if path.name in ("manifest.json", "cases.json"):
            listed = json.loads(path.read_text())["cases"]
            found[path.parent.name] = {case.get("id") or case.get("case") or case["denoiser"] for case in listed}
    return found


def faults(module: str, source: str) -> list[str]:
    shapes: dict[str, set[tuple[str, str]]] = {}
    for claim in read(f"{module}.py", source).claims:
        if not claim.statement:
            shapes.setdefault(claim.function, set()).add((claim.kind, claim.subject))
    return lint.faults(module, source, shapes, PAGES, cases())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_function_says_shapes_source_and_witness(path: Path) -> None:
    """Wrong if a reader meets an array without its shape, or a line without what says so and what holds it."""
    assert faults(path.stem, path.read_text()) == []


def test_every_function_is_held() -> None:
    """Wrong if the lint passes functions over, or reads no chapters and no cases."""
    every = [name for path in FILES for name, _ in lint.functions(path.read_text())]
    defined = sum(path.read_text().count("\ndef ") + path.read_text().count("\n    def ") for path in FILES)
    within = sum("    def " in line for path in FILES for line in path.read_text().splitlines())
    assert len(every) == defined - within > 100
    assert set(cases()) == {"twin", "embeddinggemma-300m", "quantised", "losses", "gradients", "ul2", "vectors"}
    assert all(page.ids for page in PAGES.values())
    assert {module for page in PAGES.values() for module in page.modules} >= {"attention", "losses", "ul2", "decoder"}


GOOD = '''def linear(x: Array, weight: Array) -> Array:
    """Multiply.

    x        (..., n)
    weight   (m, n)
    returns  (..., m)

    Source: OPS-1. Trap: transposed (defect D3).
    Witness: golden/twin length-two.
    """
    return x @ weight.T
'''
OPS_ELSEWHERE = "Source ATT-2 is of 05-attention-and-windows.md, which the chapter beside it does not name"
NO_WITNESS = "0 Witness, 0 of them golden/FOLDER CASE. or tests/FILE.py TEST."


@pytest.mark.parametrize(
    ("right", "planted", "said"),
    [
        ("    x        (..., n)\n", "", "no shape of argument x"),
        ("    returns  (..., m)\n", "", "no shape of return"),
        ("weight: Array)", "weight: Array, *, bias: np.ndarray)", "no shape of argument bias"),
        ("weight: Array)", "weight: Array, *rows: Array)", "no shape of argument rows"),
        ("Source: OPS-1.", "", "no Source"),
        ("Source: OPS-1.", "Source: the paper.", "no Source"),
        ("OPS-1", "ATT-2", "no Source of a chapter beside it, in ATT-2"),
        ("OPS-1", "OPS-1, ATT-2", OPS_ELSEWHERE),
        ("OPS-1", "OPS-1, OPS-2", "Source OPS-2 does not name it after Code:"),
        ("Multiply.", "Multiply, as OPS-99 says.", "OPS-99 is defined nowhere"),
        ("defect D3", "defect Z9", "defect Z9 is not there"),
        ("defect D3", "defect B3", "defect B3 is of 05-attention-and-windows.md, and none of these is its chapter"),
        ("defect D3", "defects D3, D9", "defect D9 is not there"),
        ("(defect D3)", "(mistake matching-cosine-squared)", "mistake matching-cosine-squared is not there"),
        ("weight: Array)", "weight: Array, parts: dict[str, Array])", "no line of argument parts"),
        ("OPS-1", "OPS-99, OPS-1", "Source OPS-99 is defined nowhere"),
        ("    Witness: golden/twin length-two.\n", "", NO_WITNESS),
        ("golden/twin length-two.", "the tests.", "1 Witness, 0 of them golden/FOLDER CASE. or tests/FILE.py TEST."),
        ("length-two", "length-too", "Witness golden/twin length-too is not there"),
        ("golden/twin", "golden/triplet", "Witness golden/triplet length-two is not there"),
        (
            "golden/twin length-two",
            "tests/reference/test_reference_laws.py test_linear",
            "Witness tests/reference/test_reference_laws.py test_linear is not there",
        ),
        (
            "    Witness: golden/twin length-two.\n",
            "    Witness: golden/twin length-two.\n    Witness: golden/twin length-window.\n",
            "2 Witness, 2 of them golden/FOLDER CASE. or tests/FILE.py TEST.",
        ),
        (
            "    return x @",
            "    def inner(y: Array) -> Array:\n        return y\n\n    return x @",
            "no shape of what inner within it returns",
        ),
    ],
)
def test_a_planted_fault_is_noticed(right: str, planted: str, said: str) -> None:
    """Wrong if the lint would pass a function that leaves something out or says what is not so."""
    assert right in GOOD
    assert faults("operations", GOOD) == []
    assert faults("operations", GOOD.replace(right, planted))[0] == f"operations.linear: {said}"


def test_a_right_chapters_wrong_requirement_is_noticed() -> None:
    """Wrong if a function could cite another requirement of its chapter than the one that names it."""
    assert faults("operations", GOOD.replace("OPS-1", "OPS-2")) == [
        "operations.linear: Source OPS-2 does not name it after Code:",
        "operations.linear: no Source OPS-1, which names it after Code:",
    ]


def test_every_name_after_code_is_a_function() -> None:
    """Wrong if a chapter named code that is not there."""
    named = {name for page in PAGES.values() for names in page.code.values() for name in names}
    assert named <= {f"{path.stem}.{name}" for path in FILES for name, _ in lint.functions(path.read_text())}
    assert len(named) > 100


def test_methods_and_private_functions_are_held() -> None:
    """Wrong if something that computes could hide in a class, or behind an underscore."""
    method = GOOD.replace("Source: OPS-1.", "").replace("\n", "\n    ").rstrip(" ")
    assert faults("operations", f"class Matrix:\n    {method}") == ["operations.Matrix.linear: no Source"]
    assert faults("operations", "def _f(x: int) -> int:\n    return x + 1\n") == [
        "operations._f: no docstring",
        "operations._f: no Source",
        f"operations._f: {NO_WITNESS}",
    ]


def test_a_chapter_stands_beside_what_it_names() -> None:
    """Wrong if a source could be any chapter's, or a function beside its chapter be sent away."""
    assert PAGES["05-attention-and-windows.md"].is_beside("positions", "window_mask")
    assert not PAGES["05-attention-and-windows.md"].is_beside("positions", "rotate")
    assert PAGES["03-norms.md"].is_beside("operations", "gelu")
    assert not PAGES["02-embedding.md"].is_beside("model", "dense_head")
    assert PAGES["08-matryoshka.md"].is_beside("quantize", "signs")
