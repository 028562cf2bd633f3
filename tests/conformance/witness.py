"""The witness: which golden cases fail when a line of the reference is changed.

python tests/conformance/witness.py --out spec

Makes every mutant of the reference's forward, lets golden/ judge each, and writes witness.json and witness.md. A mutant
of quantize.py is judged bit for bit by golden/quantised; every other one by golden/twin as a port is: computed from
the golden tokens in float64, and one case in float32 too, final vectors and every stored stage within the float32
contract's bounds and of the parameters' float type.
"""

import argparse
import ast
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from mutants import twin, twin_model
from safetensors.numpy import load_file
from witness_mutants import MODULES, OPERATORS, OUTSIDE, SOURCE, Mutant, mutants

from refembed.conformance.port import PortError, within
from refembed.conformance.suite import Case, golden_folder
from refembed.conformance.verify import FAILED, NOT_ASKED, RIGHT, WRONG, Run

Array = np.ndarray[Any, Any]
COPY = "mutated_reference"
SECONDS = 120  # for what takes less than one
MOST_SHOWN = 3
FLOAT32_CASE = "length-ladder-2"  # short, and every stage of it is stored
MATRIX, ATTENTION_MATRIX = "layers.0.mlp.up_proj.weight", "layers.0.self_attn.q_proj.weight"
FORMS = {  # of golden/quantised's grids: the form and the kind of matrix that has it (QNT-1)
    "int8-block": ("int8-block", MATRIX),
    "int4-block": ("int4-block", MATRIX),
    "int8-row": ("mixed-channel", ATTENTION_MATRIX),
    "int4-row": ("mixed-channel", MATRIX),
}
WITNESS = re.compile(r"^Witness: golden/([\w-]+) ([\w-]+)\.$", re.MULTILINE)
CODE = {module: compile(source, f"{module}.py", "exec") for module, source in SOURCE.items()}

# Survivors that no text can show, each with its argument.
EQUIVALENT = {
    "positions.window_mask:operands-swapped:0": "the magnitude of a difference does not know its direction",
    "positions.window_mask:value-nudged:2": "every score that is seen moves by 0.001, which softmax divides out, and "
    "-inf stays what it is",
    "positions.window_mask:type-replaced:0": "0 and -inf are float16 numbers too, and scores plus it keep their type",
    "positions.window_mask:constant-changed:0": "every score that is seen grows by 1, which softmax divides out",
    "positions.positions_of:off-by-one:0": "no two tokens are as far apart as there are tokens, so one more hides none",
    "positions.positions_of:type-replaced:1": "0 and -inf, all that a mask holds, are float16 numbers too",
    "attention.split_heads:arguments-swapped:0": "exchanging two axes is the same from either side",
    "attention.merge_heads:arguments-swapped:1": "the first two axes are exchanged, whichever is named first",
    "attention.attend:name-replaced:1": "there are as many value heads as key heads",
    "attention.attend:arguments-swapped:2": "the keys are transposed, whichever axis is named first",
    "attention.attend:value-nudged:3": "every score moves by 0.001, which softmax divides out",
    "operations.softmax:value-nudged:0": "every exponent moves by 0.001, which the division takes out again",
    "operations.softmax:keyword-dropped:2": "the exponentials in an array of their own, not where exponents were",
    "operations.softmax:keyword-dropped:3": "the quotients in an array of their own, not where exponentials were",
    "model.encode_tokens:order-changed:2": "each kind's positions are made alone, so the order of kinds is free",
    "model.encode_tokens:call-removed:3": "a kind that comes twice is given the same positions twice",
    "model.encode_tokens:function-replaced:0": "a list repeats kinds, and their positions come out the same each time",
    "quantize.largest_level:call-removed:0": "two to a whole power is whole already",
    "quantize.block_scales:call-removed:8": "NumPy takes a Python infinity for one of the array's own type, float16",
    "quantize.quantize:call-removed:1": "a float32 over a float16 is a float32 with the same value",
    "quantize.quantize:type-replaced:0": "scales are float16 numbers already, and the quotient has the weight's type",
    "quantize.quantize:comparison-replaced:1": "the 0/0 in a block with scale 0 is replaced by 0 below",
    "quantize.quantize:constant-changed:1": "no scale is below 0, and the 0/0 where one is 0 is replaced by 0 below",
    "quantize.quantize:constant-changed:2": "it divides blocks with scale 0 only, whose levels are set to 0 below",
    "quantize.quantize:constant-changed:3": "blocks with scale 0 have levels of 0 set below, whatever divides them",
    "quantize.quantize:arguments-swapped:3": "clip takes the larger of its first two numbers, whichever comes first",
    "quantize.dequantize:call-removed:0": "an int8 times a float32 is a float32, and the scales are cast still",
    "quantize.dequantize:type-replaced:1": "levels up to 127 are float16 numbers too, and the scales are float32 still",
    "quantize.dequantize:call-removed:3": "a float32 times a float16 is a float32, and the levels are cast still",
    "quantize.dequantize:type-replaced:2": "scales are float16 numbers already, and the levels are float32 still",
    "quantize.unpack_int4:keyword-dropped:1": "the same numbers in an array of their own",
}
# The cases that golden/ lacks, and the survivors, all of them wrong, that each would kill.
MISSING = {
    "a checkpoint whose sliding_window is odd, rewritten by a library already (CFG-3); the twin's is 16": (
        "config.reach_of_window:branch-taken:1",
        "config.reach_of_window:constant-changed:1",
        "config.reach_of_window:arithmetic-replaced:1",
        "config.reach_of_window:operand-dropped:2",
        "config.reach_of_window:operand-dropped:3",
        "config.reach_of_window:operands-swapped:0",
        "config.reach_of_window:constant-changed:2",
        "config.reach_of_window:constant-changed:3",
    ),
    "scores beyond exp's range, as in OPS-4's example; those of normed queries and keys are below 13 in the twin": (
        "operations.softmax:arithmetic-replaced:0",
        "operations.softmax:operand-dropped:0",
        "operations.softmax:keyword-dropped:0",
    ),
    "a model with two key heads; of one, which the twin and the released model have, any number of copies will do": (
        "attention.attend:operand-dropped:0",
        "attention.attend:operand-dropped:1",
        "attention.attend:name-replaced:0",
        "attention.attend:statement-deleted:0",
        "attention.attend:statement-deleted:1",
    ),
    "the weight of a norm, which has no quantised form; golden/quantised holds matrices only": (
        "quantize.grid_of:branch-taken:1",
        "quantize.grid_of:function-replaced:0",
        "quantize.grid_of:word-replaced:0",
    ),
    "a matrix with scales that are not its own, so that numbers lie beyond the last level": (
        "quantize.quantize:branch-taken:0",
        "quantize.quantize:call-removed:4",
        "quantize.quantize:off-by-one:0",
        "quantize.quantize:off-by-one:1",
    ),
    "a matrix with scales that are not its own, one of them 0": (
        "quantize.quantize:statement-deleted:1",
        "quantize.quantize:comparison-replaced:2",
        "quantize.quantize:constant-changed:5",
    ),
    "a matrix with another number of rows than of blocks in a row": ("quantize.dequantize:constant-changed:1",),
    "a matrix with blocks of a single number": ("quantize.blocks_of:off-by-one:2",),
    "packed levels of one axis or three": ("quantize.unpack_int4:sign-dropped:0",),
}


# ----------------------------------------------------------------------------------------------------------- the judges
def load(mutant: Mutant | None) -> Mapping[str, Any]:
    """A copy of the reference's modules, one of them mutated."""
    modules = {}
    sys.modules[COPY] = ModuleType(COPY)
    for name in MODULES:
        module = ModuleType(f"{COPY}.{name}")
        module.__package__ = COPY
        sys.modules[module.__name__] = modules[name] = module
        exec(mutant.code if mutant and mutant.module == name else CODE[name], vars(module))
    return modules


class WitnessPort:
    """The twin on a copy of the reference. Reads what config.json leaves to the reference, shows every stored stage."""

    name, can = "witness", frozenset({"embed", "trace"})

    def __init__(self, modules: Mapping[str, Any], dtype: str) -> None:
        true, constants = twin_model(dtype), modules["config"]
        self.parameters, self.forward, self.dtype = true.parameters, modules["model"], dtype
        assert set(true.config.layer_kinds) <= {constants.SLIDING, constants.FULL}
        window = json.loads((golden_folder("twin") / "checkpoint" / "config.json").read_text())["sliding_window"]
        self.kept: dict[str, dict[str, Array]] = {}
        self.config = constants.Config(**vars(true.config) | {"reach": constants.reach_of_window(window)})

    def embed(self, case: Case, prompted: Sequence[str]) -> Any:
        vectors = within(None, partial(self.vectors, case))
        if np.shape(vectors) != twin().vectors(case).shape:  # which verify forgives a port that cannot shorten
            raise PortError("gave vectors of another shape")
        if vectors.dtype != self.dtype:
            raise PortError("gave vectors of another float type than the parameters'")
        return vectors

    @np.errstate(all="ignore")
    def vectors(self, case: Case) -> Any:
        """One text is embedded alone, several as a batch and shortened together: each is its own lines' witness."""
        texts = twin().tokens(case)
        if len(texts) > 1:
            return self.forward.truncate(self.forward.embed_batch(texts, self.parameters, self.config), case.dimensions)
        kept = self.kept[case.id] = {}
        vector = self.forward.embed(texts[0], self.parameters, self.config, kept.__setitem__)[None]
        whole = case.dimensions == self.config.dimensions
        return vector if whole else self.forward.truncate(vector, case.dimensions)

    def trace(self, case: Case, prompted: str) -> Any:
        """As the vectors were computed; a port need not show every stage, a mutant must, and in its own type."""
        kept = self.kept[case.id]
        if not {"tokens", *case.stages, "embedding"} <= set(kept):
            raise PortError("does not show every stage")
        if {str(np.asarray(stage).dtype) for name, stage in kept.items() if name != "tokens"} != {self.dtype}:
            raise PortError("shows a stage of another float type than the parameters'")
        rows = np.stack([kept["pooled"], kept["pooled"]])  # (..., width), of which a text is only one
        if np.shape(within(None, partial(self.forward.dense_head, rows, self.parameters))) != (
            2,
            self.config.dimensions,
        ):
            raise PortError("makes no embeddings of several pooled vectors")
        return kept


def judged_by_twin(modules: Mapping[str, Any]) -> dict[str, str]:
    """Case -> verdict, of the cases that fail."""
    double, single = (Run(twin(), WitnessPort(modules, dtype), "float32") for dtype in ("float64", "float32"))
    asked = [(double, case) for case in twin().cases]
    asked += [(single, case) for case in twin().cases if case.id == FLOAT32_CASE]
    outcomes = [outcome for run, case in asked for outcome in (*run.vectors(case), *run.stages(case))]
    return {outcome.case: outcome.verdict for outcome in outcomes[::-1] if outcome.verdict not in (RIGHT, NOT_ASKED)}


@cache
def quantised() -> tuple[Mapping[str, Any], Mapping[str, Array]]:
    folder = golden_folder("quantised")
    return json.loads((folder / "manifest.json").read_text()), load_file(folder / "values.safetensors")


def judged_by_quantised(modules: Mapping[str, Any]) -> dict[str, str]:
    """The same, bit for bit and by type of number."""
    verdicts = {case["id"]: quantised_verdict(modules["quantize"], case) for case in quantised()[0]["cases"]}
    return {case: verdict for case, verdict in verdicts.items() if verdict != RIGHT}


def quantised_verdict(quantize: Any, case: Mapping[str, Any]) -> str:
    golden = quantised()[1]
    for grid in case["grids"]:
        try:
            found = within(None, partial(quantised_parts, quantize, case["id"], grid))
        except PortError:
            return FAILED
        if not all(same(array, golden[f"{case['id']}/{grid}/{part}"]) for part, array in found):
            return WRONG
    return RIGHT


@np.errstate(all="ignore")
def quantised_parts(quantize: Any, case: str, name: str) -> list[tuple[str, Array]]:
    """(golden part, what it should be) for everything that quantize.py makes of a golden matrix."""
    weight = quantised()[1][f"{case}/weight"]
    grid = quantize.grid_of(*FORMS[name])
    levels, scales = whole = quantize.quantize(weight, grid)
    found = [("levels", levels), ("scales", scales), ("back", quantize.dequantize(whole))]
    found += [("back", quantize.fake_quantize(weight, grid)), ("back", quantize.fake_quantize(weight, grid, scales))]
    if name.startswith("int4"):
        packed = quantize.pack_int4(levels)
        found += [("packed", packed), ("levels", quantize.unpack_int4(packed))]
    return found


def same(found: Any, golden: Array) -> bool:
    return isinstance(found, np.ndarray) and found.dtype == golden.dtype and np.array_equal(found, golden)


def cases_of(module: str) -> list[str]:
    return [case["id"] for case in quantised()[0]["cases"]] if module == "quantize" else [c.id for c in twin().cases]


def golden_edition() -> str:
    """The first digits of the SHA-256 of all that judges: golden values, stages and float32's bounds."""
    files = [
        manifest["files"][name]["sha256"]
        for manifest in (twin().manifest, quantised()[0])
        for name in sorted(manifest["files"])
        if name in ("values.safetensors", "stages.safetensors")
    ]
    bounds = [(case.id, case.stages, case.bounds["float32"]) for case in twin().cases]
    return hashlib.sha256(json.dumps([files, bounds], sort_keys=True).encode()).hexdigest()[:12]


def judged(mutant: Mutant) -> tuple[list[str], bool]:
    """The cases that fail, and whether it computes nothing at all: it raises in every one."""
    judge = judged_by_quantised if mutant.module == "quantize" else judged_by_twin
    try:
        failed = within(SECONDS, lambda: judge(load(mutant)))
    except PortError:  # as it is loaded, as it opens the checkpoint, or never done
        failed = dict.fromkeys(cases_of(mutant.module), FAILED)
    return sorted(failed), len(failed) == len(cases_of(mutant.module)) and set(failed.values()) == {FAILED}


# ----------------------------------------------------------------------------------------------------------- the record
def described(mutant: Mutant) -> dict[str, Any]:
    """What a record says of a mutant before it was judged. The code is without its comment."""
    code = SOURCE[mutant.module].splitlines()[mutant.line - 1].partition("  # ")[0].strip()
    return {"line": mutant.line, "code": code, "change": mutant.change}


def record_of(chosen: Iterable[Mutant]) -> dict[str, Any]:
    """id -> what it is, the cases that fail, and whether it raises in all of them."""
    record = {}
    for mutant in chosen:
        fails, raises = judged(mutant)
        record[mutant.id] = described(mutant) | {"fails": fails, "raises": raises}
        print(f"{mutant.id}: {len(fails)} cases", file=sys.stderr)
    return record


def written(record: Mapping[str, Any], edition: str) -> str:
    """The record as JSON, with the edition of golden/ that judged. Few sets of failing cases differ, so each is written
    once and named by its number.
    """
    sets = sorted({tuple(entry["fails"]) for entry in record.values()}, key=lambda cases: (len(cases), cases))
    numbered = {id: entry | {"fails": sets.index(tuple(entry["fails"]))} for id, entry in record.items()}
    lines = ",\n".join(f"  {json.dumps(id)}: {json.dumps(entry, ensure_ascii=False)}" for id, entry in numbered.items())
    failing = ",\n".join(f"  {json.dumps(cases)}" for cases in sets)
    return f'{{\n "golden": "{edition}",\n "failing": [\n{failing}\n ],\n "mutants": {{\n{lines}\n }}\n}}\n'


def read(text: str) -> dict[str, Any]:
    stored = json.loads(text)
    return {id: entry | {"fails": stored["failing"][entry["fails"]]} for id, entry in stored["mutants"].items()}


def stale(record: Mapping[str, Any]) -> list[str]:
    """Where the record is not of the reference's source as it is now."""
    now = {mutant.id: described(mutant) for mutant in mutants()}
    then = {id: {key: entry[key] for key in ("line", "code", "change")} for id, entry in record.items()}
    return sorted(id for id in now.keys() | then.keys() if now.get(id) != then.get(id))


def false_witnesses(record: Mapping[str, Any], chosen: Iterable[Mutant]) -> list[str]:
    """Of these mutants, the ones that fail other cases than the record says."""
    return [one.id for one in chosen if judged(one) != (record[one.id]["fails"], record[one.id]["raises"])]


def arguments(equivalent: Mapping[str, str], missing: Mapping[str, Sequence[str]]) -> Counter[str]:
    """How often each mutant is argued about."""
    return Counter([*equivalent, *(id for ids in missing.values() for id in ids)])


def unargued(record: Mapping[str, Any], argued: Counter[str] | None = None) -> list[str]:
    """Survivors that are not argued about exactly once, and arguments about what is no survivor."""
    argued = arguments(EQUIVALENT, MISSING) if argued is None else argued
    survivors = {id for id, entry in record.items() if not entry["fails"]}
    return sorted(id for id in survivors | argued.keys() if (id in survivors) != argued[id])


def false_docstrings(record: Mapping[str, Any], source: Mapping[str, str]) -> list[str]:
    """Functions whose docstring names no one case that fails for as many of their mutants as any case does."""
    failing: dict[str, Counter[str]] = {}
    for id, entry in record.items():
        failing.setdefault(id.partition(":")[0], Counter()).update(entry["fails"])
    wrong = []
    for module, text in source.items():
        folder = "quantised" if module == "quantize" else "twin"
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef):
                function = f"{module}.{node.name}"
                here = failing.get(function, Counter())
                best = {(folder, case) for case in here if here[case] == max(here.values())}
                named = WITNESS.findall(ast.get_docstring(node) or "")
                if function in OUTSIDE:  # another folder's business, or a test's: witnessed.py
                    named = [one for one in named if one[0] == folder]
                if len(named) != (function in failing) or not set(named) <= best:
                    wrong.append(function)
    return wrong


def score(record: Mapping[str, Any], running: bool = False) -> tuple[int, int]:
    """Mutants killed, of all that are not equivalent; running: of those that do more than raise."""
    counted = [entry for id, entry in record.items() if id not in EQUIVALENT and not (running and entry["raises"])]
    return sum(bool(entry["fails"]) for entry in counted), len(counted)


# ------------------------------------------------------------------------------------------------------------- the page
HEAD = """# The witness

Which golden cases fail when a line of the reference is changed. This page, and witness.json beside it, are written by
`python tests/conformance/witness.py --out spec`: it makes {all} mutants of the forward, each the reference with one
small change, and lets [golden](../golden/README.md) judge them. Mutants of `quantize.py` are judged bit for bit by
golden/quantised; all others by golden/twin as any port is ([protocol.md](protocol.md)), from the golden tokens in
float64, and case {float32} in float32 too: final vectors and every stored stage within float32's bounds and
of the parameters' float type. Mutants of the losses, the backward pass, UL2 and the poolers are judged by
golden/losses, golden/gradients and golden/ul2 (training_witness.py beside it); the site shows them beside their lines.

Killed: **{killed} of {counted}, {share:.1%}**; {equivalent} more are equivalent. {raising} of the killed raise an error
for every text, or give vectors of another shape; of the other {running}, {run_killed} are killed, {run_share:.1%}.

A line's witnesses are the cases that fail when it is mutated: first those that fail for most of its mutants; of these,
first those that fail for the fewest other lines. The case of a docstring's `Witness:` fails for as many mutants of its
function as any.
"""
NO_TEXT = "Changes that no text, or no matrix, can show; and why."
LACKS = "What golden/ lacks, and the wrong changes that it lets pass for want of it."
NOT_MUTATED = "Statements that only refuse an input, since golden/ holds nothing to be refused; and:"


def page(record: Mapping[str, Any]) -> str:
    (killed, counted), (run_killed, running) = score(record), score(record, running=True)
    head = HEAD.format(
        float32=FLOAT32_CASE, all=len(record), killed=killed, counted=counted, share=killed / counted,
        equivalent=len(EQUIVALENT),
        raising=counted - running, running=running, run_killed=run_killed, run_share=run_killed / running,
    )  # fmt: skip
    lines = by_line(record)
    failing = Counter(
        case for entries in lines.values() for case in {one for entry in entries for one in entry["fails"]}
    )
    tables = {f"{module}.py": table(module, lines, failing) for module in MODULES if module not in OUTSIDE}
    sections = tables | {
        "Operators": operators(record),
        "Equivalent": "\n".join([NO_TEXT, "", *(f"- {shown(id, record)}: {why}." for id, why in EQUIVALENT.items())]),
        "Missing": "\n".join([LACKS, "", *(missing(case, ids, record) for case, ids in MISSING.items())]),
        "Not mutated": "\n".join([NOT_MUTATED, "", *(f"- `{name}`: {reason}" for name, reason in OUTSIDE.items())]),
    }
    return "\n".join([head, *(f"## {title}\n\n{text}\n" for title, text in sections.items())])


def by_line(record: Mapping[str, Any]) -> dict[tuple[str, int], list[Any]]:
    """The mutants of each line of a module."""
    lines: dict[tuple[str, int], list[Any]] = {}
    for id, entry in record.items():
        lines.setdefault((id.partition(".")[0], entry["line"]), []).append(entry)
    return lines


def table(module: str, lines: Mapping[tuple[str, int], list[Any]], failing: Mapping[str, int]) -> str:
    """A module's lines, their witnesses and how many of their mutants are killed."""
    rows = ["| line | code | witnesses | killed |", "| --- | --- | --- | --- |"]
    for (where, line), entries in sorted(lines.items()):
        if where == module:
            here = Counter(case for entry in entries for case in entry["fails"])
            order = sorted(here, key=lambda case: (-here[case], failing[case], case))
            witnesses = ", ".join(order[:MOST_SHOWN]) or "none"
            more = f" and {len(order) - MOST_SHOWN} more" if len(order) > MOST_SHOWN else ""
            code, killed = entries[0]["code"].replace("|", "\\|"), sum(bool(entry["fails"]) for entry in entries)
            rows.append(f"| {line} | `{code}` | {witnesses}{more} | {killed}/{len(entries)} |")
    return "\n".join(rows)


def operators(record: Mapping[str, Any]) -> str:
    rows = ["| operator | what it does | mutants | killed |", "| --- | --- | --- | --- |"]
    for name, (_, what) in OPERATORS.items():
        own = [entry for id, entry in record.items() if id.split(":")[1] == name]
        rows.append(f"| {name} | {what} | {len(own)} | {sum(bool(entry['fails']) for entry in own)} |")
    return "\n".join(rows)


def shown(id: str, record: Mapping[str, Any]) -> str:
    return f"{id}, line {record[id]['line']}, `{record[id]['change']}`"


def missing(case: str, ids: Sequence[str], record: Mapping[str, Any]) -> str:
    return "\n".join([f"- {case}:", *(f"  - {shown(id, record)}" for id in ids)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Which golden cases fail when a line of the reference is changed.")
    parser.add_argument("--out", type=Path, required=True, help="folder for witness.json and witness.md")
    parser.add_argument("--only", choices=MODULES, help="judge this module's mutants; of others keep the record")
    folder, only = parser.parse_args().out, parser.parse_args().only
    kept = read((folder / "witness.json").read_text()) if only else {}
    record = {one.id: kept[one.id] if only and one.module != only else record_of([one])[one.id] for one in mutants()}
    (folder / "witness.json").write_text(written(record, golden_edition()))
    if unargued(record):
        sys.exit("argue in EQUIVALENT or MISSING about survivors, and nothing else:\n" + "\n".join(unargued(record)))
    (folder / "witness.md").write_text(page(record))


if __name__ == "__main__":
    main()
