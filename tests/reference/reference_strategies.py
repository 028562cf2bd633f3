"""Random models for the laws: configs of every kind, their parameters, and texts."""

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from refembed.reference import FULL, SLIDING, Config

LAW = settings(max_examples=100, deadline=None)
FEW = settings(max_examples=40, deadline=None)  # where one example takes long

seeds = st.integers(0, 2**32 - 1)


@st.composite
def configs(draw: st.DrawFn, kinds: tuple[str, ...] = (SLIDING, FULL), layers: int = 4) -> Config:
    """Any small model: one to `layers` layers of these kinds, any grouping of heads, a window of one to six tokens.

    Scores are kept small enough (query_scalar at least half the head) that no weight in a window vanishes in float64.
    """
    key_heads, head = draw(st.integers(1, 3)), 2 * draw(st.integers(1, 8))
    size = st.integers(8, 48)
    return Config(
        vocabulary=draw(st.integers(40, 60)),
        width=draw(size),
        mlp=draw(size),
        heads=key_heads * draw(st.integers(1, 3)),
        key_heads=key_heads,
        head=head,
        dense=draw(size),
        dimensions=draw(size),
        layer_kinds=tuple(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=layers))),
        reach=draw(st.integers(1, 6)),
        context=64,
        sliding_base=draw(st.sampled_from([10.0, 500.0, 10_000.0])),
        full_base=draw(st.sampled_from([1_000.0, 1_000_000.0])),
        query_scalar=draw(st.floats(0.5, 4.0)) * head,
        epsilon=draw(st.sampled_from([1e-6, 1e-3])),
    )


def normal(seed: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


def distinct_ids(config: Config, tokens: int, seed: int) -> NDArray[np.int64]:
    """Tokens of which no two are the same."""
    return np.random.default_rng(seed).permutation(config.vocabulary)[:tokens].astype(np.int64)


def largest(x: Any) -> float:
    return float(np.max(np.abs(x)))
