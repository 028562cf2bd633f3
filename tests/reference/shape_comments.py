"""Shape comments as claims: read them from source, watch the source run, and compare.

A claim is a shape in parentheses at the start of a line's comment, or on a docstring line of a parameter or the return;
"# x (tokens, width)" is a claim on the part x of a value with named parts.
`watch` runs something and keeps the real shape of every argument, assigned local and returned value of each call;
`disagreements` holds claims against what was watched. Sizes in a claim are

- the config's: vocabulary, width, heads, key_heads, head, mlp, dense, dimensions, each with its one value, and tokens,
  the length of the text in hand; except where the function takes an argument of that name, which then is the value,
  and in SHARED functions, which serve callers of other sizes;
- letters (LETTERS), which take whatever size they meet first and must keep it throughout a call, like `...`;
- whole numbers, and products and quotients of all these.

A number type named after a shape (int8, float16, ...) is part of the claim.
"""

import ast
import importlib
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

SIZES = ("vocabulary", "tokens", "width", "heads", "key_heads", "head", "mlp", "dense", "dimensions")
LETTERS = {"n", "m", "rows", "columns", "blocks", "block", "count", "texts", "tokens_i", "examples", "hard", "length"}
LETTERS |= {"source", "target"}  # tokens that the encoder reads, and that the decoder writes
SHARED = {"split_heads": {"tokens", "head"}, "merge_heads": {"tokens", "head"}}  # also serve the attention pooler
NOT_SHAPES = {"(out, in)"}  # the only words in parentheses, comma between, that are no shape
NUMBER_TYPES = ("int8", "uint8", "int32", "int64", "float16", "float32", "float64")

_ATOM = r"(?:[a-z][a-z_]*|\d+)"
_SIZE = rf"{_ATOM}(?:\s*[*/]\s*{_ATOM})*"
SHAPE = re.compile(rf"(?<!\w)\((?:\.\.\.|{_SIZE})(?:,\s*{_SIZE})*,?\)")
TYPE = re.compile(rf"\b({'|'.join(NUMBER_TYPES)})\b")


class UnclaimedError(Exception):
    """A shape stands where nothing can be compared with it."""


@dataclass(frozen=True)
class Claim:
    """One shape in the source, and what it is said of."""

    file: str
    function: str  # the function or class it stands in
    kind: str  # argument, return, local or field
    subject: str  # the argument's, local's or field's name; "" for a return
    part: str  # "" for the whole, "each", "texts arrays", or the name of a part
    text: str  # the shape, or "scalar"
    types: tuple[str, ...]  # number types allowed, none for any
    line: int
    column: int  # where text starts
    statement: int = 0  # first line of the statement, for locals and returns

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function} {self.kind} {self.subject} {self.part} {self.text}"


# Reading the source ---------------------------------------------------------------------------------------------------


@dataclass
class Source:
    """A module's claims, and its code without comments and docstrings, which says whether two modules run alike."""

    claims: list[Claim]
    code: str


def comments(source: str) -> Iterator[tuple[int, int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.start[1], token.string


def _types_after(text: str, end: int, stop: int) -> tuple[str, ...]:
    return tuple(TYPE.findall(text[end:stop].split(";")[0]))


def _shapes(file: str, function: str, kind: str, subject: str, text: str, line: int, column: int) -> Iterator[Claim]:
    """The claims of one line of words about one subject."""
    found = [match for match in SHAPE.finditer(text) if match[0] not in NOT_SHAPES]
    # One word in parentheses is prose, unless it stands first or ends as a tuple of one does.
    found = [
        match for match in found if match.start() == 0 or "," in match[0] or text[: match.start()].endswith("each ")
    ]
    if re.match(r"scalar\b", text):
        yield Claim(file, function, kind, subject, "", "scalar", (), line, column)
    previous = 0
    for place, match in enumerate(found):
        stop = found[place + 1].start() if place + 1 < len(found) else len(text)
        lead = re.sub(r"\b(and|both|from|to|a|uint8|int8|float16)\b", " ", text[previous : match.start()])
        parts = [""] if not lead.strip() else re.findall(r"[\w.]+", lead)
        if parts[-1] == "each":
            parts = ["each"]
        elif parts[-1] == "arrays":
            parts = [" ".join(parts[-2:])]
        for part in parts:
            types = _types_after(text, match.end(), stop)
            yield Claim(file, function, kind, subject, part, match[0], types, line, column + match.start())
        previous = match.end()


def _docstring_claims(file: str, function: ast.FunctionDef, lines: list[str]) -> Iterator[Claim]:
    if not ast.get_docstring(function, clean=False):
        return
    names = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
    for number in range(function.body[0].lineno, (function.body[0].end_lineno or 0) + 1):
        line = lines[number - 1]
        match = re.match(r"\s+(\w+)(?:: |\s{2,})(?=\S)", line)
        if match and match[1] in names | {"returns"}:
            subject = "" if match[1] == "returns" else match[1]
            kind = "return" if match[1] == "returns" else "argument"
            yield from _shapes(file, function.name, kind, subject, line[match.end() :], number, match.end())
        elif prose := [found for found in SHAPE.findall(line) if "," in found and found not in NOT_SHAPES]:
            raise UnclaimedError(f"{file}:{number} {prose}: of no parameter and no return")


def _statements(tree: ast.Module) -> dict[int, tuple[ast.stmt, ast.AST]]:
    """Line -> the innermost statement there, and the function, class or module it stands in."""
    found: dict[int, tuple[ast.stmt, ast.AST]] = {}

    def visit(node: ast.AST, owner: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                found.update(dict.fromkeys(range(child.lineno, (child.end_lineno or 0) + 1), (child, owner)))
                visit(child, child if isinstance(child, ast.FunctionDef | ast.ClassDef) else owner)

    visit(tree, tree)
    return found


def _comment_claims(file: str, tree: ast.Module, source: str) -> Iterator[Claim]:
    statements = _statements(tree)
    for line, column, comment in comments(source):
        if not SHAPE.search(comment):
            continue
        match = re.match(r"#\s*(x )?(?=\()", comment)
        if match is None:
            raise UnclaimedError(f"{file}:{line} {comment}: a shape comment starts with its shape")
        if line not in statements:
            raise UnclaimedError(f"{file}:{line} {comment}: on no statement")
        statement, owner = statements[line]
        text, at = comment[match.end() :], column + match.end()
        if isinstance(statement, ast.Return):
            kind, subject = "return", ""
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            kind, subject = "local", statement.target.id
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            kind, subject = "local", statement.targets[0].id
        else:
            raise UnclaimedError(f"{file}:{line} {comment}: on a statement that makes no value")
        if isinstance(owner, ast.ClassDef):
            kind = "field"
        shape = SHAPE.match(text)
        if shape is None:
            raise UnclaimedError(f"{file}:{line} {comment}: a shape comment starts with its shape")
        types = _types_after(text, shape.end(), len(text))
        part, function = (match[1] or "").strip(), getattr(owner, "name", "")
        yield Claim(file, function, kind, subject, part, shape[0], types, line, at, statement.lineno)


def _without_words(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def read(file: str, source: str) -> Source:
    """Every claim of a module. Raises UnclaimedError for a shape that nothing can be compared with."""
    tree = ast.parse(source)
    claims = list(_comment_claims(file, tree, source))
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            claims += _docstring_claims(file, node, lines)
    return Source(claims, _without_words(tree))


# Watching it run ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A value's shape and number type."""

    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class Parts:
    """A value made of several: a tuple, a list, a named tuple or a mapping."""

    kind: str  # the named tuple's class, or ""
    items: tuple[tuple[str, "Seen | Parts | None"], ...]


Value = Seen | Parts | None


def describe(value: Any) -> Value:
    if isinstance(value, np.ndarray | np.generic):
        return Seen(value.shape, value.dtype.name)
    if isinstance(value, bool | str) or value is None:
        return None
    if isinstance(value, int | float):
        return Seen((), type(value).__name__)
    if isinstance(value, Mapping):
        return Parts("", tuple((name, describe(item)) for name, item in value.items()))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return Parts(type(value).__name__, tuple((name, describe(item)) for name, item in value._asdict().items()))
    if isinstance(value, tuple | list):
        return Parts("", tuple(("", describe(item)) for item in value))
    return None


@dataclass
class Call:
    """What one call of a function was given, made on its way and returned."""

    file: str
    function: str
    arguments: dict[str, Value]
    numbers: dict[str, int]  # whole numbers given by name
    tokens: int | None  # length of the text in hand, where one is
    assigned: list[tuple[int, str, Value]] = field(default_factory=list)  # line of the statement, name, value
    returned: tuple[int, Value] | None = None


class _Statements(ast.NodeVisitor):
    """Line -> (first line, name assigned) for assignments to a name; returns have the name ''."""

    def __init__(self) -> None:
        self.at: dict[int, tuple[int, str]] = {}

    def _mark(self, node: ast.stmt, name: str) -> None:
        self.at |= dict.fromkeys(range(node.lineno, (node.end_lineno or 0) + 1), (node.lineno, name))

    def visit_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.targets[0], ast.Name):
            self._mark(node, node.targets[0].id)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name) and node.value is not None:
            self._mark(node, node.target.id)

    def visit_Return(self, node: ast.Return) -> None:
        self._mark(node, "")


def watch(folder: Path, run: Callable[[], object]) -> list[Call]:
    """Run something and keep what every function of the modules in this folder was given, made and returned."""
    statements: dict[str, dict[int, tuple[int, str]]] = {}
    for path in folder.glob("*.py"):
        visitor = _Statements()
        visitor.visit(ast.parse(path.read_text()))
        statements[str(path)] = visitor.at
    calls: list[Call] = []
    running: dict[FrameType, int | None] = {}

    def follow(frame: FrameType, event: str, argument: Any) -> Any:
        at = statements.get(frame.f_code.co_filename)
        a_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED and not frame.f_code.co_name.startswith("<")
        if event != "call" or at is None or not a_function:
            return None
        given = dict(frame.f_locals)
        numbers = {name: value for name, value in given.items() if type(value) is int}
        grid = given.get("grid")
        if "block" in given or grid is not None:  # None stands for the whole row
            numbers["block"] = (grid.block if grid is not None else given["block"]) or given["weight"].shape[-1]
        above = frame.f_back
        while above is not None and above not in running:
            above = above.f_back
        tokens = running[above] if above is not None else None
        tokens = len(given["ids"]) if isinstance(given.get("ids"), np.ndarray) else tokens
        running[frame] = tokens
        call = Call(
            Path(frame.f_code.co_filename).name,
            frame.f_code.co_name,
            {name: describe(value) for name, value in given.items()},
            numbers,
            tokens,
        )
        calls.append(call)
        current = at.get(frame.f_lineno)

        def step(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal current
            new = at.get(frame.f_lineno)
            if event in ("line", "return") and current and current[1] and (new != current or event == "return"):
                call.assigned.append((current[0], current[1], describe(frame.f_locals.get(current[1]))))
            if event == "return" and new is not None and new[1] == "":
                call.returned = new[0], describe(argument)
            if event in ("line", "return"):
                current = new
            if event == "return":
                running.pop(frame, None)
            return step

        return step

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        run()
    finally:
        sys.settrace(before)
    return list({repr(call): call for call in calls}.values())


# Comparing ------------------------------------------------------------------------------------------------------------


@cache
def _parsed(size: str) -> ast.expr:
    return ast.parse(size, mode="eval").body


def _solve(size: ast.expr, real: int, known: dict[str, int]) -> bool | None:
    """Whether an expression is this size; None if too little is known. One unknown letter becomes known."""

    def value(node: ast.expr) -> Fraction | str | None:
        """A number, the one unknown name, or None for anything else."""
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        if isinstance(node, ast.Name):
            return Fraction(known[node.id]) if node.id in known else node.id
        assert isinstance(node, ast.BinOp)
        left, right = value(node.left), value(node.right)
        if isinstance(left, Fraction) and isinstance(right, Fraction):
            return left * right if isinstance(node.op, ast.Mult) else left / right
        return None

    result = value(size)
    if isinstance(result, Fraction):
        return result == real
    if isinstance(result, str):
        known[result] = real
        return True
    assert isinstance(size, ast.BinOp)
    left, right = value(size.left), value(size.right)
    if isinstance(left, str) and isinstance(right, Fraction):
        name, answer = left, real / right if isinstance(size.op, ast.Mult) else real * right
    elif isinstance(right, str) and isinstance(left, Fraction) and real:
        name, answer = right, real / left if isinstance(size.op, ast.Mult) else left / real
    else:
        return None
    if answer.denominator != 1 or answer < 1:
        return False
    known[name] = int(answer)
    return True


def _match(claim: Claim, seen: Seen, known: dict[str, int], lead: list[tuple[int, ...]]) -> bool | None:
    """Whether a claim fits one value; None if too little is known yet."""
    if claim.text == "scalar":
        return seen.shape == ()
    if claim.types and seen.type not in claim.types:
        return False
    inside = claim.text[1:-1].strip().rstrip(",")
    sizes, shape = inside.split(","), seen.shape
    if sizes[0].strip() == "...":
        sizes = sizes[1:]
        if len(sizes) > len(shape):
            return False
        cut = len(shape) - len(sizes)
        if not lead:
            lead.append(shape[:cut])
        if lead[0] != shape[:cut]:
            return False
        shape = shape[cut:]
    if len(sizes) != len(shape):
        return False
    results = [_solve(_parsed(size.strip()), real, known) for size, real in zip(sizes, shape, strict=True)]
    return False if False in results else None if None in results else True


def _subjects(claim: Claim, value: Value, known: dict[str, int]) -> list[Value]:
    """What exactly a claim is of: the value itself, each of its parts, or the part it names."""
    if claim.part == "":
        return [value]
    if not isinstance(value, Parts):
        return [None]
    if claim.part == "each":
        return [item for _, item in value.items]
    if claim.part.endswith(" arrays"):
        count = claim.part.split()[0]
        return (
            [item for _, item in value.items] if known.setdefault(count, len(value.items)) == len(value.items) else []
        )
    if not any(name for name, _ in value.items):  # of each of several
        return [found for _, item in value.items for found in _subjects(claim, item, known)]
    return [item for name, item in value.items if name == claim.part]


def disagreements(claims: list[Claim], calls: list[Call], sizes: Mapping[str, int]) -> tuple[list[str], set[Claim]]:
    """Every place where a claim and what was watched disagree, and the claims that were held against something."""
    for claim in claims:
        if unknown := set(re.findall(r"[a-z_]+", claim.text)) - LETTERS - set(SIZES) - {"scalar"}:
            return [f"{claim}: {unknown} is neither a size of the config nor a letter"], set()
    of: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims:
        of.setdefault((claim.file, claim.function), []).append(claim)
    fields = {
        claim.function: [c for c in claims if c.kind == "field" and c.function == claim.function] for claim in claims
    }
    wrong: list[str] = []
    used: set[Claim] = set()
    for call in calls:
        mine = of.get((call.file, call.function), [])
        known = dict(sizes) if call.tokens is None else {**sizes, "tokens": call.tokens}
        known = {name: size for name, size in known.items() if name not in SHARED.get(call.function, ())}
        known |= {name: size for name, size in call.numbers.items() if name in LETTERS | set(SIZES)}
        pairs: list[tuple[Claim, Value]] = []
        for claim in mine:
            if claim.kind == "argument":
                values = [call.arguments.get(claim.subject)]
            elif claim.kind == "return":
                stated = call.returned and (claim.statement in (0, call.returned[0]))
                values = [call.returned[1]] if stated and call.returned else []
            else:
                values = [
                    value for line, name, value in call.assigned if (line, name) == (claim.statement, claim.subject)
                ]
            if values == [None] and claim.kind == "argument":
                continue  # an argument left out
            for value in values:
                subjects = _subjects(claim, value, known)
                if not subjects:
                    wrong.append(f"{claim}: no such part")
                pairs += [(claim, subject) for subject in subjects]
        for value in [*call.arguments.values(), call.returned and call.returned[1]]:
            if isinstance(value, Parts) and value.kind:
                pairs += [
                    (c, item) for c in fields.get(value.kind, []) for name, item in value.items if name == c.subject
                ]
        lead: list[tuple[int, ...]] = []
        while pairs:
            later = []
            for claim, value in pairs:
                if not isinstance(value, Seen):
                    wrong.append(f"{claim}: is no array")
                    continue
                each = known | {"tokens_i": value.shape[0]} if "tokens_i" in claim.text and value.shape else known
                fits = _match(claim, value, each, lead)
                if fits is None:
                    later.append((claim, value))
                elif not fits:
                    letters = {name: size for name, size in known.items() if re.search(rf"\b{name}\b", claim.text)}
                    wrong.append(f"{claim}: is {value.shape} {value.type}, where {letters}")
                else:
                    used.add(claim)
            if len(later) == len(pairs):
                wrong += [f"{claim}: too little is known to check it" for claim, _ in later]
                break
            pairs = later
    return wrong, used


def load(package: str, module: str) -> Any:
    return importlib.import_module(f"{package}.{module}")
