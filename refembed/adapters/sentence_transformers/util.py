"""The functions of sentence_transformers.util that code calls beside the model: scores, search, small vectors.

    from refembed.adapters.sentence_transformers import SentenceTransformer, util

    model = SentenceTransformer("google/embeddinggemma-300m")
    corpus = model.encode_document(["Mars looks red.", "Venus is hot."])
    hits = util.semantic_search(model.encode_query("Which planet is red?"), corpus, top_k=1)

Vectors may be arrays, tensors on the CPU, or lists of either. Scores are tensors, as there, where PyTorch is imported
already, and NumPy arrays where it is not: nothing here imports it. paraphrase_mining and the rest of
sentence_transformers.util need that package.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RefembedError
from ...vectors import best, similarity, unit_rows

Floats = NDArray[np.float32]


def floats(vectors: Any) -> Floats:
    return np.asarray(vectors, np.float32)


def normalize_embeddings(embeddings: Any) -> Floats:
    """Each row with unit length."""
    table = floats(embeddings)
    return floats(unit_rows(np.atleast_2d(table))).reshape(table.shape)


PAIRS: dict[str, Callable[[Floats, Floats], Any]] = {  # of each vector and its partner
    "cosine": lambda a, b: (normalize_embeddings(a) * normalize_embeddings(b)).sum(-1),
    "dot": lambda a, b: (a * b).sum(-1),
    "euclidean": lambda a, b: -np.linalg.norm(a - b, axis=-1),
    "manhattan": lambda a, b: -np.abs(a - b).sum(-1),
}
PRODUCTS = {"cosine": similarity, "dot": lambda a, b: a @ b.T}  # of all with all, in one matrix product


def compare(name: str, a: Any, b: Any, pairwise: bool = False) -> Any:
    """The scores of all with all, (n, m), or of each with its partner, (n,), by the name of a similarity_fn_name."""
    first, second = floats(a), floats(b)
    by_row = lambda one, other: np.array([PAIRS[name](row, other) for row in one])  # noqa: E731
    if not pairwise:
        first, second = np.atleast_2d(first), np.atleast_2d(second)
    scores = (PAIRS[name] if pairwise else PRODUCTS.get(name, by_row))(first, second)
    torch = sys.modules.get("torch")
    return scores if torch is None else torch.as_tensor(scores)


cos_sim, dot_score, euclidean_sim, manhattan_sim = (partial(compare, name) for name in PAIRS)
pytorch_cos_sim = cos_sim
pairwise_cos_sim, pairwise_dot_score, pairwise_euclidean_sim, pairwise_manhattan_sim = (
    partial(compare, name, pairwise=True) for name in PAIRS
)


def semantic_search(
    query_embeddings: Any, corpus_embeddings: Any, query_chunk_size: int = 100, corpus_chunk_size: int = 500_000,
    top_k: int = 10, score_function: Callable[[Any, Any], Any] = cos_sim,
) -> list[list[dict[str, int | float]]]:  # fmt: skip
    """For each query its top_k of the corpus, best first, as corpus_id and score. The corpus is not cut in chunks."""
    queries, found = np.atleast_2d(floats(query_embeddings)), []
    for start in range(0, len(queries), query_chunk_size):
        scores = np.asarray(score_function(queries[start : start + query_chunk_size], corpus_embeddings))
        found += [[{"corpus_id": int(at), "score": float(row[at])} for at in best(row, top_k)] for row in scores]
    return found


def quantize_embeddings(embeddings: Any, precision: str, ranges: Any = None, calibration_embeddings: Any = None) -> Any:
    """sentence-transformers' small forms. Its int8 spreads each number over its own range (the smallest and largest of
    the calibration embeddings, or of those given), so it is another than refembed's (MAT-5), which keeps directions.
    """
    table = floats(embeddings)
    if precision not in ("float32", "int8", "uint8", "binary", "ubinary"):
        raise RefembedError("option-quantize", f"precision {precision!r}; float32, (u)int8 or (u)binary is needed")
    if precision.endswith("binary"):
        bits = np.packbits(table > 0, axis=-1)
        return bits if precision == "ubinary" else (bits - 128).astype(np.int8)
    if precision == "float32":
        return table
    known = table if calibration_embeddings is None else floats(calibration_embeddings)
    if ranges is None and (known.ndim < 2 or len(known) < 2):
        raise RefembedError("option-quantize", f"{precision} takes its ranges from two embeddings or more, not of one")
    low, high = floats((known.min(0), known.max(0)) if ranges is None else ranges)
    steps = (high - low) / 255
    levels = np.clip(np.floor((table - low) / np.where(steps == 0, 1, steps)), 0, 255)
    return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)
