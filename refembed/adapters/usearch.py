"""Graphs of the usearch package over an index's int8 vectors: they name rows near a query without a look at each.

Used by refembed.index where it is installed, for more than EXACT_ROWS rows; what a graph names is scored anew there.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from usearch.index import Index

from ..errors import RefembedError

EXPANSION = (
    200  # rows looked at on the way: finds all ten nearest of 60,000 in clusters, 0.78 of random ones' (test_index)
)


def extend(
    old: Path | None, new: Path, dimensions: int, rows: Iterable[tuple[Any, Any]], done: Callable[[int], None]
) -> None:
    """Write a graph of an older one's rows and others.

    rows   pairs of keys (n,) int64 and their vectors (n, dimensions) int8
    done   is told how many more are in it
    """
    graph = opened(old, dimensions, view=False) if old else empty(dimensions)
    for keys, vectors in rows:
        graph.add(keys.astype(np.uint64), vectors)
        done(len(keys))
    graph.save(str(new))


def empty(dimensions: int) -> Index:
    return Index(ndim=dimensions, metric="cos", dtype="i8", expansion_search=EXPANSION)


def opened(file: Path, dimensions: int, view: bool = True) -> Index:
    """A graph, mapped with `view`, else in memory to be added to."""
    graph = empty(dimensions)
    try:
        (graph.view if view else graph.load)(str(file))
        if graph.ndim != dimensions:
            raise ValueError(f"it is of {graph.ndim} dimensions, {dimensions} needed")
    except (OSError, RuntimeError, ValueError) as error:
        raise RefembedError(
            "index-damaged", f"{file}: {error}; refembed index compact {file.parent} makes it anew"
        ) from error
    return graph


def search(graph: Index, query: NDArray[np.int8], count: int) -> NDArray[np.int64]:
    """Keys of the rows nearest to a query (dimensions,), at most count of them."""
    return graph.search(query, count).keys.astype(np.int64)
