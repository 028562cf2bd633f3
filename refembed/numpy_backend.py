"""The reference as a backend: slow beside the others, exact, and always there."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .errors import RefembedError
from .reference import collector, embed, embed_batch


class NumpyEncoder:
    """A checkpoint's parameters in one float type, run by refembed.reference."""

    def __init__(self, checkpoint: Checkpoint, precision: str, threads: int) -> None:
        self.precision, self.threads = precision, threads
        self.config = checkpoint.config
        self.parameters = checkpoint.parameters(np.dtype(precision))

    def encode(self, batch: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return embed_batch(batch, self.parameters, self.config).astype(np.float32)

    def trace(self, ids: NDArray[Any]) -> dict[str, NDArray[Any]]:
        kept: dict[str, NDArray[Any]] = {}
        embed(ids, self.parameters, self.config, collector(kept))
        return kept


class NumpyBackend:
    """backend="numpy"."""

    name = "numpy"
    priority = 0
    precisions = ("float32", "float64")

    def why_not(self) -> str | None:
        return None

    def load(self, checkpoint: Checkpoint, precision: str, threads: int | None) -> NumpyEncoder:
        return NumpyEncoder(checkpoint, precision, limit_threads(threads))


def limit_threads(threads: int | None) -> int:
    """Set the number of threads of NumPy's matrix library, which is one number for the whole process; returns it.

    Only the threadpoolctl package can set it once NumPy is imported.
    """
    if threads is None:
        asked = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
        first = asked.partition(",")[0]  # one number for each level of nesting
        return int(first) if first.isdecimal() and int(first) > 0 else os.cpu_count() or 1
    try:
        import threadpoolctl
    except ImportError as error:
        raise RefembedError(
            "option-threads",
            f"threads={threads} with backend numpy needs the threadpoolctl package (pip install refembed[threads]), "
            f"or OPENBLAS_NUM_THREADS={threads} in the environment",
        ) from error
    threadpoolctl.threadpool_limits(threads, user_api="blas")
    return threads


BACKEND = NumpyBackend()
