"""Which golden cases fail when a line of the losses, the backward pass, UL2 or a pooler is changed.

python tests/conformance/training_witness.py --out spec

Makes every mutant of these, as witness.py does of the forward, lets golden/losses, golden/gradients and golden/ul2
judge them, and writes training_witness.json, which the site shows beside each line.
"""

import argparse
import ast
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import gradient_mutants
import loss_mutants
import numpy as np
import witness
from docstring_lint import WITNESS, functions
from witness import written
from witness_mutants import FOLDER, Mutant, mutants_of, units

from refembed.conformance.suite import golden_folder
from refembed.reference import Config
from refembed.reference.backward import embed_batch_gradients
from refembed.reference.ul2 import DENOISERS, Cuts, corrupt, span_counts, spans

MODULES = {"losses": "losses", "gradients": "gradients", "backward": "gradients", "ul2": "ul2", "pooling": "gradients"}
SWAPPED = {  # functions that are changed where they stand
    "ul2": ("span_counts", "piece_lengths", "spans", "corrupt"),
    "pooling": ("first_pool", "last_pool", "attention_pool"),
}
GOLDEN_UL2 = json.loads((golden_folder("gradients").parent / "ul2" / "cases.json").read_text())
# Survivors that no text can show, each with its argument.
EQUIVALENT = {
    **loss_mutants.EQUIVALENT,
    **gradient_mutants.EQUIVALENT,
    "pooling.attention_pool:arguments-swapped:5": "exchanging two axes is the same from either side",
    "pooling.attention_pool:constant-changed:9": "of one query, the first row is the last",
    "pooling.attention_pool:value-nudged:1": "the same added to every key is taken off by softmax",
    "ul2.corrupt:keyword-dropped:0": "there are as many marks as pieces, all that strict asks",
    "ul2.corrupt:keyword-dropped:1": "there are as many marks as spans, all that strict asks",
    "ul2.span_counts:arguments-swapped:0": "max() of two numbers has no order",
    "ul2.span_counts:arguments-swapped:1": "max() of two numbers has no order",
    "ul2.spans:axis-changed:0": "of two axes the second is the last",
}
MISSING = gradient_mutants.MISSING


def mutants() -> Iterator[Mutant]:
    yield from loss_mutants.mutants()
    yield from gradient_mutants.mutants()
    for module, names in SWAPPED.items():
        tree = ast.parse((FOLDER / f"{module}.py").read_text())
        for name, unit in units(tree):
            if name in names:
                yield from mutants_of(module, name, unit, tree)


@cache
def source(module: str) -> list[str]:
    return (FOLDER / f"{module}.py").read_text().splitlines()


def cases_of(module: str) -> list[str]:
    if module == "ul2":
        return [case["denoiser"] for case in GOLDEN_UL2["cases"]]
    return [case.id for case in (loss_mutants.cases() if module == "losses" else gradient_mutants.golden())]


def changed(mutant: Mutant) -> CodeType:
    """A mutant's function, compiled in a copy of its module."""
    copy = ModuleType(f"refembed.reference.{mutant.module}")
    copy.__package__ = "refembed.reference"
    exec(mutant.code, vars(copy))
    return vars(copy)[name_of(mutant)].__code__


def name_of(mutant: Mutant) -> str:
    return mutant.id.partition(":")[0].partition(".")[2]


@contextmanager
def swapped(mutant: Mutant) -> Iterator[None]:
    """Everybody who calls the function calls the mutant."""
    function = vars(import_module(f"refembed.reference.{mutant.module}"))[name_of(mutant)]
    right, function.__code__ = function.__code__, changed(mutant)
    try:
        yield
    finally:
        function.__code__ = right


def ul2_right(case: Mapping[str, Any]) -> bool | None:
    """Whether the draw that the case holds gives the example that the case holds; None where it raises."""
    denoiser, ids = DENOISERS[case["denoiser"]], np.array(case["ids"])
    try:
        found = spans(len(ids), denoiser, Cuts(*(np.array(row, np.int64) for row in case["cuts"])))
        marks = GOLDEN_UL2["modes"][denoiser.mode], np.array(GOLDEN_UL2["sentinels"])
        example = corrupt(ids, found, *marks, Config(bos=GOLDEN_UL2["bos"], eos=GOLDEN_UL2["eos"]))
        kept = [example.inputs.tolist(), example.targets.tolist(), span_counts(len(ids), denoiser)[1]]
    except Exception:
        return None
    return kept == [case["inputs"], case["targets"], len(found)]


def judged(mutant: Mutant) -> dict[str, Any]:
    """What a record says of a mutant: where it is, the cases that fail, and whether it raises in all of them."""
    judges: dict[str, Callable[[], dict[str, bool | None]]] = {
        "ul2": lambda: {case["denoiser"]: ul2_right(case) for case in GOLDEN_UL2["cases"]},
        "pooling": lambda: {
            case.id: gradient_mutants.right(embed_batch_gradients, case) for case in gradient_mutants.golden()
        },
    }
    if mutant.module in judges:
        with swapped(mutant):
            found = judges[mutant.module]()
    else:
        found = (loss_mutants if mutant.module == "losses" else gradient_mutants).verdicts(mutant)
    fails = sorted(case for case, right in found.items() if not right)
    return described(mutant) | {"fails": fails, "raises": all(right is None for right in found.values())}


def described(mutant: Mutant) -> dict[str, Any]:
    code = source(mutant.module)[mutant.line - 1].partition("  # ")[0].strip()
    return {"line": mutant.line, "code": code, "change": mutant.change}


def edition() -> str:
    """The first digits of the SHA-256 of the golden files that judge."""
    folder = golden_folder("losses").parent
    files = [file for name in sorted(set(MODULES.values())) for file in sorted((folder / name).iterdir())]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.suffix != ".md")).hexdigest()[:12]


def stale(record: Mapping[str, Any], now: Iterable[Mutant] = ()) -> list[str]:
    """Where the record is not of the reference's source as it is now; now: its mutants, where they are made already."""
    found = {mutant.id: described(mutant) for mutant in now or mutants()}
    then = {id: {key: entry[key] for key in ("line", "code", "change")} for id, entry in record.items()}
    return sorted(id for id in found.keys() | then.keys() if found.get(id) != then.get(id))


def unargued(record: Mapping[str, Any]) -> list[str]:
    return witness.unargued(record, witness.arguments(EQUIVALENT, MISSING))


def false_docstrings(record: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    """Functions whose docstring names a case that fails for fewer of their mutants than another."""
    failing: dict[str, Counter[str]] = {}
    for id, entry in record.items():
        failing.setdefault(id.partition(":")[0], Counter()).update(entry["fails"])
    wrong = []
    for module, text in sources.items():
        for name, node in functions(text):
            seen = failing.get(f"{module}.{name}")
            best = {case for case in seen or () if seen and seen[case] == max(seen.values())}
            named = WITNESS.findall(ast.get_docstring(node) or "")
            if seen and not {(f"golden/{MODULES[module]}", case) for case in best} >= set(named[:1]):
                wrong.append(f"{module}.{name}")
    return wrong


def false_entries(record: Mapping[str, Any], chosen: Sequence[Mutant]) -> list[str]:
    """Of these mutants, the ones that fail other cases than the record says."""
    with np.errstate(all="ignore"):
        return [one.id for one in chosen if judged(one) != record[one.id]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for training_witness.json")
    folder = parser.parse_args().out
    record = {}
    with np.errstate(all="ignore"):
        for mutant in mutants():
            record[mutant.id] = judged(mutant)
            print(f"{mutant.id}: {len(record[mutant.id]['fails'])} cases", file=sys.stderr)
    (folder / "training_witness.json").write_text(written(record, edition()))


if __name__ == "__main__":
    main()
