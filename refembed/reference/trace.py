"""Named intermediate tensors: the model says each one's name and value, and knows nothing of who listens."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Parameters = Mapping[str, Any]  # the checkpoint's own tensor names -> arrays
Trace = Callable[[str, Array], object]


def silent(name: str, tensor: Array) -> None:
    """The collector that keeps nothing.

    name     the tensor's public name, listed in spec/tensors.md
    tensor   (...)  any shape

    Source: LAY-3.
    """


def collector(kept: dict[str, Array]) -> Trace:
    """A collector that keeps a copy of every tensor in a dictionary, by name, in the order of computation.

    kept     the dictionary to fill
    returns  a function to pass as trace=

    Source: LAY-3.
    Witness: tests/reference/test_reference_laws.py test_the_collector_keeps_copies.
    """

    def keep(name: str, tensor: Array) -> None:
        kept[name] = np.array(tensor)

    return keep
