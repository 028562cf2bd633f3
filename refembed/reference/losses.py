"""The losses the model was trained with, each beside its gradient with respect to the raw vectors.

Raw: as they leave the dense head. Every loss normalises inside, so a gradient is at right angles to its vector. A loss
is one number for a batch; batch means, weights and sums are in it, so its gradient needs no upstream.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .gradients import l2_normalize_gradient, linear_gradient, linear_weight_gradient
from .operations import l2_normalize, linear, softmax
from .trace import Array

LENGTHS = (768, 512, 256, 128)  # Matryoshka, as trained
TEMPERATURE = 0.02  # the paper gives none
ALPHA = 5.0  # of the hardness weight, as in the paper
Scalar: TypeAlias = np.floating[Any]


class Batch(NamedTuple):
    """The vectors of a batch of examples, or their gradients.

    queries and positives are (examples, n), negatives (examples, hard, n): each example has one hard negative,
    Batch(q, p, n[:, None]), or none has, Batch(q, p, q[:, None][:, :0]). Several would each be a term of its own.
    """

    queries: Array
    positives: Array
    negatives: Array


class Gradient(NamedTuple):
    """With respect to the student's vectors, of one side or a Batch of all, and to the mapping."""

    student: Any
    mapping: Array


class Weights(NamedTuple):
    """What each loss counts in the total."""

    contrastive: float = 1.0
    spread_out: float = 1.0
    matching: float = 1.0


EQUAL = Weights()


def stop_gradient(x: Array) -> Array:
    """The identity, whose derivative is taken to be zero. It changes no loss; it says what a gradient leaves out.

    x        (..., n)
    returns  (..., n)

    Source: LOSS-3.
    Witness: golden/losses contrastive-hard.
    """
    return x  # (..., n)


def false_negative_mask(query_texts: Sequence[object], positive_texts: Sequence[object]) -> Array:
    """TN: whether positive j counts against query i. Not where the two examples share a text; always where j is i.

    query_texts, positive_texts   what is equal where texts are, such as their lists of token ids, one an example
    returns  (examples, examples)  query i, positive j

    Source: LOSS-2. Trap: read literally the equation also masks j = i, whose text equals itself, and with it the
    numerator's own term (mistake positive-not-in-denominator).
    Witness: golden/losses total.
    """
    query = np.array([query_texts.index(text) for text in query_texts])  # (examples)
    positive = np.array([positive_texts.index(text) for text in positive_texts])  # (examples)
    same = (query[:, None] == query) | (positive[:, None] == positive)  # (examples, examples)
    return ~same | np.eye(len(query), dtype=bool)  # (examples, examples)


def log_sum_exp(x: Array) -> Array:
    """The logarithm of the sum of each row's exponentials.

    x        (..., n)  -inf where a term is absent; at least one finite number a row
    returns  (...)

    Source: LOSS-1. The row's largest is taken off first and put back, which keeps exp() in range at any temperature.
    Witness: golden/losses contrastive-same-query.
    """
    largest = np.max(x, axis=-1)  # (...)
    return largest + np.log(np.sum(np.exp(x - largest[..., None]), axis=-1))  # (...)


def log_ratios(batch: Batch, mask: Array, temperature: float, alpha: float) -> Array:
    """Logarithms of every term of the contrastive denominator over the numerator: positives, then hard negatives.

    batch    queries and positives (examples, n), negatives (examples, hard, n)
    mask     (examples, examples)
    returns  (examples, columns)

    Source: LOSS-1, LOSS-3. The hardness weight w = exp(alpha sim(q, p-)) is a constant to the gradient.
    Trap: other examples' hard negatives added (mistake negatives-of-others).
    Witness: golden/losses contrastive-same-query.
    """
    query, positive, negative = map(l2_normalize, batch)
    similarity = query @ positive.T  # (examples, examples)
    hard = np.einsum("en,ehn->eh", query, negative)  # (examples, hard)
    in_batch = np.where(mask, similarity / temperature, -np.inf)  # (examples, examples)
    weighted = alpha * stop_gradient(hard) + hard / temperature  # (examples, hard)
    terms = np.concatenate([in_batch, weighted], axis=1)  # (examples, columns)
    return terms - np.diagonal(in_batch)[:, None]  # (examples, columns)


def contrastive(batch: Batch, mask: Array, temperature: float = TEMPERATURE, alpha: float = ALPHA) -> Scalar:
    """L_C: how little of the denominator is the positive's, averaged over examples.

    batch        queries and positives (examples, n), negatives (examples, hard, n)
    mask         (examples, examples)
    temperature  scalar  above 0
    alpha        scalar  of the hardness weight
    returns      scalar

    Source: LOSS-1.
    Witness: golden/losses contrastive-hard.
    """
    return np.mean(log_sum_exp(log_ratios(batch, mask, temperature, alpha)))


def contrastive_gradient(batch: Batch, mask: Array, temperature: float = TEMPERATURE, alpha: float = ALPHA) -> Batch:
    """Its gradient: each similarity's share of the denominator, less 1 for the positive's own, over temperature and B.

    batch        queries and positives (examples, n), negatives (examples, hard, n)
    mask         (examples, examples)
    temperature  scalar
    alpha        scalar
    returns      queries and positives (examples, n), negatives (examples, hard, n)

    Source: LOSS-4. Trap: alpha does not appear, since the weight is not differentiated (mistake
    hardness-differentiated).
    Witness: golden/losses contrastive-hard.
    """
    query, positive, negative = map(l2_normalize, batch)
    examples = len(query)
    share = softmax(log_ratios(batch, mask, temperature, alpha))  # (examples, columns)
    pull = np.eye(examples, dtype=share.dtype)  # (examples, examples)
    similarity = (share[:, :examples] - pull) / (temperature * examples)  # (examples, examples)
    hard = share[:, examples:] / (temperature * examples)  # (examples, hard)
    of_query = similarity @ positive + np.einsum("eh,ehn->en", hard, negative)  # (examples, n)
    of_positive = similarity.T @ query  # (examples, n)
    of_negative = np.einsum("eh,en->ehn", hard, query)  # (examples, hard, n)
    return Batch(*map(l2_normalize_gradient, (of_query, of_positive, of_negative), batch))


def other_cosines(x: Array) -> Array:
    """The cosine of each row with every other, and 0 with itself.

    x        (examples, n)
    returns  (examples, examples)

    Source: LOSS-5. Trap: the diagonal, always 1, drowns the rest (mistake spread-out-diagonal-kept).
    Witness: golden/losses total.
    """
    unit = l2_normalize(x)  # (examples, n)
    return unit @ unit.T * (1 - np.eye(len(x), dtype=x.dtype))  # (examples, examples)


def second_moment(x: Array) -> Scalar:
    """The mean square of the cosines of different rows; 0 for a single row.

    x        (examples, n)
    returns  scalar

    Source: LOSS-5. Of independent directions it is 1/n.
    Witness: golden/losses total.
    """
    cosines = other_cosines(x)  # (examples, examples)
    return np.sum(np.square(cosines)) / max(len(x) * (len(x) - 1), 1)  # a row alone has no pair


def second_moment_gradient(x: Array) -> Array:
    """Its gradient. Each pair stands in the sum twice, and each square gives a factor of two.

    x        (examples, n)
    returns  (examples, n)

    Source: LOSS-5.
    Witness: golden/losses spread-out.
    """
    of_unit = 4 * other_cosines(x) @ l2_normalize(x) / max(len(x) * (len(x) - 1), 1)  # (examples, n)
    return l2_normalize_gradient(of_unit, x)  # (examples, n)


def spread_out(batch: Batch) -> Scalar:
    """L_S: the second moment of the queries' cosines and that of the positives'.

    batch    queries and positives (examples, n), negatives (examples, hard, n)
    returns  scalar

    Source: LOSS-5, Zhang et al. 2017 without the mean term (mistake spread-out-mean-term).
    Witness: golden/losses spread-out.
    """
    return second_moment(batch.queries) + second_moment(batch.positives)


def spread_out_gradient(batch: Batch) -> Batch:
    """Its gradient. Hard negatives have no part in it.

    batch    queries and positives (examples, n), negatives (examples, hard, n)
    returns  queries and positives (examples, n), negatives (examples, hard, n)

    Source: LOSS-5.
    Witness: golden/losses spread-out.
    """
    of_queries, of_positives = map(second_moment_gradient, batch[:2])
    return Batch(of_queries, of_positives, np.zeros_like(batch.negatives))


def distance(student: Array, teacher: Array, mapping: Array) -> Scalar:
    """The squared distance of the student's unit vectors, mapped, from the teacher's, averaged over examples.

    student  (..., n)  examples first
    teacher  (..., m)
    mapping  (m, n)    stored (out, in)
    returns  scalar

    Source: LOSS-6. Trap: the mean over numbers too, m times less (mistake matching-mean-over-numbers).
    Witness: golden/losses matching-mapped.
    """
    apart = l2_normalize(linear(student, mapping)) - l2_normalize(teacher)  # (..., m)
    return np.sum(np.square(apart)) / len(student)


def distance_gradient(student: Array, teacher: Array, mapping: Array) -> Gradient:
    """Its gradient with respect to the student's vectors and to the mapping. The teacher is a constant.

    student  (..., n)  examples first
    teacher  (..., m)
    mapping  (m, n)
    returns  student (..., n) and mapping (m, n)

    Source: LOSS-6.
    Witness: golden/losses matching-mapped.
    """
    mapped = linear(student, mapping)  # (..., m)
    apart = l2_normalize(mapped) - l2_normalize(teacher)  # (..., m)
    of_mapped = l2_normalize_gradient(2 * apart / len(student), mapped)  # (..., m)
    return Gradient(linear_gradient(of_mapped, mapping), linear_weight_gradient(of_mapped, student))


def embedding_matching(student: Batch, teacher: Batch, mapping: Array) -> Scalar:
    """L_D: the distances of queries, positives and hard negatives from the teacher's, added.

    student  queries and positives (examples, n), negatives (examples, hard, n)
    teacher  queries and positives (examples, m), negatives (examples, hard, m)
    mapping  (m, n)  learned where the widths differ; where they do not, the identity
    returns  scalar

    Source: LOSS-6, Kim et al. 2023. Without a teacher let the batch be its own: no distance, no gradient.
    Witness: golden/losses matching-mapped.
    """
    return np.sum([distance(own, goal, mapping) for own, goal in zip(student, teacher, strict=True)])


def embedding_matching_gradient(student: Batch, teacher: Batch, mapping: Array) -> Gradient:
    """Its gradient with respect to the student's vectors and to the mapping, which all three sides share.

    student  queries and positives (examples, n), negatives (examples, hard, n)
    teacher  queries and positives (examples, m), negatives (examples, hard, m)
    mapping  (m, n)
    returns  mapping (m, n), and student a Batch as given

    Source: LOSS-6.
    Witness: golden/losses matching-mapped.
    """
    sides = [distance_gradient(own, goal, mapping) for own, goal in zip(student, teacher, strict=True)]
    of_student, of_mapping = zip(*sides, strict=True)
    return Gradient(Batch(*of_student), sum(of_mapping))


def first_numbers(batch: Batch, length: int) -> Batch:
    """The first numbers of every vector. The losses make them unit length again.

    batch    queries and positives (examples, n), negatives (examples, hard, n)
    length   how many are kept
    returns  queries and positives (examples, length), negatives (examples, hard, length)

    Source: LOSS-7, MAT-1.
    Witness: golden/losses contrastive-lengths.
    """
    return Batch(*(side[..., :length] for side in batch))


def matryoshka(loss: Callable[[Batch], Scalar], batch: Batch, lengths: Sequence[int] = LENGTHS) -> Scalar:
    """The loss of each length's vectors, added.

    loss     of a batch
    batch    queries and positives (examples, n), negatives (examples, hard, n)
    lengths  at most n each
    returns  scalar

    Source: LOSS-7, Kusupati et al. 2022. Trap: cut and not normalised again (mistake matryoshka-not-renormalised).
    Witness: golden/losses contrastive-lengths.
    """
    return np.sum([loss(first_numbers(batch, length)) for length in lengths])


def matryoshka_gradient(gradient: Callable[[Batch], Batch], batch: Batch, lengths: Sequence[int] = LENGTHS) -> Batch:
    """Its gradient: each length's reaches the numbers it was computed from.

    gradient  of the loss, of a batch
    batch     queries and positives (examples, n), negatives (examples, hard, n)
    lengths   at most n each
    returns   queries and positives (examples, n), negatives (examples, hard, n)

    Source: LOSS-7.
    Witness: golden/losses contrastive-lengths.
    """
    result = Batch(*map(np.zeros_like, batch))
    for length in lengths:
        for whole, part in zip(result, gradient(first_numbers(batch, length)), strict=True):
            whole[..., :length] += part
    return result


def total(
    batch: Batch,
    mask: Array,
    teacher: Batch,
    mapping: Array,
    lengths: Sequence[int] = LENGTHS,
    temperature: float = TEMPERATURE,
    alpha: float = ALPHA,
    weights: Weights = EQUAL,
) -> Scalar:
    """What is minimised: contrastive and spread-out at every length, and embedding matching at the whole one.

    batch        queries and positives (examples, n), negatives (examples, hard, n)
    mask         (examples, examples)
    teacher      queries and positives (examples, m), negatives (examples, hard, m)
    mapping      (m, n)
    returns      scalar

    Source: LOSS-8. Trap: the teacher's vectors cut as well (mistake matching-split).
    Witness: golden/losses total-weights.
    """

    def of_length(cut: Batch) -> Scalar:
        parts = contrastive(cut, mask, temperature, alpha), spread_out(cut)
        return weights.contrastive * parts[0] + weights.spread_out * parts[1]

    return matryoshka(of_length, batch, lengths) + weights.matching * embedding_matching(batch, teacher, mapping)


def total_gradient(
    batch: Batch,
    mask: Array,
    teacher: Batch,
    mapping: Array,
    lengths: Sequence[int] = LENGTHS,
    temperature: float = TEMPERATURE,
    alpha: float = ALPHA,
    weights: Weights = EQUAL,
) -> Gradient:
    """Its gradient with respect to the batch's vectors and to the mapping.

    batch        queries and positives (examples, n), negatives (examples, hard, n)
    mask         (examples, examples)
    teacher      queries and positives (examples, m), negatives (examples, hard, m)
    mapping      (m, n)
    returns      mapping (m, n), and student a Batch as given

    Source: LOSS-8.
    Witness: golden/losses total-mapped.
    """

    def of_length(cut: Batch) -> Batch:
        parts = contrastive_gradient(cut, mask, temperature, alpha), spread_out_gradient(cut)
        return combined(weights[:2], parts)

    of_mapped, of_mapping = embedding_matching_gradient(batch, teacher, mapping)
    of_batch = combined((1.0, weights.matching), (matryoshka_gradient(of_length, batch, lengths), of_mapped))
    return Gradient(of_batch, weights.matching * of_mapping)


def combined(weights: Sequence[float], batches: Sequence[Batch]) -> Batch:
    """The weighted sum of batches, side by side.

    weights  two numbers
    batches  queries and positives (examples, n), negatives (examples, hard, n), of both
    returns  queries and positives (examples, n), negatives (examples, hard, n)

    Source: LOSS-8.
    Witness: golden/losses total-weights.
    """
    first, second = batches
    return Batch(*(weights[0] * one + weights[1] * other for one, other in zip(first, second, strict=True)))
