"""What a CUDA device can do at best, to hold a computation on it against. PyTorch is imported only when asked."""

import time
from functools import cache
from importlib import import_module

SIDE, TIMES = 8192, 10


@cache
def device_peak() -> float:
    """GFLOP/s of the fastest of a few bfloat16 products of this side, cubed, on CUDA in this process."""
    torch = import_module("torch")
    square, best = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16), float("inf")
    with torch.inference_mode():
        for _ in range(TIMES):
            torch.cuda.synchronize()
            started = time.perf_counter()
            torch.mm(square, square)
            torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
    return 2e-9 * SIDE**3 / best
