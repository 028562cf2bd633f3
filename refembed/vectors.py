"""Embeddings in 8 bits and in one: what an index keeps of them, and how it is searched (MAT-5 to MAT-9).

Which one a table holds, its type says: float32, int8 levels, or uint8 with a bit a number.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import RefembedError
from .reference import truncate
from .reference.quantize import binary_similarity, binary_vectors, int8_vectors, signs

INT8, BINARY = "int8", "binary"
QUANTIZED = (INT8, BINARY)
ROWS_AT_ONCE = 8192  # of a table that is compared with, so that no second copy of it is made
TINY = np.finfo(np.float64).tiny  # a vector of zeros has cosine 0 with everything
Table = NDArray[Any]


def check_quantize(quantize: str | None, dimensions: int) -> None:
    """Raise RefembedError where there is no such form, or embeddings of this many numbers cannot have it."""
    if quantize is not None and quantize not in QUANTIZED:
        raise RefembedError("option-quantize", f"quantize is {quantize!r}, one of {', '.join(QUANTIZED)} needed")
    if quantize == BINARY and dimensions % 8:
        raise RefembedError(
            "option-quantize", f"{dimensions} dimensions do not fill whole bytes; binary needs a multiple of 8"
        )


def quantize_vectors(vectors: Any, quantize: str | None) -> Table:
    """Embeddings as an index keeps them.

    vectors    (..., n) floats
    quantize   "int8": the same number of int8; "binary": n/8 uint8; None: the vectors themselves

    Raises RefembedError for another word, vectors that are not finite floats, or a binary form of no whole bytes.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim < 1 or vectors.dtype.kind != "f" or not np.isfinite(vectors).all():
        raise RefembedError(
            "vectors-invalid", f"vectors {vectors.shape} {vectors.dtype} cannot be quantised: finite floats needed"
        )
    check_quantize(quantize, vectors.shape[-1])
    if quantize is None:
        return vectors
    found: Table = int8_vectors(vectors) if quantize == INT8 else binary_vectors(vectors)
    return found


def shorten(table: Table, dimensions: int) -> Table:
    """The first numbers of each row: floats with unit length again (MAT-1), levels and bits as they are (MAT-7).

    table        (n, d), or (n, d/8) uint8
    dimensions   at most d; of bits a multiple of 8
    """
    if dimensions == width(table):
        return table
    if table.dtype.kind == "f":
        return truncate(table, dimensions)
    return table[:, : dimensions // 8 if table.dtype == np.uint8 else dimensions]


def unit_rows(table: Table) -> NDArray[np.float64]:
    """The direction of each row, of unit length, in float64, which the squares of any float32 fit; zeros stay zeros."""
    wide = (signs(table) if table.dtype == np.uint8 else table).astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), TINY)


def similarity(first: Any, second: Any) -> NDArray[np.float32]:
    """The cosine of every pair: (n, d) and (m, d) give (n, m); a single vector counts as one row.

    Each table may be floats, int8 or binary (uint8, an eighth as wide); of two binary ones, bits are counted.
    Raises RefembedError where a table is none of these, or they are not of the same dimensions.
    """
    tables = [as_table(table) for table in (first, second)]
    known = all(table.ndim == 2 and (table.dtype.kind == "f" or table.dtype in (np.int8, np.uint8)) for table in tables)
    if not known or width(tables[0]) != width(tables[1]):
        shapes = " and ".join(f"{table.shape} {table.dtype}" for table in tables)
        raise RefembedError(
            "vectors-invalid",
            f"similarity of {shapes}: two tables of floats, int8 or bits (uint8), rows of one length, needed",
        )
    left, right = tables
    scores = np.empty((len(left), len(right)), np.float32)
    bits = left.dtype == right.dtype == np.uint8
    wide = np.empty((0, 0)) if bits else unit_rows(left)
    for start in range(0, len(right), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        if not bits:
            scores[:, rows] = wide @ unit_rows(right[rows]).T
        for place, one in enumerate(left if bits else ()):  # each alone: the table of differing bytes is large
            scores[place, rows] = binary_similarity(one[None], right[rows])[0]
    return scores


def as_table(vectors: Any) -> Table:
    """An array of rows of whatever can be one; a single vector is a row."""
    try:
        return np.atleast_2d(np.asarray(vectors))
    except ValueError as error:
        raise RefembedError("vectors-invalid", f"a table of vectors is needed: {error}") from error


def width(table: Table) -> int:
    """Dimensions of the embeddings in a table."""
    return int(table.shape[1]) * (8 if table.dtype == np.uint8 else 1)


def nearest(query: Any, table: Any, k: int, rescore: int = 4, finer: Any = None) -> tuple[Table, Table]:
    """The k rows of a table nearest to a query: their places, and their scores, highest first, earlier among equals.

    query     (d,), or one row, of floats or int8; bits (d/8) search bits, and cannot rescore
    table     (n, d) floats or int8: every row is scored; (n, d/8) bits: k * rescore rows are found by counting bits
              that differ from the query's own, and scored by the query's floats
    rescore   how many times k; 0: bits are counted and nothing more
    finer     (n, d) the same embeddings as floats or int8, to score those found with; the bits where not given
    returns   (k,) int64 and (k,) float32, fewer where the table has fewer; a row of NaN, which stands for a text that
              has no embedding, is never found

    Source: MAT-9. Raises RefembedError as similarity() does, and for k below 1 or rescore below 0.
    """
    whole = all(isinstance(one, int | np.integer) for one in (k, rescore))
    if not whole or k < 1 or rescore < 0:
        raise RefembedError("option-k", f"k is {k!r} and rescore {rescore!r}; whole numbers, at least 1 and 0, needed")
    query, table, finer = (as_table(one) for one in (query, table, table if finer is None else finer))
    if len(finer) != len(table):
        raise RefembedError("vectors-invalid", f"finer has {len(finer)} rows, {len(table)} needed: the table's own")
    if len(query) != 1:
        raise RefembedError(
            "vectors-invalid", f"the query is {len(query)} vectors; ask for the nearest of each by itself"
        )
    if query.dtype.kind == "f" and not np.isfinite(query).all():
        raise RefembedError("vectors-invalid", "the query holds NaN or infinity, so that nothing is near it")
    if table.dtype != np.uint8:
        scores = similarity(query, table)[0]
        places = best(scores, k)
        return places, scores[places]
    if query.dtype == np.uint8:
        asked, rescore = query, 0
    else:
        asked = quantize_vectors(query.astype(np.float32) if query.dtype == np.int8 else query, BINARY)
    coarse = similarity(asked, table)[0]
    places = best(coarse, k * max(rescore, 1))
    if not rescore:
        return places, coarse[places]
    scores = similarity(query, finer[places])[0]
    if np.isnan(scores).any():  # bits cannot say that a row has no numbers: those rows took others' places
        coarse[~np.isfinite(finer).all(axis=1)] = np.nan
        places = best(coarse, k * rescore)
        scores = similarity(query, finer[places])[0]
    order = best(scores, k)
    return places[order], scores[order]


def best(scores: Table, k: int) -> Table:
    """The places of the k highest scores, highest first, earlier ones first among equals; NaN is none of them."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    places = np.flatnonzero(scores > -np.inf)
    if k < len(places):
        bar = np.partition(scores, -k)[-k]
        places = np.flatnonzero(scores >= bar)
    return places[np.argsort(-scores[places], kind="stable")][:k]
