"""Whether what a docstring names as its witness fails when the function is changed, for whatever no other test asks.

python tests/conformance/witnessed.py

witness.py, training_witness.py and test_vectors_witness.py hold the golden cases of most functions, by all of their
changes. Left are stop_gradient, and all functions that a test holds in want of a golden case. Each is changed where it
stands, its code put in the place of the right one's, and its witness asked. Prints one JSON line a function: how many
changes were tried, and the ids of those that its witness let pass.
"""

import ast
import contextlib
import hashlib
import importlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import gradient_mutants
import loss_mutants
import numpy as np
import pytest
import training_witness
import witness_mutants
from docstring_lint import FOLDER, WITNESS, functions
from hypothesis import Phase, settings
from witness_mutants import mutants_of, units

ROOT = Path(__file__).parents[2]
QUIET = ("-q", "-x", "--hypothesis-profile=quick", "-p", "no:cacheprovider", "-W", "ignore")
TRIED = 4  # changes of each function, drawn by a digest


def held_here() -> dict[str, tuple[str, str]]:
    """module.function -> its witness, of those that no other test holds."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        for name, node in functions(path.read_text()):
            for where, what in WITNESS.findall(ast.get_docstring(node) or ""):
                if where.startswith("tests/") or name == "stop_gradient":
                    found[f"{path.stem}.{name}"] = where, what
    return found


def changes(module: str, name: str) -> Iterator[tuple[str, CodeType]]:
    """Some of a function's mutants: its code, changed. One that has none, as an identity, returns nothing instead."""
    path = FOLDER / f"{module}.py"
    tree = ast.parse(path.read_text())
    unit = dict(units(tree))[name]
    mutants = sorted(mutants_of(module, name, unit, tree), key=lambda one: hashlib.sha256(one.id.encode()).digest())
    for mutant in mutants[:TRIED]:
        copy = ModuleType(f"refembed.reference.{module}")
        copy.__package__ = "refembed.reference"
        with contextlib.suppress(Exception):
            exec(mutant.code, vars(copy))
            yield mutant.id, vars(copy)[name].__code__
    if not mutants:
        yield f"{module}.{name}:returns-nothing:0", (lambda *given, **named: None).__code__


def passes(where: str, what: str) -> bool:
    """Ask a witness: a golden case, or a test."""
    with np.errstate(all="ignore"):
        return JUDGES[where](what) if where in JUDGES else test_passes(where, what)


def test_passes(file: str, name: str) -> bool:
    """By pytest, in this process, so that the test calls the changed function."""
    with contextlib.redirect_stdout(io.StringIO()):
        ended = pytest.main([*QUIET, f"{ROOT / file}::{name}"])
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"{file} {name} did not run: {ended!r}")
    return ended == pytest.ExitCode.OK


def ul2_passes(denoiser: str) -> bool:
    (case,) = (one for one in training_witness.GOLDEN_UL2["cases"] if one["denoiser"] == denoiser)
    return bool(training_witness.ul2_right(case))


def gradients_pass(id: str) -> bool:
    from refembed.reference.backward import embed_batch_gradients

    (case,) = (one for one in gradient_mutants.golden() if one.id == id)
    return bool(gradient_mutants.right(embed_batch_gradients, case))


def losses_pass(id: str) -> bool:
    (case,) = (one for one in loss_mutants.cases() if one.id == id)
    return bool(loss_mutants.right(case))


JUDGES: dict[str, Callable[[str], bool]] = {
    "golden/ul2": ul2_passes, "golden/gradients": gradients_pass, "golden/losses": losses_pass,
}  # fmt: skip


def judged(function: str, where: str, what: str) -> dict[str, Any]:
    """What the witness says of a function's changes, and first of the function as it is."""
    module, name = function.split(".", 1)
    whole: FunctionType = vars(importlib.import_module(f"refembed.reference.{module}"))[name]
    right, tried, unseen = whole.__code__, [], []
    sound = passes(where, what)
    for id, code in changes(module, name):
        whole.__code__ = code
        tried.append(id)
        unseen += [id] if passes(where, what) else []
        whole.__code__ = right
    return {"function": function, "witness": f"{where} {what}", "sound": sound, "tried": len(tried), "unseen": unseen}


def main() -> None:
    """Every function, or those named on the command line as FUNCTION=FILE.py::TEST or FUNCTION=golden/FOLDER::CASE."""
    sys.path[:0] = [str(ROOT / folder) for folder in ("golden", "tests", "tests/reference")]
    settings.register_profile("quick", deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
    sys.dont_write_bytecode = True
    for names, more in ((witness_mutants.NAMES, gradient_mutants.NAMES), (witness_mutants.WORDS, {})):
        names |= more
    asked = [one.split("=", 1) for one in sys.argv[1:]]
    named = [(function, *where.split("::")) for function, where in asked]
    for one in named or [(function, *witness) for function, witness in held_here().items()]:
        print(json.dumps(judged(*one)), flush=True)


if __name__ == "__main__":
    main()
