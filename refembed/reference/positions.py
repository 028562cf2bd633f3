"""What a layer's kind decides: how far apart two tokens are turned, and which of them see each other."""

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from .config import SLIDING, Config
from .trace import Array


class Positions(NamedTuple):
    """Everything about position that the layers of one kind share, for a text of one length."""

    cos: Array  # (tokens, head/2)
    sin: Array  # (tokens, head/2)
    mask: Array  # (tokens, tokens), 0 where seen, -inf where not


def rotary_angles(tokens: int, head: int, base: float, dtype: DTypeLike) -> tuple[Array, Array]:
    """The cosine and sine of position times frequency, frequencies falling from 1 to nearly 1/base.

    tokens   number of positions, from 0
    head     head size, even
    base     10,000 in sliding layers and 1,000,000 in full ones
    dtype    of the result; the angles themselves are float64, since at position 2,047 float32 is 1e-4 off
    returns  cos and sin, each (tokens, head/2)

    Source: ROT-1, Su et al. 2021, theta_k = base^(-2k/head). Trap: one base for every layer (defect F1).
    Witness: golden/twin length-ladder-2.
    """
    frequency = base ** (-np.arange(0, head, 2) / head)  # (head/2)
    angle = np.outer(np.arange(tokens), frequency)  # (tokens, head/2)
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turn each pair (x_k, x_{k + head/2}) by its position's angle.

    x        (..., tokens, head)
    cos      (tokens, head/2)
    sin      (tokens, head/2)
    returns  (..., tokens, head)

    Source: ROT-2. Trap: pairs are number k of the first half with number k of the second, not neighbours
    (2k, 2k + 1) (defect F6).
    Witness: golden/twin length-ladder-1.
    """
    first, second = np.split(x, 2, axis=-1)
    turned_first = first * cos - second * sin  # (..., tokens, head/2)
    turned_second = second * cos + first * sin  # (..., tokens, head/2)
    return np.concatenate([turned_first, turned_second], axis=-1)  # (..., tokens, head)


def window_mask(tokens: int, reach: int, dtype: DTypeLike) -> Array:
    """Which keys (columns) each query (row) sees in a sliding layer: those at most reach away, on either side.

    tokens   length of the text
    reach    256 in the released model: 513 keys at most
    returns  (tokens, tokens)  0 where seen, -inf where not; all 0 up to reach + 1 tokens

    Source: ATT-3. Trap: causal (A), not halved (B1, B2), left out (B3), 255 on one side (B4). 257 tokens is the first
    length with a pair 256 apart, 258 the first with a pair that is not seen.
    Witness: golden/twin distinct-first-beyond-window.
    """
    position = np.arange(tokens)  # (tokens)
    distance = np.abs(position[:, None] - position[None, :])  # (tokens, tokens)
    return np.where(distance <= reach, 0.0, -np.inf).astype(dtype)  # (tokens, tokens)


def positions_of(kind: str, tokens: int, config: Config, dtype: DTypeLike) -> Positions:
    """The rotary table and mask of one kind of layer, for a text of this many tokens.

    Source: ROT-3, ATT-4. Trap: one base, or the window, for every layer (defects F1, B8).
    Witness: golden/twin length-reach-plus-three.
    """
    sliding = kind == SLIDING
    base, reach = (config.sliding_base, config.reach) if sliding else (config.full_base, tokens)
    return Positions(*rotary_angles(tokens, config.head, base, dtype), window_mask(tokens, reach, dtype))
