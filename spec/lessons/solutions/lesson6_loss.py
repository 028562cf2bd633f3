"""Lesson 6, solved."""

import given
import numpy as np

from .lesson4_attention import softmax
from .lesson5_model import l2_normalize


def log_hardness(queries: np.ndarray, negatives: np.ndarray, alpha: float) -> np.ndarray:
    """Above zero for a negative that lies near."""
    return alpha * np.sum(l2_normalize(queries) * l2_normalize(negatives), axis=1)  # (examples)


def false_negative_mask(query_texts: list, positive_texts: list) -> np.ndarray:
    """The positive itself stays, though its text is its own."""

    def counts(i: int, j: int) -> bool:
        return i == j or (query_texts[i] != query_texts[j] and positive_texts[i] != positive_texts[j])

    examples = range(len(query_texts))
    return np.array([[counts(i, j) for j in examples] for i in examples])  # (examples, examples)


def log_terms(
    queries: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    log_w: np.ndarray,
    mask: np.ndarray,
    temperature: float,
) -> np.ndarray:
    """In logarithms a product is a sum, and nothing overflows."""
    q, p, n = map(l2_normalize, (queries, positives, negatives))
    in_batch = np.where(mask, q @ p.T / temperature, -np.inf)  # (examples, examples)
    hard = log_w + np.sum(q * n, axis=1) / temperature  # (examples)
    return np.column_stack([in_batch, hard])  # (examples, examples + 1)


def contrastive(
    queries: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    log_w: np.ndarray,
    mask: np.ndarray,
    temperature: float,
) -> float:
    """-log of a share is the logarithm of the whole less the logarithm of the part."""
    terms = log_terms(queries, positives, negatives, log_w, mask, temperature)  # (examples, examples + 1)
    largest = terms.max(axis=1)  # (examples)
    whole = largest + np.log(np.sum(np.exp(terms - largest[:, None]), axis=1))  # (examples)
    return np.mean(whole - np.diagonal(terms))


def second_moment(x: np.ndarray) -> float:
    """The mean square of the cosines of different rows."""
    return np.sum(other_cosines(x) ** 2) / max(len(x) * (len(x) - 1), 1)


def other_cosines(x: np.ndarray) -> np.ndarray:
    """Each row with every other; 0 with itself: (examples, examples)."""
    unit = l2_normalize(x)  # (examples, n)
    return unit @ unit.T * (1 - np.eye(len(x)))  # (examples, examples)


def l2_normalize_gradient(upstream: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What is left of upstream at right angles to x, over x's length."""
    length = np.sqrt(np.sum(x**2, axis=-1, keepdims=True))  # (..., 1)
    unit = x / length  # (..., n)
    return (upstream - np.sum(upstream * unit, axis=-1, keepdims=True) * unit) / length  # (..., n)


def contrastive_gradient(
    queries: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    log_w: np.ndarray,
    mask: np.ndarray,
    temperature: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First with respect to every cosine, then to the unit vectors, then to the raw ones."""
    q, p, n = map(l2_normalize, (queries, positives, negatives))
    examples = len(q)
    share = softmax(log_terms(queries, positives, negatives, log_w, mask, temperature))  # (examples, examples + 1)
    of_terms = (share - np.eye(examples, examples + 1)) / (examples * temperature)  # (examples, examples + 1)
    of_cosine, of_hard = of_terms[:, :-1], of_terms[:, -1:]  # (examples, examples), (examples, 1)
    of_units = of_cosine @ p + of_hard * n, of_cosine.T @ q, of_hard * q
    of_queries, of_positives, of_negatives = map(l2_normalize_gradient, of_units, (queries, positives, negatives))
    return of_queries, of_positives, of_negatives


def second_moment_gradient(x: np.ndarray) -> np.ndarray:
    """Two from the square, and two since each pair stands in the sum twice."""
    of_unit = 4 * other_cosines(x) @ l2_normalize(x) / max(len(x) * (len(x) - 1), 1)  # (examples, n)
    return l2_normalize_gradient(of_unit, x)  # (examples, n)


def loss(asked: dict) -> dict:
    """What `refembed verify --level losses` asks."""
    return given.loss(
        asked,
        log_hardness,
        false_negative_mask,
        (contrastive, contrastive_gradient),
        (second_moment, second_moment_gradient),
    )
