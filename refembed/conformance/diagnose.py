"""Which known mistake explains what a port gave: the one whose own vectors it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .defects import DEFECTS, Defect
from .suite import SEEN, Case, Suite

EXPLAINED = 2.0  # bounds: a port that has exactly this defect lies within its allowed error of the defect's vectors,
AMPLIFIED = 1e-4  # or this near in units of the distance to the truth, since a defect may make rounding errors grow:
COARSEST = 0.25  # at float32 by that much, at coarser precisions by as many times more as they are coarser, up to this
NEARER = 0.5  # of the distance to the truth: what is explained lies far nearer to the explanation
STORED = 1e-2  # distances are stored to three digits
CONSISTENT = 0.8  # of all cases must lie as far from the truth as the defect does
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)  # known by itself: arrays are not compared
class Measured:
    """Vectors a port gave.

    level   vectors, or prompts where the port puts them
    right   whether they are within their bound
    """

    level: str
    case: Case
    vectors: Array
    right: bool

    def bound(self, precision: str) -> float:
        """The largest allowed difference in a number of its vectors."""
        return self.case.bounds[precision]["embedding"]


@dataclass(frozen=True)
class Explanation:
    """A defect that would give what the port gave.

    to_defect   the largest distance to the defect's own vectors, in bounds
    to_truth    the largest distance to the truth on the same cases, in bounds
    cases       on which both were measured
    foretold    the share of the cases it was tried on whose distance from the truth is the one this defect gives
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
    """How well one defect fits, on the cases whose vectors are stored and by its distances on all; None where not."""
    own, distances = suite.defect_vectors(defect.id), suite.distances(defect.id)
    tried = [one for one in measured if one.case.id in distances]
    stored = [one for one in tried if one.case.id in own]
    pairs = []
    for one in stored:
        near, far = (distance(one.vectors, vectors) for vectors in (own[one.case.id], suite.vectors(one.case)))
        if not (near <= EXPLAINED * one.bound(precision) or near <= growth(one, precision) * far < np.inf):
            return None
        pairs.append((near / one.bound(precision), far / one.bound(precision)))
    if not pairs:
        return None
    near, far = (max(side) for side in zip(*pairs, strict=True))
    agree = {one: is_as_far(one, suite, precision, distances[one.case.id]) for one in tried}
    seen = [agree[one] for one in tried if distances[one.case.id] >= SEEN * one.bound(precision)]
    if near > NEARER * far or not seen or np.mean(seen) < CONSISTENT:
        return None
    as_foretold = [*agree.values(), *([] if laws is None else [laws == (defect.mutation.padding is not None)])]
    share = float(np.mean(as_foretold))
    cases = tuple(dict.fromkeys(one.case.id for one in stored))
    return Explanation(defect, near, far, cases, share) if share >= CONSISTENT else None


def growth(one: Measured, precision: str) -> float:
    """How far from the defect's vectors its rounding errors may lie, in units of the distance to the truth."""
    return min(COARSEST, AMPLIFIED * one.bound(precision) / one.bound("float32"))


def is_as_far(one: Measured, suite: Suite, precision: str, foretold: float) -> bool:
    """Whether its vectors lie as far from the truth as a defect puts them."""
    found = distance(one.vectors, suite.vectors(one.case))
    allowed = max(EXPLAINED * one.bound(precision), STORED * foretold)
    return found == foretold or abs(found - foretold) <= allowed < np.inf


def distance(first: Array, second: Array) -> float:
    """The largest difference; NaN in the same places is no difference, NaN in one only is an infinite one."""
    if first.shape != second.shape:
        return float("inf")
    nan = np.isnan(first)
    if not np.array_equal(nan, np.isnan(second)):
        return float("inf")
    return float(np.max(np.abs(np.where(nan, 0, first) - np.where(nan, 0, second))))
