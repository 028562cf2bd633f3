"""Threads that run one compiled function together, each told its number."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from refembed.errors import RefembedError

RUNS_HELD = 3


class Team:
    """`size` threads, the caller among them. Callers from many threads take turns; a forked child gets threads anew.

    Numba's own threads are not used: its workqueue layer must not be entered twice at once, and its OpenMP layer ends a
    forked child.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.prepare()

    def prepare(self) -> None:
        """Threads and lock of this process. All start now, so that a system that refuses one says so at load."""
        self.process, self.lock = os.getpid(), threading.Lock()
        self.handed: list[Future[object]] = []
        self.others = ThreadPoolExecutor(self.size - 1, "refembed") if self.size > 1 else None
        if not self.others:
            return
        here = threading.Barrier(self.size)
        try:
            for _ in range(1, self.size):
                self.others.submit(here.wait)
        except RuntimeError as error:
            here.abort()
            self.others.shutdown(wait=False)
            raise RefembedError(
                "option-threads", f"the system starts no more threads ({error}); take fewer than {self.size}"
            ) from error
        here.wait()

    def run(self, work: Callable[[int], object]) -> None:
        """work(0) here and work(1), work(2) ... elsewhere; back when work(0) is.

        The work is shared out among whoever comes: a thread that the system lets wait may come when all is done. Where
        RUNS_HELD are open nothing more is handed out, since the arrays of every run are held until its threads come.
        """
        if self.process != os.getpid():
            self.prepare()
        with self.lock:
            self.handed = [one for one in self.handed if not one.done()]
            if self.others and len(self.handed) < RUNS_HELD * (self.size - 1):  # one has to wait for Python's own lock
                self.handed += [self.others.submit(work, number) for number in range(1, self.size)]
            work(0)
