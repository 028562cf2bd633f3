"""What a rung is, and the few things that all of them need."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Run = Callable[[int], object]

LINE, HUGE = 64, 2**21  # bytes that a cache holds or lets go together; of a large page of memory

f32, i32 = np.float32, np.int32
whole = np.uintp  # an index Numba knows not to be negative: it leaves out Python's x[-1], and the loop can use vectors


class Machine(NamedTuple):
    """What one core offers; `python spec/kernels/ladder.py` measures it. Rates are 10^9 a second.

    add      nanoseconds from one float32 addition to the next that needs its result
    update   bytes of numbers in the nearest cache that are read, added to and written back
    second   bytes read from what the second cache holds (256 KiB)
    third    bytes read from what only a third one holds (8 MiB)
    memory   bytes read from what no cache holds (256 MiB)
    peak     float32 operations of the last rung's tile on numbers in the nearest cache; a multiply-add is two
    """

    add: float
    update: float
    second: float
    third: float
    memory: float
    peak: float


class Rung(NamedTuple):
    """One way to compute C = A W^T.

    ready   A (rows, depth), W (layers, outputs, depth) -> a call that computes with one layer's W, and where C
            (rows, outputs) then stands. What a backend does once, at load, is done here: W gets the rung's own order
    limit   machine, rows -> operations (10^9 a second) that the rung cannot pass, by the count in README.md
    """

    name: str
    ready: Callable[[Floats, Floats], tuple[Run, Floats]]
    limit: Callable[[Machine, int], float]


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros that begin where a cache line does: a vector across two is two accesses, and NumPy leaves that to luck.

    Large ones begin where a huge page does, so that few entries of the page table find them. In the backend they are as
    well off: NumPy asks for huge pages from 4 MiB on, and all layers of a matrix are one array.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    step = HUGE if size >= HUGE // 4 else LINE
    raw = np.zeros(size + 2 * step, np.uint8)
    start = -raw.ctypes.data % step
    return raw[start : start + size].view(dtype).reshape(shape)


def placed(array: NDArray[Any], shape: tuple[int, ...] | None = None) -> NDArray[Any]:
    """An aligned copy, filled up with zeros to a larger shape."""
    copy = aligned(shape or array.shape, array.dtype)
    copy[tuple(slice(size) for size in array.shape)] = array
    return copy
