"""One line on the terminal that says how far and how fast."""

import sys
import time

SECONDS_BETWEEN = 0.2


class Progress:
    """Counts up to a total on standard error, on a terminal only.

    with Progress(total, shown) as progress: progress.add(n)
    """

    def __init__(self, total: int, shown: bool, unit: str = "texts") -> None:
        self.total, self.done, self.unit = total, 0, unit
        self.shown = shown and sys.stderr.isatty()
        self.started = self.printed = time.monotonic()

    def __enter__(self) -> "Progress":
        if self.shown:
            sys.stderr.write(f"0/{self.total} {self.unit}")
            sys.stderr.flush()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.shown:
            sys.stderr.write("\r\x1b[K")

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if self.shown and now - self.printed >= SECONDS_BETWEEN:
            self.printed = now
            rate = self.done / (now - self.started)
            left = (self.total - self.done) / rate
            sys.stderr.write(f"\r\x1b[K{self.done}/{self.total} {self.unit}, {rate:.1f}/s, {left:.0f} s left")
            sys.stderr.flush()
