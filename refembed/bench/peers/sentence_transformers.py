"""sentence-transformers in float32 on the CPU. --against sentence-transformers"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray


def load(spec: dict[str, Any]) -> Callable[[list[str]], NDArray[Any]]:
    torch, library = import_module("torch"), import_module("sentence_transformers")
    torch.set_num_threads(spec["threads"])
    folder = spec["path"] or spec["model"]
    model = library.SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": torch.float32})

    def encode(texts: list[str]) -> NDArray[Any]:
        found = model.encode(texts, batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(found, np.float32)

    return encode
