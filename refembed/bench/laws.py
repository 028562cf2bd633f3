"""What the measurements are held against: operations, cost by length, a steady stream."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reference import FULL, Config, parameter_shapes

CURVE = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)  # tokens
LINEAR_UP_TO = 512  # tokens
STEEPER = 1.15  # measured over predicted, from which on cost counts as growing faster than it should
SLOWER = 0.9  # the last tenth's throughput over the first's, below which it counts as fallen
GROWN_MIB = 16  # resident memory a stream may add beyond its vectors: allocators keep some


def products(config: Config) -> int:
    """Floating-point operations a token in the layers' matrices; a multiply and an add are two."""
    shapes = parameter_shapes(config).items()
    return sum(2 * prod(shape) for name, shape in shapes if name.startswith("layers.") and len(shape) == 2)


def attention(config: Config, tokens: int, kind: str) -> int:
    """Operations of one layer's scores and weighted sums in a text of this length, over the keys that are seen."""
    reach = tokens - 1 if kind == FULL else min(config.reach, tokens - 1)
    pairs = tokens + reach * (2 * tokens - reach - 1)
    return 4 * config.heads * config.head * pairs


def operations(config: Config, tokens: int) -> int:
    """Operations of one text's forward pass: layers' matrices, attention, the two dense matrices once."""
    dense = 2 * config.dense * (config.width + config.dimensions)
    return products(config) * tokens + sum(attention(config, tokens, kind) for kind in config.layer_kinds) + dense


def predict_curve(config: Config, tokens: Sequence[int], seconds: Sequence[float]) -> NDArray[Any]:
    """The seconds each length should take: one rate, fitted up to 512 tokens by least squares, for two kinds of work.

    These are the layers' matrices, linear in tokens, and the full layers' attention, quadratic. Sliding layers see a
    window, so theirs is linear too and is part of the fitted rate.
    """
    full = config.layer_kinds.count(FULL)
    work = np.array([products(config) * size + full * attention(config, size, FULL) for size in tokens], float)
    fitted = np.array(tokens) <= LINEAR_UP_TO
    rate = work[fitted] @ np.array(seconds)[fitted] / (work[fitted] @ work[fitted])
    return work * rate


def curve_report(config: Config, tokens: Sequence[int], seconds: Sequence[float]) -> dict[str, Any]:
    predicted = predict_curve(config, tokens, seconds)
    rows = [
        {"tokens": size, "ms": 1e3 * found, "us_per_token": 1e6 * found / size, "predicted_ms": 1e3 * expected}
        for size, found, expected in zip(tokens, seconds, predicted.tolist(), strict=True)
    ]
    beyond = [row["ms"] / row["predicted_ms"] for row in rows if row["tokens"] > LINEAR_UP_TO]
    return {"rows": rows, "as_predicted": max(beyond) <= STEEPER if beyond else None}


def stream_report(samples: Sequence[Sequence[float]], dimensions: int) -> dict[str, Any]:
    """A stream by tenths, and whether it kept its speed and its memory.

    samples   one before the first batch and one after each: texts, tokens and seconds so far, resident MiB
    """
    done = [sample[0] for sample in samples]
    marks = sorted({int(np.searchsorted(done, tenth * done[-1] / 10)) for tenth in range(11)})
    rows = [
        {
            "texts": samples[end][0],
            "tokens_per_s": (samples[end][1] - samples[start][1]) / (samples[end][2] - samples[start][2]),
            "resident_mib": samples[end][3],
        }
        for start, end in pairwise(marks)
    ]
    vectors = (rows[-1]["texts"] - rows[0]["texts"]) * dimensions * 4 / 2**20  # float32
    grown = rows[-1]["resident_mib"] - rows[0]["resident_mib"] - vectors
    enough = len(rows) > 1
    return {
        "rows": rows,
        "throughput_kept": rows[-1]["tokens_per_s"] >= SLOWER * rows[0]["tokens_per_s"] if enough else None,
        "memory_flat": grown <= GROWN_MIB if enough else None,
    }
