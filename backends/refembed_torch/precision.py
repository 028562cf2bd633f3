"""What the process is set to, and what a computation here needs in its place, for as long as it lasts."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Undo = Callable[[], None]


class Held:
    """A setting of the process while any thread is inside: the first in changes it, the last out puts it back.

    change   makes the change, and returns what undoes it
    """

    def __init__(self, change: Callable[[], Undo]) -> None:
        self.change, self.lock, self.inside = change, threading.Lock(), 0
        self.undo: Undo = lambda: None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if not self.inside:
                self.undo = self.change()
            self.inside += 1
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if not self.inside:
                    self.undo()


def multiply_exactly() -> Undo:
    """Two interfaces set it, and PyTorch refuses to read a mixture: what the older has set is set back by the older."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer one
        return multiply_exactly_by_the_newer()
    if before == "highest":
        return lambda: None
    torch.set_float32_matmul_precision("highest")
    return lambda: torch.set_float32_matmul_precision(before)


def multiply_exactly_by_the_newer() -> Undo:
    """The same where torch.backends.*.fp32_precision was used, which PyTorch has since 2.9."""
    places: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]

    def put(precisions: list[str]) -> None:
        for place, precision in zip(places, precisions, strict=True):
            place.fp32_precision = precision

    put(["ieee"] * len(places))
    return lambda: put(before)


# float32 products in float32: no TF32 on CUDA, no bfloat16 on a CPU, whatever the user has chosen for the rest
exact_products = Held(multiply_exactly)


class Threads:
    """PyTorch on this many CPU threads: using_threads(4). Not to be nested.

    Each thread of the process has a number of its own, but starts with whatever another has set by then. So each sets
    its own back, and to what the first one found.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.found = threading.Lock(), 0, 0

    @contextmanager
    def __call__(self, threads: int) -> Iterator[None]:
        with self.lock:
            found = torch.get_num_threads()  # which a thread's first use would otherwise do later, and reset
            self.found = self.found if self.inside else found
            torch.set_num_threads(threads)
            self.inside += 1
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                torch.set_num_threads(self.found)


using_threads = Threads()
