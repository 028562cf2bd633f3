"""A model folder in the Hugging Face layout: config, prompts, and parameters mapped from disk."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike

from .config_file import check_modules, read_config, read_form, read_prompts
from .errors import RefembedError
from .reference import Config, parameter_shapes
from .stored import QuantizedTensor, StoredRows, Tensor, open_quantized, open_tensors

WEIGHTS = "model.safetensors"
DENSE = ("2_Dense", "3_Dense")
TOKENIZER = "tokenizer.json"
GGUF = ".gguf"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TABLE = "embed_tokens.weight"
DIGESTED = (WEIGHTS, *(f"{folder}/{WEIGHTS}" for folder in DENSE), TOKENIZER)
# what a checkpoint folder is made of: all that is fetched from the hub, and nothing that could run
FILES = (
    "config.json",
    WEIGHTS,
    TOKENIZER,
    "tokenizer_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    *(f"{folder}/{name}" for folder in DENSE for name in ("config.json", WEIGHTS)),
)


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder, or one file. Nothing of the weights is in memory until parameters() is used.

    folder    the folder; of a .gguf file the file itself
    config    the reference's Config
    tensors   the checkpoint's tensor names -> tensors still on disk
    prompts   the prompts that config_sentence_transformers.json names
    form      the reference's form that the matrices are stored in; None where they are floats, or a .gguf file's
    """

    folder: Path
    config: Config
    tensors: Mapping[str, Tensor]
    prompts: Mapping[str, str]
    form: str | None = None

    def parameters(self, dtype: DTypeLike) -> dict[str, Any]:
        """What the reference computes with: every parameter by name, the embedding table read row by row.

        dtype    float32 (files in float32 stay mapped, uncopied) or float64

        Raises RefembedError where a layer or a dense matrix holds NaN or infinity.
        """
        parameters: dict[str, Any] = {
            name: tensor.load(dtype) for name, tensor in self.tensors.items() if name != TABLE
        }
        return parameters | {TABLE: StoredRows(self.tensors[TABLE], dtype)}

    @property
    def weights(self) -> str:
        """How its matrices are stored: a form, or a float type; the names of several where they differ."""
        return self.form or " and ".join(
            sorted({tensor.kind for tensor in self.tensors.values() if len(tensor.shape) > 1})
        )

    @property
    def quantized(self) -> bool:
        """Whether a matrix that rows are multiplied with, none but the table, is stored as levels and scales."""
        return any(isinstance(tensor, QuantizedTensor) for name, tensor in self.tensors.items() if name != TABLE)

    @property
    def tokenizer(self) -> Path:
        """Its tokenizer.json."""
        return self.folder / TOKENIZER

    @property
    def stamp(self) -> str:
        """Folder, sizes, times and inodes of all files: cheap, the same only while none is rewritten, comes or goes."""
        stats = {name: (self.folder / name).stat() for name in FILES if (self.folder / name).exists()}
        files = (f"{name}:{stat.st_size}@{stat.st_mtime_ns}#{stat.st_ino}" for name, stat in stats.items())
        return " ".join([str(self.folder.resolve()), *files])

    @cached_property
    def digest(self) -> str:
        """SHA-256 that names the model: its config's meaning, its three weight files, its tokenizer. Reads them all."""
        parts = [json.dumps(asdict(self.config), sort_keys=True)]
        for name in DIGESTED:
            with (self.folder / name).open("rb") as handle:
                parts.append(f"{name} {hashlib.file_digest(handle, 'sha256').hexdigest()}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open and check a model folder, or a .gguf file.

    Raises RefembedError with one line that names the file or tensor, what was found and what is needed.
    """
    if folder.suffix == GGUF and not os.path.isdir(folder):
        from .gguf.checkpoint import open_gguf  # which needs this module

        return open_gguf(folder)
    if not os.path.isdir(folder):  # pathlib's own raises where a name is too long for any file
        raise RefembedError(
            "folder-missing", f"{folder} is not a folder; give a model folder, a {GGUF} file or a hub id org/name"
        )
    refuse_other_weights(folder)
    check_modules(folder)
    form = read_form(folder)
    dense = {}
    for name in DENSE:
        if not (folder / name / WEIGHTS).exists():
            raise RefembedError(
                "dense-missing",
                f"{folder / name / WEIGHTS} is not there; every vector needs both dense matrices",
            )
        tensors = open_file(folder / name / WEIGHTS, form)
        found = {key: tensor.shape for key, tensor in tensors.items()}
        if set(found) != {"linear.weight"} or len(found["linear.weight"]) != 2 or 0 in found["linear.weight"]:
            raise RefembedError(
                "dense-unsupported", f"{folder / name / WEIGHTS} holds {found}; one matrix linear.weight is needed"
            )
        dense[f"{name}.linear.weight"] = tensors["linear.weight"]
    rows = [tensor.shape[0] for tensor in dense.values()]
    config = read_config(folder, dense=rows[0], dimensions=rows[1])
    tensors = open_file(folder / WEIGHTS, form) | dense
    check_shapes(folder / WEIGHTS, tensors, config)
    return Checkpoint(folder, config, tensors, read_prompts(folder), form)


def open_file(file: Path, form: str | None) -> dict[str, Tensor]:
    return dict(open_tensors(file)) if form is None else open_quantized(file, form)


def refuse_other_weights(folder: Path) -> None:
    """Without model.safetensors, say what stands in its place."""
    if (folder / WEIGHTS).exists():
        return
    if (folder / f"{WEIGHTS}.index.json").exists():
        raise RefembedError("weights-sharded", f"{folder}: the weights are in shards; save them as one {WEIGHTS}")
    if found := sorted(folder.glob(f"*{GGUF}")):
        raise RefembedError("file-missing", f"{folder / WEIGHTS} is not there; name the file itself: {found[0]}")
    pickles = [file.name for pattern in PICKLES for file in sorted(folder.glob(pattern))]
    if pickles:
        raise RefembedError(
            "weights-pickle",
            f"{folder / pickles[0]} is a pickle, which can run code; convert it to {WEIGHTS}",
        )
    raise RefembedError("file-missing", f"{folder / WEIGHTS} is not there; a checkpoint folder needs it")


def check_shapes(file: Path, tensors: Mapping[str, Tensor], config: Config) -> None:
    """Exactly the parameters the config calls for, each of its shape."""
    needed = parameter_shapes(config)
    for name, shape in needed.items():
        if name not in tensors:
            raise RefembedError("tensor-missing", f"{file}: {name} is missing, shape {shape} needed")
        found = tensors[name].shape
        if found != shape:
            raise RefembedError("tensor-shape", f"{tensors[name].file}: {name} has shape {found}, {shape} needed")
    extra = sorted(set(tensors) - set(needed))
    if extra:
        raise RefembedError(
            "tensor-unexpected", f"{file}: {extra[0]} is not part of EmbeddingGemma ({len(extra)} such tensors)"
        )
