"""A look at every vector or its bits: quick, and near enough to say which few to score in float64."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RefembedError
from ..vectors import BINARY, ROWS_AT_ONCE, TINY, Table, quantize_vectors, unit_rows

IN_CACHE = 1024  # rows made floats at once


def check_query(query: Any, k: int, rescore: int, size: int) -> NDArray[np.float32]:
    """A query's direction (d,), of unit length."""
    if not all(isinstance(one, int | np.integer) for one in (k, rescore)) or k < 1 or rescore < 0:
        raise RefembedError("option-k", f"k is {k!r} and rescore {rescore!r}; whole numbers, at least 1 and 0, needed")
    asked = np.asarray(query)
    if asked.shape != (size,) or asked.dtype.kind != "f" or not np.isfinite(asked).all():
        raise RefembedError(
            "vectors-invalid", f"the query is {asked.dtype} {asked.shape}; {size} finite floats, or a text, needed"
        )
    return unit_rows(asked[None])[0].astype(np.float32)


def cosines(asked: NDArray[np.float32], table: Table) -> NDArray[np.float32]:
    """The cosine of a query with each row, in float32: (rows,).

    asked   (n,) of unit length
    table   (rows, d) float32 of unit length, or int8; its first n numbers count
    """
    size = len(asked)
    if table.dtype == np.float32 and size == table.shape[1]:
        found: NDArray[np.float32] = table @ asked
        return found
    scores = np.empty(len(table), np.float32)
    for start in range(0, len(table), IN_CACHE):
        rows = table[start : start + IN_CACHE, :size].astype(np.float32)
        lengths = np.sqrt(np.einsum("rd,rd->r", rows, rows))
        scores[start : start + IN_CACHE] = rows @ asked / np.maximum(lengths, TINY)
    return scores


def equal_bits(asked: NDArray[np.float32], table: Any) -> NDArray[np.float32]:
    """The cosine of a query's bits with each row's (MAT-8), eight bytes at once: (rows,)."""
    bits = quantize_vectors(asked, BINARY)
    rows = table[:, : len(bits)]
    if len(bits) % 8 == 0 and rows.flags.c_contiguous:
        bits, rows = bits.view(np.uint64), rows.view(np.uint64)
    different = np.empty(len(rows), np.int32)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        different[some] = np.bitwise_count(rows[some] ^ bits).sum(axis=1, dtype=np.int32)
    return 1 - different.astype(np.float32) / (len(asked) / 2)
