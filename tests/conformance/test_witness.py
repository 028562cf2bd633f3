"""The witness: spec/witness.md is of today's reference, what it says is so, and a false word in it is noticed.

What fails is re-run here on one mutant in twelve, others for each edition of golden/; the whole is made by
tests/conformance/witness.py.
"""

import ast
import builtins
import hashlib
import json
import time
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import witness
from witness_mutants import MODULES, OPERATORS, OUTSIDE, SOURCE, Mutant, mutants

SPEC = Path(__file__).parents[2] / "spec"
EVERY = 48
FEWEST, LOWEST = 300, 0.95


@cache
def record() -> dict[str, Any]:
    return witness.read((SPEC / "witness.json").read_text())


@cache
def all_mutants() -> tuple[Mutant, ...]:
    return tuple(mutants())


def sample(edition: str | None = None) -> tuple[Mutant, ...]:
    """Drawn by a digest, so that every edition of golden/, today's unless given, draws others."""
    edition = edition or witness.golden_edition()
    drawn = sorted(all_mutants(), key=lambda one: hashlib.sha256(f"{one.id} {edition}".encode()).digest())
    return tuple(drawn[: len(drawn) // EVERY])


def first(fewest: int, passing: bool = False) -> Mutant:
    """The first sampled mutant that fails this many cases by the record; passing: and not all of them."""
    counts = ((one, len(record()[one.id]["fails"]), len(witness.cases_of(one.module))) for one in sample())
    return next(one for one, fails, cases in counts if fewest <= fails and not (passing and fails == cases))


def test_record_is_of_todays_reference():
    """Wrong if a line of the reference moved or changed, or an operator did, since the witness was last made."""
    assert witness.stale(record()) == [], "run python tests/conformance/witness.py --out spec"


def test_record_is_of_todays_golden_vectors():
    """Wrong if a golden value, stage or bound changed since, so that other cases may fail."""
    made_with = json.loads((SPEC / "witness.json").read_text())["golden"]
    assert made_with == witness.golden_edition(), "run python tests/conformance/witness.py --out spec"


def test_page_is_the_record():
    """Wrong if spec/witness.md says something else than witness.json beside it."""
    assert (SPEC / "witness.md").read_text() == witness.page(record())


def test_unchanged_reference_passes():
    """Wrong if a case fails for another reason than the mutation."""
    modules = witness.load(None)
    assert witness.judged_by_twin(modules) == witness.judged_by_quantised(modules) == {}


def test_sampled_mutants_fail_the_cases_of_the_record():
    """Wrong if the page names a case that does not fail, or leaves out one that does."""
    assert len(sample()) >= 15
    assert witness.false_witnesses(record(), sample()) == []


def test_score():
    """Wrong if golden/ lets more than one mutant in twenty pass, of all, or of those that do not merely raise."""
    assert len(record()) >= FEWEST
    assert len({entry["change"] for entry in record().values()}) >= FEWEST
    for running in (False, True):
        killed, counted = witness.score(record(), running)
        assert counted >= FEWEST
        assert killed / counted >= LOWEST
    assert {id.split(":")[1] for id in record()} == set(OPERATORS)


def test_every_survivor_has_its_argument():
    """Wrong if a mutant passes and nobody says why, or an argument is about one that is killed or not there."""
    assert witness.unargued(record()) == []
    assert len(set(witness.EQUIVALENT.values())) == len(witness.EQUIVALENT), "each is argued by itself"
    assert all(len(text.split()) > 4 for text in (*witness.EQUIVALENT.values(), *witness.MISSING))


def test_docstrings_name_witnesses():
    """Wrong if the case in a docstring passes when its function is changed, is not there, or is missing."""
    assert witness.false_docstrings(record(), SOURCE) == []


def test_sample_moves_with_golden():
    """Wrong if the same mutants were re-run for ever, and the record of the others never."""
    assert {one.id for one in sample()} != {one.id for one in sample("another")}
    assert sample() == sample(witness.golden_edition())


def arithmetic(module: str) -> set[int]:
    """The lines of a module's forward that compute: an operation, a comparison or a call, refusals and traces apart."""
    lines = set()
    for top in ast.parse(SOURCE[module]).body:
        if isinstance(top, ast.FunctionDef) and not {module, f"{module}.{top.name}"} & set(OUTSIDE):
            for statement in top.body:
                if not (isinstance(statement, ast.If) and isinstance(statement.body[-1], ast.Raise)):
                    computed = ast.BinOp | ast.UnaryOp | ast.Compare | ast.Call
                    lines |= {node.lineno for node in ast.walk(statement) if isinstance(node, computed)}
    return lines


@pytest.mark.parametrize("module", [module for module in MODULES if module not in OUTSIDE])
def test_every_line_of_arithmetic_is_mutated(module: str):
    """Wrong if a line of the forward could be changed and no mutant tried it."""
    mutated = {entry["line"] for id, entry in record().items() if id.startswith(f"{module}.")}
    assert mutated
    assert arithmetic(module) <= mutated


def test_what_is_left_out_is_there():
    """Wrong if a reason for leaving something out is about nothing."""
    names = {f"{module}.{node.name}" for module in MODULES for node in ast.parse(SOURCE[module]).body
             if isinstance(node, ast.FunctionDef | ast.ClassDef)}  # fmt: skip
    assert set(OUTSIDE) <= names | set(MODULES) | {"pooling.POOLING_HEADS", "quantize.FORMS"}


# ---------------------------------------------------------------------------------------------------- planted falsities
def planted(id: str, **false: Any) -> dict[str, Any]:
    copy = deepcopy(record())
    copy[id] |= false
    return copy


def test_false_witness_is_found():
    """Wrong if a case could be called a witness of a line that it does not see."""
    some = first(1, passing=True)
    passing = next(case for case in witness.cases_of(some.module) if case not in record()[some.id]["fails"])
    lie = planted(some.id, fails=sorted([*record()[some.id]["fails"], passing]))
    assert witness.false_witnesses(lie, [some]) == [some.id]
    assert witness.false_witnesses(record(), [some]) == []


@pytest.mark.parametrize(
    "planted",
    [
        "Witness: golden/twin batch-twins.",
        "Witness: golden/twin no-such-case.",
        "Witness: golden/quantised dimensions-16.",
        "Witness: 256 tokens.",
        "",
        "Witness: golden/twin dimensions-16.\n    Witness: golden/twin length-two.",
    ],
)
def test_false_docstring_is_found(planted: str):
    """Wrong if a docstring could name a case that does not see its function, or none, or several."""
    model = SOURCE["model"].replace("Witness: golden/twin dimensions-16.", planted)
    assert model != SOURCE["model"]
    assert witness.false_docstrings(record(), {**SOURCE, "model": model}) == ["model.truncate"]


def test_docstring_without_mutants_is_found():
    """Wrong if a function that nothing judges could name a witness."""
    pooling = SOURCE["pooling"].replace("Source: POOL-2.", "Source: POOL-2.\n    Witness: golden/twin length-two.")
    assert witness.false_docstrings(record(), {**SOURCE, "pooling": pooling}) == ["pooling.first_pool"]


def test_witness_left_out_is_found():
    """Wrong if a line could have more witnesses than the page says."""
    some = first(2)
    assert witness.false_witnesses(planted(some.id, fails=record()[some.id]["fails"][1:]), [some]) == [some.id]


def test_survivor_called_killed_is_found():
    """Wrong if the score could be raised by saying that a survivor is killed."""
    survivor = next(one for one in all_mutants() if not record()[one.id]["fails"])
    lie = planted(survivor.id, fails=witness.cases_of(survivor.module))
    assert witness.false_witnesses(lie, [survivor]) == [survivor.id]
    assert witness.unargued(lie) == [survivor.id]


def test_killed_mutant_called_equivalent_is_found(monkeypatch: pytest.MonkeyPatch):
    """Wrong if the score could be raised by calling a mutant equivalent that golden/ sees."""
    killed = first(1)
    monkeypatch.setitem(witness.EQUIVALENT, killed.id, "it is the same, believe me")
    assert witness.unargued(record()) == [killed.id]


@pytest.mark.parametrize("part", ["line", "code", "change"])
def test_moved_or_changed_line_is_found(part: str):
    """Wrong if the page could be of another source than the reference's."""
    id = next(iter(record()))
    assert witness.stale(planted(id, **{part: 1})) == [id]


def test_missing_mutant_is_found():
    """Wrong if survivors could be left out of the record."""
    copy = deepcopy(record())
    id, _ = copy.popitem()
    assert witness.stale(copy) == [id]


def test_mutant_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch):
    """Wrong if an endless mutant would hold up the command for ever, or pass."""
    monkeypatch.setattr(witness, "SECONDS", 0.1)
    endless = Mutant("operations.linear:endless:0", "operations", 1, "", compile("while True: sleep(1)", "", "exec"))
    monkeypatch.setattr(builtins, "sleep", time.sleep, raising=False)
    fails, raises = witness.judged(endless)
    assert raises
    assert fails == sorted(witness.cases_of("operations"))
