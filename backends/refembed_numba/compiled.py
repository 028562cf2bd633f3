"""Compilation by Numba, kept on disk between processes.

Numba's own cache notices changes of the file a function stands in, but not of the files of what it calls, whose code
is compiled into it. This one is keyed by all sources of the package together; Numba adds its version and the CPU.
"""

import hashlib
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator

from refembed.cache import cache_folder

HERE = Path(__file__).parent


@cache
def stamp() -> str:
    """A digest of this package's sources."""
    sources = b"".join(file.read_bytes() for file in sorted(HERE.glob("*.py")))
    return hashlib.sha256(sources).hexdigest()[:16]


@cache
def writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


class Locator(_CacheLocator):  # type: ignore[misc]
    """Where one function's compiled code is."""

    def __init__(self, function: Any, file: str) -> None:
        self.line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(cache_folder() / "numba" / stamp())

    def get_source_stamp(self) -> str:
        return stamp()

    def get_disambiguator(self) -> str:
        return str(self.line)

    @classmethod
    def from_function(cls, function: Any, file: str) -> "Locator | None":
        return cls(function, file) if writable(cache_folder() / "numba" / stamp()) else None


class Storage(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = [Locator]  # noqa: RUF012 (Numba's own form)


class Cache(FunctionCache):  # type: ignore[misc]
    _impl_class = Storage

    def save_overload(self, signature: Any, data: Any) -> None:
        """Where it cannot be kept, on a full disk say, the next process compiles it again."""
        with suppress(OSError):
            super().save_overload(signature, data)


def compiled(function: Callable[..., Any]) -> Any:
    """numba.njit as this package uses it: without the interpreter's lock, without fast-math, cached where it can be.

    Nor with counts of references, so it can make no arrays: each array of an argument would be counted up and down with
    every call, by all threads at the same place, which took a fifth of a short query.
    """
    dispatcher = numba.njit(nogil=True, error_model="numpy", _nrt=False)(function)
    with suppress(RuntimeError):  # no folder to write in: compiled anew in every process
        dispatcher._cache = Cache(function)
    return dispatcher


def inner(function: Callable[..., Any]) -> Any:
    """The same for what only compiled functions call: without the way in from Python, which takes longer to compile
    than most functions do, and not kept by itself, since its code is in its callers'.
    """
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
    return numba.njit(nogil=True, error_model="numpy", **options)(function)
