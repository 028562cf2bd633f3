"""Which known mistake explains what a port gave: the one whose own vectors it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .defects import DEFECTS, Defect
from .suite import SEEN, Case, Suite

EXPLAINED = 2.0  # bounds: a port that has exactly this defect lies within its allowed error of the defect's vectors,
AMPLIFIED = 1e-4  # or this near in units of the distance to the truth, since a defect may make rounding errors grow
CONSISTENT = 0.8  # of all verdicts must be as the defect foretells
Array = NDArray[Any]


@dataclass(frozen=True)
class Measured:
    """Vectors a port gave.

    level   vectors, or prompts where the port puts them
    right   whether they are within their bound
    """

    level: str
    case: Case
    vectors: Array
    right: bool


@dataclass(frozen=True)
class Explanation:
    """A defect that would give what the port gave.

    to_defect   the largest distance to the defect's own vectors, in bounds
    to_truth    the largest distance to the truth on the same cases, in bounds
    cases       on which both were measured
    foretold    the share of verdicts that the defect foretells
    """

    defect: Defect
    to_defect: float
    to_truth: float
    cases: tuple[str, ...]
    foretold: float


def explain(suite: Suite, precision: str, measured: Sequence[Measured], laws: bool | None) -> list[Explanation]:
    """Every defect that explains the port, best first; none where it is right or its mistake is unknown.

    laws   whether a text's vector depends on its company; None where that was not asked
    """
    found = []
    for defect in DEFECTS:
        if defect.id not in suite.manifest["defects"]:
            continue
        by_level = [
            explained_by(suite, defect, precision, [one for one in measured if one.level == level], laws)
            for level in ("vectors", "prompts")
        ]
        fitting = [one for one in by_level if one]
        if fitting:
            found.append(min(fitting, key=badness))
    return sorted(found, key=badness)


def badness(one: Explanation) -> tuple[float, float]:
    """Less is better: what foretells more, then what is nearer, measured by how far the truth is."""
    return -round(one.foretold, 2), one.to_defect / one.to_truth


def explained_by(
    suite: Suite, defect: Defect, precision: str, measured: Sequence[Measured], laws: bool | None
) -> Explanation | None:
    """How well one defect fits, on the cases that show it best; None where it does not."""
    own = suite.defect_vectors(defect.id)
    distances: dict[str, tuple[float, float]] = {}
    for one in measured:
        bound, truth = one.case.bounds[precision]["embedding"], suite.vectors(one.case)
        if one.case.id in own and distance(own[one.case.id], truth) >= SEEN * bound:
            distances[one.case.id] = (
                distance(one.vectors, own[one.case.id]) / bound,
                distance(one.vectors, truth) / bound,
            )
    if not all(fits(*pair) for pair in distances.values()) or all(far <= 1 for _, far in distances.values()):
        return None
    share = foretold(suite, defect, precision, measured, laws)
    near, far = (max(side) for side in zip(*distances.values(), strict=True))
    return Explanation(defect, near, far, tuple(distances), share) if share >= CONSISTENT else None


def fits(to_defect: float, to_truth: float) -> bool:
    return to_defect <= EXPLAINED or to_defect <= AMPLIFIED * to_truth < np.inf


def foretold(suite: Suite, defect: Defect, precision: str, measured: Sequence[Measured], laws: bool | None) -> float:
    """The share of verdicts that are as this defect would have them.

    Cases flag what shows in float32; at other precisions a flagged case may be right or wrong, so only the rest counts.
    Every case counts that the defect was tried on, and the laws count as one more: only padding breaks them.
    """
    fine = precision == "float32"
    tried = suite.manifest["defects"][defect.id].get("tried")
    agree = [
        one.right != (defect.id in one.case.flags)
        for one in measured
        if (tried is None or one.case.id in tried) and (fine or defect.id not in one.case.flags)
    ]
    if laws is not None and (fine or laws):
        agree.append(laws == (defect.mutation.padding is not None))
    return float(np.mean(agree)) if agree else 1.0


def distance(first: Array, second: Array) -> float:
    """The largest difference; NaN in the same places is no difference, NaN in one only is an infinite one."""
    if first.shape != second.shape:
        return float("inf")
    nan = np.isnan(first)
    if not np.array_equal(nan, np.isnan(second)):
        return float("inf")
    return float(np.max(np.abs(np.where(nan, 0, first) - np.where(nan, 0, second))))
