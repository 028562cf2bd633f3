"""Any refembed model as LangChain's Embeddings.

    from langchain_core.vectorstores import InMemoryVectorStore
    from refembed.adapters.langchain import RefembedEmbeddings

    store = InMemoryVectorStore(RefembedEmbeddings("google/embeddinggemma-300m"))
    store.add_texts(["Mars looks red.", "Venus is hot."])
    print(store.similarity_search("Which planet is red?", k=1))

Documents get the document prompt and queries the query prompt. The asynchronous methods are LangChain's, on a thread.
"""

from pathlib import Path
from typing import Any

from langchain_core.embeddings import Embeddings

from ..embedder import Embedder, load


class RefembedEmbeddings(Embeddings):
    """model_name is a folder, a .gguf file, a hub id, a loaded model, or nothing for the built-in one.

    dimensions      keep the first numbers only, and unit length
    show_progress   of documents, on a terminal
    options         refembed.load's: backend, precision, threads, revision

    Raises RefembedError.
    """

    def __init__(
        self,
        model_name: str | Path | Embedder | None = None,
        *,
        dimensions: int | None = None,
        show_progress: bool = False,
        **options: Any,
    ) -> None:
        given = options.pop("model", model_name)  # as the classes of OpenAI and Ollama name it
        self.model = given if isinstance(given, Embedder) else load(given, **options)
        self.dimensions, self.show_progress = self.model.check_dimensions(dimensions), show_progress

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        found = self.model.encode_document(texts, dimensions=self.dimensions, show_progress=self.show_progress)
        return found.tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.model.encode_query(text, dimensions=self.dimensions).tolist()
