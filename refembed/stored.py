"""Tensors in safetensors files, memory-mapped: nothing is copied until it is used.

A matrix is stored as floats, or as packed whole numbers with their scales (QNT-7).
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import RefembedError
from .reference.quantize import Grid, Quantized, dequantize, grid_of, largest_level, unpack_int4

# bfloat16 is read as the upper half of a float32
STORED_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2")}
LEVEL_TYPES: dict[int, tuple[str, np.dtype[Any]]] = {8: ("I8", np.dtype("i1")), 4: ("U8", np.dtype("u1"))}  # by bits
SCALES = ".scales"  # after the name of the matrix whose they are
LARGEST_HEADER = 4 * 2**20  # bytes; the released model's has 33,648, one of MOST_LAYERS and their scales 2.5 million
MOST_TENSORS = 2**15  # the released file has 314, one of MOST_LAYERS and their scales 20,483


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

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def kind(self) -> str:
        """What a number is stored in: float32, bfloat16 or float16."""
        return "bfloat16" if self.stored.dtype == np.uint16 else self.stored.dtype.name

    @property
    def mapped(self) -> tuple[NDArray[Any], ...]:
        """Its parts of the file."""
        return (self.stored,)

    def load(self, dtype: DTypeLike) -> NDArray[Any]:
        """The whole tensor; raises where a number is not finite."""
        values = widen(self.stored, dtype)
        if not all_finite(values):
            raise not_finite(self.name, self.file)
        return values

    def rows(self, ids: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
        """Some rows of a matrix, (ids, columns); raises where a number is not finite."""
        rows = widen(self.stored[ids], dtype)
        if not all_finite(rows):
            bad = int(ids[~np.isfinite(rows).all(axis=-1)][0])
            raise not_finite(f"{self.name}, row {bad}", self.file)
        return rows


@dataclass(frozen=True)
class QuantizedTensor:
    """One matrix of a file in one of the reference's forms, still packed.

    stored   (rows, columns) int8; of 4 bits (rows, columns/2) uint8, two numbers a byte (QNT-6)
    scales   (rows, columns/block) float16; of a whole row (rows, 1)
    """

    name: str
    file: Path
    stored: NDArray[Any]
    scales: NDArray[np.float16]
    grid: Grid

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[0], self.stored.shape[1] * 8 // self.grid.bits

    @property
    def kind(self) -> str:
        return f"int{self.grid.bits}-block"

    @property
    def mapped(self) -> tuple[NDArray[Any], ...]:
        return self.stored, self.scales

    def quantized(self, rows: slice | NDArray[Any] = slice(None)) -> Quantized:
        """Levels (rows, columns) int8 and scales of some rows; raises where one is none of this form."""
        levels: NDArray[Any] = self.stored[rows] if self.grid.bits == 8 else unpack_int4(self.stored[rows])
        scales = self.scales[rows]
        if not np.isfinite(scales).all():
            raise not_finite(f"{self.name}{SCALES}", self.file)
        if (scales < 0).any():
            raise RefembedError(
                "tensor-scale",
                f"{self.file}: {self.name}{SCALES} holds {float(scales.min()):.3g}, at least 0 needed; the file is "
                f"damaged, fetch or make it again",
            )
        if levels.size and int(levels.min()) < -largest_level(self.grid.bits):
            raise RefembedError(
                "tensor-level",
                f"{self.file}: {self.name} holds the level {int(levels.min())}, at least "
                f"{-largest_level(self.grid.bits)} needed; the file is damaged, fetch or make it again",
            )
        return Quantized(levels, scales)

    def load(self, dtype: DTypeLike) -> NDArray[Any]:
        """The whole matrix as floats (QNT-4)."""
        return dequantize(self.quantized(), dtype)

    def rows(self, ids: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
        """Some rows as floats, (ids, columns)."""
        return dequantize(self.quantized(ids), dtype)


Tensor = StoredTensor | QuantizedTensor


@dataclass(frozen=True)
class StoredRows:
    """A table of which only the rows asked for are read: a text needs a few hundred rows of 805 MB."""

    tensor: Tensor
    dtype: DTypeLike

    def __getitem__(self, ids: NDArray[Any]) -> NDArray[Any]:
        return self.tensor.rows(ids, self.dtype)


def not_finite(name: str, file: Path) -> RefembedError:
    return RefembedError(
        "tensor-not-finite", f"{file}: {name} holds NaN or infinity; the file is damaged, fetch it again"
    )


def open_tensors(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file by name, mapped, not read.

    Raises RefembedError where the file is damaged or has a type other than float32 and bfloat16.
    """
    tensors = {}
    for name, (kind, values) in map_file(file).items():
        if kind not in STORED_TYPES:
            raise RefembedError("tensor-dtype", f"{file}: {name} is stored as {kind}; convert it to F32 or BF16")
        tensors[name] = StoredTensor(name, file, values)
    return tensors


def open_quantized(file: Path, form: str) -> dict[str, Tensor]:
    """The same of a file in one of the reference's forms: every matrix with its scales, norm weights as floats.

    Raises RefembedError besides where a matrix is stored otherwise than the form says (QNT-7).
    """
    mapped = map_file(file)
    scales = {name.removesuffix(SCALES): mapped.pop(name) for name in list(mapped) if name.endswith(SCALES)}
    tensors: dict[str, Tensor] = {}
    for name, (kind, values) in mapped.items():
        grid = grid_of(form, name)
        needed = "F32" if grid is None else LEVEL_TYPES[grid.bits][0]
        if kind != needed:
            raise RefembedError("tensor-dtype", f"{file}: {name} is stored as {kind}; form {form} needs {needed}")
        if grid is None:
            tensors[name] = StoredTensor(name, file, values)
            continue
        if name not in scales:
            raise RefembedError("tensor-missing", f"{file}: {name}{SCALES} is missing; form {form} needs it")
        scale_kind, step = scales.pop(name)
        columns = values.shape[-1] * 8 // grid.bits if values.ndim == 2 else 0
        shape = (values.shape[0], columns // (grid.block or columns or 1)) if values.ndim == 2 else ()
        if scale_kind != "F16" or step.shape != shape or (grid.block and columns % grid.block):
            raise RefembedError(
                "tensor-shape",
                f"{file}: {name}{SCALES} is {scale_kind} {step.shape}, F16 {shape} needed beside {name} "
                f"{values.shape} in form {form}",
            )
        tensors[name] = QuantizedTensor(name, file, values, step, grid)
    if scales:
        raise RefembedError("tensor-unexpected", f"{file}: {min(scales)}{SCALES} belongs to no tensor of the file")
    return tensors


def map_file(file: Path) -> dict[str, tuple[str, NDArray[Any]]]:
    """The type, in the file's own word, and the numbers of every tensor of a safetensors file; of other types, none."""
    check(file)
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    if len(header) > MOST_TENSORS:
        raise RefembedError("tensors-too-large", f"{file} has {len(header)} tensors, at most {MOST_TENSORS} expected")
    data = np.asarray(np.memmap(file, mode="r", offset=8 + length)) if header else None
    types = STORED_TYPES | dict(LEVEL_TYPES.values()) | {"F16": np.dtype("<f2")}
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        assert data is not None
        values = data[start:end]
        if entry["dtype"] in types:
            values = values.view(types[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = entry["dtype"], values
    return tensors


def check(file: Path) -> None:
    """Let the safetensors library judge the header, its offsets and the file's length; of a header it reads 100 MB."""
    from safetensors import SafetensorError, safe_open

    try:
        with file.open("rb") as handle:  # says why not; the library says "No such file" of one that may not be read
            length, most = int.from_bytes(handle.read(8), "little"), os.fstat(handle.fileno()).st_size - 8
        if LARGEST_HEADER < length <= most:  # a longer one than its file is none, which the library says
            raise RefembedError(
                "tensors-too-large", f"{file}: the header has {length} bytes, at most {LARGEST_HEADER} expected"
            )
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        truncated = "incomplete" in str(error).lower() or "not fully covered" in str(error).lower()
        id = "tensors-truncated" if truncated else "tensors-invalid"
        raise RefembedError(id, f"{file}: {error}; fetch the file again") from error
    except OSError as error:
        raise RefembedError("file-unreadable", f"{file}: {error.strerror or error}") from error
