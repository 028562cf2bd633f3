"""Any refembed model under sentence-transformers' names: code written for it runs with the import changed.

    from refembed.adapters.sentence_transformers import SentenceTransformer

    model = SentenceTransformer("google/embeddinggemma-300m")
    query = model.encode_query("Which planet is red?")
    documents = model.encode_document(["Mars looks red.", "Venus is hot."])
    print(model.similarity(query, documents))

No PyTorch is needed, and none imported but for convert_to_tensor=True or convert_to_numpy=False. As there, encode()
puts no prompt before a text unless it is told to, and shortened vectors keep their length unless normalize_embeddings
is true; refembed's own encode does otherwise. What cannot be honoured is refused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...errors import RefembedError
from . import util
from .loaded import Loaded

__all__ = ["SentenceTransformer", "util"]


class Card:
    """Where sentence-transformers' evaluators put their scores besides returning them; nobody reads it here."""

    def set_evaluation_metrics(self, *_: Any) -> None: ...


class SentenceTransformer(Loaded):
    """The constructor takes sentence-transformers' options. model is refembed's own."""

    model_card_data = Card()

    def encode(
        self, inputs: str | Sequence[str] | None = None, prompt_name: str | None = None, prompt: str | None = None,
        batch_size: int = 32, show_progress_bar: bool | None = None, output_value: str | None = "sentence_embedding",
        precision: str | None = "float32", convert_to_numpy: bool = True, convert_to_tensor: bool = False,
        device: str | None = None, normalize_embeddings: bool = False, truncate_dim: int | None = None,
        *, sentences: str | Sequence[str] | None = None,
    ) -> Any:  # fmt: skip
        """As there; sentences is the older name of inputs, and batch_size changes neither vectors nor memory."""
        if output_value != "sentence_embedding":
            raise RefembedError("option-unsupported", f"output_value={output_value!r}: only whole texts have vectors")
        self.to(self.device if device is None else device)
        given: Any = sentences if inputs is None else inputs
        texts = [given] if isinstance(given, str) else given
        before = self.prompt_named(prompt_name) if prompt is None else prompt
        vectors: Any = self.model.encode(texts, task=None, prompt=before, show_progress=bool(show_progress_bar))
        vectors = vectors[:, : self.truncate_dim if truncate_dim is None else truncate_dim]
        if normalize_embeddings:
            vectors = util.normalize_embeddings(vectors)
        nothing = np.array([], np.float32 if convert_to_tensor else np.float64)  # of no texts, as there
        vectors = util.quantize_embeddings(vectors, precision or "float32") if len(vectors) else nothing
        if convert_to_tensor or not convert_to_numpy:
            import torch

            vectors = torch.from_numpy(vectors) if convert_to_tensor else list(torch.from_numpy(vectors))
        return vectors[0] if isinstance(given, str) else vectors

    def encode_query(
        self, inputs: Any = None, prompt_name: str | None = None, prompt: str | None = None, *rest: Any, **options: Any
    ) -> Any:
        """encode() with the prompt named query, where none is named."""
        name = "query" if prompt_name is None and prompt is None else prompt_name
        return self.encode(inputs, name, prompt, *rest, **options)

    def encode_document(
        self, inputs: Any = None, prompt_name: str | None = None, prompt: str | None = None, *rest: Any, **options: Any
    ) -> Any:
        """encode() with the prompt named document, where none is named."""
        name = "document" if prompt_name is None and prompt is None else prompt_name
        return self.encode(inputs, name, prompt, *rest, **options)

    def get_embedding_dimension(self) -> int:
        return len(range(self.model.config.dimensions)[: self.truncate_dim])

    def eval(self) -> "SentenceTransformer":  # nothing here is in training
        return self

    get_sentence_embedding_dimension = get_embedding_dimension  # its older name

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Within it encode() keeps the first truncate_dim numbers."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings  # its older name
