"""Which known mistake explains what a port gave: the one whose own vectors it gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .defects import DEFECTS, Defect
from .suite import SEEN, Case, Suite

# A right port is within its bound of the truth, so one with exactly this mistake is about as near to the mistake's own
# vectors. Measured on mistakes put into transformers and C: at most 1.2 bounds where rounding errors do not grow.
EXPLAINED = 2.0
NEARER = 0.5  # of the distance to the truth: what explains an answer lies far nearer to it than the truth does
AMPLIFIED = 1e-4  # of that distance too: most mistakes make rounding errors grow a little, which shows in float32 alone
GROWN = 0.25  # the same, more strictly, where a mistake makes rounding errors grow beyond EXPLAINED
STORED = 1e-2  # distances are stored to three digits
CONSISTENT = 0.9  # of all cases must lie as far from the truth as the mistake puts them; a chance rival fits on few
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)  # known by itself: arrays are not compared
class Measured:
    """Vectors a port gave for one case: (texts, dimensions).

    level   vectors, or prompts where the port puts them
    """

    level: str
    case: Case
    vectors: Array

    def bound(self, precision: str) -> float:
        """The largest allowed difference in a number of its vectors."""
        return self.case.bounds[precision]["embedding"]


@dataclass(frozen=True)
class Explanation:
    """A defect that would give what the port gave.

    to_defect   the largest distance to the defect's own vectors, in bounds
    to_truth    the largest distance to the truth on the same cases, in bounds
    cases       on which both were measured, and that can see it
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
    seen = [one for one in tried if distances[one.case.id] >= SEEN * one.bound(precision)]
    pairs = []
    for one in stored:
        bound = one.bound(precision)
        near, far = distance(one.vectors, own[one.case.id]), distance(one.vectors, suite.vectors(one.case))
        grown = min(EXPLAINED * bound * defect.growth, GROWN * far)
        if near > max(EXPLAINED * bound, grown) and not near <= AMPLIFIED * far < np.inf:
            return None
        pairs.append((near / bound, far / bound))
    if not pairs or not seen:
        return None
    near, far = (max(side) for side in zip(*pairs, strict=True))
    agree = {one: is_as_far(one, suite, precision, distances[one.case.id]) for one in tried}
    if near > NEARER * far or np.mean([agree[one] for one in seen]) < CONSISTENT:
        return None
    as_foretold = [*agree.values(), *([] if laws is None else [laws == (defect.mutation.padding is not None)])]
    share = float(np.mean(as_foretold))
    cases = tuple(dict.fromkeys(one.case.id for one in stored if one in seen))
    return Explanation(defect, near, far, cases, share) if share >= CONSISTENT else None


def is_as_far(one: Measured, suite: Suite, precision: str, expected: float) -> bool:
    """Whether its vectors lie as far from the truth as a defect's do: expected, in a number of the vector."""
    found = distance(one.vectors, suite.vectors(one.case))
    allowed = max(EXPLAINED * one.bound(precision), STORED * expected)
    return found == expected or abs(found - expected) <= allowed < np.inf


def distance(first: Array, second: Array) -> float:
    """The largest difference of a number of two (texts, dimensions); infinite where the shapes or the NaN differ."""
    if first.shape != second.shape:
        return float("inf")
    nan = np.isnan(first)
    if not np.array_equal(nan, np.isnan(second)):
        return float("inf")
    return float(np.max(np.abs(np.where(nan, 0, first) - np.where(nan, 0, second))))
