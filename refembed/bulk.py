"""Many texts, of which some may be at fault: each has a vector or a reason."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .embedder import Embedder
from .errors import RefembedError
from .progress import Progress
from .vectors import check_quantize, quantize_vectors


class Each(NamedTuple):
    """A row for each text, in order.

    vectors   (n, d) float32, NaN where a text is at fault; int8, or (n, d/8) uint8, 0 where it is
    faults    (n) None, or what is wrong with that text
    """

    vectors: NDArray[Any]
    faults: list[RefembedError | None]


def encode_each(
    model: Embedder,
    texts: Sequence[Any],
    titles: Sequence[Any] | None = None,
    *,
    dimensions: int | None = None,
    quantize: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Each:
    """encode() that goes on without the texts at fault.

    texts     whatever is no text is a fault of its own row, such as None
    titles    one for each text, None where it has none; no titles at all are no fault, whatever the prompt
    options   dimensions, quantize, task, prompt and on_long, as of encode()

    Raises RefembedError where an option is wrong, which is no single text's fault.
    """
    kept = model.check_dimensions(dimensions)
    check_quantize(quantize, kept)
    titled = titles is not None and any(title is not None for title in titles)
    found = model.prepare(texts, titles=titles if titled else None, **options)
    batch = {index: ids for index, ids in enumerate(found) if not isinstance(ids, RefembedError)}
    part = quantize_vectors(model.encode_tokens(list(batch.values()), kept, progress=progress), quantize)
    vectors = np.full((len(found), part.shape[1]), np.nan if part.dtype.kind == "f" else 0, part.dtype)
    vectors[list(batch)] = part
    return Each(vectors, [ids if isinstance(ids, RefembedError) else None for ids in found])
