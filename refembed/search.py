"""A corpus embedded once, kept in a file beside it, and searched exactly."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .embedder import Embedder
from .errors import RefembedError
from .output import whole_file
from .vectors import check_quantize, quantize_vectors, shorten

ENDING = ".refembed.safetensors"


def corpus_vectors(
    model: Embedder,
    corpus: Path,
    batch: list[NDArray[Any]],
    dimensions: int | None,
    show_progress: bool,
    quantize: str | None = None,
) -> tuple[NDArray[Any], str | None]:
    """The vectors of a corpus, from the file kept beside it where that still fits, else embedded and kept.

    They are kept at full length and shortened when used, so that other dimensions cost nothing (MAT-4, MAT-7).

    batch      texts arrays (tokens_i,): the ids say what prompt, titles, tokenizer and context made of the corpus
    quantize   "int8" or "binary": how they are kept
    returns    (texts, dimensions) floats or int8, or (texts, dimensions/8) uint8, and why they could not be kept, if so
    """
    kept = corpus.with_name(corpus.name + ENDING)
    size = model.check_dimensions(dimensions)
    check_quantize(quantize, size)
    content = hashlib.sha256(json.dumps([ids.tolist() for ids in batch]).encode()).hexdigest()
    vectors, not_kept = read_kept(kept, content, model, quantize), None
    if vectors is None:
        vectors = quantize_vectors(model.encode_tokens(batch, model.config.dimensions, show_progress), quantize)
        try:
            write_kept(kept, content, model, vectors, quantize)
        except RefembedError as error:
            not_kept = str(error)
    return shorten(vectors, size), not_kept


def read_kept(kept: Path, content: str, model: Embedder, quantize: str | None) -> NDArray[Any] | None:
    """The kept vectors, where they are of this content and this model."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(kept, framework="numpy") as file:
            said = file.metadata() or {}
            if said.get("content") != content or said.get("by") != computed_by(model, quantize):
                return None
            same_files = said.get("stamp") == model.checkpoint.stamp
            if not same_files and said.get("model") != model.checkpoint.digest:
                return None
            vectors: NDArray[Any] = file.get_tensor("embeddings")
            return vectors
    except (OSError, SafetensorError):
        return None


def computed_by(model: Embedder, quantize: str | None) -> str:
    """Backend and precision, which a vector's last digits depend on, and what is kept of them."""
    return " ".join(filter(None, (model.backend.name, model.encoder.precision, quantize)))


def write_kept(kept: Path, content: str, model: Embedder, vectors: NDArray[Any], quantize: str | None) -> None:
    from safetensors.numpy import save

    about = {
        "content": content,
        "by": computed_by(model, quantize),
        "stamp": model.checkpoint.stamp,
        "model": model.checkpoint.digest,
    }
    with whole_file(kept) as handle:
        handle.write(save({"embeddings": np.ascontiguousarray(vectors)}, metadata=about))
