"""From an exported encoder's last hidden states to embeddings: what its users write around it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import DENSE, TOKENIZER, WEIGHTS

Infer = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


def padded_encoder(model: str, infer: Infer) -> Callable[[list[str]], NDArray[Any]]:
    """A function from texts to unit vectors (texts, dimensions) float32.

    model   the checkpoint's folder, for its tokenizer and its dense matrices
    infer   ids and mask (texts, longest) int64 -> last hidden states (texts, longest, width)
    """
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model, TOKENIZER)))
    tokenizer.no_padding()
    up, down = (load_file(Path(model, folder, WEIGHTS))["linear.weight"].astype(np.float32) for folder in DENSE)

    def encode(texts: list[str]) -> NDArray[Any]:
        found = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        ids = np.zeros((len(texts), max(map(len, found))), np.int64)
        mask = np.zeros_like(ids)
        for row, pieces in enumerate(found):
            ids[row, : len(pieces)], mask[row, : len(pieces)] = pieces, 1
        states = infer(ids, mask) * mask[..., None].astype(np.float32)  # (texts, longest, width)
        pooled = states.sum(axis=1) / mask.sum(axis=1, keepdims=True)  # (texts, width)
        out = pooled @ up.T @ down.T  # (texts, dimensions)
        return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)

    return encode
