"""What every function of the reference must say of itself, and where it does not.

Of each function and method: a docstring; the shapes of the arrays it takes and returns (shape_comments.py holds them to
real calls); `Source:`, ids of a chapter that stands beside it; one `Witness:`, what fails when it is changed:

    Witness: golden/FOLDER CASE.
    Witness: tests/FILE.py TEST.

What it cites is entered twice: a requirement's section names, after `Code:`, the functions that cite it, so that an id
of the right chapter and the wrong section is seen. Every id, defect and mistake that it names is there,
and a defect is of one of its own chapters.

A function within a function says the shape of what it returns, on its return; its lines are its owner's in all else.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import refembed.reference
from refembed.conformance.defects import DEFECTS
from refembed.conformance.loss_mistakes import MISTAKES

FOLDER = Path(refembed.reference.__file__).parent
ROOT = FOLDER.parents[1]
CHAPTERS = sorted((ROOT / "spec").glob("[0-9]*.md"))
ID = re.compile(r"\b([A-Z]{3,4})-(\d+)(?: to \1-(\d+))?\b")
SOURCE = re.compile(r"^Source: (.*?)(?=\n\n|\bTrap:|^Witness:|\Z)", re.MULTILINE | re.DOTALL)
WITNESS = re.compile(r"^Witness: (golden/[\w-]+|tests/[\w/]+\.py) ([\w-]+)\.$", re.MULTILINE)
BESIDE = re.compile(r"((?:`\w+`(?:,\s|\sand\s)?)*)(?: in\s+)?\[`\w+\.py`\]\(\.\./refembed/reference/(\w+)\.py\)")
OF_ARRAYS = re.compile(r"\b(Array|ndarray|NDArray|Batch|Gradients?)\b")  # types that do not say their shapes
CODE = re.compile(r"^Code: (.*?)\.$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"\((?:of )?(?:defects? )?([A-Z]\d\b(?:, [A-Z]\d\b)*)\)")  # (defects C3, D4)
MISTAKE = re.compile(r"\(mistake\s+([a-z0-9-]+)\)")
WITHIN = re.compile(r"\b(Array|Gradients)\b")  # a Batch made within a function has its argument's shapes


@dataclass(frozen=True)
class Chapter:
    """A page of the specification: the ids it defines, the code that stands beside it, the pages it links to."""

    name: str
    ids: frozenset[str]
    modules: frozenset[str]
    functions: frozenset[str]  # module.function, where only these of a module stand beside it
    links: frozenset[str]
    code: Mapping[str, frozenset[str]]  # requirement -> module.function, as its section names them
    traps: frozenset[str]  # the catalogue's letters and numbers that the page tells of

    def is_beside(self, module: str, function: str) -> bool:
        return module in self.modules or f"{module}.{function}" in self.functions


def chapter(name: str, text: str) -> Chapter:
    beside = BESIDE.findall(text[text.index("Beside it:") :].partition("\n\n")[0])
    return Chapter(
        name,
        frozenset(re.findall(r"^### ([A-Z]{3,4}-\d+)$", text, re.MULTILINE)),
        frozenset(module for names, module in beside if not names),
        frozenset(f"{module}.{function}" for names, module in beside for function in re.findall(r"`(\w+)`", names)),
        frozenset(re.findall(r"\]\(([\w-]+\.md)", text)),
        {id: frozenset(re.findall(r"`(\w+\.[\w.]+)`", " ".join(CODE.findall(part)))) for id, part in sections(text)},
        frozenset(re.findall(r"\b[A-Z]\d\b", " ".join(re.findall(r"\*\*([^*]+)\*\*", text.partition("## Traps")[2])))),
    )


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Requirement -> what stands below its heading."""
    for part in re.split(r"^#{2,3} ", text, flags=re.MULTILINE)[1:]:
        id, _, rest = part.partition("\n")
        if ID.fullmatch(id):
            yield id, rest


def chapters() -> dict[str, Chapter]:
    return {path.name: chapter(path.name, path.read_text()) for path in CHAPTERS}


def functions(source: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods of a module, private ones too, each with its name; those within a function left out."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{one.name}", one) for one in node.body if isinstance(one, ast.FunctionDef))


def expand(text: str) -> list[str]:
    """Every id in a text; "QNT-1 to QNT-5" is five of them."""
    return [f"{name}-{n}" for name, first, last in ID.findall(text) for n in range(int(first), int(last or first) + 1)]


def cited(doc: str) -> list[str]:
    """The ids after `Source:`, in their order."""
    return [id for part in SOURCE.findall(doc) for id in expand(part)]


def computes(node: ast.FunctionDef) -> bool:
    """Whether there is anything to change: more than a docstring."""
    return len(node.body) > 1 or not isinstance(node.body[0], ast.Expr)


def without_shape(node: ast.FunctionDef, given: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Arrays taken and returned whose shape is not among those given, as (kind, subject); dicts without a line."""
    doc = ast.get_docstring(node) or ""
    given_by = node.args.posonlyargs + node.args.args + [node.args.vararg] + node.args.kwonlyargs
    typed = [("argument", a.arg, a.annotation) for a in given_by if a] + [("return", "", node.returns)]
    for kind, name, annotation in typed:
        words = ast.unparse(annotation) if annotation else ""
        if OF_ARRAYS.search(words) and "dict" not in words and "Callable" not in words and (kind, name) not in given:
            yield f"no shape of {kind} {name}".strip()
        if "dict" in words and kind == "argument" and not re.search(rf"^{name}  ", doc, re.MULTILINE):
            yield f"no line of argument {name}"
    if "dict" in ast.unparse(node.returns or ast.Constant("")) and not re.search(r"^returns  ", doc, re.MULTILINE):
        yield "no line of what it returns"


def nested_without_shape(node: ast.FunctionDef, source: str) -> Iterator[str]:
    lines = source.splitlines()
    within = [one for one in ast.walk(node) if isinstance(one, ast.FunctionDef) and one is not node]
    for inner in within:
        returns = [one for one in ast.walk(inner) if isinstance(one, ast.Return)]
        arrays = WITHIN.search(ast.unparse(inner.returns or ast.Constant("")))
        if arrays and not all(re.search(r"  # (?:x )?\(", lines[(one.end_lineno or 0) - 1]) for one in returns):
            yield f"no shape of what {inner.name} within it returns"


def wrong_source(module: str, name: str, ids: list[str], pages: Mapping[str, Chapter]) -> Iterator[str]:
    """No id, one that no chapter defines, none of a chapter beside the function, or one further away than a link."""
    home = {id: page for page in pages.values() for id in page.ids}
    own = [home[id] for id in ids if id in home and home[id].is_beside(module, name)]
    if not ids:
        yield "no Source"
    elif not own:
        yield f"no Source of a chapter beside it, in {', '.join(ids)}"
    for id in ids:
        if id not in home:
            yield f"Source {id} is defined nowhere"
        elif own and home[id] not in own and not any(home[id].name in page.links for page in own):
            yield f"Source {id} is of {home[id].name}, which the chapter beside it does not name"
        elif f"{module}.{name}" not in home[id].code[id]:
            yield f"Source {id} does not name it after Code:"
    for id, named in ((id, named) for page in pages.values() for id, named in page.code.items()):
        if f"{module}.{name}" in named and id not in ids:
            yield f"no Source {id}, which names it after Code:"


def chapters_of(module: str, name: str, ids: Iterable[str], pages: Mapping[str, Chapter]) -> list[Chapter]:
    """The chapters that stand beside a function or define what it cites."""
    return [page for page in pages.values() if page.is_beside(module, name) or page.ids & set(ids)]


def wrong_names(doc: str, own: Iterable[Chapter], pages: Mapping[str, Chapter]) -> Iterator[str]:
    """Ids anywhere in a docstring, defects and mistakes that there are not; defects of none of its own chapters."""
    ids = {id for page in pages.values() for id in page.ids}
    told = {
        page.name: page.traps | {one.family for one in DEFECTS if one.chapter == page.name} for page in pages.values()
    }
    mistakes = {one.id for one in MISTAKES}
    yield from (f"{id} is defined nowhere" for id in expand(SOURCE.sub("", doc)) if id not in ids)
    for one in (one for part in NAMED.findall(doc) for one in part.split(", ")):
        where = [name for name, traps in told.items() if one in traps]
        if not where:
            yield f"defect {one} is not there"
        elif not {page.name for page in own} & set(where):
            yield f"defect {one} is of {', '.join(where)}, and none of these is its chapter"
    yield from (f"mistake {one} is not there" for one in MISTAKE.findall(doc) if one not in mistakes)


def wrong_witness(doc: str, cases: Mapping[str, set[str]], root: Path = ROOT) -> Iterator[str]:
    """Not exactly one, or one that is not there."""
    named = WITNESS.findall(doc)
    if len(named) != 1 or doc.count("Witness:") != 1:
        yield f"{doc.count('Witness:')} Witness, {len(named)} of them golden/FOLDER CASE. or tests/FILE.py TEST."
    for where, what in named:
        if where.startswith("golden/"):
            there = what in cases.get(where.removeprefix("golden/"), set())
        else:
            there = (root / where).is_file() and f"\ndef {what}(" in (root / where).read_text()
        if not there:
            yield f"Witness {where} {what} is not there"


def faults(
    module: str,
    source: str,
    shapes: Mapping[str, Iterable[tuple[str, str]]],
    pages: Mapping[str, Chapter],
    cases: Mapping[str, set[str]],
) -> list[str]:
    """What a module's functions leave out or say wrongly. shapes: function -> what docstrings give the shape of."""
    found = []
    for name, node in functions(source):
        doc = ast.get_docstring(node) or ""
        wrong = [] if doc else ["no docstring"]
        wrong += without_shape(node, shapes.get(node.name, ()))
        wrong += nested_without_shape(node, source)
        wrong += wrong_source(module, name, cited(doc), pages)
        wrong += wrong_names(doc, chapters_of(module, name, cited(doc), pages), pages)
        wrong += wrong_witness(doc, cases) if computes(node) else ()
        found += [f"{module}.{name}: {one}" for one in wrong]
    return found
