"""golden/vectors sees every line of the embeddings in 8 bits and in one."""

import ast
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import vectors_cases
import witness_mutants
from witness_mutants import mutants_of, units

from refembed.reference import quantize

FUNCTIONS = {"int8_vectors", "binary_vectors", "signs", "binary_similarity"}
# Survivors that no numbers can show, each with its argument.
EQUIVALENT: dict[str, str] = {}


def answers(functions: Mapping[str, Any]) -> list[Any]:
    """Of every golden case, in both float types, one by one and in a table, as a port would be asked."""
    found: list[Any] = []
    eights = [numbers for numbers in vectors_cases.CASES.values() if len(numbers) == 8]
    for dtype in (np.float32, np.float64):
        for embedding in (*map(np.array, vectors_cases.CASES.values()), np.array(eights)):
            bits = functions["binary_vectors"](embedding.astype(dtype))
            found += [functions["int8_vectors"](embedding.astype(dtype)), bits, functions["signs"](bits)]
    bits = np.packbits(np.array(eights) > 0, axis=-1)
    return [*found, functions["binary_similarity"](bits, bits), functions["binary_similarity"](bits[:2], bits)]


def golden_answers() -> list[np.ndarray]:
    """From the golden file's script, by exact fractions."""
    every = [vectors_cases.case(*one) for one in vectors_cases.CASES.items()]
    eights = [case for case in every if len(case["embedding"]) == 8]
    kinds = {"int8": np.int8, "binary": np.uint8, "signs": np.int8}
    one = [np.array(case[kind], dtype) for case in every for kind, dtype in kinds.items()]
    table = [np.array([case[kind] for case in eights], dtype) for kind, dtype in kinds.items()]
    signs = np.array([case["signs"] for case in eights])
    similarity = signs @ signs.T / 8
    return [*one, *table] * 2 + [similarity, similarity[:2]]


def right(functions: Mapping[str, Any]) -> bool:
    with np.errstate(all="ignore"):
        try:
            found = answers(functions)
        except Exception:
            return False
    return all(
        one.dtype == other.dtype and np.array_equal(one, other)
        for one, other in zip(found, golden_answers(), strict=True)
    )


@pytest.mark.filterwarnings("ignore")
def test_golden_sees_every_line() -> None:
    """Wrong if a line could be changed and golden/vectors pass."""
    assert right(vars(quantize))
    tree = ast.parse(Path(quantize.__file__).read_text())
    verdicts = {}
    for name, unit in units(tree):
        if name in FUNCTIONS:
            for mutant in mutants_of("quantize", name, unit, tree):
                module = ModuleType("refembed.reference.mutated")
                module.__package__ = "refembed.reference"
                exec(mutant.code, vars(module))
                verdicts[mutant.id] = right(vars(module)), mutant.change
    survivors = {id: change for id, (passed, change) in verdicts.items() if passed}
    assert set(survivors) == set(EQUIVALENT), survivors
    assert len(verdicts) > 40
    assert {id.split(":")[0].partition(".")[2] for id in verdicts} == FUNCTIONS
    assert all(f"quantize.{name}" in witness_mutants.OUTSIDE for name in FUNCTIONS)
