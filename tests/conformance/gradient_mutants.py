"""Every mutant of the hand-written backward pass, and which cases of golden/gradients see it."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import witness_mutants
from witness_mutants import Mutant, mutants_of, units

from refembed import reference
from refembed.conformance import gradients as judge
from refembed.conformance.gradients import GradientCase, open_gradients
from refembed.conformance.suite import golden_folder
from refembed.reference import attention, config, model, operations, parameter_shapes, pooling, positions, trace

COPY = "mutated_backward"
MUTATED = ("gradients", "backward")
FOLDER = Path(reference.__file__).parent
SOURCE = {module: (FOLDER / f"{module}.py").read_text() for module in MUTATED}
CODE = {module: compile(source, f"{module}.py", "exec") for module, source in SOURCE.items()}
# What golden/gradients cannot judge, and why.
OUTSIDE = {
    "gradients.Gradients": "it computes nothing",
    "backward.HeadGradients": "it computes nothing",
    "backward.embed_gradients": "a batch of one; the golden case is asked of the batch it calls",
    "gradients.truncate_gradient": "of the losses' lengths; the twin's gradient is of whole embeddings",
}
NAMES = {
    "d_query": "d_key", "d_key": "d_value", "d_value": "d_key", "d_weights": "d_scores", "d_scores": "d_weights",
    "of_gate": "of_up", "of_up": "of_gate", "after": "before", "before": "after", "q": "k", "k": "v", "v": "q",
    "down": "of_up", "d_gate": "d_up", "d_up": "d_gate", "middle": "x", "d_middle": "upstream", "along": "scale",
    "unit": "x", "length": "along", "curve": "slope", "slope": "curve", "weights": "upstream", "upstream": "weights",
    "d_scaled": "upstream", "d_kept": "upstream", "d_x": "upstream", "d_context": "context", "context": "d_context",
    "rotated": "query", "pooler": "head", "projected_up": "pooled", "weight": "name",
}  # fmt: skip
WORDS = {
    "query_rotated": "query_norm", "key_rotated": "key_norm", "weights": "scores", "value": "key", "context": "query",
    "query": "key", "key": "query", "gated": "gate", "gate": "up", "up": "gate", "final_norm": "embedded",
    "norm": "output", "embedded": "final_norm", "projected": "embedding", "pooled": "embedding",
}  # fmt: skip


# Survivors that no text can show, each with its argument.
EQUIVALENT = {
    "backward.attend_gradients:name-replaced:0": "key and value are of one shape",
    "backward.attend_gradients:value-nudged:0": "the same added to every weight's gradient is taken off by softmax's",
    "backward.attend_gradients:arguments-swapped:0": "exchanging two axes is the same from either side",
    "backward.attend_gradients:arguments-swapped:4": "exchanging two axes is the same from either side",
    "backward.attend_gradients:arguments-swapped:5": "exchanging two axes is the same from either side",
    "backward.encode_tokens_gradients:order-changed:5": "each kind's positions are made alone",
    "backward.encode_tokens_gradients:call-removed:4": "a kind that comes twice is given the same positions twice",
    "backward.encode_tokens_gradients:function-replaced:0": "a list repeats kinds, and their positions",
    "backward.embed_batch_gradients:order-changed:2": "names have no order",
    "backward.embed_batch_gradients:name-replaced:2": "every text has the same parameters",
    "backward.embed_batch_gradients:keyword-dropped:0": "there are as many rows as texts, all that strict asks",
    "gradients.attention_pool_gradients:value-nudged:1": "the same added to every key is taken off by softmax",
    "gradients.attention_pool_gradients:value-nudged:2": "the same added to every value is taken off by softmax's own",
    "gradients.attention_pool_gradients:arithmetic-replaced:8": "of one query, an outer product is a broadcast one",
    "gradients.attention_pool_gradients:arithmetic-replaced:9": "of one query, an outer product is a broadcast one",
    "gradients.attention_pool_gradients:arguments-swapped:5": "exchanging two axes is the same from either side",
    "gradients.attention_pool_gradients:arguments-swapped:8": "exchanging two axes is the same from either side",
    "gradients.attention_pool_gradients:arguments-swapped:9": "exchanging two axes is the same from either side",
    "gradients.attention_pool_gradients:arguments-swapped:10": "exchanging two axes is the same from either side",
}  # fmt: skip
# The cases that golden/gradients lacks, and the survivors, all of them wrong, that each would kill.
MISSING = {
    "rows as small as the epsilon, which is a millionth of the twin's": (
        "gradients.rms_norm_gradient:operand-dropped:2",
        "gradients.rms_norm_weight_gradient:arithmetic-replaced:1",
        "gradients.rms_norm_weight_gradient:operand-dropped:2",
    ),
    "several vectors normalised at once, as golden/losses has them; an encoder normalises one": (
        "gradients.l2_normalize_gradient:keyword-dropped:0",
        "gradients.l2_normalize_gradient:keyword-dropped:1",
        "gradients.l2_normalize_gradient:axis-changed:0",
        "gradients.l2_normalize_gradient:keyword-dropped:2",
        "gradients.l2_normalize_gradient:keyword-dropped:3",
        "gradients.l2_normalize_gradient:axis-changed:1",
    ),
    "several pooled vectors at once": ("gradients.dense_head_gradients:arguments-swapped:0",),
    "a model with two key heads, as golden/twin lacks": (
        "backward.attend_gradients:operand-dropped:0",
        "backward.attend_gradients:call-removed:2",
        "backward.attend_gradients:call-removed:4",
    ),
}


def mutants() -> Iterator[Mutant]:
    with patch.dict(witness_mutants.NAMES, NAMES), patch.dict(witness_mutants.WORDS, WORDS):
        for module, source in SOURCE.items():
            tree = ast.parse(source)
            for name, unit in units(tree):
                if f"{module}.{name}" not in OUTSIDE:
                    yield from mutants_of(module, name, unit, tree)


@cache
def golden() -> list[GradientCase]:
    return open_gradients(golden_folder("gradients"))[1]


def verdicts(mutant: Mutant) -> dict[str, bool | None]:
    """Case -> whether it is right for a mutant; None where it raises."""
    sys.modules[COPY] = ModuleType(COPY)
    for whole in (attention, config, model, operations, parameter_shapes, pooling, positions, trace):
        sys.modules[f"{COPY}.{whole.__name__.rpartition('.')[2]}"] = whole
    try:
        for name in MUTATED:
            module = ModuleType(f"{COPY}.{name}")
            module.__package__ = COPY
            sys.modules[module.__name__] = module
            exec(mutant.code if mutant.module == name else CODE[name], vars(module))
    except Exception:  # a module that does not even run
        return dict.fromkeys(case.id for case in golden())
    return {case.id: right(module.embed_batch_gradients, case) for case in golden()}


def right(backward: Any, case: GradientCase) -> bool | None:
    """By its numbers in float64, and by its type alone in float32, where a machine's own rounding could decide."""
    try:
        with np.errstate(all="ignore"):
            return all(right_in(number, backward, case) for number in (np.float64, np.float32))
    except Exception:
        return None


def right_in(number: type, backward: Any, case: GradientCase) -> bool:
    texts, parameters = case.texts, case.texts.parameters(number)
    shapes = parameter_shapes(texts.config) | {name: one.shape for name, one in texts.pooling.items()}
    found = backward(texts.upstream.astype(number), texts.ids, parameters, texts.config)
    if set(found) != set(shapes) or any(found[name].shape != shapes[name] for name in shapes):
        return False
    if {one.dtype for one in found.values()} != {np.dtype(number)}:
        return False
    return number is np.float32 or bool(
        np.all(case.used(judge.two_numbers({name: found[name] for name in texts.names})) <= 1)
    )
