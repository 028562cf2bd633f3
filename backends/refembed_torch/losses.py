"""refembed.reference.losses in PyTorch, whose autograd gives the gradients.

Vectors are raw, as they leave the dense head: every loss normalises inside. What each symbol means, the sources and the
traps stand in the reference; tests hold values and gradients to it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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


def split(vectors: Tensor, examples: int) -> Batch:
    """The examples of one packed forward pass: their queries, then their positives, then their hard negatives.

    vectors   ((2 + hard) * examples, n); negatives are grouped by example
    """
    queries, positives, negatives = vectors.split([examples, examples, len(vectors) - 2 * examples])
    hard = len(negatives) // examples
    return Batch(queries, positives, negatives.view(examples, hard, vectors.shape[1]))


def mask_of(queries: Sequence[object], positives: Sequence[object], device: torch.device | None = None) -> Tensor:
    """Whether positive j counts against query i, (examples, examples): not where the two share a text.

    queries, positives   what is equal where texts are, such as tuples of their token ids
    """
    return torch.from_numpy(false_negative_mask(queries, positives)).to(device)


def contrastive(batch: Batch, mask: Tensor, temperature: float = TEMPERATURE, alpha: float = ALPHA) -> Tensor:
    """L_C, with the hardness weight exp(alpha sim(q, p-)), which is a constant to the gradient."""
    query, positive, negative = map(unit, batch)
    in_batch = (query @ positive.T / temperature).masked_fill(~mask, -torch.inf)  # (examples, examples)
    hard = torch.einsum("en,ehn->eh", query, negative)  # (examples, hard)
    terms = torch.cat([in_batch, alpha * hard.detach() + hard / temperature], 1)  # (examples, columns)
    return torch.logsumexp(terms - in_batch.diagonal()[:, None], 1).mean()


def spread_out(batch: Batch) -> Tensor:
    """L_S: the mean square of the cosines of different queries, plus the same of the positives; 0 for one example."""
    return second_moment(batch.queries) + second_moment(batch.positives)


def second_moment(x: Tensor) -> Tensor:
    rows = unit(x)
    others = (rows @ rows.T).fill_diagonal_(0)  # (examples, examples)
    return others.square().sum() / max(len(x) * (len(x) - 1), 1)


def embedding_matching(student: Batch, teacher: Batch, mapping: Tensor | None = None) -> Tensor:
    """L_D: the squared distances of queries, positives and hard negatives from the teacher's, added.

    mapping   (m, n) learned, where the teacher's vectors are of another width; none where they are not
    """

    def distance(own: Tensor, goal: Tensor) -> Tensor:
        mapped = own if mapping is None else own @ mapping.T  # (..., m)
        return (unit(mapped) - unit(goal.detach())).square().sum() / len(own)

    return torch.stack([distance(own, goal) for own, goal in zip(student, teacher, strict=True)]).sum()


def matryoshka(loss: Callable[[Batch], Tensor], batch: Batch, lengths: Sequence[int] = LENGTHS) -> Tensor:
    """The loss of the first numbers of every vector, for each length, added."""
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
    """

    def of_length(cut: Batch) -> Tensor:
        return weights.contrastive * contrastive(cut, mask, temperature, alpha) + weights.spread_out * spread_out(cut)

    found = matryoshka(of_length, batch, lengths)
    return found if teacher is None else found + weights.matching * embedding_matching(batch, teacher, mapping)
