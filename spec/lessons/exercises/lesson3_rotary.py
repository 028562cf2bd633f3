"""Lesson 3. Rotary positions.

Attention compares tokens by a dot product, which does not know where they stand. So each query and each key is turned
first, by an angle that grows with its position. Turn two vectors by a and b, and their dot product depends on a - b
alone: the model sees how far apart tokens are, not where they are.

A head's numbers are turned two at a time: number k of its first half with number k of its second half. Each pair has
a speed of its own, from one radian a token for the first to almost nothing for the last:

    theta_k = base^(-2k / head)                        k = 0 ... head/2 - 1
    angle[position, k] = position * theta_k            position = 0, 1, ...
    first'  = first cos(angle) - second sin(angle)
    second' = second cos(angle) + first sin(angle)

Layers that see the whole text have base 1,000,000, so that slow pairs still tell far tokens apart; the others 10,000.
Read beside it: spec/04-rotary-positions.md. Check: python spec/lessons/check.py 3
"""

import numpy as np


def rotary_angles(tokens: int, head: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    """The cosine and the sine of every angle.

    tokens   how many positions
    head     numbers in a head, even
    returns  cos and sin, each (tokens, head/2)
    """
    raise NotImplementedError


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Turn each pair (x_k, x_{k + head/2}) by its position's angle.

    x        (..., tokens, head)
    cos      (tokens, head/2)
    sin      (tokens, head/2)
    returns  (..., tokens, head)
    """
    raise NotImplementedError
