"""Lesson 6. The loss, and its gradient by hand.

What makes near texts near is training. A batch holds examples: a query q, a text that answers it p (the positive), and
one that seems to and does not n (the hard negative). sim is the cosine. Every other example's positive is a wrong
answer that costs nothing to make:

    L = mean over i of -log(               e^{sim(q_i, p_i) / t}
                            ---------------------------------------------------------- )
                            w_i e^{sim(q_i, n_i) / t}  +  sum over j of e^{sim(q_i, p_j) / t}

    w_i = exp(alpha sim(q_i, n_i))                  the harder the negative, the more it counts

j runs over the positives that are wrong answers, and i itself. Where two examples share a query or a positive, one's
positive is no wrong answer to the other: it is masked. t, the temperature, says how much only the nearest count.
In the gradient w is a constant: it weighs, and nothing is to be gained by changing it. So it is computed first and
handed over, as its logarithm, since it stands beside an exponent: w e^s = e^(log w + s).

The second loss spreads vectors over the whole sphere, queries and positives each for themselves:

    S(x) = 1 / (B (B - 1)) sum over i != j of (x_i . x_j)^2          of unit vectors

A gradient says how L changes with each number. Learn to find it by hand and to check it by finite differences: move
one number by a little each way, and see what the loss does. The check does that to your own loss.

    softmax in the loss:   d L / d s_ij = ( share_ij - [j is i] ) / (B t)     share: term ij over the whole denominator
    u = x / |x|:           d L / d x = ( g - (g . u) u ) / |x|                g = d L / d u

Read beside it: spec/10-losses.md, spec/11-gradients.md. Check: python spec/lessons/check.py 6, and then

    cd spec/lessons && refembed verify --level losses --call exercises.lesson6_loss:loss --cases "contrastive*,spread*"
"""

import given
import numpy as np

from .lesson4_attention import softmax
from .lesson5_model import l2_normalize


def log_hardness(queries: np.ndarray, negatives: np.ndarray, alpha: float) -> np.ndarray:
    """log w: alpha times the cosine of each query with its hard negative.

    queries, negatives  (examples, n)  of any length: normalise them
    returns             (examples,)
    """
    raise NotImplementedError


def false_negative_mask(query_texts: list, positive_texts: list) -> np.ndarray:
    """Whether positive j counts in query i's sum.

    query_texts, positive_texts  the texts themselves, one an example; any values that == compares
    returns                      (examples, examples)  True or False; always True where j is i
    """
    raise NotImplementedError


def log_terms(
    queries: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    log_w: np.ndarray,
    mask: np.ndarray,
    temperature: float,
) -> np.ndarray:
    """The logarithm of every term of the denominator: a column a positive, and one more for the hard negative.

    queries, positives, negatives  (examples, n)  of any length
    log_w                          (examples,)
    mask                           (examples, examples)
    returns                        (examples, examples + 1)  -infinity where masked
    """
    raise NotImplementedError


def contrastive(
    queries: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    log_w: np.ndarray,
    mask: np.ndarray,
    temperature: float,
) -> float:
    """L. The same arguments as log_terms. Mind exp(1000): take the row's largest term off, and put it back.

    returns  one number
    """
    raise NotImplementedError


def second_moment(x: np.ndarray) -> float:
    """S of one side.

    x        (examples, n)  of any length
    returns  one number; 0 for a single example
    """
    raise NotImplementedError


def l2_normalize_gradient(upstream: np.ndarray, x: np.ndarray) -> np.ndarray:
    """From the gradient of the loss with respect to u = x / |x| to that with respect to x.

    upstream  (..., n)
    x         (..., n)
    returns   (..., n)  at right angles to x: along it nothing changes
    """
    raise NotImplementedError


def contrastive_gradient(
    queries: np.ndarray,
    positives: np.ndarray,
    negatives: np.ndarray,
    log_w: np.ndarray,
    mask: np.ndarray,
    temperature: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradient of L with respect to queries, positives and negatives, in this order, each (examples, n)."""
    raise NotImplementedError


def second_moment_gradient(x: np.ndarray) -> np.ndarray:
    """The gradient of S. Each pair stands in the sum twice.

    x        (examples, n)
    returns  (examples, n)
    """
    raise NotImplementedError


def loss(asked: dict) -> dict:
    """Written for you, on your functions: what `refembed verify --level losses` asks."""
    return given.loss(
        asked,
        log_hardness,
        false_negative_mask,
        (contrastive, contrastive_gradient),
        (second_moment, second_moment_gradient),
    )
