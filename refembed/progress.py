"""One line on the terminal that says how far and how fast."""

import sys
import time
from collections.abc import Callable

SECONDS_BETWEEN = 0.2  # on a terminal, where the line is written over
SECONDS_OF_A_LOG = 30.0  # elsewhere, where each line stays


class Progress:
    """Counts up to a total on standard error, on a terminal only unless `always`.

    with Progress(total, shown) as progress: progress.add(n)

    total   or what tells it by now: a float is an estimate, None unknown
    """

    def __init__(
        self, total: int | Callable[[], float | None], shown: bool, unit: str = "texts", always: bool = False
    ) -> None:
        self.total, self.done, self.unit = total, 0, unit
        self.on_terminal = sys.stderr.isatty()
        self.shown = shown and (self.on_terminal or always)
        self.skipped = 0
        self.started = self.printed = time.monotonic()

    def __enter__(self) -> "Progress":
        if self.shown and self.on_terminal:
            self.write(self.counted())
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()

    def say(self, line: str) -> None:
        """A line that stays."""
        self.clear()
        print(f"refembed: {line}", file=sys.stderr)

    def clear(self) -> None:
        if self.shown and self.on_terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def skip(self, count: int) -> None:
        """What was done at another time: it counts, but says nothing of the rate."""
        self.done += count
        self.skipped += count
        self.started = time.monotonic()

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if self.shown and now - self.printed >= (SECONDS_BETWEEN if self.on_terminal else SECONDS_OF_A_LOG):
            self.printed = now
            rate = (self.done - self.skipped) / (now - self.started)
            total = self.now()
            left = "" if total is None or not rate else f", {max(total - self.done, 0) / rate:.0f} s left"
            self.write(f"{self.counted()}, {rate:.1f}/s{left}")

    def now(self) -> float | None:
        return self.total() if callable(self.total) else self.total

    def counted(self) -> str:
        total = self.now()
        whole = "" if total is None else f"/{'~' if isinstance(total, float) else ''}{total:.0f}"
        return f"{self.done}{whole} {self.unit}"

    def write(self, line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line}" if self.on_terminal else f"refembed: {line}\n")
        sys.stderr.flush()
