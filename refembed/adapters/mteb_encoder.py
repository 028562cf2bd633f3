"""Any refembed model as an encoder of the mteb package (2.x), for its tasks and benchmarks.

    import mteb, refembed
    from refembed.adapters.mteb_encoder import MtebEncoder

    model = MtebEncoder(refembed.load("google/embeddinggemma-300m"))
    mteb.evaluate(model, mteb.get_task("STSBenchmark"))

A prompt is found as mteb finds it: by the task's type and the kind of input ("Retrieval-query"), by the type ("STS"),
by the kind ("document"). A document's title goes to its place in the document prompt, where mteb's own wrapper for
sentence-transformers puts it before the text.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from mteb.models.model_meta import ModelMeta

from ..embedder import Embedder, Vectors
from ..evaluation.vectors import CONTEXT, TextEncoder
from ..prompts import ALIASES, PROMPTS, plain
from ..vectors import similarity


class MtebEncoder:
    """mteb's EncoderProtocol around a loaded model. context and dimensions are TextEncoder's."""

    def __init__(self, model: Embedder, context: int = CONTEXT, dimensions: int | None = None) -> None:
        self.encoder, info = TextEncoder(model, context, dimensions), model.info
        used = (info.backend, info.precision, self.encoder.context, self.encoder.dimensions)
        about = {
            "name": f"refembed/{info.model.rstrip('/').rpartition('/')[2]}",
            "revision": "-".join(map(str, (info.digest[:12], *used))),  # mteb keeps results by it
            "max_tokens": self.encoder.context,
            "embed_dim": self.encoder.dimensions,
            "similarity_fn_name": "cosine",
        }
        self.mteb_model_meta = ModelMeta.create_empty(about)
        self.tasks = {plain(name): name for name in (*PROMPTS, *ALIASES, *model.checkpoint.prompts)}

    def task_of(self, type: str, kind: str) -> str | None:
        """The task whose prompt goes before a text; none where the model has none for this type."""
        return next(
            (self.tasks[name] for name in map(plain, (f"{type}-{kind}", type, kind)) if name in self.tasks), None
        )

    def encode(
        self, inputs: Iterable[Mapping[str, Sequence[str]]], *, task_metadata: Any, prompt_type: Any = None, **_: Any
    ) -> Vectors:
        """The embedding of each text of a data loader's batches: (texts, dimensions) float32."""
        task = self.task_of(task_metadata.type, prompt_type.value if prompt_type else "")
        titled = task in ("document", "Retrieval-document")
        texts: list[str] = []
        titles: list[str] = []
        for batch in inputs:
            texts += batch["body" if titled and "body" in batch else "text"]  # text is title and body in one
            titles += batch.get("title", [""] * len(batch["text"]))
        return self.encoder(texts, task, titles if titled else None)

    def similarity(self, first: Any, second: Any) -> Vectors:
        return similarity(np.asarray(first), np.asarray(second))

    def similarity_pairwise(self, first: Any, second: Any) -> Vectors:
        return np.array([similarity(one, other)[0, 0] for one, other in zip(first, second, strict=True)], np.float32)
