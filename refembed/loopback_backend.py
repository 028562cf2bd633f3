"""A backend that hands everything to the NumPy one, through bytes: proof that the registry's contract is enough.

It is taken only when named. Ids and vectors pass through the form a backend in another process would see, so anything
that leans on sharing objects with the NumPy backend fails here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .numpy_backend import BACKEND as NUMPY
from .numpy_backend import NumpyEncoder


def through_bytes(tensor: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in other memory."""
    return np.frombuffer(tensor.tobytes(), tensor.dtype).reshape(tensor.shape)


class LoopbackEncoder:
    """Another encoder, reached through bytes."""

    def __init__(self, inner: NumpyEncoder) -> None:
        self.inner, self.precision, self.threads = inner, inner.precision, inner.threads

    def encode(self, batch: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return through_bytes(self.inner.encode([through_bytes(ids) for ids in batch]))

    def trace(self, ids: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return {name: through_bytes(tensor) for name, tensor in self.inner.trace(through_bytes(ids)).items()}


class LoopbackBackend:
    """backend="loopback"."""

    name = "loopback"
    priority = -1
    precisions = NUMPY.precisions

    def why_not(self) -> str | None:
        return NUMPY.why_not()

    def load(self, checkpoint: Checkpoint, precision: str, threads: int | None) -> LoopbackEncoder:
        return LoopbackEncoder(NUMPY.load(checkpoint, precision, threads))


BACKEND = LoopbackBackend()
