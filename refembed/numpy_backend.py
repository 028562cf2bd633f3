"""The reference as a backend: slow beside the others, exact, and always there."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .errors import RefembedError
from .reference import collector, embed, embed_batch
from .reference.trace import Trace


class NumpyEncoder:
    """A checkpoint's parameters in one float type, run by refembed.reference."""

    def __init__(self, checkpoint: Checkpoint, precision: str, threads: int | None) -> None:
        self.precision, self.config = precision, checkpoint.config
        self.limit = None if threads is None else ThreadLimit(threads)
        self.threads = threads or usual_threads()
        self.parameters = checkpoint.parameters(np.dtype(precision))

    def encode(self, batch: Sequence[NDArray[Any]]) -> NDArray[Any]:
        with self.limit or nullcontext():
            return embed_batch(batch, self.parameters, self.config).astype(np.float32)

    def trace(self, ids: NDArray[Any]) -> dict[str, NDArray[Any]]:
        kept: dict[str, NDArray[Any]] = {}
        self.follow(ids, collector(kept))
        return kept

    def follow(self, ids: NDArray[Any], trace: Trace) -> NDArray[Any]:
        """The embedding of one text; `trace` is given each named tensor as it is computed, and keeps what it wants."""
        with self.limit or nullcontext():
            return embed(ids, self.parameters, self.config, trace)


class NumpyBackend:
    """backend="numpy"."""

    name = "numpy"
    priority = 0
    precisions = ("float32", "float64")

    def why_not(self) -> str | None:
        return None

    def load(self, checkpoint: Checkpoint, precision: str, threads: int | None) -> NumpyEncoder:
        return NumpyEncoder(checkpoint, precision, threads)


class ThreadLimit:
    """NumPy's matrix library on this many threads, within a with block.

    The number is one for the whole process, so it is set for each computation and put back after it. Only the
    threadpoolctl package can set it once NumPy is imported.
    """

    def __init__(self, threads: int) -> None:
        try:
            import threadpoolctl
        except ImportError as error:
            raise RefembedError(
                "option-threads",
                f"threads={threads} with backend numpy needs the threadpoolctl package (pip install threadpoolctl), "
                f"or OPENBLAS_NUM_THREADS={threads} in the environment",
            ) from error
        self.library, self.threads = threadpoolctl, threads

    def __enter__(self) -> None:
        self.limits = self.library.threadpool_limits(self.threads, user_api="blas")

    def __exit__(self, *exception: object) -> None:
        self.limits.restore_original_limits()


def usual_threads() -> int:
    """How many threads NumPy's matrix library takes by itself: the environment's number, or its processors."""
    asked = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    first = asked.partition(",")[0]  # one number for each level of nesting
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(first) if first.isdecimal() and int(first) > 0 else usable


BACKEND = NumpyBackend()
