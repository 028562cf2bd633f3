"""What goes wrong in ports of the losses, as replaced functions of refembed/reference/losses.py.

Only values are changed here: gradients are taken of them by complex steps (losses.py beside it), to which a constant is
what has no imaginary part.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reference import l2_normalize
from ..reference.losses import (
    Batch,
    Weights,
    contrastive,
    distance,
    embedding_matching,
    false_negative_mask,
    first_numbers,
    log_ratios,
    log_sum_exp,
    matryoshka,
    other_cosines,
    second_moment,
    total,
)
from ..reference.operations import linear
from .defects import Defect
from .mutation import RIGHT, Functions, replaced

Array = NDArray[Any]
Loss = Any  # a number, with an imaginary part where it is differentiated
UNDEFINED = complex(np.nan, np.nan)


def times(function: Callable[..., Any], factor: Callable[..., float]) -> Functions:
    """A function's value times a factor, which sees the same arguments."""
    return {function.__name__: lambda *given: function(*given) * factor(*given)}


def ratios(change: Callable[..., Array]) -> Functions:
    """Another denominator: of (batch, mask, temperature, alpha)."""
    return {"log_ratios": change}


def weighted(weight: Callable[..., Array], part: int = 1) -> Functions:
    """Another logarithm of the hardness weight: of (cosines with the hard negatives, temperature, alpha).

    part   the terms that have it: 0 positives, 1 hard negatives
    """

    def changed(batch: Batch, mask: Array, temperature: float, alpha: float) -> Array:
        right = np.split(log_ratios(batch, mask, temperature, 0.0), [len(mask)], axis=1)
        weights: list[Any] = [0.0, 0.0]
        weights[part] = weight(hard_cosines(batch), temperature, alpha)
        return np.concatenate([part + more for part, more in zip(right, weights, strict=True)], axis=1)

    return ratios(changed)


def added(cosines: Callable[[Batch], Array], hard: bool) -> Functions:
    """More terms in the denominator: the queries' cosines with other examples' vectors, (examples, examples).

    hard   whether these are hard negatives, which have a weight and no mask
    """

    def changed(batch: Batch, mask: Array, temperature: float, alpha: float) -> Array:
        query, positive, _ = map(l2_normalize, batch)
        numerator = np.sum(query * positive, axis=1, keepdims=True)
        more = cosines(batch)
        terms = alpha * hard * np.real(more) + (more - numerator) / temperature
        seen = (mask[:, : more.shape[1]] | hard) & (np.eye(*more.shape) == 0)
        right = log_ratios(batch, mask, temperature, alpha)
        return np.concatenate([right, np.where(seen, terms, -np.inf)], axis=1)

    return ratios(changed)


def hard_cosines(batch: Batch) -> Array:
    query, _, negative = map(l2_normalize, batch)
    return np.einsum("en,ehn->eh", query, negative)


def turned(batch: Batch, mask: Array, temperature: float, alpha: float) -> Array:
    """The denominator over queries, for each positive."""
    right = log_ratios(batch, mask, temperature, alpha)
    other = log_ratios(Batch(batch.positives, batch.queries, batch.negatives), mask, temperature, alpha)
    return np.where(np.arange(right.shape[1]) < len(mask), other, right)


def without_own(log_terms: Array) -> Array:
    """log_sum_exp of a denominator in which the positive's own term is hidden."""
    return log_sum_exp(np.where(np.eye(*log_terms.shape) > 0, -np.inf, log_terms))


def not_exponentiated(batch: Batch, mask: Array, temperature: float, alpha: float) -> Loss:
    """A weight may then be below 0, and so may the denominator, which has no logarithm."""
    ratios = log_ratios(batch, mask, temperature, 0.0)
    largest = np.max(np.real(ratios), axis=1)
    weight = np.concatenate([np.ones(mask.shape), alpha * np.real(hard_cosines(batch))], axis=1)
    sums = np.sum(weight * np.exp(ratios - largest[:, None]), axis=1)
    return np.mean(largest + np.log(np.where(np.real(sums) > 0, sums, UNDEFINED)))


def any_texts(texts: list[Any]) -> list[int]:
    """As if no two were the same."""
    return list(range(len(texts)))


def by_vectors(batch: Batch, mask: Array, *given: Any) -> Loss:
    return contrastive(batch, false_negative_mask(*(np.real(side).tolist() for side in batch[:2])), *given)


def pairs(x: Array) -> int:
    return max(len(x) * (len(x) - 1), 1)


def between_sides(batch: Batch) -> Loss:
    query, positive, _ = map(l2_normalize, batch)
    return np.sum(np.square(query @ positive.T * (1 - np.eye(len(query))))) / pairs(query)


def only_cut(loss: Callable[[Batch], Loss], batch: Batch, lengths: list[int]) -> Loss:
    unit = Batch(*map(l2_normalize, batch))
    with replaced({"l2_normalize": lambda x: x}):
        return matryoshka(loss, unit, lengths)


def split(batch: Batch, mask: Array, teacher: Batch, mapping: Array, lengths: list[int], *rest: Any) -> Loss:
    shorter = [
        embedding_matching(first_numbers(batch, one), first_numbers(teacher, one), mapping[:one, :one])
        for one in lengths[1:]
    ]
    return total(batch, mask, teacher, mapping, lengths, *rest) + rest[-1].matching * sum(shorter)


def lengths_of(student: Array, teacher: Array, mapping: Array) -> Array:
    apart = l2_normalize(linear(student, mapping)) - l2_normalize(teacher)
    squares = np.sum(np.square(apart), axis=-1)
    return np.sqrt(np.where(np.abs(squares) < 1e-30, UNDEFINED, squares))  # which has no derivative at 0


def whole_gram(x: Array) -> Array:
    return np.square(l2_normalize(x) @ l2_normalize(x).T)


APART, HARDER = "texts that are the same are pushed apart", "hard negatives count more or less than meant"
SCALE, OTHER = "the loss has another scale, and weighs otherwise beside the others", "other vectors, perhaps as good"
RAW, SLOW = "lengths are trained in place of directions", "the loss is right, and falls to another place"
SHORT, LITTLE = "shortened vectors are worse than they could be", "hardly anything is learned"
# id, the requirement, what the port does, what its users see, and the functions it has in place of the reference's
TABLE: tuple[tuple[str, str, str, str, Functions], ...] = (
    # contrastive: what stands in the denominator
    ("mask-missing", "LOSS-2", "TN is missing", APART,
     {"false_negative_mask": lambda q, p: false_negative_mask(any_texts(q), any_texts(p))}),
    ("mask-by-queries-only", "LOSS-2", "TN looks at queries only", APART,
     {"false_negative_mask": lambda q, p: false_negative_mask(q, any_texts(p))}),
    ("mask-by-positives-only", "LOSS-2", "TN looks at positives only", APART,
     {"false_negative_mask": lambda q, p: false_negative_mask(any_texts(q), p)}),
    ("mask-where-both", "LOSS-2", "TN masks only where query and positive are both the same", APART,
     {"false_negative_mask": lambda q, p: false_negative_mask(*[list(zip(q, p, strict=True))] * 2)}),
    ("mask-by-vectors", "LOSS-2", "TN compares vectors in place of texts", APART, {"contrastive": by_vectors}),
    ("positive-not-in-denominator", "LOSS-2", "TN masks j = i as well, and with it the positive",
     "the loss falls below 0, and is infinite where no other term is left",
     {"log_sum_exp": without_own}),
    ("hard-negative-missing", "LOSS-1", "the hard negative is not in the denominator", "hard negatives teach nothing",
     ratios(lambda b, m, t, a: log_ratios(b, m, t, a)[:, : len(m)])),
    ("negatives-of-others", "LOSS-1", "other examples' hard negatives are in the denominator", OTHER,
     added(lambda b: l2_normalize(b.queries) @ l2_normalize(b.negatives.reshape(-1, b.queries.shape[1])).T, True)),
    ("queries-in-denominator", "LOSS-1", "other queries are in the denominator", OTHER,
     added(lambda b: l2_normalize(b.queries) @ l2_normalize(b.queries).T, False)),
    ("direction-reversed", "LOSS-1", "the sum is over queries, for each positive", OTHER, ratios(turned)),
    # contrastive: temperature and weight
    ("temperature-multiplied", "LOSS-1", "multiplied by the temperature, not divided", LITTLE,
     ratios(lambda b, m, t, a: log_ratios(b, m, 1 / t, a))),
    ("temperature-squared", "LOSS-1", "divided by the temperature twice", "only the nearest text counts",
     ratios(lambda b, m, t, a: log_ratios(b, m, t * t, a))),
    ("temperature-ignored", "LOSS-1", "not divided by the temperature", LITTLE,
     ratios(lambda b, m, t, a: log_ratios(b, m, 1.0, a))),
    ("hardness-missing", "LOSS-3", "the hard negative has no weight", HARDER, weighted(lambda h, t, a: 0 * h)),
    ("hardness-not-exponentiated", "LOSS-3", "the weight is alpha sim, without exp", HARDER,
     {"contrastive": not_exponentiated}),
    ("hardness-over-temperature", "LOSS-3", "the weight has sim / temperature for sim", HARDER,
     weighted(lambda h, t, a: np.log(np.exp(a * np.real(h) / t)))),
    ("hardness-on-positives", "LOSS-3", "the weight is on the sum over positives", HARDER,
     weighted(lambda h, t, a: a * np.real(h.sum(1, keepdims=True)), part=0)),
    ("exponentials-overflow", "LOSS-1", "the largest logit is not taken off before exp", "NaN at a low temperature",
     {"log_sum_exp": lambda x: np.log(np.sum(np.exp(x), axis=-1))}),
    ("contrastive-log-two", "LOSS-1", "the logarithm is to base 2", SCALE,
     times(contrastive, lambda *_: 1 / np.log(2))),
    ("contrastive-summed", "LOSS-1", "summed over examples", SCALE, times(contrastive, lambda b, *_: len(b.queries))),
    # what is constant, and what is unit
    ("hardness-differentiated", "LOSS-3", "the weight is differentiated", SLOW, {"stop_gradient": lambda x: x}),
    ("hard-negative-detached", "LOSS-4", "no gradient reaches the hard negative", SLOW,
     ratios(lambda b, *given: log_ratios(b._replace(negatives=np.real(b.negatives)), *given))),
    ("normalisation-not-differentiated", "LOSS-4", "gradients of unit vectors, divided by the length", SLOW,
     {"l2_normalize": lambda x: x / np.linalg.norm(np.real(x), axis=-1, keepdims=True)}),
    ("not-normalised", "LOSS-1", "raw vectors, in every loss", RAW, {"l2_normalize": lambda x: x}),
    # spread-out
    ("spread-out-mean-term", "LOSS-5", "the squared mean of the cosines is added", OTHER,
     {"second_moment": lambda x: second_moment(x) + np.square(np.sum(other_cosines(x)) / pairs(x))}),
    ("spread-out-diagonal-included", "LOSS-5", "the mean of all B B squares, i = j among them", SCALE,
     {"second_moment": lambda x: np.mean(whole_gram(x))}),
    ("spread-out-diagonal-kept", "LOSS-5", "i = j is in the sum over B (B - 1)", SCALE,
     {"second_moment": lambda x: np.sum(whole_gram(x)) / pairs(x)}),
    ("spread-out-over-b-squared", "LOSS-5", "divided by B B", SCALE, times(second_moment, lambda x: 1 - 1 / len(x))),
    ("spread-out-halved", "LOSS-5", "each pair counted once, or the sides averaged", SCALE,
     times(second_moment, lambda x: 0.5)),
    ("spread-out-queries-only", "LOSS-5", "positives are left out", "documents crowd",
     {"spread_out": lambda b: second_moment(b.queries)}),
    ("spread-out-between-sides", "LOSS-5", "between queries and positives, not within each", OTHER,
     {"spread_out": between_sides}),
    # Matryoshka
    ("matryoshka-not-renormalised", "LOSS-7", "unit vectors are cut, and not normalised again", SHORT,
     {"matryoshka": only_cut}),
    ("matryoshka-averaged", "LOSS-7", "averaged over lengths", SCALE, times(matryoshka, lambda loss, b, n: 1 / len(n))),
    ("matryoshka-whole-only", "LOSS-7", "only the whole length", SHORT,
     {"matryoshka": lambda loss, b, n: matryoshka(loss, b, n[:1])}),
    ("matching-split", "LOSS-8", "embedding matching at every length too", OTHER, {"total": split}),
    # embedding matching, and the sum
    ("matching-mean-over-numbers", "LOSS-6", "the mean over numbers", SCALE,
     times(distance, lambda s, t, m: 1 / len(m))),
    ("matching-cosine", "LOSS-6", "1 - cosine, half of the squared distance", SCALE, times(distance, lambda *_: 0.5)),
    ("matching-not-squared", "LOSS-6", "the distance, not its square", SCALE,
     {"distance": lambda s, t, m: np.sum(lengths_of(s, t, m)) / len(s)}),
    ("matching-not-normalised", "LOSS-6", "raw vectors are matched", RAW,
     {"distance": lambda s, t, m: np.sum(np.square(linear(s, m) - t)) / len(s)}),
    ("matching-summed", "LOSS-6", "summed over examples", SCALE, times(distance, lambda s, t, m: len(s))),
    ("matching-averaged", "LOSS-6", "averaged over the sides", SCALE,
     times(embedding_matching, lambda s, t, m: 1 / (2 + s[2].shape[1]))),
    ("matching-negatives-missing", "LOSS-6", "hard negatives are not matched", "hard negatives drift",
     {"embedding_matching": lambda s, t, m: embedding_matching(s[:2], t[:2], m)}),
    ("matching-teacher-mapped", "LOSS-6", "the teacher's vectors are mapped, by the transpose", OTHER,
     {"distance": lambda s, t, m: np.sum(np.square(l2_normalize(s) - l2_normalize(t @ m))) / len(s)}),
    ("weights-ignored", "LOSS-8", "the losses are added without their weights", SCALE,
     {"total": lambda *given: total(*[*given[:-1], Weights(*(float(one > 0) for one in given[-1]))])}),
)  # fmt: skip
MISTAKES = tuple(
    Defect(id, "H", title, effect, "-", "", requirement, RIGHT) for id, requirement, title, effect, _ in TABLE
)
REPLACED = {id: functions for id, *_, functions in TABLE}
