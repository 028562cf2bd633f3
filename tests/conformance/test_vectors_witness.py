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
    assert set(survivors) == set(EQUIVALENT), "\n".join(map(str, survivors.items()))
    assert len(verdicts) > 40
    assert {id.split(":")[0].partition(".")[2] for id in verdicts} == FUNCTIONS
    assert all(f"quantize.{name}" in witness_mutants.OUTSIDE for name in FUNCTIONS)
