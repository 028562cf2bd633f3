"""Every mutant of the hand-written backward pass, and whether golden/gradients sees it."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
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


def mutants() -> Iterator[Mutant]:
    for module, source in SOURCE.items():
        tree = ast.parse(source)
        for name, unit in units(tree):
            if f"{module}.{name}" not in OUTSIDE:
                yield from mutants_of(module, name, unit, tree)


@cache
def golden() -> list[GradientCase]:
    return open_gradients(golden_folder("gradients"))[1]


@np.errstate(all="ignore")
def seen(mutant: Mutant | None) -> str | None:
    """The first golden case that fails for it: in float64, or in float32, whose type must stay."""
    sys.modules[COPY] = ModuleType(COPY)
    for whole in (attention, config, model, operations, parameter_shapes, pooling, positions, trace):
        sys.modules[f"{COPY}.{whole.__name__.rpartition('.')[2]}"] = whole
    try:
        for name in MUTATED:
            module = ModuleType(f"{COPY}.{name}")
            module.__package__ = COPY
            sys.modules[module.__name__] = module
            exec(mutant.code if mutant and mutant.module == name else CODE[name], vars(module))
    except Exception:  # a module that does not even run
        return golden()[0].id
    for case in golden():
        if not all(right(module.embed_batch_gradients, case, number) for number in (np.float64, np.float32)):
            return case.id
    return None


def right(backward: Any, case: GradientCase, number: type) -> bool:
    texts, parameters = case.texts, case.texts.parameters(number)
    shapes = parameter_shapes(texts.config) | {name: one.shape for name, one in texts.pooling.items()}
    try:
        found = backward(texts.upstream.astype(number), texts.ids, parameters, texts.config)
    except Exception:
        return False
    if set(found) != set(shapes) or any(found[name].shape != shapes[name] for name in shapes):
        return False
    if {one.dtype for one in found.values()} != {np.dtype(number)}:
        return False
    return bool(np.all(case.used(judge.two_numbers({name: found[name] for name in texts.names})) <= 1))
