"""Which code each chapter explains. Read from the chapters and the docstrings, and refused where the two disagree.

A chapter's "Beside it:" names files, or names in files. A function or class stands under the requirement that its
docstring cites first after "Source:"; one that cites none, in the chapter that names it, else in those that stand
beside its whole file.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from os.path import normpath
from pathlib import Path

REFERENCE = Path("refembed/reference")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#{1,6}) (.+)$")
ID = re.compile(r"\b([A-Z]{3,4}-\d+)\b")
DEFINED = re.compile(r"^### ([A-Z]{3,4}-\d+)$", re.MULTILINE)
SOURCE = re.compile(r"Source:(.*?)(?:\n\s*\n|Trap:|Witness:|\Z)", re.DOTALL)
WITNESS = re.compile(r"^\s*Witness: golden/([\w-]+) ([\w-]+)\.$", re.MULTILINE)
TEST = re.compile(r"^\s*Witness: (tests/[\w/]+\.py) (\w+)\.$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]+)(#[^)\s]*)?\)")
FOREIGN = {  # other programs' words
    "last_hidden_state", "lm_head", "np.add.at", "random_spans_noise_mask", "sentence_embedding", "ubinary",
}  # fmt: skip
CODE = re.compile(r"^Code: .*?\.$", re.MULTILINE | re.DOTALL)
IMPORT = re.compile(r"^(?:>>>|\.\.\.) from (refembed\.reference[\w.]*) import (.+)$", re.MULTILINE)


class BookError(Exception):
    """The chapters and the code beside them do not fit; the message has a line for each fault."""


@dataclass(frozen=True)
class Definition:
    """A function or class at the top of a file, and the requirement ids that its docstring cites after "Source:"."""

    file: Path  # from the repository's root
    name: str
    first: int  # its lines, from 1
    last: int
    cites: tuple[str, ...]
    witnesses: tuple[tuple[str, str], ...]  # (golden folder, case)
    tests: tuple[tuple[str, str], ...]  # (file, test), where no golden case judges it

    @property
    def module(self) -> str:
        return self.file.stem


@dataclass
class Chapter:
    """A chapter's text, what stands beside it, and what it shows: requirement id, or "" for the rest, -> code."""

    stem: str
    text: str
    ids: tuple[str, ...]
    beside: Mapping[Path, tuple[str, ...]]  # file -> names in it; none means the whole file
    traces: tuple[str, ...]  # names of intermediate tensors, * for any end
    shows: dict[str, list[Definition]] = field(default_factory=dict)

    @property
    def definitions(self) -> list[Definition]:
        return [one for part in self.shows.values() for one in part]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def definitions_of(root: Path, file: Path) -> list[Definition]:
    """The functions and classes of a Python file, in its order."""
    found = []
    for node in ast.parse((root / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            text = ast.get_docstring(node) or ""
            cites = tuple(id for part in SOURCE.findall(text) for id in ID.findall(part))
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert node.end_lineno is not None
            witnesses, tests = tuple(WITNESS.findall(text)), tuple(TEST.findall(text))
            found.append(Definition(file, node.name, first, node.end_lineno, cites, witnesses, tests))
    return found


def read_chapter(root: Path, page: Path) -> Chapter:
    text = page.read_text()
    paragraph = next((part for part in text.split("\n\n") if part.startswith("Beside it: ")), "")
    beside, start = {}, 0
    for link in LINK.finditer(paragraph):
        before = paragraph[start : link.start()].split(". ")[-1]
        named = re.findall(r"`(\w+)`", before) if before.rstrip().endswith(" in") else ()
        beside[Path(normpath(page.parent / link[1])).relative_to(root)] = tuple(named)
        start = link.end()
    traces = re.findall(r"`([^`]+)`", paragraph.partition("Trace: ")[2])
    return Chapter(page.stem, text, tuple(DEFINED.findall(prose(text))), beside, tuple(traces))


def read_book(root: Path) -> dict[str, Chapter]:
    """Chapter's stem -> chapter, with the code it shows; BookError where chapters and code do not fit."""
    root = root.resolve()
    chapters = {page.stem: read_chapter(root, page) for page in sorted((root / "spec").glob("[0-9]*.md"))}
    files = [file.relative_to(root) for file in sorted((root / REFERENCE).glob("*.py"))]
    code = {file: definitions_of(root, file) for file in files if file.stem != "__init__"}
    faults = [*not_there(root, chapters, code), *unknown_names(root, chapters)]
    for file, definitions in code.items():
        for one in definitions:
            homes = homes_of(one, chapters)
            if not homes:
                faults.append(f"{file}: {one.name} is shown by no chapter: cite an id, or name it beside one")
            for stem in homes:
                under = next((id for id in one.cites[:1] if id in chapters[stem].ids), "")
                chapters[stem].shows.setdefault(under, []).append(one)
            faults += [f"{file}: {one.name} cites {id}, which no chapter defines" for id in undefined(one, chapters)]
    for chapter in chapters.values():  # code that is not the reference's is shown where it is named
        others = [(file, names) for file, names in chapter.beside.items() if names and file.parent != REFERENCE]
        for file, names in others:
            shown = [one for one in definitions_of(root, file) if one.name in names]
            chapter.shows.setdefault("", []).extend(shown)
            faults += [f"{chapter.stem}: {file} has no {name}" for name in set(names) - {one.name for one in shown}]
        if any(file.parent == REFERENCE for file in chapter.beside) and not chapter.definitions:
            faults.append(f"{chapter.stem}: shows nothing of the files beside it")
    if faults:
        raise BookError("\n".join(faults))
    return chapters


def not_there(root: Path, chapters: Mapping[str, Chapter], code: Mapping[Path, list[Definition]]) -> Iterator[str]:
    """What a chapter names, beside it or in an example, that is no more."""
    names = {file: {one.name for one in definitions} for file, definitions in code.items()}
    for chapter in chapters.values():
        for file, named in chapter.beside.items():
            if not (root / file).exists():
                yield f"{chapter.stem}: {file} is not there"
            for name in set(named) - names.get(file, set(named)):
                yield f"{chapter.stem}: {file} has no {name}"
        for module, imported in IMPORT.findall(chapter.text):
            file = Path(*module.split(".")).with_suffix(".py")
            file = file if (root / file).exists() else Path(*module.split("."), "__init__.py")
            there = top_level(root / file)
            for name in (name.strip() for name in imported.split(",")):
                if name not in there:
                    yield f"{chapter.stem}: {file} has no {name}"


def unknown_names(root: Path, chapters: Mapping[str, Chapter]) -> Iterator[str]:
    """Names of code in a chapter's prose that no code has: of a function that was renamed, say."""
    modules = {file.stem: top_level(file) for file in (root / REFERENCE).glob("*.py")}
    known = set().union(*modules.values(), FOREIGN)
    folders = [folder.resolve() for top in ("refembed", "backends") for folder in (root / top).resolve().iterdir()]
    for file in (file for folder in folders for file in (*folder.rglob("*.py"), *folder.parent.glob("*.py"))):
        known |= names_in(file.read_text(), words="conformance" not in file.parts)  # whose words name functions
    known |= {"py", "NN"}
    for chapter in chapters.values():
        for module, name in re.findall(r"`(\w+)\.(\w+)[\w.]*`", " ".join(CODE.findall(chapter.text))):
            if name not in modules.get(module, ()):
                yield f"{chapter.stem}: there is no {module}.{name}"
        own = set(re.findall(r"\w+", "".join(FENCE.findall(chapter.text))))
        for name in dict.fromkeys(re.findall(r"`([A-Za-z_][\w.]*)(?:\(\))?`", prose(chapter.text))):
            unknown = {part for part in name.split(".") if part and not part.isdigit()} - known - own
            if unknown and name not in known:
                yield f"{chapter.stem}: there is no {name}"


@cache
def names_in(source: str, words: bool) -> set[str]:
    """What a file defines: functions, classes, fields, names, and, if asked, the words in its strings."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif words and isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            found |= set(re.split(r"[^\w]+", node.value)) | {node.value}
    return found


def top_level(file: Path) -> set[str]:
    """Every name that a module binds at its top, and the modules beside a package's __init__."""
    names = {path.stem for path in file.parent.glob("*.py")} if file.stem == "__init__" else set()
    for node in ast.parse(file.read_text()).body if file.exists() else []:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        else:
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names


def homes_of(one: Definition, chapters: Mapping[str, Chapter]) -> list[str]:
    """The chapters that show a definition of the reference."""
    cited = [stem for stem, chapter in chapters.items() if set(one.cites[:1]) & set(chapter.ids)]
    named = [stem for stem, chapter in chapters.items() if one.name in chapter.beside.get(one.file, ())]
    whole = [stem for stem, chapter in chapters.items() if chapter.beside.get(one.file) == ()]
    return sorted({*cited, *named}) or whole


def undefined(one: Definition, chapters: Mapping[str, Chapter]) -> list[str]:
    """The ids it cites, of prefixes that chapters use, that none of them defines."""
    defined = {id for chapter in chapters.values() for id in chapter.ids}
    prefixes = {id.partition("-")[0] for id in defined}
    return [id for id in one.cites if id.partition("-")[0] in prefixes and id not in defined]


def insert(text: str, under: Mapping[str, str], before_traps: str) -> str:
    """A chapter with a block put at the end of each requirement's section, and one before its traps."""
    parts, waiting, fenced = [], "", False
    for line in text.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        heading = None if fenced else HEADING.match(line)
        if heading:
            parts.append(waiting)
            waiting = f"\n{under[heading[2]]}\n\n" if heading[2] in under else ""
            if heading[2] == "Traps":
                parts.append(before_traps + "\n\n")
                before_traps = ""
        parts.append(line)
    return "".join([*parts, waiting, before_traps])
