"""Tensors in safetensors files, memory-mapped: nothing is copied until it is used."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import RefembedError

# bfloat16 is read as the upper half of a float32
STORED_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2")}


def widen(stored: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Stored numbers in the float type to compute in; float32 as float32 is not copied.

    stored   (...)  float32, or uint16 holding bfloat16
    """
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(dtype, copy=False)


def all_finite(values: NDArray[Any]) -> bool:
    """Whether no number is NaN or infinite, at the speed of one dot product for the usual yes."""
    flat = values.reshape(-1)
    with np.errstate(all="ignore"):
        return bool(np.isfinite(np.dot(flat, flat)) or np.all(np.isfinite(flat)))


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file, still in the file's own type."""

    name: str
    file: Path
    stored: NDArray[Any]

    def load(self, dtype: DTypeLike) -> NDArray[Any]:
        """The whole tensor; raises where a number is not finite."""
        values = widen(self.stored, dtype)
        if not all_finite(values):
            raise not_finite(self.name, self.file)
        return values


@dataclass(frozen=True)
class StoredRows:
    """A table of which only the rows asked for are read: a text needs a few hundred rows of 805 MB."""

    tensor: StoredTensor
    dtype: DTypeLike

    def __getitem__(self, ids: NDArray[Any]) -> NDArray[Any]:
        rows = widen(self.tensor.stored[ids], self.dtype)
        if not all_finite(rows):
            bad = int(ids[~np.isfinite(rows).all(axis=-1)][0])
            raise not_finite(f"{self.tensor.name}, row {bad}", self.tensor.file)
        return rows


def not_finite(name: str, file: Path) -> RefembedError:
    return RefembedError(
        "tensor-not-finite", f"{file}: {name} holds NaN or infinity; the file is damaged, fetch it again"
    )


def open_tensors(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file by name, mapped, not read.

    Raises RefembedError where the file is damaged or has a type other than float32 and bfloat16.
    """
    check(file)
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    data = np.memmap(file, mode="r", offset=8 + length) if header else None
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in STORED_TYPES:
            raise RefembedError(
                "tensor-dtype", f"{file}: {name} is stored as {entry['dtype']}; convert it to F32 or BF16"
            )
        start, end = entry["data_offsets"]
        stored_type = STORED_TYPES[entry["dtype"]]
        assert data is not None
        values = np.asarray(data[start:end]).view(stored_type).reshape(entry["shape"])
        tensors[name] = StoredTensor(name, file, values)
    return tensors


def check(file: Path) -> None:
    """Let the safetensors library judge the header: its size, its offsets, the file's length."""
    from safetensors import SafetensorError, safe_open

    try:
        with file.open("rb"):  # says why not; the library says "No such file" of one that may not be read
            pass
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        truncated = "incomplete" in str(error).lower() or "not fully covered" in str(error).lower()
        id = "tensors-truncated" if truncated else "tensors-invalid"
        raise RefembedError(id, f"{file}: {error}; fetch the file again") from error
    except OSError as error:
        raise RefembedError("file-unreadable", f"{file}: {error.strerror or error}") from error
