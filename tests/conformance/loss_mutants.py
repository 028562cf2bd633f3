"""Every mutant of the losses, and which cases of golden/losses see it."""

import ast
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from unittest.mock import patch

import numpy as np
import witness_mutants
from witness_mutants import FOLDER, Mutant, mutants_of, units

from refembed.conformance import losses as judge
from refembed.conformance.losses import LossCase, answer_of, open_losses
from refembed.conformance.suite import golden_folder

LEFT_OUT = {"Scalar", "LENGTHS", "TEMPERATURE", "ALPHA", "EQUAL", "Batch", "Gradient", "Weights"}  # compute nothing
MORE_NAMES = {
    "of_query": "of_positive", "of_positive": "of_query", "query": "positive", "positive": "query", "apart": "mapped",
    "negative": "positive", "hard": "weighted", "weighted": "hard", "own": "goal", "goal": "own", "share": "similarity",
    "in_batch": "similarity", "similarity": "in_batch", "terms": "in_batch", "mapped": "apart", "of_mapped": "apart",
    "temperature": "alpha", "alpha": "temperature", "student": "teacher", "teacher": "student", "unit": "x",
    "whole": "part", "parts": "weights", "one": "other", "other": "one", "first": "second", "second": "first",
}  # fmt: skip
MORE_FIELDS = {
    "queries": "positives", "positives": "queries", "contrastive": "matching", "matching": "spread_out",
    "spread_out": "contrastive",
}  # fmt: skip
NEVER_RAGGED = "golden batches have as many of one as of the other, which is all that strict asks"
# Survivors that no batch can show, each with its argument.
EQUIVALENT = {
    "losses.false_negative_mask:value-nudged:0": "numbers of texts are only compared with each other",
    "losses.false_negative_mask:value-nudged:1": "numbers of texts are only compared with each other",
    "losses.false_negative_mask:name-replaced:4": "there are as many queries as positives",
    "losses.log_sum_exp:value-nudged:0": "what is taken off is put back",
    "losses.log_ratios:call-removed:3": "the identity; what it leaves out is contrastive_gradient's business",
    "losses.log_ratios:axis-changed:0": "of two axes the second is the last",
    "losses.contrastive_gradient:name-replaced:0": "there are as many queries as positives",
    "losses.contrastive_gradient:keyword-dropped:0": "matryoshka_gradient adds into the batch's float type; the "
    "gradient alone is seen by test_float_types_are_kept",
    "losses.second_moment:arguments-swapped:0": "max() of two numbers has no order",
    "losses.second_moment:constant-changed:2": "it divides the 0 of a row alone; two rows give 2",
    "losses.second_moment_gradient:arguments-swapped:0": "max() of two numbers has no order",
    "losses.second_moment_gradient:constant-changed:4": "it divides the 0 of a row alone; two rows give 2",
    "losses.distance:operands-swapped:0": "a square does not know the sign",
    "losses.distance:name-replaced:2": "there are as many of the teacher's rows",
    "losses.distance_gradient:call-removed:1": "what is along the vector is taken off by the normalisation's gradient",
    "losses.distance_gradient:name-replaced:4": "there are as many of the teacher's rows",
    "losses.embedding_matching:order-changed:2": "a sum has no order",
    "losses.embedding_matching:keyword-dropped:0": NEVER_RAGGED,
    "losses.embedding_matching_gradient:keyword-dropped:0": NEVER_RAGGED,
    "losses.embedding_matching_gradient:keyword-dropped:1": NEVER_RAGGED,
    "losses.matryoshka:order-changed:2": "a sum has no order",
    "losses.matryoshka_gradient:order-changed:2": "a sum has no order",
    "losses.matryoshka_gradient:order-changed:5": "each side is added to by itself",
    "losses.matryoshka_gradient:keyword-dropped:0": NEVER_RAGGED,
    "losses.total_gradient:constant-changed:0": "combined() reads the first two",
    "losses.combined:keyword-dropped:0": NEVER_RAGGED,
}


@cache
def cases() -> tuple[LossCase, ...]:
    return tuple(open_losses(golden_folder("losses"))[1])


def mutants() -> Iterator[Mutant]:
    tree = ast.parse((FOLDER / "losses.py").read_text())
    with patch.dict(witness_mutants.NAMES, MORE_NAMES), patch.dict(witness_mutants.FIELDS, MORE_FIELDS):
        for name, unit in units(tree):
            if name not in LEFT_OUT:
                yield from mutants_of("losses", name, unit, tree)


def verdicts(mutant: Mutant) -> dict[str, bool | None]:
    """Case -> whether it is right for a mutant; None where it raises."""
    module = ModuleType("refembed.reference.mutated")
    module.__package__ = "refembed.reference"
    try:
        exec(mutant.code, vars(module))
    except Exception:  # a module that does not even run
        return dict.fromkeys(case.id for case in cases())
    with patch.object(judge, "losses", module):
        return {case.id: right(case) for case in cases()}


@np.errstate(all="ignore")
def right(case: LossCase) -> bool | None:
    """In float64, and one case in float32 too, whose type must stay."""
    try:
        found = [(np.float64, answer_of(case.asked))]
        found += [(np.float32, answer_of(case.asked, np.float32))] if case.id == "total" else []
        return all(
            numbers.dtype == number and case.used(part, numbers) <= 1
            for number, answer in found
            for part, numbers in answer.items()
        )
    except Exception:
        return None
