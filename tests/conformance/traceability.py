"""Write spec/traceability.md: from every requirement to its code, to what fails when that changes, to known mistakes.

python tests/conformance/traceability.py --out spec

Read from the chapters' headings, the docstrings of refembed and backends, witness.json and training_witness.json, and
the catalogues of mistakes, each of which says which requirement it breaks.
"""

import argparse
import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from docstring_lint import CHAPTERS, ROOT, WITNESS, expand
from witness import read

from refembed.conformance.defects import DEFECTS
from refembed.conformance.loss_mistakes import MISTAKES

REFERENCE = "refembed/reference/"
SHORT = re.compile(r"\b([A-Z]{3,4}-\d+)((?:, \d+)+)\b")  # TOK-1, 4, 5
MOST_SHOWN = 4

TOKENS = "before the reference, which begins at ids; every case of golden/twin holds its tokens, which a port is asked:"
READING = "read from a file before the reference begins; golden/twin has one such file, and others must be refused:"
INDEX = "an index's business, after the embedding:"
RECIPE = "a rule of training, which has no golden value:"
# What holds a requirement that no docstring cites or no golden case shows, and why it has none.
HELD = {
    "TOK-1": f"{TOKENS} tests/test_tokenizer.py",
    "TOK-2": f"{TOKENS} tests/test_prompts.py",
    "TOK-3": f"{TOKENS} tests/test_prompts.py",
    "TOK-4 to TOK-6": f"{TOKENS} tests/test_tokenizer.py",
    "TOK-7": f"{TOKENS} tests/test_tokenizer.py",
    "TOK-8": "says that something is not there; a port that pads meets golden/twin's batch cases: "
    "tests/conformance/test_conformance_diagnosis.py",
    "TOK-9": "a refusal, and golden/ holds nothing to be refused: tests/test_tokenizer.py",
    "CFG-1": f"{READING} tests/test_bad_inputs.py",
    "CFG-2": f"{READING} tests/test_embedder.py",
    "CFG-4": f"{READING} tests/test_bad_inputs.py",
    "POOL-5": f"{READING} tests/test_bad_inputs.py",
    "LAY-3": "a name and not a number; each stage of a golden case is known by its name: "
    "tests/reference/test_reference_laws.py",
    "CFG-5": "what a file must hold; no case could be computed without: tests/reference/test_reference_transformers.py",
    "MAT-3": "what may be offered; there is nothing that could fail but the refusal: tests/test_embedder.py",
    "MAT-4": "a law that follows from MAT-1, not a value: tests/reference/test_reference_laws.py",
    "MAT-7": f"{INDEX} tests/test_vectors.py",
    "MAT-9": f"{INDEX} tests/test_vectors.py",
    "QNT-7": "a form of files, not of numbers: tests/quantization/test_quantize_folder.py",
    "QNT-8 to QNT-10": "a search for better rounding, in which another may do as well or better: "
    "tests/quantization/test_calibration.py",
    "DEN-1": "chance, held to its frequencies: tests/reference/test_reference_ul2.py",
    "DEN-7": "how a text is divided before any case begins: tests/reference/test_reference_ul2.py",
    "ADP-1 to ADP-8": "no decoder was released that could be frozen; transformers and PyTorch are asked instead: "
    "tests/reference/test_reference_decoder.py",
    "RCP-1": f"{RECIPE} tests/train/test_train_data.py",
    "RCP-2": f"{RECIPE} tests/train/test_train_contrastive.py",
    "RCP-3": f"{RECIPE} tests/train/test_train_contrastive.py",
    "RCP-4": f"{RECIPE} tests/train/test_train_data.py",
    "RCP-5": f"{RECIPE} tests/train/test_train_mixtures.py",
    "RCP-6": f"{RECIPE} tests/train/test_train_soup.py",
    "RCP-7": f"{RECIPE} tests/backends/torch/test_torch_quantization.py",
    "RCP-8": f"{RECIPE} tests/train/test_train_loop.py",
}


@dataclass(frozen=True)
class Code:
    """A function, class or module that cites requirements."""

    file: str
    name: str  # "" for a module
    line: int
    ids: tuple[str, ...]
    witnesses: tuple[tuple[str, str], ...]  # (golden/FOLDER or tests/FILE.py, case or test)

    def __str__(self) -> str:
        place = f"[{Path(self.file).name}:{self.line}](../{self.file}#L{self.line})"
        return f"{place} `{self.name}`" if self.name else f"{place} module"


def ids_in(text: str) -> tuple[str, ...]:
    """Every id, "QNT-1 to QNT-3" and "TOK-1, 4, 5" written out."""

    def written_out(found: re.Match[str]) -> str:
        prefix = found[1].partition("-")[0]
        return ", ".join([found[1], *(f"{prefix}-{number}" for number in found[2].split(", ")[1:])])

    return tuple(dict.fromkeys(expand(SHORT.sub(written_out, text))))


def documented(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """(name, line, docstring) of a module, its classes, functions and methods."""
    yield "", 1, ast.get_docstring(tree) or ""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                yield owner + child.name, child.lineno, ast.get_docstring(child) or ""


def code_of(file: str, source: str, known: set[str]) -> list[Code]:
    found = []
    for name, line, doc in documented(ast.parse(source)):
        ids = tuple(id for id in ids_in(doc) if id in known)
        if ids and not (file.startswith(REFERENCE) and not name):  # the reference's modules cite for their functions
            found.append(Code(file, name, line, ids, tuple(WITNESS.findall(doc))))
    return found


def code(known: set[str]) -> list[Code]:
    files = sorted(path for folder in ("refembed", "backends") for path in (ROOT / folder).rglob("*.py"))
    names = [str(path.relative_to(ROOT)) for path in files]
    names.sort(key=lambda name: (not name.startswith(REFERENCE), name))
    return [one for name in names for one in code_of(name, (ROOT / name).read_text(), known)]


def requirements() -> dict[str, str]:
    """id -> the chapter that defines it, in the order of reading."""
    return {
        id: path.name
        for path in CHAPTERS
        for id in re.findall(r"^### ([A-Z]{3,4}-\d+)$", path.read_text(), re.MULTILINE)
    }


def mutants() -> dict[str, tuple[int, int]]:
    """module.function -> (mutants made, mutants that a golden case kills), of the records in spec/."""
    made: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    for name in ("witness.json", "training_witness.json"):
        for id, entry in read((ROOT / "spec" / name).read_text()).items():
            made[id.partition(":")[0]] += 1
            killed[id.partition(":")[0]] += bool(entry["fails"])
    return {name: (made[name], killed[name]) for name in made}


@dataclass
class Row:
    """One requirement."""

    id: str
    chapter: str
    code: list[Code] = field(default_factory=list)

    @property
    def witnesses(self) -> list[tuple[str, str]]:
        return list(dict.fromkeys(witness for one in self.code for witness in one.witnesses))

    @property
    def golden(self) -> list[str]:
        return [
            f"{where.removeprefix('golden/')} {case}" for where, case in self.witnesses if where.startswith("golden/")
        ]

    @property
    def tests(self) -> list[str]:
        return [f"[{test}](../{where})" for where, test in self.witnesses if where.startswith("tests/")]

    @property
    def gap(self) -> str:
        """What it lacks: code, a golden case, both or nothing."""
        return " and ".join(what for what, there in (("code", self.code), ("golden case", self.golden)) if not there)

    def mutations(self, made: Mapping[str, tuple[int, int]]) -> list[str]:
        own = [one for one in self.code if one.file.startswith(REFERENCE)]
        names = [f"{Path(one.file).stem}.{one.name}" for one in own]
        counts = [f"`{name}` {made[name][1]}/{made[name][0]}" for name in names if name in made]
        return [*counts, *(f"`{id}`" for id in self.mistakes)]

    @property
    def mistakes(self) -> list[str]:
        return [one.id for one in (*DEFECTS, *MISTAKES) if one.requirement == self.id]


def reasons() -> dict[str, str]:
    """HELD, one id at a time."""
    return {id: reason for ids, reason in HELD.items() for id in expand(ids)}


def shown(names: list[str], most: int = MOST_SHOWN) -> list[str]:
    return names if len(names) <= most else [*names[:most], f"{len(names) - most} more"]


def rows() -> list[Row]:
    table = {id: Row(id, chapter) for id, chapter in requirements().items()}
    for one in code(set(table)):
        for id in one.ids:
            table[id].code.append(one)
    return list(table.values())


def misheld(table: list[Row], held: Mapping[str, str]) -> list[str]:
    """Requirements with a gap and no reason, reasons for none, and reasons that name a file that is not there."""
    wrong = [f"{row.id}: lacks {row.gap}, and no reason is given" for row in table if row.gap and row.id not in held]
    gaps = {row.id for row in table if row.gap}
    wrong += [f"{id}: a reason, and no gap" for id in held if id not in gaps]
    for id, reason in held.items():
        files = re.findall(r"tests/[\w/.-]+\.py", reason)
        wrong += [f"{id}: {file} is not there" for file in files if not (ROOT / file).exists()]
        wrong += [] if files else [f"{id}: the reason names no test"]
    return wrong


HEAD = """# Traceability

From every requirement of the specification to the code that cites it, to the golden cases that fail when that code
changes, and to the changes and mistakes that were tried. Written by
`python tests/conformance/traceability.py --out spec`.

{count} requirements. {both} have code and a golden case; {code} have code and no golden case, {cases} a golden case
and no code, {none} neither. Those come last, each with the reason and the tests that hold it.

*Code*: functions, classes and modules whose docstrings cite the requirement; the reference first. *Golden cases*: what
the `Witness:` of those functions names, by folder and case ([golden](../golden/README.md)); a test where there is none.
*Changes*: the reference's functions, with how many of their mutants a golden case kills, of how many
([witness.md](witness.md) and training_witness.json beside it); then every known mistake that breaks this requirement
first, by its name in [defects.md](defects.md) or [10-losses.md](10-losses.md). A mistake stands in one row only.
"""


def page() -> str:
    table, made = rows(), mutants()
    gaps = Counter(row.gap for row in table)
    head = HEAD.format(
        count=len(table), both=gaps[""], code=gaps["golden case"], cases=gaps["code"], none=gaps["code and golden case"]
    )
    lines = [head, "| requirement | code | golden cases | changes |", "| --- | --- | --- | --- |"]
    for row in table:
        address = f"[{row.id}]({row.chapter}#{row.id.lower()})"
        code = "<br>".join(shown([str(one) for one in row.code])) or "none"
        cases = ", ".join(shown(row.golden)) or ", ".join(shown(row.tests)) or "none"
        lines.append(f"| {address} | {code} | {cases} | {', '.join(row.mutations(made)) or 'none'} |")
    lines += ["", "## What lacks code or a golden case", "", "| requirement | lacks | why, and what holds it |"]
    lines += ["| --- | --- | --- |"]
    lines += [f"| {row.id} | {row.gap} | {reasons()[row.id]} |" for row in table if row.gap]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder of traceability.md")
    folder = parser.parse_args().out
    wrong = misheld(rows(), reasons())
    if wrong:
        raise SystemExit("\n".join(wrong))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "traceability.md").write_text(page())


if __name__ == "__main__":
    main()
