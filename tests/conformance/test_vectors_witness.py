"""golden/vectors sees every line of the embeddings in 8 bits and in one."""

import ast
import inspect
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import vectors_cases
import witness_mutants
from witness import WITNESS
from witness_mutants import mutants_of, units

from refembed.reference import quantize

SIZES = (8, 16)
FUNCTIONS = {"int8_vectors", "binary_vectors", "signs", "binary_similarity"}
# Survivors that no numbers can show, each with its argument.
EQUIVALENT = {
    "quantize.int8_vectors:constant-changed:2": "zeros over any step are zeros",
    "quantize.binary_similarity:value-nudged:0": "a sum of whole numbers drops it",
    "quantize.binary_similarity:keyword-dropped:1": "NumPy adds bytes up in 64 bits by itself",
    "quantize.binary_similarity:name-replaced:2": "both tables are as wide",
    "quantize.binary_similarity:sign-dropped:0": "a table's last axis is its second",
}  # fmt: skip


def answers(functions: Mapping[str, Any]) -> list[Any]:
    """Of every golden case, in both float types, one by one and in a table, as a port would be asked."""
    found: list[Any] = []
    tables = [np.array([numbers for numbers in vectors_cases.CASES.values() if len(numbers) == size]) for size in SIZES]
    for dtype in (np.float32, np.float64):
        for embedding in (*map(np.array, vectors_cases.CASES.values()), *tables):
            bits = functions["binary_vectors"](embedding.astype(dtype))
            found += [functions["int8_vectors"](embedding.astype(dtype)), bits, functions["signs"](bits)]
    for table in tables:
        bits = np.packbits(table > 0, axis=-1)
        found += [functions["binary_similarity"](bits, bits), functions["binary_similarity"](bits[:1], bits)]
    return found


def golden_answers() -> list[np.ndarray]:
    """From the golden file's script, by exact fractions."""
    every = [vectors_cases.case(*one) for one in vectors_cases.CASES.items()]
    tables = [[case for case in every if len(case["embedding"]) == size] for size in SIZES]
    kinds = {"int8": np.int8, "binary": np.uint8, "signs": np.int8}
    one = [np.array(case[kind], dtype) for case in every for kind, dtype in kinds.items()]
    more = [np.array([case[kind] for case in table], dtype) for table in tables for kind, dtype in kinds.items()]
    similar = [
        np.array([[vectors_cases.cosine(a["signs"], b["signs"]) for b in table] for a in table]) for table in tables
    ]
    return [*one, *more] * 2 + [part for whole in similar for part in (whole, whole[:1])]


def right(functions: Mapping[str, Any]) -> bool:
    with np.errstate(invalid="raise", divide="raise"):
        try:
            found = answers(functions)
        except Exception:
            return False
    return all(
        isinstance(one, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
        for one, other in zip(found, golden_answers(), strict=True)
    )


def failing(functions: Mapping[str, Any]) -> set[str]:
    """The cases by which alone one would see that these functions are wrong."""
    every = [vectors_cases.case(*one) for one in vectors_cases.CASES.items()]
    found = set()
    for case in every:
        others = [other for other in every if len(other["signs"]) == len(case["signs"])]
        table = np.array([other["binary"] for other in others], np.uint8)
        needed = [case["int8"], case["binary"], case["signs"]] * 2
        needed.append([[vectors_cases.cosine(case["signs"], other["signs"]) for other in others]])
        answers: list[Any] = []
        with np.errstate(invalid="raise", divide="raise"), suppress(Exception):
            for dtype in (np.float32, np.float64):
                embedding = np.array(case["embedding"], dtype)
                answers += [functions["int8_vectors"](embedding), functions["binary_vectors"](embedding)]
                answers.append(functions["signs"](np.array(case["binary"], np.uint8)))
            answers.append(functions["binary_similarity"](np.array([case["binary"]], np.uint8), table))
        if [np.asarray(one).tolist() for one in answers] != needed:
            found.add(case["case"])
    return found


@pytest.mark.filterwarnings("ignore")
def test_golden_sees_every_line() -> None:
    """Wrong if a line could be changed and golden/vectors pass."""
    assert right(vars(quantize))
    tree = ast.parse(Path(quantize.__file__).read_text())
    assert not failing(vars(quantize))
    verdicts: dict[str, tuple[bool, str]] = {}
    seen_by: dict[str, Counter[str]] = {name: Counter() for name in FUNCTIONS}
    for name, unit in units(tree):
        if name in FUNCTIONS:
            for mutant in mutants_of("quantize", name, unit, tree):
                module = ModuleType("refembed.reference.mutated")
                module.__package__ = "refembed.reference"
                exec(mutant.code, vars(module))
                verdicts[mutant.id] = right(vars(module)), mutant.change
                seen_by[name].update(failing(vars(module)))
    survivors = {id: change for id, (passed, change) in verdicts.items() if passed}
    assert set(survivors) == set(EQUIVALENT), "\n".join(map(str, survivors.items()))
    assert len(verdicts) > 40
    assert {id.split(":")[0].partition(".")[2] for id in verdicts} == FUNCTIONS
    assert all(f"quantize.{name}" in witness_mutants.OUTSIDE for name in FUNCTIONS)
    for name, seen in seen_by.items():  # the case that a docstring names sees as many mutants as any other
        named = WITNESS.findall(inspect.getdoc(getattr(quantize, name)) or "")
        best = {("vectors", case) for case, count in seen.items() if count == max(seen.values())}
        assert len(named) == 1, name
        assert set(named) <= best, (name, named, seen)
