"""sentence-transformers, in float32 on the CPU, or as refembed itself on CUDA. --against sentence-transformers"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...reference.losses import ALPHA, TEMPERATURE

RATE = 1e-5


def open_model(spec: dict[str, Any], precision: str) -> Any:
    torch, library = import_module("torch"), import_module("sentence_transformers")
    torch.set_num_threads(spec["threads"])
    folder, device = spec["path"] or spec["model"], spec.get("device", "cpu")
    return library.SentenceTransformer(folder, device=device, model_kwargs={"dtype": getattr(torch, precision)})


def load(spec: dict[str, Any]) -> Callable[[list[str]], NDArray[Any]]:
    model = open_model(spec, spec.get("precision", "float32"))

    def encode(texts: list[str]) -> NDArray[Any]:
        found = model.encode(texts, batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(found, np.float32)

    return encode


def training(spec: dict[str, Any], columns: Sequence[list[str]]) -> Callable[[], float]:
    """A function that takes one step, and gives the loss before it. In bfloat16 the parameters stay in float32.

    columns   queries, positives and hard negatives, no text twice; each goes through the model padded, as in its losses
    """
    torch, functional = import_module("torch"), import_module("torch.nn.functional")
    model = open_model(spec, "float32").train()
    device, half = str(model.device).partition(":")[0], spec.get("precision") == "bfloat16"
    optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=True)
    prepare = getattr(model, "preprocess", None) or model.tokenize  # its older name
    prepared = [prepare(column) for column in columns]
    features = [{k: x.to(device) for k, x in one.items() if torch.is_tensor(x)} for one in prepared]
    own = torch.arange(len(columns[0]), device=device)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            found = [model(dict(one))["sentence_embedding"] for one in features]
        query, positive, negative = (functional.normalize(vectors.float()) for vectors in found)
        hard = (query * negative).sum(1, keepdim=True)
        logits = [query @ positive.T / TEMPERATURE, ALPHA * hard.detach() + hard / TEMPERATURE]
        loss = functional.cross_entropy(torch.cat(logits, 1), own)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step
