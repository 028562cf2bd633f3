"""Threads that run one compiled function together, each told its number."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Team:
    """`size` threads, the caller among them. Callers from many threads take turns; a forked child gets threads anew.

    Numba's own threads are not used: its workqueue layer must not be entered twice at once, and its OpenMP layer ends a
    forked child.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.prepare()

    def prepare(self) -> None:
        """Threads and lock of this process."""
        self.process, self.lock = os.getpid(), threading.Lock()
        self.others = ThreadPoolExecutor(self.size - 1, "refembed") if self.size > 1 else None

    def run(self, work: Callable[[int], object]) -> None:
        """work(0) here and work(1), work(2) ... elsewhere; they may wait for each other, so all must run at once."""
        if self.process != os.getpid():
            self.prepare()
        with self.lock:
            futures = [self.others.submit(work, number) for number in range(1, self.size)] if self.others else []
            work(0)
            for future in futures:
                future.result()
