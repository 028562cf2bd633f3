"""What the process is set to, and what a computation here needs in its place, for as long as it lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact_products() -> Iterator[None]:
    """float32 products in float32: no TF32 on CUDA and no bfloat16 on a CPU, whatever the user has chosen for the rest.

    The choice is one for the process; it is put back. Two interfaces set it, and PyTorch refuses to read a mixture of
    both: what was set by the older is set back by the older.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer one
        with newer_exact_products():
            yield
        return
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def newer_exact_products() -> Iterator[None]:
    """The same where torch.backends.*.fp32_precision was used, which PyTorch has since 2.9."""
    places: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """PyTorch on this many CPU threads. The number is one for the process, so it is put back."""
    before = torch.get_num_threads()
    if threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
