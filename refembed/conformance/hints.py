"""What can be said for certain of vectors that no known mistake explains."""

from collections.abc import Sequence

import numpy as np

from .diagnose import Measured, distance
from .port import counted
from .suite import PRECISIONS, Suite


def hints(suite: Suite, precision: str, measured: Sequence[Measured]) -> list[str]:
    """Sentences for the author of a port whose mistake is unknown; none where nothing is certain.

    measured   every case's vectors, right and wrong
    """
    wrong = [one for one in measured if not near(suite, one, precision)]
    if not wrong or any(one.vectors.shape != suite.vectors(one.case).shape for one in measured):
        return []
    return [
        said
        for said in (
            misplaced(suite, precision, wrong),
            long(suite, precision, measured),
            coarse(suite, precision, measured),
        )
        if said
    ]


def near(suite: Suite, one: Measured, precision: str) -> bool:
    return distance(one.vectors, suite.vectors(one.case)) <= one.bound(precision)


def coarse(suite: Suite, precision: str, measured: Sequence[Measured]) -> str | None:
    """They are within the bounds of a coarser contract: perhaps the port was held to the wrong one."""
    for other in PRECISIONS[PRECISIONS.index(precision) + 1 :]:
        seen, known = len(suite.visible(other, suite.cases)), len(suite.manifest["defects"])
        if 2 * seen >= known and all(near(suite, one, other) for one in measured):  # nearly anything is within int4's
            return (
                f"every vector is within the bounds of {other}, beyond which {seen} of {known} known mistakes lie: "
                f"if the port computes so, verify it with --precision {other}"
            )
    return None


def long(suite: Suite, precision: str, measured: Sequence[Measured]) -> str | None:
    """They have the right direction and another length than 1."""
    lengths = np.concatenate([np.linalg.norm(one.vectors, axis=1) for one in measured])
    if not np.all(np.isfinite(lengths)) or not np.all(lengths > 0):
        return None
    units = [
        Measured(one.level, one.case, one.vectors / np.linalg.norm(one.vectors, axis=1, keepdims=True))
        for one in measured
    ]
    if not all(near(suite, one, precision) for one in units):
        return None
    low, high = float(lengths.min()), float(lengths.max())
    span = f"{low:.6g}" if f"{low:.6g}" == f"{high:.6g}" else f"{low:.6g} to {high:.6g}"
    return f"every vector has the right direction and the length {span} in place of 1: divide each by its length"


def misplaced(suite: Suite, precision: str, wrong: Sequence[Measured]) -> str | None:
    """Each wrong one is the right vector of exactly one other text."""
    right = [
        (case, text, vector)
        for case in suite.cases
        for text, vector in zip(case.prompted, suite.vectors(case), strict=True)
    ]
    example = ""
    for one in wrong:
        bound, true = one.bound(precision), suite.vectors(one.case)
        for row, vector in enumerate(one.vectors):
            if distance(vector, true[row]) <= bound:
                continue
            found = {text: case.id for case, text, other in right if distance(vector, other) <= bound}
            if len(found) != 1:
                return None
            ((text, owner),) = found.items()
            owner = one.case.id if text in one.case.prompted else owner
            place = (
                f"text {one.case.prompted.index(text)}" if owner == one.case.id else f"{text[:40]!r} of case {owner}"
            )
            example = example or f"text {row} of case {one.case.id} has that of {place}"
    cases = counted(len({one.case.id for one in wrong}), "case")
    return f"every wrong vector, in {cases}, is the right one of another text: {example}"
