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
from .reference import truncate

ENDING = ".refembed.safetensors"


def corpus_vectors(
    model: Embedder,
    corpus: Path,
    batch: list[NDArray[Any]],
    dimensions: int | None,
    show_progress: bool,
) -> tuple[NDArray[Any], str | None]:
    """The vectors of a corpus, from the file kept beside it where that still fits, else embedded and kept.

    They are kept at full length and shortened when used, so that other dimensions cost nothing (MAT-4).

    batch     texts arrays (tokens_i,): the ids say what prompt, titles, tokenizer and context made of the corpus
    returns   (texts, dimensions), and why they could not be kept, if so
    """
    kept = corpus.with_name(corpus.name + ENDING)
    size = model.check_dimensions(dimensions)
    content = hashlib.sha256(json.dumps([ids.tolist() for ids in batch]).encode()).hexdigest()
    vectors, not_kept = read_kept(kept, content, model), None
    if vectors is None:
        vectors = model.encode_tokens(batch, model.config.dimensions, show_progress)
        try:
            write_kept(kept, content, model, vectors)
        except RefembedError as error:
            not_kept = str(error)
    return (vectors if size == vectors.shape[1] else truncate(vectors, size)), not_kept


def read_kept(kept: Path, content: str, model: Embedder) -> NDArray[Any] | None:
    """The kept vectors, where they are of this content and this model."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(kept, framework="numpy") as file:
            said = file.metadata() or {}
            if said.get("content") != content or said.get("by") != computed_by(model):
                return None
            same_files = said.get("stamp") == model.checkpoint.stamp
            if not same_files and said.get("model") != model.checkpoint.digest:
                return None
            vectors: NDArray[Any] = file.get_tensor("embeddings")
            return vectors
    except (OSError, SafetensorError):
        return None


def computed_by(model: Embedder) -> str:
    """Backend and precision, which a vector's last digits depend on."""
    return f"{model.backend.name} {model.encoder.precision}"


def write_kept(kept: Path, content: str, model: Embedder, vectors: NDArray[Any]) -> None:
    from safetensors.numpy import save

    about = {
        "content": content,
        "by": computed_by(model),
        "stamp": model.checkpoint.stamp,
        "model": model.checkpoint.digest,
    }
    with whole_file(kept) as handle:
        handle.write(save({"embeddings": np.ascontiguousarray(vectors)}, metadata=about))


def best(scores: NDArray[Any], k: int) -> NDArray[Any]:
    """The places of the k highest scores, highest first, earlier ones first among equals."""
    if k < len(scores):
        bar = np.partition(scores, -k)[-k]
        candidates = np.flatnonzero(scores >= bar)
    else:
        candidates = np.arange(len(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]
