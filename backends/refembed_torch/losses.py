"""refembed.reference.losses in PyTorch, whose autograd gives the gradients.

Vectors are raw, as they leave the dense head: every loss normalises inside. What each symbol means, the sources and the
traps stand in the reference; tests hold values and gradients to it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from refembed.errors import RefembedError
from refembed.reference.losses import ALPHA, EQUAL, LENGTHS, TEMPERATURE, Weights, false_negative_mask

from .forward import unit

__all__ = [
    "Batch", "contrastive", "embedding_matching", "mask_of", "matryoshka", "split", "spread_out", "total"
]  # fmt: skip


class Batch(NamedTuple):
    """The vectors of a batch of examples.

    queries and positives (examples, n); negatives (examples, hard, n), hard = 0 where there are none.
    """

    queries: Tensor
    positives: Tensor
    negatives: Tensor


def check_shapes(batch: Batch, mask: Tensor | None = None) -> None:
    """Raise RefembedError where the sides of a batch do not fit: PyTorch would repeat a side of 1 in silence."""
    shape = tuple(batch.queries.shape)
    if len(shape) != 2 or not len(batch.queries):
        raise RefembedError("loss-shape", f"queries are {shape}; (examples, n), of at least one example, needed")
    needed = {"positives": shape, "negatives": (shape[0], batch.negatives.shape[1:2].numel(), shape[1])}
    for side, expected in needed.items():
        found = tuple(getattr(batch, side).shape)
        if found != expected:
            what = "(examples, hard, n)" if side == "negatives" else "(examples, n)"
            raise RefembedError("loss-shape", f"{side} are {found} beside queries of {shape}; {what} needed")
    if mask is not None and tuple(mask.shape) != (shape[0], shape[0]):
        raise RefembedError("loss-shape", f"mask is {tuple(mask.shape)}, {(shape[0], shape[0])} needed")


def check_teacher(student: Batch, teacher: Batch, mapping: Tensor | None) -> None:
    """Raise RefembedError where a side of the teacher's is not the student's, or its width has no map to it."""
    own, width = student.queries.shape[-1], teacher.queries.shape[-1]
    if mapping is None and own != width:
        raise RefembedError("loss-shape", f"student's vectors have {own} numbers, teacher's {width}; give a mapping")
    if mapping is not None and tuple(mapping.shape) != (width, own):
        raise RefembedError("loss-shape", f"mapping is {tuple(mapping.shape)}, {(width, own)} needed")
    for side in Batch._fields:
        found, goal = (tuple(getattr(batch, side).shape) for batch in (student, teacher))
        if goal != (*found[:-1], width):
            raise RefembedError("loss-shape", f"teacher's {side} are {goal}, {(*found[:-1], width)} needed")


def split(vectors: Tensor, examples: int) -> Batch:
    """The examples of one packed forward pass: their queries, then their positives, then their hard negatives.

    vectors   ((2 + hard) * examples, n); negatives are grouped by example

    Raises RefembedError where there are not so many.
    """
    if examples < 1 or len(vectors) < 2 * examples or len(vectors) % examples:
        raise RefembedError(
            "loss-shape",
            f"{len(vectors)} vectors are not those of {examples} examples; a query, a positive and as many negatives "
            "for each needed",
        )
    queries, positives, negatives = vectors.split([examples, examples, len(vectors) - 2 * examples])
    hard = len(negatives) // examples
    return Batch(queries, positives, negatives.view(examples, hard, vectors.shape[1]))


def mask_of(queries: Sequence[object], positives: Sequence[object], device: torch.device | None = None) -> Tensor:
    """Whether positive j counts against query i, (examples, examples): not where the two share a text.

    queries, positives   what is equal where texts are: the texts, or their token ids as tuples or arrays

    Raises RefembedError where there are not as many of both.
    """
    if len(queries) != len(positives):
        raise RefembedError(
            "loss-shape", f"{len(queries)} queries and {len(positives)} positives; as many of both needed"
        )
    sides = ([comparable(text) for text in side] for side in (queries, positives))
    return torch.from_numpy(false_negative_mask(*sides)).to(device)


def comparable(text: object) -> object:
    """Arrays are compared number by number, which says nothing of the whole."""
    return np.asarray(text, np.int64).tobytes() if isinstance(text, np.ndarray | Tensor) else text


def contrastive(batch: Batch, mask: Tensor, temperature: float = TEMPERATURE, alpha: float = ALPHA) -> Tensor:
    """L_C, with the hardness weight exp(alpha sim(q, p-)), which is a constant to the gradient."""
    check_shapes(batch, mask)
    query, positive, negative = map(unit, batch)
    in_batch = (query @ positive.T / temperature).masked_fill(~mask, -torch.inf)  # (examples, examples)
    hard = torch.einsum("en,ehn->eh", query, negative)  # (examples, hard)
    terms = torch.cat([in_batch, alpha * hard.detach() + hard / temperature], 1)  # (examples, columns)
    return torch.logsumexp(terms - in_batch.diagonal()[:, None], 1).mean()


def spread_out(batch: Batch) -> Tensor:
    """L_S: the mean square of the cosines of different queries, plus the same of the positives; 0 for one example."""
    check_shapes(batch)
    return second_moment(batch.queries) + second_moment(batch.positives)


def second_moment(x: Tensor) -> Tensor:
    rows = unit(x)
    others = (rows @ rows.T).fill_diagonal_(0)  # (examples, examples)
    return others.square().sum() / max(len(x) * (len(x) - 1), 1)


def embedding_matching(student: Batch, teacher: Batch, mapping: Tensor | None = None) -> Tensor:
    """L_D: the squared distances of queries, positives and hard negatives from the teacher's, added.

    mapping   (m, n) learned, where the teacher's vectors are of another width; none where they are not
    """
    check_shapes(student)
    check_teacher(student, teacher, mapping)

    def distance(own: Tensor, goal: Tensor) -> Tensor:
        mapped = own if mapping is None else own @ mapping.T  # (..., m)
        return (unit(mapped) - unit(goal.detach())).square().sum() / len(own)

    return torch.stack([distance(own, goal) for own, goal in zip(student, teacher, strict=True)]).sum()


def matryoshka(loss: Callable[[Batch], Tensor], batch: Batch, lengths: Sequence[int] = LENGTHS) -> Tensor:
    """The loss of the first numbers of every vector, for each length, added.

    Raises RefembedError for a length that the vectors do not have, which would count the whole of them once more.
    """
    most = batch.queries.shape[-1]
    for length in lengths:
        if not 1 <= length <= most:
            raise RefembedError(
                "loss-shape", f"vectors of {most} numbers have no first {length}; lengths 1 to {most} needed"
            )
    return torch.stack([loss(Batch(*(side[..., :length] for side in batch))) for length in lengths]).sum()


def total(
    batch: Batch,
    mask: Tensor,
    teacher: Batch | None = None,
    mapping: Tensor | None = None,
    lengths: Sequence[int] = LENGTHS,
    temperature: float = TEMPERATURE,
    alpha: float = ALPHA,
    weights: Weights = EQUAL,
) -> Tensor:
    """What is minimised: contrastive and spread-out at every length, and embedding matching at the whole one.

    teacher   none: without distillation

    Raises RefembedError, as all losses do, where shapes do not fit each other.
    """

    def of_length(cut: Batch) -> Tensor:
        return weights.contrastive * contrastive(cut, mask, temperature, alpha) + weights.spread_out * spread_out(cut)

    found = matryoshka(of_length, batch, lengths)
    return found if teacher is None else found + weights.matching * embedding_matching(batch, teacher, mapping)
