"""How the diagnosis does on code that is not the reference: which mistake was put in, and which one it named.

python tests/conformance/confusion.py --json twin.json
python tests/conformance/confusion.py --suite embeddinggemma-300m --checkpoint FOLDER --json real.json
python tests/conformance/confusion.py --merge twin.json real.json --out spec

The example ports under tests/ports make each mistake of their --list, through the command protocol, and verify judges
them as it judges anybody's port: final vectors with verify's prompts and with the port's own, and laws. A mistake
counts where the suite says that it lies SEEN bounds or more from the truth at that precision; what lies nearer is
hidden by the contract and may conform, but may not be called by another name. Exit status 1 where a promise is broken.

Of the twin every case is asked. On the real model, where a text takes seconds, each mistake is tried on the cases that
show it best and on a few short ones.
"""

import argparse
import json
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from refembed.conformance.defects import DEFECTS
from refembed.conformance.port import PROTOCOL, CommandPort
from refembed.conformance.suite import SEEN, Suite, golden_folder, open_suite
from refembed.conformance.verify import FAILED, Report, verify

PORTS = Path(__file__).parents[1] / "ports"
PRECISIONS = ("float32", "bfloat16", "int8")
LEVELS = ("vectors", "prompts", "laws")
PATIENCE = 600  # seconds for one answer: a batch of the real model's longest texts
NAMED_FIRST = 0.95  # promised of the mistakes that count
ENOUGH = 10  # mistakes outside the catalogue, and pairs, for the promise about them to mean something
PAIRS = (  # in different places, so that both are made
    ("causal", "dense-missing"),
    ("window-ignored", "gelu-exact"),
    ("bos-missing", "pool-last"),
    ("lower-cased", "eos-missing"),
    ("rotary-scaled", "pool-without-bos"),
    ("norm-offset-missing", "not-normalised"),
    ("scores-not-scaled", "embedding-scale-missing"),
    ("newlines-lost", "window-halved-1"),
    ("special-tokens-as-text", "truncated-not-normalised"),
    ("prompt-missing", "gate-and-up-swapped"),
    ("layers-first-full", "norm-final-missing"),
    ("rotary-interleaved", "eos-twice"),
    ("query-key-norm-missing", "truncated-at-the-end"),
    ("text-stripped", "cut-at-a-quarter"),
    ("pads-pooled", "gelu-is-silu"),
)
SHORT_CASES = (
    "prompt-query", "prompt-document", "prompt-titled", "text-spaces-trailing", "text-newlines", "text-capitals",
    "text-special-eos", "text-combining", "text-empty", "unrelated-0", "length-three", "dimensions-*",
    "batch-small-gap",
)  # fmt: skip

FAMILY = {defect.id: defect.family for defect in DEFECTS}
RIGHT, DEFECT, CONTROL, OTHER, PAIR = "right", "defect", "control", "other", "pair"
Group = tuple[str, str, str]  # suite, port, precision


@dataclass(frozen=True)
class Run:
    """What verify said of a port with a mistake.

    kind      one of RIGHT, DEFECT, CONTROL, OTHER, PAIR
    id        of the mistake; of both, with a + between
    counts    it lies far enough from the truth to be seen at this precision; for OTHER, whose distance nobody knows, so
              does everything in float32
    named     the mistakes that explain it, best first
    failed    how many answers were none
    """

    suite: str
    port: str
    precision: str
    kind: str
    id: str
    counts: bool
    conforms: bool
    named: tuple[str, ...]
    failed: int = 0

    @classmethod
    def of(cls, report: Report, suite: str, port: str, kind: str, id: str, counts: bool) -> "Run":
        named = tuple(one.defect.id for one in report.explanations)
        failed = sum(outcome.verdict == FAILED for outcome in report.outcomes)
        return cls(suite, port, report.precision, kind, id, counts, report.conforms, named, failed)

    @property
    def said(self) -> str:
        """The verdict in a word: what is tallied."""
        if self.failed:
            return "failed"
        if self.conforms:
            return "conforms"
        if self.kind in (RIGHT, CONTROL):
            return "accused"
        if not self.named:
            return "unknown"
        if self.named[0] in self.id.split("+"):
            return "first"
        return "third" if self.kind == DEFECT and self.id in self.named[:3] else "wrong"


# ----------------------------------------------------------------------------------------------------------------------
# Running


class MistakenPort(CommandPort):
    """A program that makes whatever mistake it is told to, also after it had to be started again."""

    mistake = ""

    def start(self) -> dict[str, Any]:
        answer = super().start()
        return self.make(self.mistake) if self.mistake else answer

    def make(self, mistake: str) -> dict[str, Any]:
        self.mistake = mistake
        return self.call({"call": "start", "protocol": PROTOCOL, "defect": mistake})


def program(port: str, scratch: Path) -> list[str]:
    """The words that start a port, without its checkpoint."""
    if port == "transformers":
        return [sys.executable, str(PORTS / "transformers_port.py")]
    target = scratch / "twin"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        sys.exit("no C compiler; install gcc or clang, or leave the port c out")
    source = PORTS / "c" / "twin.c"
    subprocess.run([compiler, "-std=c99", "-O2", "-o", target, source, "-lm"], check=True)
    return [str(target)]


def cases_for(suite: Suite, kind: str, ids: Sequence[str]) -> list[str]:
    """Patterns of the cases a mistake is tried on."""
    if suite.name == "twin":
        return ["*"]
    best = [case for id in ids if id in suite.manifest["defects"] for case in suite.defect_vectors(id)]
    padding = any(FAMILY.get(id, "")[:1] == "C" or FAMILY.get(id) == "B6" for id in ids)
    together = [case.id for case in suite.cases if len(case.texts) > 1] if padding or kind == RIGHT else []
    return [*SHORT_CASES, *best, *together]


def tasks(listed: dict[str, Any], suite: Suite, precision: str) -> Iterator[tuple[str, str, bool]]:
    """(kind, id, whether it counts) of everything a port can be told to do."""

    def seen(id: str) -> bool:
        return suite.separation(id, precision) >= SEEN

    yield RIGHT, "", True
    yield from ((CONTROL, id, True) for id in listed["controls"])
    yield from ((DEFECT, id, seen(id)) for id in listed["defects"])
    yield from ((OTHER, id, precision == "float32") for id in listed["others"])
    for pair in PAIRS:
        if set(pair) <= set(listed["defects"]):
            yield PAIR, "+".join(pair), any(map(seen, pair))


def run_port(suite: Suite, port: str, words: list[str], checkpoint: Path, precision: str) -> Iterator[Run]:
    """Every run of a port at a precision."""
    listed = json.loads(subprocess.run([*words, "--list"], capture_output=True, check=True, text=True).stdout)
    command = MistakenPort(shlex.join([*words, str(checkpoint), "--precision", precision]), PATIENCE)
    try:
        for kind, id, counts in tasks(listed, suite, precision):
            command.make(id)
            cases = cases_for(suite, kind, id.split("+"))
            run = Run.of(verify(suite, command, precision, LEVELS, cases), suite.name, port, kind, id, counts)
            print(port, precision, kind, id, run.said, *run.named[:3], file=sys.stderr, flush=True)
            yield run
    finally:
        command.close()


def versions() -> dict[str, str]:
    found = {package: version(package) for package in ("refembed", "numpy", "torch", "transformers", "tokenizers")}
    return {"python": platform.python_version(), **found}


def save(file: Path, runs: Iterable[Run]) -> None:
    content = {"format": 1, "versions": versions(), "runs": [asdict(run) for run in runs]}
    file.write_text(json.dumps(content, indent=1) + "\n")


def load(files: Iterable[Path]) -> tuple[list[Run], dict[str, str]]:
    """The runs of several files, of a group those of the last file that has it; and the versions of all."""
    groups: dict[Group, list[Run]] = {}
    used: dict[str, str] = {}
    for file in files:
        content = json.loads(file.read_text())
        groups |= grouped(Run(**run | {"named": tuple(run["named"])}) for run in content["runs"])
        for package, number in content["versions"].items():
            used[package] = number if used.get(package, number) == number else f"{used[package]} and {number}"
    return [run for runs in groups.values() for run in runs], used


# ----------------------------------------------------------------------------------------------------------------------
# Scoring


def grouped(runs: Iterable[Run]) -> dict[Group, list[Run]]:
    groups: dict[Group, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.suite, run.port, run.precision), []).append(run)
    return groups


def tally(runs: Iterable[Run], *kinds: str, counts: bool | None = None) -> Counter[str]:
    """Verdict -> how many of these kinds got it."""
    return Counter(run.said for run in runs if run.kind in kinds and counts in (None, run.counts))


def exceptions(runs: Iterable[Run]) -> list[Run]:
    """What is off the diagonal: every run whose verdict is not the one that is wanted."""
    wanted = {
        RIGHT: ("conforms",),
        CONTROL: ("conforms",),
        DEFECT: ("first",),
        OTHER: ("unknown",),
        PAIR: ("unknown", "first"),
    }
    hidden = ("conforms", "unknown", "first")
    return [run for run in runs if run.said not in (wanted[run.kind] if run.counts else hidden)]


def broken(runs: Sequence[Run]) -> list[str]:
    """The promises that a group of runs breaks, a sentence each."""
    seen, hidden = tally(runs, DEFECT, counts=True), tally(runs, DEFECT, counts=False)
    others, pairs = tally(runs, OTHER), tally(runs, PAIR)
    count = seen.total()
    said = [
        (not any(run.kind == RIGHT for run in runs), "the right port was not run"),
        (count == 0, "no mistake was tried that counts"),
        (seen["first"] < NAMED_FIRST * count, f"{seen['first']} of {count} mistakes are named first"),
        (
            seen["first"] + seen["third"] < count,
            f"{seen['first'] + seen['third']} of {count} mistakes are among the first three named",
        ),
        (hidden["wrong"] + hidden["third"] > 0, "a mistake that hides in the contract is called by another name"),
        (others["wrong"] > 0, f"{others['wrong']} mistakes outside the catalogue are called by a name of it"),
        (others.total() < ENOUGH, f"{others.total()} mistakes outside the catalogue were tried, {ENOUGH} needed"),
        (pairs["wrong"] > 0, f"{pairs['wrong']} pairs are called by a third name"),
        (pairs.total() < ENOUGH, f"{pairs.total()} pairs were tried, {ENOUGH} needed"),
        (tally(runs, PAIR, OTHER, counts=True)["conforms"] > 0, "a pair, or a mistake outside the catalogue, conforms"),
        (tally(runs, RIGHT, CONTROL)["accused"] > 0, "a right port is accused"),
        (any(run.failed for run in runs), "a port failed to answer"),
    ]
    return [sentence for holds, sentence in said if holds]


# ----------------------------------------------------------------------------------------------------------------------
# Words


HEAD = """# Confusion matrix

What `refembed verify` says of ports that were given one mistake each. The ports are code that is not the reference:
[`twin.c`](../tests/ports/c/twin.c), in C, which makes those mistakes that are a line or two of it, and
[`transformers_port.py`](../tests/ports/transformers_port.py), transformers' own model changed from outside. Each is
asked through the command protocol for final vectors, with verify's prompts and with its own, and for laws; the
diagnosis is shown no tokens and no stages.

A mistake *counts* where it lies 3 bounds or more from the truth at the case that shows it best
([defects.md](defects.md) has the distances); nearer, the contract *hides* it. Promised is:

- of those that count 95 % are named first, and all are among the first three that are named;
- a hidden one conforms, is named or is unknown, and is never called by another name;
- a mistake that the catalogue does not know is unknown;
- two at once are unknown, or one of the two;
- no right port is accused, nor one with a change that must not matter.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return [*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows), ""]


def totals(groups: dict[Group, list[Run]]) -> list[str]:
    """Of each group: how its mistakes were named, then everything else."""
    defects, rest = [], []
    for group, runs in groups.items():
        seen, pairs = tally(runs, DEFECT, counts=True), tally(runs, PAIR)
        others, same = tally(runs, OTHER), tally(runs, RIGHT, CONTROL)
        three = seen["first"] + seen["third"]
        hidden = tally(runs, DEFECT, counts=False).total()
        share = f"{100 * seen['first'] / max(1, seen.total()):.1f} %"
        missed = (seen["conforms"], seen["unknown"], seen["wrong"] + seen["failed"])
        defects.append((*group, seen.total(), seen["first"], share, three, *missed, hidden))
        rest.append(
            (*group, others["unknown"], others["conforms"], others["wrong"], pairs["unknown"], pairs["first"],
             pairs["conforms"], pairs["wrong"], same["conforms"], same["accused"])
        )  # fmt: skip
    where = ("suite", "port", "precision")
    return [
        "## Mistakes of the catalogue\n",
        *table(
            (*where, "count", "first", "share", "first three", "conform", "unknown", "other name only", "hidden"),
            defects,
        ),
        "## Everything else\n",
        "*Outside* are mistakes outside the catalogue, *pairs* two of it at once, *same* the right port and changes",
        "that must not matter.\n",
        *table(
            (*where, "outside: unknown", "conform", "named", "pairs: unknown", "one of the two", "conform",
             "third name", "same: conform", "accused"),
            rest,
        ),
    ]  # fmt: skip


def diagonal(groups: dict[Group, list[Run]]) -> list[str]:
    """Named first of those that count, by family."""
    letters = sorted({family[0] for family in FAMILY.values()})

    def cell(runs: list[Run], letter: str) -> str:
        found = tally([run for run in runs if FAMILY.get(run.id, " ")[0] == letter], DEFECT, counts=True)
        return f"{found['first']} of {found.total()}" if found else "-"

    rows = [(*group, *(cell(runs, letter) for letter in letters)) for group, runs in groups.items()]
    return [
        "## On the diagonal\n",
        "Named first, of those that count, by family: A direction of attention, B window and layer pattern, C padding,",
        "D pooling, dense head and output, E prompts and tokens, F inner arithmetic, G backends.\n",
        *table(("suite", "port", "precision", *letters), rows),
    ]


def off_diagonal(groups: dict[Group, list[Run]]) -> list[str]:
    rows = [
        (*group, run.kind if run.counts else f"{run.kind}, hidden", run.id or "nothing", words(run))
        for group, runs in groups.items()
        for run in exceptions(runs)
    ]
    head = ("suite", "port", "precision", "kind", "put in", "named, best first")
    return ["## Off the diagonal\n", *(table(head, rows) if rows else ["Nothing.\n"])]


def words(run: Run) -> str:
    return ", ".join(run.named[:4]) or run.said


def hidden(groups: dict[Group, list[Run]]) -> list[str]:
    rows = [
        (*group, run.id, words(run))
        for group, runs in groups.items()
        for run in runs
        if run.kind == DEFECT and not run.counts
    ]
    intro = "Too near the truth for that precision's bound; what was said of them all the same.\n"
    head = ("suite", "port", "precision", "put in", "said")
    return ["## Hidden by the contract\n", intro, *table(head, rows)] if rows else []


def verdict(groups: dict[Group, list[Run]]) -> list[str]:
    lines = [f"{' '.join(group)}: {sentence}" for group, runs in groups.items() for sentence in broken(runs)]
    return ["## Promises broken\n", *(f"- {line}" for line in lines), ""] if lines else ["Every promise is kept.\n"]


def commands(groups: dict[Group, list[Run]]) -> list[str]:
    """What to type for these runs and this page."""
    suites = dict.fromkeys(suite for suite, _, _ in groups)
    lines = []
    for suite in suites:
        ports = ",".join(dict.fromkeys(port for name, port, _ in groups if name == suite))
        where = "" if suite == "twin" else f" --suite {suite} --checkpoint FOLDER"
        lines.append(f"$ python tests/conformance/confusion.py{where} --ports {ports} --json {suite}.json")
    files = " ".join(f"{suite}.json" for suite in suites)
    merge = f"$ python tests/conformance/confusion.py --merge {files} --out spec"
    return ["Made by\n", "```console", *lines, merge, "```\n"]


def page(runs: Iterable[Run], used: dict[str, str]) -> str:
    groups = grouped(runs)
    made_with = f"with {', '.join(f'{package} {number}' for package, number in used.items())}.\n"
    parts = (commands, lambda _: [made_with], verdict, totals, diagonal, off_diagonal, hidden)
    return "\n".join([HEAD, *(line for part in parts for line in part(groups))]).rstrip() + "\n"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--suite", default="twin")
    arguments.add_argument("--checkpoint", type=Path, help="the folder the ports load; the twin's own where not given")
    arguments.add_argument("--ports", help="c,transformers for the twin, else transformers")
    arguments.add_argument("--precisions", help="float32,bfloat16,int8 for the twin, else float32")
    arguments.add_argument("--json", type=Path, help="save the runs here, to merge them later")
    arguments.add_argument("--merge", type=Path, nargs="+", help="run nothing: take the runs of these files")
    arguments.add_argument("--out", type=Path, help="the folder where confusion.md is written")
    given = arguments.parse_args()
    if given.merge:
        runs, used = load(given.merge)
    else:
        runs, used = run_all(given), versions()
    text = page(runs, used)
    print(text)
    if given.out:
        (given.out / "confusion.md").write_text(text)
    return int(any(map(broken, grouped(runs).values())))


def run_all(given: argparse.Namespace) -> list[Run]:
    suite = open_suite(golden_folder(given.suite))
    checkpoint = given.checkpoint or suite.folder / "checkpoint"
    ports, precisions = (
        (("c", "transformers"), PRECISIONS) if given.suite == "twin" else (("transformers",), ("float32",))
    )
    ports = given.ports.split(",") if given.ports else ports
    precisions = given.precisions.split(",") if given.precisions else precisions
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as scratch:
        for port in ports:
            words = program(port, Path(scratch))
            for precision in precisions:
                runs += run_port(suite, port, words, checkpoint, precision)
                if given.json:
                    save(given.json, runs)  # after each precision, since a later one may be cut short
    return runs


if __name__ == "__main__":
    sys.exit(main())
