"""A checkpoint folder in one of the reference's quantised forms (QNT-7)."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import DENSE, FILES, GGUF, PICKLES, WEIGHTS, Checkpoint, open_checkpoint
from ..errors import RefembedError
from ..layout import TOKENIZER_FILES, whole_folder, write_tensors
from ..reference.quantize import Grid, Quantized, grid_of, largest_level, pack_int4, quantize
from ..stored import SCALES, Tensor

# weights, in whatever form, and what could run
NOT_COPIED: tuple[str, ...] = (".safetensors", ".index.json", GGUF, ".onnx", ".onnx_data", ".h5", ".msgpack", ".py")
NOT_COPIED += tuple(pattern.removeprefix("*") for pattern in PICKLES)
ROWS_AT_ONCE = 8192  # of a matrix, as floats in memory
Rounding = Callable[[str, NDArray[np.float32], Grid], Quantized]  # of a matrix's name, some of its rows, and a grid


def plain(name: str, rows: NDArray[np.float32], grid: Grid) -> Quantized:
    """To the nearest level (QNT-2, QNT-3)."""
    return quantize(rows, grid)


def quantize_folder(
    folder: Path | str,
    out: Path | str,
    form: str,
    rounding: Rounding = plain,
    norms: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Write a checkpoint in a quantised form, whole or not at all.

    folder     a checkpoint of floats; what lies beside its weights, terms of use among it, is copied
    out        a new folder
    form       one of reference.quantize.FORMS
    rounding   what makes levels and scales of a matrix's rows
    norms      norm weights that take the place of the checkpoint's, by name

    In memory are the packed numbers, 330 MB of the released model in int8-block, and some rows as floats. Raises
    RefembedError where the checkpoint is no folder of floats, cannot take the form, or `out` cannot be made.
    """
    checkpoint = open_checkpoint(Path(folder))
    check(checkpoint, form)
    tensors: dict[str, NDArray[Any]] = {}
    for name, tensor in checkpoint.tensors.items():
        grid = grid_of(form, name)
        if grid:
            tensors |= packed(name, tensor, grid, rounding)
        else:
            tensors[name] = (norms or {}).get(name, tensor.load(np.float32))
    dense = {key: where for where in DENSE for key in (f"{where}.linear.weight", f"{where}.linear.weight{SCALES}")}
    settings = json.loads((checkpoint.folder / "config.json").read_bytes())
    settings["quantization_config"] = {"quant_method": "refembed", "form": form, "version": 1}
    with whole_folder(Path(out)) as place:
        for name in other_files(checkpoint.folder):
            (place / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(checkpoint.folder / name, place / name)
        (place / "config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_tensors(place / WEIGHTS, {name: tensor for name, tensor in tensors.items() if name not in dense})
        for where in DENSE:
            (place / where).mkdir(exist_ok=True)
            mine = {name.removeprefix(f"{where}."): tensors[name] for name in dense if dense[name] == where}
            write_tensors(place / where / WEIGHTS, mine)


def other_files(folder: Path) -> list[str]:
    """What lies beside the weights, by name, in the folder and in its modules': nothing hidden, no link that leads out.

    The hub client's cache is made of links to its own blobs, which are followed, as is any to a file that is needed.
    """
    needed = [name for name in (*FILES, *TOKENIZER_FILES) if not name.endswith(WEIGHTS) and (folder / name).exists()]
    whole = folder.resolve()
    inside = [whole, whole.parents[1] / "blobs"] if whole.parent.name == "snapshots" else [whole]
    places = {(folder / name).parent for name in FILES}
    found = (file for place in places if place.is_dir() for file in place.iterdir() if file.is_file())
    more = [
        file.relative_to(folder).as_posix()
        for file in found
        if not file.name.startswith(".")
        and not file.name.lower().endswith(NOT_COPIED)
        and any(file.resolve().is_relative_to(root) for root in inside)
    ]
    return sorted({*needed, *more})


def check(checkpoint: Checkpoint, form: str) -> None:
    """Raise RefembedError for a checkpoint quantised already, or whose rows are not whole blocks of the form."""
    if checkpoint.form or not checkpoint.folder.is_dir():
        found = f"quantised already ({checkpoint.form})" if checkpoint.form else "a file"
        raise RefembedError(
            "config-quantization", f"{checkpoint.folder} is {found}; a folder of floats is needed: the original model"
        )
    for name, tensor in checkpoint.tensors.items():
        grid = grid_of(form, name)
        if grid and tensor.shape[1] % (grid.block or 8 // grid.bits):
            raise RefembedError(
                "tensor-shape",
                f"{checkpoint.folder}: {name} has rows of {tensor.shape[1]} numbers, which {form} cannot store: a "
                f"multiple of {grid.block or 2} is needed",
            )


def check_size(name: str, weight: NDArray[np.float32], grid: Grid, file: Path) -> None:
    """Raise RefembedError for a number beyond the last level of the largest scale (QNT-2)."""
    largest, limit, scale = np.max(np.abs(weight), initial=0), largest_level(grid.bits), float(np.finfo(np.float16).max)
    if largest / limit > scale:
        raise RefembedError(
            "tensor-too-large",
            f"{file}: {name} holds {largest:.3g}, which {grid.bits} bits cannot store: {limit} * {scale:g} at most",
        )


def packed(name: str, tensor: Tensor, grid: Grid, rounding: Rounding) -> dict[str, NDArray[Any]]:
    """A matrix's levels and scales as they are stored."""
    rows, columns = tensor.shape
    levels = np.empty((rows, columns * grid.bits // 8), np.int8 if grid.bits == 8 else np.uint8)
    scales = np.empty((rows, columns // (grid.block or columns)), np.float16)
    for start in range(0, rows, ROWS_AT_ONCE):
        part = np.arange(start, min(start + ROWS_AT_ONCE, rows))
        weight = tensor.rows(part, np.float32)
        check_size(name, weight, grid, tensor.file)
        found = rounding(name, weight, grid)
        levels[part] = found.levels if grid.bits == 8 else pack_int4(found.levels)
        scales[part] = found.scales
    return {name: levels, f"{name}{SCALES}": scales}
