"""A verdict as text, JSON, JUnit XML and conformance.json."""

import json
from collections import Counter
from typing import Any
from xml.etree import ElementTree

from .. import __version__
from .port import counted
from .suite import SHIPPED
from .verify import ANSWERS, FAILED, NOT_ASKED, RIGHT, WRONG, Outcome, Report

MOST_LINES = 12
CLEAR = 100  # bounds from the truth, from which on what looks like a known mistake can hardly be a relative of it


def as_text(report: Report) -> str:
    """The verdict for people: what was right, what was not, the first wrong stage, and the mistake that explains it."""
    cases = counted(report.cases, "case")
    lines = [f"{report.port} against {report.suite} (golden {report.edition}), {cases}, {report.precision}"]
    lines += [*foreign(report), ""]
    width = max(8, *(len(level) for level in levels(report)))
    for level in levels(report):
        counts = Counter(outcome.verdict for outcome in report.outcomes if outcome.level == level)
        if counts:
            said = ", ".join(
                f"{counts[verdict]} {verdict}" for verdict in (RIGHT, WRONG, FAILED, NOT_ASKED) if counts[verdict]
            )
            lines.append(f"  {level:<{width}} {said}")
    share, case = report.used()
    more = f"; {report.prompted} more where the port puts the prompts" if report.prompted else ""
    seen = f"known mistakes that these cases see at {report.precision}: {report.visible} of {report.known}{more}"
    lines += ["", *([seen] if report.known else [])]
    lines += [f"allowed error used by right answers: at most {100 * share:.0f} % ({case})"] if case else []
    lines += bad_lines([outcome for outcome in report.outcomes if outcome.verdict in (WRONG, FAILED)])
    lines += ["", *verdict_lines(report)]
    return "\n".join(lines)


def levels(report: Report) -> list[str]:
    """Those that were judged, in their order."""
    return list(dict.fromkeys(outcome.level for outcome in report.outcomes))


def foreign(report: Report) -> list[str]:
    """A warning where golden vectors have a name of ours and were made or changed by somebody else."""
    if report.shipped is not False:
        return []
    ours = f"{report.suite} that refembed {__version__} ships ({SHIPPED[report.suite]})"
    return [f"NOT the golden vectors of {ours}: whatever is said below rests on theirs"]


def bad_lines(bad: list[Outcome]) -> list[str]:
    """A line for each sentence, with the first it is said of."""
    alike = Counter(outcome.said for outcome in bad)
    firsts = {outcome.said: outcome for outcome in reversed(bad)}
    lines = []
    for said, count in alike.items():
        others = f" and {counted(count - 1, 'other')}" if count > 1 else ""
        lines.append(f"  {title(firsts[said])}{others}: {said}")
    shown = lines[:MOST_LINES]
    left = len(bad) - sum(list(alike.values())[:MOST_LINES])
    return [*shown, f"  and {left} more (--json FILE has them all)"] if left else shown


def verdict_lines(report: Report) -> list[str]:
    if report.conforms:
        return ["CONFORMS", *blind(report)]
    if not report.answered:
        return ["COULD NOT BE VERIFIED: no answer of the right form"]
    lines = ["DOES NOT CONFORM"]
    first = report.first_wrong_stage
    if first:
        lines.append(f"first wrong stage: {first[0]} (case {first[1]})")
    if not report.explanations:
        return lines + unknown_lines(report)
    best, *others = report.explanations
    defect = best.defect
    relative = f", or a near relative: {report.precision} cannot tell them apart" if best.to_truth < CLEAR else ""
    lines += [
        f"diagnosis: {defect.id} ({defect.family}): {defect.title}{relative}",
        f"  evidence: on {', '.join(best.cases)} the port is within {best.to_defect:.2g} bounds of this mistake's own "
        f"{report.made_of} and {best.to_truth:.3g} from the truth; {100 * best.foretold:.0f} % of all cases lie as far "
        "from the truth as it puts them",
        f"  what users see: {defect.effect}",
        f"  seen in: {'no port yet' if defect.reported == '-' else defect.reported}",
        f"  what is right: spec/{defect.chapter} of the source distribution",
    ]
    if others:
        lines.append(f"  would also explain it: {', '.join(other.defect.id for other in others[:4])}")
    return lines


def unknown_lines(report: Report) -> list[str]:
    """What is said where no known mistake explains what is wrong."""
    wrong = [level for level in levels(report) if any(o.level == level and o.verdict == WRONG for o in report.outcomes)]
    if not wrong or not report.known:
        return []
    if set(ANSWERS) & set(wrong):
        return [
            f"diagnosis: unknown; no single known mistake gives these {report.made_of}",
            *(f"  but for certain: {said}" for said in report.hints),
        ]
    right = any(o.level == "vectors" and o.verdict == RIGHT for o in report.outcomes)
    known = "the final vectors are right; " if right else ""
    return [f"diagnosis: unknown; {known}wrong are only {' and '.join(wrong)}, by which no known mistake is told"]


def blind(report: Report) -> list[str]:
    """A warning where most known mistakes would conform as well."""
    if 2 * report.visible >= report.known:
        return []
    seen = f"{report.visible} of {report.known} known mistakes"
    better = (
        "ask for more levels and cases" if report.precision == "float32" else "verify it with float32 weights first"
    )
    return [f"  but only {seen} can be seen at {report.precision} by the {report.made_of} that were asked; {better}"]


def as_dict(report: Report) -> dict[str, Any]:
    """Everything, for programs. This is conformance.json."""
    first = report.first_wrong_stage
    share, case = report.used()
    return {
        "format": 1,
        "refembed": __version__,
        "port": report.port,
        "suite": report.suite,
        "golden": report.edition,
        "golden_shipped": report.shipped,
        "model_digest": report.digest,
        "precision": report.precision,
        "number_of_cases": report.cases,
        "known_mistakes_visible": report.visible,
        "known_mistakes_visible_with_prompts": report.visible + report.prompted,
        "known_mistakes": report.known,
        "conforms": report.conforms,
        "verdict": report.verdict,
        "allowed_error_used": {"share": share, "case": case} if case else None,
        "first_wrong_stage": {"stage": first[0], "case": first[1]} if first else None,
        "diagnosis": [
            {
                "defect": one.defect.id,
                "title": one.defect.title,
                "to_defect": finite(one.to_defect),
                "to_truth": finite(one.to_truth),
                "cases": list(one.cases),
                "foretold": one.foretold,
                "chapter": f"spec/{one.defect.chapter}",
            }
            for one in report.explanations
        ],
        "hints": list(report.hints),
        "outcomes": [
            {
                "level": o.level,
                "case": o.case,
                "verdict": o.verdict,
                "used": finite(o.used),
                "said": o.said,
                "stage": o.stage,
                "law": o.law,
            }
            for o in report.outcomes
        ],
    }


def finite(number: float | None) -> float | None:
    """JSON has no infinity."""
    return None if number is None or number != number or number in (float("inf"), float("-inf")) else number


def as_json(report: Report) -> bytes:
    return json.dumps(as_dict(report), indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def as_junit(report: Report) -> bytes:
    """A test suite for a port's own CI: one test for each case and level."""
    judged = [outcome for outcome in report.outcomes if outcome.verdict != NOT_ASKED]
    suite = ElementTree.Element(
        "testsuite",
        name=f"refembed.{report.suite}.{report.precision}",
        tests=str(len(report.outcomes)),
        failures=str(sum(outcome.verdict == WRONG for outcome in judged)),
        errors=str(sum(outcome.verdict == FAILED for outcome in judged)),
        skipped=str(len(report.outcomes) - len(judged)),
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in heads(report).items():
        ElementTree.SubElement(properties, "property", name=name, value=value)
    for outcome in report.outcomes:
        test = ElementTree.SubElement(
            suite, "testcase", classname=f"{report.suite}.{outcome.level}", name=title(outcome)
        )
        kind = {WRONG: "failure", FAILED: "error", NOT_ASKED: "skipped"}.get(outcome.verdict)
        if kind:
            ElementTree.SubElement(test, kind, message=outcome.said)
    ElementTree.SubElement(suite, "system-out").text = "\n".join([*foreign(report), *verdict_lines(report)])
    return bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))


def heads(report: Report) -> dict[str, str]:
    """What a list of test cases does not say."""
    named = report.explanations[0].defect.id if report.explanations else ""
    return {
        "port": report.port,
        "golden": report.edition,
        "precision": report.precision,
        "verdict": report.verdict,
        "diagnosis": named or ("none" if report.verdict != "does not conform" else "unknown"),
    }


def title(outcome: Outcome) -> str:
    """What was asked, in words."""
    return " ".join(filter(None, (outcome.level, outcome.case, outcome.law)))


def unlike(report: Report, before: dict[str, Any]) -> list[str]:
    """Why an earlier run's as_dict cannot be compared with this run: other questions, or judged by another measure."""
    now = as_dict(report)
    heads = {"suite": "suite", "golden": "golden vectors", "precision": "precision"}
    reasons = [f"{said} {before[key]} there, {now[key]} here" for key, said in heads.items() if now[key] != before[key]]
    for key in ("level", "case"):
        there, here = ({str(one[key]) for one in run["outcomes"]} for run in (before, now))
        if there != here:
            example = min(there ^ here)
            where = "there" if example in there else "here"
            reasons.append(f"{len(there)} {key}s there, {len(here)} here ({example} only {where})")
    return reasons


def changes(report: Report, before: dict[str, Any]) -> list[str]:
    """What differs from an earlier run's as_dict: a line for each verdict that changed, and for a new diagnosis."""
    now = as_dict(report)
    lines = []
    old = {(o["level"], o["case"], o["law"]): o["verdict"] for o in before["outcomes"]}
    for outcome in report.outcomes:
        was = old.get((outcome.level, outcome.case, outcome.law))
        if was != outcome.verdict and (was or outcome.verdict in (WRONG, FAILED)):
            lines.append(f"{title(outcome)}: {was or 'new'} -> {outcome.verdict} {outcome.said}".rstrip())
    named, names = ([one["defect"] for one in run["diagnosis"]][:1] for run in (before, now))
    if named != names:
        lines.append(f"diagnosis: {', '.join(named) or 'none'} -> {', '.join(names) or 'none'}")
    return lines


def is_report(before: Any) -> bool:
    """Whether this is the as_dict of an earlier run, as far as changes() looks at it."""
    try:
        outcomes = [(o["level"], o["case"], o["law"], o["verdict"]) for o in before["outcomes"]]
        named = [one["defect"] for one in before["diagnosis"]]
        words = [before[key] for key in ("suite", "golden", "precision")] + named + [o[3] for o in outcomes]
        return before["format"] == 1 and all(isinstance(word, str) for word in words)
    except (KeyError, TypeError):
        return False
