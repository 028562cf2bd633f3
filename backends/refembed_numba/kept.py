"""Arrays that take long to make, made once and mapped from disk by every process after."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refembed.cache import cache_folder

Arrays = Mapping[str, NDArray[Any]]


def kept(kind: str, of: str, source: str, names: Sequence[str], make: Callable[[], Arrays | None]) -> Arrays | None:
    """The arrays that make() returns, mapped where they could be kept; None where it returns None.

    kind     the folder they are kept in
    of       what they are made of: of something else, other arrays
    source   the file that makes them: when it changes they are made anew
    names    of the arrays
    """
    key = hashlib.sha256(of.encode() + Path(source).read_bytes()).hexdigest()[:24]
    with suppress(OSError, ValueError, RuntimeError):  # not there yet, not ours to read, damaged, or nobody's home
        return mapped(cache_folder() / kind / key, names)
    made = make()
    if made is None:
        return None
    with suppress(OSError, ValueError, RuntimeError):
        keep(cache_folder() / kind / key, made)
        return mapped(cache_folder() / kind / key, names)
    return made


def mapped(folder: Path, names: Sequence[str]) -> Arrays:
    return {name: np.asarray(np.lib.format.open_memmap(folder / f"{name}.npy", mode="r")) for name in names}


def keep(folder: Path, arrays: Arrays) -> None:
    """Write a folder of arrays, whole or not at all; of two processes that write it at once, one wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        for name, array in arrays.items():
            with open(beside / f"{name}.npy", "wb") as handle:
                np.save(handle, array)
                handle.flush()
                os.fsync(handle.fileno())  # else a power cut may leave a whole file of zeros
        beside.chmod(0o755)  # mkdtemp lets nobody else read it
        if folder.exists():  # damaged, or another process was first
            shutil.rmtree(folder)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
