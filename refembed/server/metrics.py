"""What the server did, in Prometheus' text format."""

import sys
import time
from bisect import bisect_left
from collections import Counter

from .batching import Batcher

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # the histogram's bounds
# name -> type and meaning; what render() takes from the queue, with what it is called there
OF_QUEUE = {
    "refembed_queue_texts": ("gauge", "texts waiting", "waiting"),
    "refembed_queue_tokens": ("gauge", "tokens waiting", "waiting_tokens"),
    "refembed_batches_total": ("counter", "batches computed", "batches"),
    "refembed_texts_total": ("counter", "texts computed", "texts"),
    "refembed_tokens_total": ("counter", "tokens computed", "tokens"),
    "refembed_failed_texts_total": ("counter", "texts that could not be computed", "failed"),
    "refembed_busy_seconds_total": ("counter", "seconds of computing", "busy"),
}


class Metrics:
    """Counts of requests by path and status, and how long they took; texts that were cut; requests being answered.

    All but render() are called by the event loop's thread alone.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, list[int]] = {}  # path -> requests by the histogram's bound, one more for the rest
        self.sums: Counter[str] = Counter()
        self.cut = self.active = 0
        self.started = time.time()

    def observe(self, path: str, status: int, seconds: float) -> None:
        self.requests[path, status] += 1
        counts = self.seconds.setdefault(path, [0] * (len(SECONDS) + 1))
        counts[bisect_left(SECONDS, seconds)] += 1
        self.sums[path] += seconds  # type: ignore[assignment]

    def render(self, queue: Batcher) -> str:
        lines = head("refembed_requests_total", "counter", "requests answered")
        for (path, status), count in self.requests.items():
            lines.append(f'refembed_requests_total{{path="{path}",status="{status}"}} {count}')
        lines += head("refembed_request_seconds", "histogram", "from a request's first byte to its answer's last")
        for path, counts in self.seconds.items():
            total = 0
            for bound, count in zip([*map(str, SECONDS), "+Inf"], counts, strict=True):
                total += count
                lines.append(f'refembed_request_seconds_bucket{{path="{path}",le="{bound}"}} {total}')
            lines.append(f'refembed_request_seconds_sum{{path="{path}"}} {self.sums[path]}')
            lines.append(f'refembed_request_seconds_count{{path="{path}"}} {total}')
        for name, (kind, help, attribute) in OF_QUEUE.items():
            lines += [*head(name, kind, help), f"{name} {getattr(queue, attribute)}"]
        for name, kind, help, value in (
            ("refembed_cut_texts_total", "counter", "texts cut to the context", self.cut),
            ("refembed_active_requests", "gauge", "requests being answered", self.active),
            ("refembed_peak_memory_bytes", "gauge", "most memory the process held", peak_memory()),
            ("refembed_start_time_seconds", "gauge", "when the server started, Unix time", self.started),
        ):
            lines += [*head(name, kind, help), f"{name} {value}"]
        return "\n".join(lines) + "\n"


def head(name: str, kind: str, help: str) -> list[str]:
    return [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]


def peak_memory() -> int:
    """In bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
