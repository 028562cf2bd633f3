"""Run a port against golden vectors: tokens, final vectors, prompts, stages, laws; then name the mistake."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import RefembedError, printable
from ..reference import truncate
from .defects import DEFECTS
from .diagnose import Explanation, Measured, distance, explain
from .hints import hints
from .port import Port, PortError, PortLostError, PortTimeoutError, as_numbers, as_vectors, counted
from .suite import Case, Suite

LEVELS = ("tokens", "vectors", "prompts", "stages", "laws")
ANSWERS = ("vectors", "prompts", "values", "gradients")  # levels by which mistakes are told; the last two of losses
RIGHT, WRONG, FAILED, NOT_ASKED = "right", "wrong", "failed", "not asked"
PATIENCE = 3  # timeouts in a row, after which the port is not asked again
RESTARTS = 10  # times in a row that it ended, could not be reached or said no JSON, after which neither
LAWS = {"alone": "sent alone", "reversed": "sent in another order", "doubled": "sent with one text twice"}
# of ports that put the prompts: those in the prompt's words, but for a template around the whole text, and the pooler
# that has to know where the prompt ends
PROMPTS_ONLY = {defect.id for defect in DEFECTS if defect.family in ("E1", "E2", "E3")} - {"chat-template"}
PROMPTS_ONLY |= {"pool-without-prompt"}
Array = NDArray[Any]
One = TypeVar("One", bound="HasId")


class HasId(Protocol):
    @property
    def id(self) -> str: ...


@dataclass(frozen=True)
class Outcome:
    """What one case gave at one level.

    verdict   right; wrong: a finite answer of the right form beyond its bound; failed: no such answer; not asked: the
              port has no way to be asked
    used      the error as a share of the bound
    said      one sentence where there is something to say
    stage     the first wrong stage, at the level of stages; what is wrong, of a loss
    law       which of LAWS, at the level of laws
    """

    level: str
    case: str
    verdict: str
    used: float | None = None
    said: str = ""
    stage: str | None = None
    law: str | None = None


@dataclass(frozen=True)
class Report:
    """The verdict on a port, and everything it rests on.

    edition   which golden vectors: the first digits of their manifest's SHA-256
    visible   how many of the known mistakes the vectors that were answered can tell from the truth at this precision
    hints     what is certain of vectors that no known mistake explains
    made_of   what mistakes are told by: vectors, or numbers of losses
    prompted  how many more mistakes could be told if the port had put the prompts
    shipped   whether the golden vectors are those that this release has under that name; None where it has none
    """

    port: str
    suite: str
    edition: str
    digest: str
    precision: str
    cases: int
    visible: int
    known: int
    outcomes: Sequence[Outcome]
    explanations: Sequence[Explanation] = field(default_factory=tuple)
    hints: Sequence[str] = field(default_factory=tuple)
    prompted: int = 0
    shipped: bool | None = None
    made_of: str = "vectors"

    @property
    def conforms(self) -> bool:
        judged = [outcome for outcome in self.outcomes if outcome.verdict != NOT_ASKED]
        return bool(judged) and all(outcome.verdict == RIGHT for outcome in judged)

    @property
    def answered(self) -> bool:
        """Whether there was any answer to judge."""
        return any(outcome.verdict in (RIGHT, WRONG) for outcome in self.outcomes)

    @property
    def verdict(self) -> str:
        """In words."""
        if self.conforms:
            return "conforms"
        return "does not conform" if self.answered else "could not be verified"

    @property
    def first_wrong_stage(self) -> tuple[str, str] | None:
        """(stage, case) where the port leaves the truth first, as far as it shows its stages; else its vectors."""
        wrong = [outcome for outcome in self.outcomes if outcome.verdict == WRONG]
        tokens = next((outcome for outcome in wrong if outcome.level == "tokens"), None)
        if tokens:
            return "tokens", tokens.case
        shown = [outcome for outcome in wrong if outcome.level == "stages" and outcome.stage]
        if shown:
            first = min(shown, key=lambda outcome: stage_order(str(outcome.stage)))
            return str(first.stage), first.case
        vectors = next((outcome for outcome in wrong if outcome.level in ANSWERS), None)
        return (vectors.stage or "embedding", vectors.case) if vectors else None

    def used(self) -> tuple[float, str]:
        """The largest share of the allowed error that a right vector or stage used, and its case; "" for none."""
        measured = [one for one in self.outcomes if one.verdict == RIGHT and one.level in (*ANSWERS, "stages")]
        return max(((one.used, one.case) for one in measured if one.used is not None), default=(0.0, ""))


WITHIN_LAYER = ("attention", "mlp", "out")
WITHIN_PART = (
    "norm", "query", "key", "value", "query_norm", "key_norm", "query_rotated", "key_rotated", "scores", "weights",
    "context", "gate", "up", "gated", "output", "update",
)  # fmt: skip
AFTER_LAYERS = ("final_norm", "pooled", "projected_up", "projected", "embedding")


def stage_order(stage: str) -> tuple[int, int, int]:
    """Where a stage comes in the computation."""
    if stage.startswith("layer."):
        _, index, part, *rest = stage.split(".")
        return 1 + int(index), WITHIN_LAYER.index(part), WITHIN_PART.index(rest[0]) if rest else 0
    if stage in AFTER_LAYERS:
        return 10_000, AFTER_LAYERS.index(stage), 0
    return 0, 0, 0


def verify(
    suite: Suite,
    port: Port,
    precision: str = "float32",
    levels: Iterable[str] = LEVELS,
    cases: Sequence[str] = ("*",),
) -> Report:
    """Ask a port for every case at every level it answers, and judge.

    precision   whose bounds apply
    levels      some of LEVELS
    cases       slugs or patterns like length-*; each must match a case

    Raises RefembedError where nothing would be verified. What goes wrong in the port becomes an outcome, never an
    exception.
    """
    chosen = chosen_cases(suite.cases, cases, f"{suite.name}; 'refembed golden list {suite.name}'")
    if any(precision not in case.bounds for case in chosen):
        raise RefembedError("verify-precision", no_contract(suite, precision, chosen[0]))
    wanted = tuple(levels)
    unknown = [level for level in wanted if level not in LEVELS]
    if unknown or not wanted:
        listed = ", ".join(map(repr, unknown)) or "was named"
        raise RefembedError(
            "verify-level", f"no level {listed}; the levels are {', '.join(LEVELS)}; losses or gradients alone"
        )
    run = Run(suite, port, precision)
    for level in LEVELS:
        if level in wanted:
            for case in chosen:
                run.outcomes += getattr(run, level)(case)
    if all(outcome.verdict == NOT_ASKED for outcome in run.outcomes):
        asked = f"{', '.join(wanted)} of {counted(len(chosen), 'case')}"
        raise RefembedError("verify-nothing", f"{port.name} cannot be asked for {asked}; nothing was verified")
    explanations = explain(suite, precision, run.measured, run.laws_broken())
    seen, more = visible(suite, precision, run.outcomes)
    return Report(
        port=printable(port.name),
        suite=suite.name,
        edition=suite.edition,
        shipped=suite.shipped,
        digest=str(suite.manifest["model"]["digest"]),
        precision=precision,
        cases=len(chosen),
        visible=len(seen),
        prompted=len(more),
        known=len(suite.manifest["defects"]),
        outcomes=tuple(run.outcomes),
        explanations=tuple(explanations),
        hints=() if explanations else tuple(hints(suite, precision, run.measured)),
    )


def chosen_cases(cases: Sequence[One], patterns: Sequence[str], where: str) -> list[One]:
    """The cases whose ids match. Each pattern must match one. where: the suite's name, and what shows its cases."""
    chosen = [case for case in cases if any(fnmatchcase(case.id, pattern) for pattern in patterns)]
    idle = [pattern for pattern in patterns if not any(fnmatchcase(case.id, pattern) for case in chosen)]
    if idle or not chosen:
        listed, (name, _, shown_by) = ", ".join(map(repr, idle)) or "an empty list", where.partition("; ")
        raise RefembedError("verify-no-case", f"no case of {name} matches {listed}; {shown_by} shows them")
    return chosen


def visible(suite: Suite, precision: str, outcomes: Sequence[Outcome]) -> tuple[set[str], set[str]]:
    """The known mistakes that the answered vectors can show, and those that they could if the port put the prompts."""

    def shown(level: str) -> set[str]:
        answered = {one.case for one in outcomes if one.level == level and one.verdict in (RIGHT, WRONG)}
        return suite.visible(precision, [case for case in suite.cases if case.id in answered])

    given, put = shown("vectors"), shown("prompts")
    seen = put | (given - PROMPTS_ONLY)
    return seen, given - seen


def no_contract(suite: Suite, precision: str, case: Case) -> str:
    """Why a port cannot be held to this precision."""
    known = ", ".join(case.bounds)
    overflow = suite.manifest.get("unsupported", {}).get(precision)
    if overflow:
        return (
            f"{precision} cannot hold this model: {overflow['stage']} of case {overflow['case']} reaches "
            f"{overflow['largest']:,.0f}, and its largest number is {np.finfo(precision).max:,.0f}; use one of {known}"
        )
    return f"{suite.name} has no bounds for {precision!r}; it has {known}"


class Asking:
    """Asks a port, and no more once it has failed too often in a row."""

    def __init__(self) -> None:
        self.lost: list[PortLostError] = []  # in a row

    def guarded(self, level: str, case: HasId, ask: Callable[[], Outcome], law: str | None = None) -> list[Outcome]:
        timeouts = sum(isinstance(error, PortTimeoutError) for error in self.lost)
        if timeouts >= PATIENCE or len(self.lost) >= RESTARTS:
            times = (
                f"{timeouts} times without an answer in time" if timeouts >= PATIENCE else f"{RESTARTS} such failures"
            )
            said = f"the port was not asked again, after {times} in a row"
            return [Outcome(level, case.id, FAILED, said=said, law=law)]
        try:
            outcome = ask()
            self.lost = []
            return [outcome]
        except PortError as error:
            self.lost = [*self.lost, error] if isinstance(error, PortLostError) else []
            return [Outcome(level, case.id, FAILED, said=f"the port {error}", law=law)]


class Run(Asking):
    """One port on one suite: what was measured so far, and a method for each level."""

    def __init__(self, suite: Suite, port: Port, precision: str) -> None:
        super().__init__()
        self.suite, self.port, self.precision = suite, port, precision
        self.outcomes: list[Outcome] = []
        self.measured: list[Measured] = []
        self.answers: dict[str, Array] = {}

    def laws_broken(self) -> bool | None:
        found = [outcome.verdict for outcome in self.outcomes if outcome.level == "laws"]
        return WRONG in found if RIGHT in found or WRONG in found else None

    def tokens(self, case: Case) -> list[Outcome]:
        if "tokenize" not in self.port.can:
            return [Outcome("tokens", case.id, NOT_ASKED)]
        return self.guarded("tokens", case, lambda: self.judge_tokens(case, self.port.tokenize(case.prompted)))

    def judge_tokens(self, case: Case, answer: Any) -> Outcome:
        true = [ids.tolist() for ids in self.suite.tokens(case)]
        if not isinstance(answer, list | tuple) or len(answer) != len(true):
            raise PortError(f"gave no list of ids for each of {counted(len(true), 'text')}")
        for row, (theirs, ours) in enumerate(zip(answer, true, strict=True)):
            numbers = as_numbers(theirs, "ids")
            if numbers.ndim != 1:
                raise PortError(f"gave ids of shape {numbers.shape} for text {row}, a list needed")
            theirs = numbers.tolist()
            if theirs != ours:
                pairs = enumerate(zip(theirs, ours, strict=False))
                place = next((k for k, (a, b) in pairs if a != b), min(len(theirs), len(ours)))
                said = (
                    f"text {row}: {len(theirs)} ids, {len(ours)} needed; first difference at place {place}: "
                    f"{[f'{id:g}' for id in theirs[place : place + 3]]}, {ours[place : place + 3]} needed"
                )
                return Outcome("tokens", case.id, WRONG, said=said.replace("'", ""))
        return Outcome("tokens", case.id, RIGHT)

    def vectors(self, case: Case) -> list[Outcome]:
        return self.guarded(
            "vectors", case, lambda: self.judge_vectors("vectors", case, self.port.embed(case, case.prompted))
        )

    def prompts(self, case: Case) -> list[Outcome]:
        if "prompts" not in self.port.can:
            return [Outcome("prompts", case.id, NOT_ASKED)]
        return self.guarded(
            "prompts", case, lambda: self.judge_vectors("prompts", case, self.port.embed_prompted(case, case.texts))
        )

    def judge_vectors(self, level: str, case: Case, answer: Any) -> Outcome:
        true = self.suite.vectors(case)
        vectors = as_vectors(answer, len(true), case.dimensions, int(self.suite.manifest["model"]["dimensions"]))
        if vectors.shape != true.shape:  # not what was asked for, but it serves the diagnosis
            vectors = shortened(vectors, case.dimensions)
            self.measured.append(Measured(level, case, vectors))
            return Outcome(level, case.id, NOT_ASKED, said="the port gives full vectors only")
        self.answers.setdefault(case.id, vectors)
        right = self.within(vectors, true, case)
        self.measured.append(Measured(level, case, vectors))
        if not np.all(np.isfinite(vectors)):
            return Outcome(level, case.id, WRONG, said="a vector holds NaN or infinity")
        if not np.all(np.any(vectors != 0, axis=1)):
            return Outcome(level, case.id, WRONG, said="a vector is all zeros")
        error = float(np.max(np.abs(vectors - true)))
        used = error / case.bounds[self.precision]["embedding"]
        if right:
            return Outcome(level, case.id, RIGHT, used)
        cosine = np.min(np.sum(vectors * true, axis=1) / np.linalg.norm(vectors, axis=1))
        said = f"off by {error:.2g} in a number, {used:.3g} bounds; cosine {cosine:.6f}"
        return Outcome(level, case.id, WRONG, used, said)

    def within(self, vectors: Array, true: Array, case: Case) -> bool:
        near = distance(vectors, true) <= case.bounds[self.precision]["embedding"]
        return near and bool(np.all(np.any(vectors, axis=1)))

    def stages(self, case: Case) -> list[Outcome]:
        if "trace" not in self.port.can or not case.stages:
            return [Outcome("stages", case.id, NOT_ASKED)]
        return self.guarded("stages", case, lambda: self.judge_stages(case, self.port.trace(case, case.prompted[0])))

    def judge_stages(self, case: Case, answer: Any) -> Outcome:
        if not isinstance(answer, dict):
            raise PortError("gave no stages by name")
        shown = sorted(set(case.stages) & set(answer), key=stage_order)
        if not shown:
            return Outcome("stages", case.id, NOT_ASKED, said="none of the stored stages is shown")
        worst = 0.0
        for stage in shown:
            true = self.suite.stages[f"{case.id}/{stage}"].astype(np.float64)
            theirs = as_numbers(answer[stage], stage)
            if theirs.shape != true.shape and theirs.ndim == 2 and true.shape[0] == 2 and len(theirs):
                theirs = theirs[[0, -1]]
            elif theirs.shape != true.shape and theirs.ndim == true.ndim == 2 and len(theirs) == 2:
                true = true[[0, -1]]
            if theirs.shape != true.shape:
                raise PortError(f"gave a {stage} of shape {theirs.shape}, {true.shape} needed")
            error = float(np.max(np.abs(theirs - true)) / np.max(np.abs(true)))
            used = error / self.stage_bound(case, stage)
            if not used <= 1:
                said = f"{stage} is off by {error:.2g} of its largest number, {used:.3g} bounds"
                return Outcome("stages", case.id, WRONG, used, said, stage)
            worst = max(worst, used)
        return Outcome("stages", case.id, RIGHT, worst)

    def stage_bound(self, case: Case, stage: str) -> float:
        """The stage's own bound, or the largest one of the case where the implementations did not show this stage."""
        bounds = case.bounds[self.precision]
        return bounds.get(stage, max(bounds.values()))

    def laws(self, case: Case) -> list[Outcome]:
        """What must not matter: whom a text is sent with, in what order, and how often."""
        if len(case.texts) < 2:
            return []
        if "embed" not in self.port.can:
            return [Outcome("laws", case.id, NOT_ASKED, said="the port has vectors of whole cases only")]
        texts = list(case.prompted)
        requests = {
            "alone": [[text] for text in texts],
            "reversed": [texts[::-1]],
            "doubled": [[*texts, texts[0]]],
        }
        return [
            outcome
            for law in LAWS
            for outcome in self.guarded("laws", case, partial(self.judge_law, case, law, requests[law]), law)
        ]

    def judge_law(self, case: Case, law: str, requests: list[list[str]]) -> Outcome:
        if case.id not in self.answers:
            self.answers[case.id] = self.embed(case, list(case.prompted))
        together = self.answers[case.id]
        found = np.concatenate([self.embed(case, texts) for texts in requests])
        expected = {
            "alone": together,
            "reversed": together[::-1],
            "doubled": np.concatenate([together, together[:1]]),
        }[law]
        error = distance(found, expected)
        used = error / (2 * case.bounds[self.precision]["embedding"])
        if used <= 1:
            return Outcome("laws", case.id, RIGHT, used, law=law)
        much = f"changes by {error:.2g}" if np.isfinite(error) else "turns into NaN or back"
        return Outcome("laws", case.id, WRONG, used, f"a vector {much} when {LAWS[law]}", law=law)

    def embed(self, case: Case, texts: list[str]) -> Array:
        return as_vectors(self.port.embed(case, texts), len(texts), case.dimensions)


def shortened(vectors: Array, dimensions: int) -> Array:
    """The first numbers of full vectors; of unit length where the full ones are."""
    unit = np.all(np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-2)
    return truncate(vectors, dimensions) if unit else vectors[:, :dimensions]
