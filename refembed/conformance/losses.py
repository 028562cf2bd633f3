"""Is a port of the losses right, and if not, which known mistake is it: golden/losses, the judge and the diagnosis.

Mistakes are replaced functions of the reference, computed here for each case: there are no vectors to store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import RefembedError, printable
from ..reference import losses
from .defects import Defect
from .diagnose import AMPLIFIED, EXPLAINED, NEARER, Explanation, badness, distance
from .loss_mistakes import MISTAKES, REPLACED
from .mutation import replaced
from .port import PortError, as_numbers, take
from .suite import SEEN, Suite, check_files, read_manifest
from .verify import FAILED, NOT_ASKED, RIGHT, WRONG, Asking, Outcome, Report, chosen_cases

SIDES = ("queries", "positives", "negatives")
ALONE = {
    "contrastive": losses.Weights(1, 0, 0),
    "spread-out": losses.Weights(0, 1, 0),
    "matching": losses.Weights(0, 0, 1),
}
STEP = 1e-20  # of a complex step: too small to be seen in any sum, so its only error is rounding
MEMBERS = {"number_of_cases": int, "files": dict, "texts": list, "usual": dict, "cases": list}
Array = NDArray[Any]


def question(settings: Mapping[str, Any], arrays: Mapping[str, Array], texts: Sequence[Any]) -> dict[str, Any]:
    """What a port is asked (spec/protocol.md), from the settings of a case and what they name."""
    sides = SIDES if settings["negatives"] else SIDES[:2]

    def batch(name: str) -> dict[str, Any]:
        return {"negatives": None} | dict(zip(sides, arrays[name].tolist(), strict=False))

    asked = {key: settings[key] for key in ("loss", "temperature", "alpha", "lengths", "weights")}
    asked |= {key: [texts[one] for one in settings[key]] for key in ("query_texts", "positive_texts")}
    mapping, teacher = settings["mapping"], settings["teacher"]
    asked |= {"mapping": mapping and arrays[mapping].tolist(), "teacher": teacher and batch(teacher)}
    return asked | batch(settings["inputs"])


# The reference as a port of the losses --------------------------------------------------------------------------------


def arguments(asked: Mapping[str, Any], number: DTypeLike) -> tuple[Any, ...]:
    """What losses.total is given. Without a teacher the batch is its own."""

    def batch(sides: Mapping[str, Any]) -> losses.Batch:
        queries, positives = (np.asarray(sides[side], number) for side in SIDES[:2])
        hard = queries[:, :0] if sides["negatives"] is None else np.asarray(sides["negatives"], number)
        return losses.Batch(queries, positives, hard.reshape(len(queries), -1, queries.shape[1]))

    own = batch(asked)
    mapping = np.eye(own.queries.shape[1]) if asked["mapping"] is None else asked["mapping"]
    mask = losses.false_negative_mask(asked["query_texts"], asked["positive_texts"])
    weights = ALONE.get(asked["loss"]) or losses.Weights(**asked["weights"])
    settings = asked["lengths"], asked["temperature"], asked["alpha"], weights
    return own, mask, batch(asked["teacher"] or asked), np.asarray(mapping, number), *settings


def answer_of(asked: Mapping[str, Any], number: DTypeLike = np.float64) -> dict[str, Array]:
    """The reference's value and hand-written gradients, by name."""
    given = arguments(asked, number)
    (queries, positives, negatives), mapping = losses.total_gradient(*given)
    parts = {"queries": queries, "positives": positives, "negatives": negatives[:, :1].sum(1), "mapping": mapping}
    return {"value": np.asarray(losses.total(*given))} | {k: v for k, v in parts.items() if asked[k] is not None}


def loss_of(asked: Mapping[str, Any], number: DTypeLike) -> Any:
    """The value of the reference as it is now. What has no weight is not computed: 0 times NaN would be NaN."""
    given = arguments(asked, number)
    names = ("contrastive", "spread_out", "embedding_matching")
    unused = {name: lambda *_: 0.0 for name, weight in zip(names, given[-1], strict=True) if not weight}
    with replaced(unused):
        return losses.total(*given)


def part_of(asked: Mapping[str, Any], part: str, number: DTypeLike = np.complex128) -> Array:
    """The value, or a gradient by complex steps: f'(x) = Im f(x + i step) / step."""
    if part == "value":
        return np.real(loss_of(asked, number))
    place = np.asarray(asked[part], number)
    moved = (place + STEP * 1j * one.reshape(place.shape) for one in np.eye(place.size))
    steps = [loss_of({**asked, part: one}, number) for one in moved]
    return np.reshape(np.imag(steps) / STEP, place.shape)


def mistaken(id: str, asked: Mapping[str, Any], part: str, number: DTypeLike = np.complex128) -> Array:
    """What a port with this mistake gives."""
    with replaced({"stop_gradient": np.real, **REPLACED[id]}), np.errstate(all="ignore"):
        return part_of(asked, part, number)


# The golden folder ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossCase:
    """One golden case.

    asked    the question, as in spec/protocol.md
    answer   "value", and the gradient with respect to each side and the mapping, by name
    bounds   "value" and "gradients": the largest allowed error of a number in float32
    """

    id: str
    asked: Mapping[str, Any]
    answer: Mapping[str, Array]
    bounds: Mapping[str, float]

    @property
    def about(self) -> str:
        return f"{self.asked['loss']}, {len(self.asked['queries'])} examples"

    def used(self, part: str, found: Array, true: Array | None = None) -> float:
        """How many bounds a part of an answer is from the truth, or from another's."""
        far = distance(found, self.answer[part] if true is None else true)
        return far / self.bounds["value" if part == "value" else "gradients"]


class LossSuite(Suite):
    """golden/losses, opened by open_losses."""

    name = "losses"

    def read(self, own: Mapping[str, Any]) -> LossCase:
        settings, id = {**self.manifest["usual"], **own}, own["id"]
        inputs = {name.removeprefix("inputs/"): array for name, array in self.values.items()}
        answer = {"value": np.asarray(own["value"])} | dict(zip(SIDES, self.values[f"{id}/gradients"], strict=False))
        answer |= {"mapping": self.values[f"{id}/mapping"]} if settings["mapping"] else {}
        return LossCase(id, question(settings, inputs, self.manifest["texts"]), answer, own["bounds"])


def open_losses(folder: Path) -> tuple[LossSuite, list[LossCase]]:
    """Open and check a folder like golden/losses. Raises RefembedError."""
    manifest = read_manifest(folder / "manifest.json", MEMBERS)
    check_files(folder, manifest, ["values.safetensors"])
    suite = LossSuite(folder, manifest, ())
    try:
        cases = [suite.read(entry) for entry in manifest["cases"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RefembedError("golden-case", f"{folder}: a case is not complete: {error!r}; fetch it again") from error
    if not 0 < manifest["number_of_cases"] == len(cases) == len({case.id for case in cases}):
        raise RefembedError("golden-count", f"{folder}: other cases than the manifest counts; fetch it again")
    for case in cases:
        whole = all(
            np.all(np.isfinite(x)) and x.shape == np.shape(case.asked.get(k, 0)) for k, x in case.answer.items()
        )
        if not whole or not all(0 < case.bounds[kind] < np.inf for kind in ("value", "gradients")):
            raise RefembedError("golden-values", f"{folder}: case {case.id} has numbers or bounds that are none")
    return suite, cases


# The judge ------------------------------------------------------------------------------------------------------------


class LossPort(Protocol):
    """What is needed of a port: loss(question) -> {"value": ..., "gradients": {side: ...}}."""

    name: str

    def loss(self, asked: Mapping[str, Any]) -> Any: ...


def verify_losses(folder: Path, port: LossPort, patterns: Sequence[str] = ("*",)) -> Report:
    """Ask a port for the loss of every case, judge its values and gradients, and name its mistake."""
    suite, cases = open_losses(folder)
    run = LossRun(port)
    for case in (chosen := chosen_cases(cases, patterns, f"{suite.name}; its manifest.json")):
        run.judge(case)
    found = explain_losses(run.answers) if run.wrong else []
    return Report(
        port=printable(port.name),
        suite=suite.name,
        edition=suite.edition,
        shipped=suite.shipped,
        digest="",
        precision="float32",
        cases=len(chosen),
        visible=sum(any(sees(one.id, *place) for place in places(run.answers)) for one in MISTAKES),
        known=len(MISTAKES),
        outcomes=tuple(run.outcomes),
        explanations=tuple(found),
        hints=tuple(by_loss(run.answers)) if run.wrong and not found else (),
        made_of="numbers",
    )


class LossRun(Asking):
    """One port on golden/losses: what it answered, and what that is worth."""

    def __init__(self, port: LossPort) -> None:
        super().__init__()
        self.port = port
        self.answers: list[tuple[LossCase, dict[str, Array]]] = []
        self.outcomes: list[Outcome] = []

    @property
    def wrong(self) -> bool:
        return any(outcome.verdict == WRONG for outcome in self.outcomes)

    def judge(self, case: LossCase) -> None:
        self.outcomes += self.guarded("values", case, lambda: self.outcome("values", case, self.ask(case)))
        if self.outcomes[-1].verdict != FAILED:
            self.outcomes.append(self.outcome("gradients", case, self.answers[-1][1]))

    def ask(self, case: LossCase) -> dict[str, Array]:
        answer = self.port.loss(case.asked)
        if not isinstance(answer, dict) or not isinstance(answer.get("gradients") or {}, dict):
            raise PortError("gave no value, or gradients without their names")
        given = {**(answer.get("gradients") or {}), "value": take(answer, "value")}
        wanted = [*case.answer] if answer.get("gradients") else ["value"]
        found = {part: as_numbers(take(given, part), named(part)) for part in wanted}
        for part, numbers in found.items():
            if numbers.shape != case.answer[part].shape:
                raise PortError(f"gave a {named(part)} of shape {numbers.shape}, {case.answer[part].shape} needed")
        self.answers.append((case, found))
        return found

    def outcome(self, level: str, case: LossCase, found: Mapping[str, Array]) -> Outcome:
        used = [(case.used(part, found[part]), part) for part in found if (part == "value") == (level == "values")]
        if not used:
            return Outcome(level, case.id, NOT_ASKED, said="the port gives no gradients")
        share, part = max(used)
        if share <= 1:
            return Outcome(level, case.id, RIGHT, share)
        stage = f"{case.asked['loss']} {named(part)}"
        return Outcome(level, case.id, WRONG, share, f"{named(part)} is {share:.3g} bounds off", stage)


def named(part: str) -> str:
    return part if part == "value" else f"gradient of {part}"


# The diagnosis --------------------------------------------------------------------------------------------------------
Answers = Sequence[tuple[LossCase, Mapping[str, Array]]]


def places(answers: Answers) -> list[tuple[LossCase, str]]:
    """(case, part) of all that was answered; values first, which cost little to compute."""
    return sorted(((case, part) for case, found in answers for part in found), key=lambda place: place[1] != "value")


def sees(id: str, case: LossCase, part: str) -> bool:
    return not case.used(part, mistaken(id, case.asked, part)) < SEEN


def explain_losses(answers: Answers) -> list[Explanation]:
    """The mistakes with which a port gives every number that this one gave, best first."""
    found = [fitting(mistake, answers) for mistake in MISTAKES]
    return sorted((one for one in found if one), key=badness)


def fitting(mistake: Defect, answers: Answers) -> Explanation | None:
    """How well one mistake fits; None where a number is not its own. What it makes of no number is not compared."""
    given = {case.id: found for case, found in answers}
    seen: list[tuple[float, float, str]] = []
    for case, part in places(answers):
        own, theirs = mistaken(mistake.id, case.asked, part), given[case.id][part]
        if not np.all(np.isfinite(own)):  # what it makes of that is the port's business, but no number
            seen += [] if np.all(np.isfinite(theirs)) else [(0.0, np.inf, case.id)]
            continue
        near, far = case.used(part, theirs, own), case.used(part, theirs)
        if not np.all(np.isfinite(theirs)):  # in float32 its numbers may end earlier
            if np.all(np.isfinite(mistaken(mistake.id, case.asked, part, np.complex64))):
                return None
        elif near > max(EXPLAINED, AMPLIFIED * far):
            return None
        elif case.used(part, own) >= SEEN:
            seen.append((near, far, case.id))
    near = max((one[0] for one in seen), default=0.0)
    far = max((one[1] for one in seen), default=0.0)
    cases = tuple(dict.fromkeys(id for *_, id in seen))
    return Explanation(mistake, near, far, cases, 1.0) if near < NEARER * far else None


def by_loss(answers: Answers) -> list[str]:
    """What explains each loss alone, where no single mistake explains all."""
    said = []
    for loss in dict.fromkeys(case.asked["loss"] for case, _ in answers):
        for one in explain_losses([place for place in answers if place[0].asked["loss"] == loss])[:1]:
            said.append(f"the {loss} cases alone are those of {one.defect.id}: {one.defect.title}")
    return said
