"""Source as it stands, highlighted, a line an address, and beside each line that was changed its witness."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from html import escape
from pathlib import Path
from typing import Any

from book import REFERENCE, BookError, Definition
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer, TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

FORMATTER = HtmlFormatter(nowrap=True)
BESIDE = (
    "beside a line: golden cases that fail if it is changed: <i>all</i> of them at every change tried, or the one that "
    "sees the most changes and <i>+</i> how many others see some"
)


@dataclass(frozen=True)
class Witness:
    """spec/witness.json and training_witness.json: what was changed on each line, and which golden cases fail for it.

    record   mutant id -> line, code, change, fails, raises, and of how many cases asked
    argued   mutant id -> why it fails none
    outside  module or module.name -> why it was not changed
    """

    record: Mapping[str, Any]
    argued: Mapping[str, str]
    outside: Mapping[str, str]

    @cached_property
    def lines(self) -> dict[tuple[str, int], list[tuple[str, Any]]]:
        """(module, line) -> its mutants."""
        found: dict[tuple[str, int], list[tuple[str, Any]]] = {}
        for id, entry in self.record.items():
            found.setdefault((id.partition(".")[0], entry["line"]), []).append((id, entry))
        return found

    @cached_property
    def failing(self) -> Counter[str]:
        """How many lines each case watches over: the fewer, the more its failing says."""
        return Counter(
            case for line in self.lines.values() for case in {case for _, entry in line for case in entry["fails"]}
        )


def read_witness(root: Path) -> Witness:
    """The records, of today's source and golden vectors; BookError where they are not."""
    sys.path[:0] = [folder for name in ("tests/conformance", "golden") if (folder := str(root / name)) not in sys.path]
    import training_witness
    import witness
    from witness_mutants import OUTSIDE

    record: dict[str, Any] = {}
    for made_by, edition in ((witness, witness.golden_edition()), (training_witness, training_witness.edition())):
        file = root / "spec" / f"{made_by.__name__}.json"
        text = file.read_text()
        part = witness.read(text)
        if moved := moved_lines(root, part):
            lines = "\n".join(moved)
            raise BookError(f"{file.name} is not of the code as it is; make it anew ({made_by.__file__}):\n{lines}")
        if f'"golden": "{edition}"' not in text:
            raise BookError(f"{file.name} was made with other golden vectors; make it anew")
        asked = {id: len(made_by.cases_of(id.partition(".")[0])) for id in part}
        record |= {id: entry | {"asked": asked[id]} for id, entry in part.items()}
    argued = witness.EQUIVALENT | training_witness.EQUIVALENT
    missing = witness.MISSING | training_witness.MISSING
    argued |= {id: f"golden/ lacks {case}" for case, ids in missing.items() for id in ids}
    functions = {id.partition(":")[0] for id in record}
    return Witness(record, argued, {name: why for name, why in OUTSIDE.items() if name not in functions})


def moved_lines(root: Path, record: Mapping[str, Any]) -> list[str]:
    """Mutants whose line is another now. Whether a line lacks mutants takes longer, and tests/conformance asks it."""
    modules = {id.partition(".")[0] for id in record}
    source = {module: (root / REFERENCE / f"{module}.py").read_text().splitlines() for module in modules}

    def code(id: str, entry: Mapping[str, Any]) -> str:
        line = source[id.partition(".")[0]][entry["line"] - 1 : entry["line"]]
        return "".join(line).partition("  # ")[0].strip()

    return [
        f"{REFERENCE}/{id.partition('.')[0]}.py: {id}"
        for id, entry in record.items()
        if code(id, entry) != entry["code"]
    ]


@cache
def highlighted(name: str, text: str) -> tuple[str, ...]:
    """HTML of a file's lines. A file is shown whole, and its functions once more in their chapters."""
    lexer = lexer_of(Path(name))
    lexer.stripnl = lexer.ensurenl = False
    return tuple(highlight(text, lexer, FORMATTER).split("\n"))


def lexer_of(file: Path) -> Any:
    try:
        return PythonLexer() if file.suffix == ".py" else get_lexer_for_filename(file.name)
    except ClassNotFound:
        return TextLexer()


def listing(root: Path, file: Path, witness: Witness, first: int = 1, last: int | None = None) -> str:
    """HTML of a file's lines first to last, counted from 1."""
    lines = highlighted(file.name, (root / file).read_text())
    last = last or len(lines) - (not lines[-1])
    rows = [row(file, number, lines[number - 1], witness) for number in range(first, last + 1)]
    return f'<div class="listing highlight">\n{chr(10).join(rows)}\n</div>'


def address(file: Path, line: int) -> str:
    return f"{file.stem}-{line}"


def row(file: Path, number: int, code: str, witness: Witness) -> str:
    here = witness.lines.get((file.stem, number), []) if file.parent == REFERENCE else []
    beside = witnesses(here, witness) if here else ""
    id = address(file, number)
    indent = len(code) - len(code.lstrip(" "))
    return (
        f'<div class="line" id="{id}"><a class="number" href="#{id}" aria-label="line {number}">{number}</a>'
        f'<code style="--indent: {indent}ch">{code or " "}</code>{beside}</div>'
    )


def witnesses(here: Sequence[tuple[str, Any]], witness: Witness) -> str:
    """The cases that fail when this line is changed, the most telling first; opened, every change that was tried."""
    count = Counter(case for _, entry in here for case in entry["fails"])
    order = sorted(count, key=lambda case: (-count[case], witness.failing[case], case))
    asked = here[0][1]["asked"]
    changes = "".join(change(id, entry, witness, asked) for id, entry in here)
    summary = f"<b>{escape(order[0])}</b> +{len(order) - 1}" if len(order) > 1 else f"<b>{''.join(order)}</b>"
    if {len(entry["fails"]) for _, entry in here} <= {0, asked}:
        summary = f"all {asked} cases" if order else "no case"
    killed = sum(bool(entry["fails"]) for _, entry in here)
    return (
        f'<details class="witness"><summary>{summary}</summary>'
        f"<p>Of {len(here)} changes of this line, golden cases see {killed}:</p><ul>{changes}</ul></details>"
    )


def change(id: str, entry: Mapping[str, Any], witness: Witness, asked: int) -> str:
    said = cases(entry["fails"], asked) + (", raising" if entry["raises"] else "")
    said += f": {escape(witness.argued[id])}" if id in witness.argued else ""
    return f"<li><code>{escape(entry['change'])}</code> {said}</li>"


def cases(names: Sequence[str], asked: int) -> str:
    """How many cases, and which, unless they are all that were asked."""
    if not names:
        return "none"
    if len(names) == asked:
        return f"all {asked}"
    shown = ", ".join(names) if len(names) <= 6 else ", ".join(names[:3]) + f" and {len(names) - 3} more"
    return f"{len(names)} of {asked}: {escape(shown)}"


def function_listing(root: Path, one: Definition, witness: Witness, source: str) -> str:
    """A function or class of a chapter: where it stands, its lines, and what watches over it as a whole."""
    watched = any((one.module, number) in witness.lines for number in range(one.first, one.last + 1))
    watched &= one.file.parent == REFERENCE
    note = BESIDE if watched else whole(one, witness)
    return (
        f'<figure class="code" id="code-{one.name}"><figcaption><code>{one.name}</code> '
        f'<a href="{source}#{address(one.file, one.first)}">{one.file}, line {one.first}</a>'
        f"{f' <span>{note}</span>' if note else ''}</figcaption>\n"
        f"{listing(root, one.file, witness, one.first, one.last)}\n</figure>"
    )


def whole(one: Definition, witness: Witness) -> str:
    """What is said of a definition whose lines were not changed one by one."""
    if one.witnesses:
        return "; ".join(f"if it is changed, golden/{folder} {case} fails" for folder, case in one.witnesses)
    if one.tests:
        return "; ".join(f"if it is changed, {file} {test} fails" for file, test in one.tests)
    reason = witness.outside.get(f"{one.module}.{one.name}") or witness.outside.get(one.module)
    return f"not changed for the witness: {reason}" if reason and one.file.parent == REFERENCE else ""
