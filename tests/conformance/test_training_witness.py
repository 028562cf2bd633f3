"""spec/training_witness.json is of today's losses, backward pass, UL2 and poolers, and what it says of them is so.

What fails is run again for one mutant in forty, others for each edition of golden/.
"""

import hashlib
import json
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import training_witness as training
import witness
from docstring_lint import FOLDER, ROOT
from witness_mutants import Mutant

FILE = ROOT / "spec" / "training_witness.json"
EVERY, LOWEST = 40, 0.95
AGAIN = "run python tests/conformance/training_witness.py --out spec"


@cache
def record() -> dict[str, Any]:
    return witness.read(FILE.read_text())


@cache
def every() -> tuple[Mutant, ...]:
    return tuple(training.mutants())


def sample() -> list[Mutant]:
    drawn = sorted(every(), key=lambda one: hashlib.sha256(f"{one.id} {training.edition()}".encode()).digest())
    return drawn[: len(drawn) // EVERY]


def sources() -> dict[str, str]:
    return {module: (FOLDER / f"{module}.py").read_text() for module in training.MODULES}


def test_record_is_of_todays_reference_and_golden_vectors() -> None:
    """Wrong if a line, an operator or a golden value changed since the record was made."""
    assert training.stale(record(), every()) == [], AGAIN
    assert json.loads(FILE.read_text())["golden"] == training.edition(), AGAIN


def test_golden_sees_every_line() -> None:
    """Wrong if a change passes and nobody says why, an argument is about one that does not, or many pass."""
    assert training.unargued(record()) == []
    assert len(record()) > 1500
    counted = [entry for id, entry in record().items() if id not in training.EQUIVALENT]
    assert sum(bool(entry["fails"]) for entry in counted) > LOWEST * len(counted)
    assert {id.partition(".")[0] for id in record()} == set(training.MODULES)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_sampled_mutants_fail_the_cases_of_the_record() -> None:
    """Wrong if the site names a case that does not fail, or leaves out one that does."""
    assert len(sample()) > 40
    assert {one.module for one in sample()} >= {"losses", "gradients", "backward", "ul2"}
    assert training.false_entries(record(), sample()) == []


def test_docstrings_name_the_best_witness() -> None:
    """Wrong if another case fails for more changes of a function than the one that its docstring names."""
    assert training.false_docstrings(record(), sources()) == []


def test_planted_falsities_are_found() -> None:
    """Wrong if a record or a docstring could say what is not so."""
    one = next(mutant for mutant in sample() if record()[mutant.id]["fails"])
    lie = deepcopy(record())
    lie[one.id] |= {"fails": [], "line": 1}
    assert training.false_entries(lie, [one]) == training.stale(lie, every()) == training.unargued(lie) == [one.id]
    for module, right, wrong, name in (
        ("ul2", "golden/ul2 s-25.", "golden/ul2 x64-15.", "span_counts"),
        ("pooling", "golden/gradients first-pooler.", "golden/gradients last-pooler.", "first_pool"),
    ):
        assert sources()[module].count(right) == 1
        planted = sources() | {module: sources()[module].replace(right, wrong)}
        assert training.false_docstrings(record(), planted) == [f"{module}.{name}"]
