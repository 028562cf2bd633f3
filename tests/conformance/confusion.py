"""How the diagnosis does on code that is not the reference: which mistake was put in, and which one it named.

python tests/conformance/confusion.py --json twin.json
python tests/conformance/confusion.py --suite embeddinggemma-300m --checkpoint FOLDER --json real.json
python tests/conformance/confusion.py --merge twin.json real.json --out spec

The example ports under tests/ports make each mistake of their --list, through the command protocol, and verify judges
them as it judges anybody's port: final vectors with verify's prompts and with the port's own, and laws. A mistake
counts where the suite says that it lies SEEN bounds or more from the truth at that precision; what lies nearer is
hidden by the contract and may conform, but may not be called by another name. Exit status 1 where a promise is broken,
or where one of PROMISED is missing of what is merged or written; a part run alone is judged alone.

Of the twin every case is asked. On the real model, where a long text takes seconds, every mistake is asked the same
short cases, and those that long texts show also the long ones of their relatives: never only its own best cases, since
a rival whose cases are not asked cannot win.
"""

import argparse
import hashlib
import json
import math
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from refembed.conformance.defects import DEFECTS
from refembed.conformance.port import PROTOCOL, CommandPort
from refembed.conformance.suite import SEEN, Suite, golden_folder, open_suite
from refembed.conformance.verify import FAILED, Report, verify

PORTS = Path(__file__).parents[1] / "ports"
SOURCES = {"c": PORTS / "c" / "twin.c", "transformers": PORTS / "transformers_port.py"}
PRECISIONS = ("float32", "bfloat16", "int8")
LEVELS = ("vectors", "prompts", "laws")
PATIENCE = 600  # seconds for one answer: a batch of the real model's longest texts
NAMED_FIRST = 0.95  # promised of the mistakes that count
ENOUGH = 10  # mistakes outside the catalogue, and pairs, for the promise about them to mean something
SHORT = 80  # tokens of a case's texts together: what takes a fraction of a second
SHOWN = 4  # names of one trial that are kept
PAIRS = (  # in different places, so that both are made
    ("causal", "dense-missing"),
    ("causal", "window-halved-1"),
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
LONG = {  # family -> families whose long cases its mistakes are asked on the real model
    "B": ("B",),
    "B6": ("B", "C"),
    "C": ("C",),
    "E6": ("E6",),
    "F": ("F",),
}
LONGEST = 640  # tokens of such a case; but those of E6 and B6 show on longer ones alone
LENGTHS = ("window-of-three-quarters",)  # relatives of B, asked what B is asked
RIGHT, DEFECT, CONTROL, OTHER, PAIR = "right", "defect", "control", "other", "pair"
Group = tuple[str, str, str]  # suite, port, precision
PROMISED: frozenset[Group] = frozenset(
    {("twin", port, precision) for port in SOURCES for precision in PRECISIONS}
    | {("embeddinggemma-300m", "transformers", "float32")}
)


@dataclass(frozen=True)
class Trial:
    """What verify said of a port with a mistake.

    kind      one of RIGHT, DEFECT, CONTROL, OTHER, PAIR
    id        of the mistake; of both, with a + between
    counts    it lies far enough from the truth to be seen at this precision; for OTHER, whose distance nobody knows, so
              does everything in float32
    named     the first SHOWN mistakes that explain it, best first
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
    def of(cls, report: Report, suite: str, port: str, kind: str, id: str, counts: bool) -> "Trial":
        named = tuple(one.defect.id for one in report.explanations[:SHOWN])
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
        return [sys.executable, str(SOURCES[port])]
    target = scratch / "twin"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        sys.exit("no C compiler; install gcc or clang, or leave the port c out")
    subprocess.run([compiler, "-std=c99", "-O2", "-o", target, SOURCES[port], "-lm"], check=True)
    return [str(target)]


def cases_for(suite: Suite, kind: str, ids: Sequence[str]) -> list[str]:
    """Patterns of the cases a mistake is asked, by its family alone; the right port is asked all of any mistake."""
    if suite.name == "twin":
        return ["*"]
    tokens = {case.id: sum(map(len, suite.tokens(case))) for case in suite.cases}
    families = ["B" if id in LENGTHS else FAMILY.get(id, "") for id in ids]
    longest = math.inf if kind == RIGHT or {"E6", "B6"} & set(families) else LONGEST
    wanted = {long for family in families for long in LONG.get(family) or LONG.get(family[:1], ())}
    return [
        *SHORT_CASES,
        *(
            case
            for case, stored in stored_for(suite).items()
            if tokens[case] <= SHORT
            or (tokens[case] <= longest and (kind == RIGHT or any(one.startswith(tuple(wanted)) for one in stored)))
        ),
    ]


def stored_for(suite: Suite) -> dict[str, set[str]]:
    """case -> the families whose mistakes have their own vectors stored for it."""
    found: dict[str, set[str]] = {}
    for id, entry in suite.manifest["defects"].items():
        for case in entry["cases"]:
            found.setdefault(case, set()).add(FAMILY[id])
    return found


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


def run_port(
    suite: Suite, port: str, words: list[str], checkpoint: Path, precision: str, only: Sequence[str], jobs: int
) -> list[Trial]:
    """Every trial of a port at a precision, or only those of some ids, by as many processes as jobs."""
    listed = json.loads(subprocess.run([*words, "--list"], capture_output=True, check=True, text=True).stdout)
    wanted = [task for task in tasks(listed, suite, precision) if not only or task[1] in only]
    started = shlex.join([*words, str(checkpoint), "--precision", precision])

    def run_some(first: int) -> list[Trial]:
        command = MistakenPort(started, PATIENCE)
        try:
            return [run_task(suite, command, port, precision, *task) for task in wanted[first::jobs]]
        finally:
            command.close()

    with ThreadPoolExecutor(jobs) as pool:
        found = {(trial.kind, trial.id): trial for trials in pool.map(run_some, range(jobs)) for trial in trials}
    return [found[kind, id] for kind, id, _ in wanted]


def run_task(suite: Suite, command: MistakenPort, port: str, precision: str, kind: str, id: str, counts: bool) -> Trial:
    began = time.monotonic()
    command.make(id)
    report = verify(suite, command, precision, LEVELS, cases_for(suite, kind, id.split("+")))
    trial = Trial.of(report, suite.name, port, kind, id, counts)
    took = f"{time.monotonic() - began:.0f} s"
    print(port, precision, kind, id, trial.said, *trial.named[:3], took, file=sys.stderr, flush=True)
    return trial


# ----------------------------------------------------------------------------------------------------------------------
# Keeping


@dataclass(frozen=True)
class Made:
    """What trials were made with.

    versions   package -> number
    suites     name -> edition
    ports      name -> SHA-256 of its source
    """

    versions: dict[str, str]
    suites: dict[str, str]
    ports: dict[str, str]


def made_with(suite: Suite, ports: Iterable[str]) -> Made:
    packages = ("refembed", "numpy", "torch", "transformers", "tokenizers")
    versions = {"python": platform.python_version(), **{package: version(package) for package in packages}}
    return Made(versions, {suite.name: suite.edition}, {port: source_digest(port) for port in ports})


def source_digest(port: str) -> str:
    return hashlib.sha256(SOURCES[port].read_bytes()).hexdigest()


def save(file: Path, trials: Iterable[Trial], made: Made) -> None:
    """JSON, a trial a line: the values of its fields."""
    head = {"format": 1, **vars(made), "fields": [field.name for field in fields(Trial)]}
    lines = ",\n".join(json.dumps(astuple(trial)) for trial in trials)
    file.write_text(f'{json.dumps(head)[:-1]},\n"trials": [\n{lines}\n]}}\n')


def load(files: Iterable[Path]) -> tuple[list[Trial], Made]:
    """The trials of several files, of a group those of the last file that has it; and what all were made with."""
    groups: dict[Group, list[Trial]] = {}
    made = Made({}, {}, {})
    for file in files:
        content = json.loads(file.read_text())
        rows = (dict(zip(content["fields"], values, strict=True)) for values in content["trials"])
        groups |= grouped(Trial(**row | {"named": tuple(row["named"])}) for row in rows)
        for part, known in vars(made).items():
            for name, value in content[part].items():
                if known.setdefault(name, value) != value:
                    sys.exit(f"{file}: {name} is {value} here and {known[name]} before; run both parts again")
    return [trial for trials in groups.values() for trial in trials], made


# ----------------------------------------------------------------------------------------------------------------------
# Scoring


def grouped(runs: Iterable[Trial]) -> dict[Group, list[Trial]]:
    groups: dict[Group, list[Trial]] = {}
    for run in runs:
        groups.setdefault((run.suite, run.port, run.precision), []).append(run)
    return groups


def tally(runs: Iterable[Trial], *kinds: str, counts: bool | None = None) -> Counter[str]:
    """Verdict -> how many of these kinds got it."""
    return Counter(run.said for run in runs if run.kind in kinds and counts in (None, run.counts))


def exceptions(runs: Iterable[Trial]) -> list[Trial]:
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


def broken(runs: Sequence[Trial]) -> list[str]:
    """The promises that a group of runs breaks, a sentence each."""
    seen, hidden = tally(runs, DEFECT, counts=True), tally(runs, DEFECT, counts=False)
    others, pairs = tally(runs, OTHER), tally(runs, PAIR)
    named_others = tally(runs, OTHER, counts=True)["wrong"]
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
        (named_others > 0, f"{named_others} mistakes outside the catalogue are called by a name of it"),
        (others.total() < ENOUGH, f"{others.total()} mistakes outside the catalogue were tried, {ENOUGH} needed"),
        (pairs["wrong"] > 0, f"{pairs['wrong']} pairs are called by a third name"),
        (pairs.total() < ENOUGH, f"{pairs.total()} pairs were tried, {ENOUGH} needed"),
        (tally(runs, PAIR, OTHER, counts=True)["conforms"] > 0, "a pair, or a mistake outside the catalogue, conforms"),
        (tally(runs, RIGHT, CONTROL)["accused"] > 0, "a right port is accused"),
        (any(run.failed for run in runs), "a port failed to answer"),
    ]
    return [sentence for holds, sentence in said if holds]


def judged(trials: Iterable[Trial], promised: Iterable[Group]) -> list[str]:
    """Every promise that is broken, and every promised group that was not run; nothing run keeps none."""
    groups = grouped(trials)
    missing = sorted(set(promised) - set(groups))
    return [
        *(f"{' '.join(group)}: {sentence}" for group, runs in groups.items() for sentence in broken(runs)),
        *(f"{' '.join(group)}: was not run" for group in missing),
        *([] if groups or missing else ["nothing was run"]),
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Words


HEAD = """# Confusion matrix

What `refembed verify` says of ports that were given one mistake each. The ports are code that is not the reference:
[`twin.c`](../tests/ports/c/twin.c), in C, which makes those mistakes that are a line or two of it, and
[`transformers_port.py`](../tests/ports/transformers_port.py), transformers' own model changed from outside. Each is
asked through the command protocol for final vectors, with verify's prompts and with its own, and for laws; the
diagnosis is shown no tokens and no stages.

Of the twin every case is asked. On embeddinggemma-300m every mistake is asked the same cases, whichever shows it: all
of at most 80 tokens for which any known mistake's own vectors are stored, and a few more short ones. Mistakes of window
and layer pattern, of padding, of cutting and of inner arithmetic, near relatives of them, and pairs with one of them,
are asked besides what is stored for their own family, which are longer texts and batches, up to 640 tokens where those
show it.

A mistake *counts* where it lies 3 bounds or more from the truth at the case that shows it best
([defects.md](defects.md) has the distances); nearer, the contract *hides* it. Promised is:

- of those that count 95 % are named first, and all are among the first three that are named;
- a hidden one conforms, is named or is unknown, and is never called by another name;
- a mistake that the catalogue does not know is unknown in float32;
- two at once are unknown, or one of the two;
- no right port is accused, nor one with a change that must not matter.

Not among them: causal with the right window, which looks back half as far as the catalogue's causal. On the released
model it is called causal, which it is, and on the twin in int8; else it is unknown there.

At a coarse precision a near relative of a known mistake may be called by its name; the report says "or a near
relative". Such are counted below as *named*, and listed off the diagonal.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return [*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows), ""]


def totals(groups: dict[Group, list[Trial]]) -> list[str]:
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


def diagonal(groups: dict[Group, list[Trial]]) -> list[str]:
    """Named first of those that count, by family."""
    letters = sorted({family[0] for family in FAMILY.values()})

    def cell(runs: list[Trial], letter: str) -> str:
        found = tally([run for run in runs if FAMILY.get(run.id, " ")[0] == letter], DEFECT, counts=True)
        return f"{found['first']} of {found.total()}" if found else "-"

    rows = [(*group, *(cell(runs, letter) for letter in letters)) for group, runs in groups.items()]
    return [
        "## On the diagonal\n",
        "Named first, of those that count, by family: A direction of attention, B window and layer pattern, C padding,",
        "D pooling, dense head and output, E prompts and tokens, F inner arithmetic, G backends.\n",
        *table(("suite", "port", "precision", *letters), rows),
    ]


def off_diagonal(groups: dict[Group, list[Trial]]) -> list[str]:
    rows = [
        (*group, kind_of(run), run.id or "nothing", words(run))
        for group, runs in groups.items()
        for run in exceptions(runs)
    ]
    head = ("suite", "port", "precision", "kind", "put in", "named, best first")
    return ["## Off the diagonal\n", *(table(head, rows) if rows else ["Nothing.\n"])]


def kind_of(run: Trial) -> str:
    not_counted = "coarse" if run.kind == OTHER else "hidden"
    return run.kind if run.counts else f"{run.kind}, {not_counted}"


def words(run: Trial) -> str:
    return ", ".join(run.named) or run.said


def hidden(groups: dict[Group, list[Trial]]) -> list[str]:
    rows = [
        (*group, run.id, words(run))
        for group, runs in groups.items()
        for run in runs
        if run.kind == DEFECT and not run.counts
    ]
    intro = "Too near the truth for that precision's bound; what was said of them all the same.\n"
    head = ("suite", "port", "precision", "put in", "said")
    return ["## Hidden by the contract\n", intro, *table(head, rows)] if rows else []


def verdict(broken_ones: list[str]) -> list[str]:
    if not broken_ones:
        return ["Every promise is kept.\n"]
    return ["## Promises broken\n", *(f"- {line}" for line in broken_ones), ""]


def commands(groups: dict[Group, list[Trial]]) -> list[str]:
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


def page(trials: Sequence[Trial], made: Made, promised: Iterable[Group] = PROMISED) -> str:
    groups = grouped(trials)
    versions = ", ".join(f"{package} {number}" for package, number in made.versions.items())
    suites = ", ".join(f"{name} edition {edition}" for name, edition in made.suites.items())
    intro = [*commands(groups), f"with {versions}; golden vectors: {suites}.\n", *verdict(judged(trials, promised))]
    tables = (totals, diagonal, off_diagonal, hidden)
    return "\n".join([HEAD, *intro, *(line for part in tables for line in part(groups))]).rstrip() + "\n"


def names(arguments: argparse.ArgumentParser, option: str, given: str | None, known: Sequence[str]) -> list[str]:
    """The names of an option, all where it is not given."""
    found = given.split(",") if given is not None else list(known)
    if unknown := [name for name in found if name not in known]:
        arguments.error(f"{option}: no {unknown[0]!r}; there is {', '.join(known)}")
    return found


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--suite", default="twin")
    arguments.add_argument("--checkpoint", type=Path, help="the folder the ports load; the twin's own where not given")
    arguments.add_argument("--ports", help="c,transformers for the twin, else transformers")
    arguments.add_argument("--precisions", help="float32,bfloat16,int8 for the twin, else float32")
    arguments.add_argument("--only", metavar="ID,ID", help="try these mistakes alone; nothing is kept or judged")
    arguments.add_argument("--jobs", type=int, default=1, help="how many of a port's processes run side by side (1)")
    arguments.add_argument("--json", type=Path, help="save the trials here, to merge them later")
    arguments.add_argument("--merge", type=Path, nargs="+", help="run nothing: take the trials of these files")
    arguments.add_argument("--out", type=Path, help="the folder where confusion.md and confusion.json are written")
    given = arguments.parse_args()
    if given.only and (given.json or given.merge or given.out):
        arguments.error("--only keeps nothing; leave --json, --merge and --out out")
    given.ports = names(arguments, "--ports", given.ports, list(SOURCES) if given.suite == "twin" else ["transformers"])
    if given.precisions is None and given.suite != "twin":
        given.precisions = "float32"
    given.precisions = names(arguments, "--precisions", given.precisions, PRECISIONS)
    trials, made = load(given.merge) if given.merge else run_all(given)
    if given.only:
        untried = set(given.only.split(",")) - {trial.id for trial in trials}
        print(*(f"{id} was not tried: no port has it" for id in sorted(untried)), sep="\n")
        return int(bool(untried))
    promised = PROMISED if given.merge or given.out else ()
    text = page(trials, made, promised)
    print(text)
    if given.out:
        (given.out / "confusion.md").write_text(text)
        save(given.out / "confusion.json", trials, made)
    return int(bool(judged(trials, promised)))


def run_all(given: argparse.Namespace) -> tuple[list[Trial], Made]:
    suite = open_suite(golden_folder(given.suite))
    checkpoint = given.checkpoint or suite.folder / "checkpoint"
    made = made_with(suite, given.ports)  # before, since a source may be edited while it runs
    only = given.only.split(",") if given.only else ()
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as scratch:
        for port in given.ports:
            words = program(port, Path(scratch))
            for precision in given.precisions:
                trials += run_port(suite, port, words, checkpoint, precision, only, given.jobs)
                if given.json:
                    save(given.json, trials, made)  # after each precision, since a later one may be cut short
    return trials, made


if __name__ == "__main__":
    sys.exit(main())
