"""Any refembed model as LlamaIndex's embedding model.

    from llama_index.core import Document, VectorStoreIndex
    from refembed.adapters.llama_index import RefembedEmbedding

    documents = [Document(text="Mars looks red."), Document(text="Venus is hot.")]
    index = VectorStoreIndex.from_documents(documents, embed_model=RefembedEmbedding("google/embeddinggemma-300m"))
    print(index.as_retriever(similarity_top_k=1).retrieve("Which planet is red?"))

Nodes get the document prompt and queries the query prompt. The asynchronous methods compute on a thread of their own.
"""

import asyncio
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr

from ..embedder import Embedder, load


class RefembedEmbedding(BaseEmbedding):
    """model_name is a folder, a .gguf file, a hub id, a loaded model, or nothing for the built-in one.

    dimensions      keep the first numbers only, and unit length
    load_options    refembed.load's: backend, precision, threads, revision
    options         BaseEmbedding's: embed_batch_size, callback_manager, num_workers, embeddings_cache

    Raises RefembedError.
    """

    dimensions: int | None = None
    load_options: dict[str, Any] = Field(default_factory=dict)
    _model: Embedder = PrivateAttr()

    def __init__(
        self,
        model_name: str | Path | Embedder | None = None,
        *,
        dimensions: int | None = None,
        load_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        known = load_options or {}
        given = None if model_name == "default" else model_name  # the built-in model's name, as to_dict() kept it
        model = given if isinstance(given, Embedder) else load(given, **known)
        kept = model.check_dimensions(dimensions)
        super().__init__(model_name=model.name, dimensions=kept, load_options=known, **options)
        self._model = model

    @classmethod
    def class_name(cls) -> str:
        return "RefembedEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._model.encode_query(query, dimensions=self.dimensions).tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._model.encode_document(texts, dimensions=self.dimensions).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
