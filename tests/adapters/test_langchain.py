"""LangChain's own vector store and retriever on refembed's embeddings."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

import refembed
from refembed.adapters.langchain import RefembedEmbeddings
from refembed.embedder import DEFAULT_MODEL
from refembed.errors import RefembedError

TWIN = Path(__file__).parents[2] / "golden/twin/checkpoint"
FACTS = {
    "planet": "Mars is often called the Red Planet because of its rusty soil.",
    "bread": "Bread rises because yeast turns sugar into gas.",
    "money": "A mortgage is a loan that is secured by a house.",
}


def test_retrieves() -> None:
    """Wrong if LangChain's store and retriever, with nothing else changed, do not find the text that answers."""
    store = InMemoryVectorStore(embedding=RefembedEmbeddings(DEFAULT_MODEL, dimensions=128))
    store.add_texts(list(FACTS.values()), metadatas=[{"about": about} for about in FACTS])
    ((found, score),) = store.similarity_search_with_score("Which planet looks red?", k=1)
    assert found.metadata == {"about": "planet"}
    assert 0.2 < score < 1
    retriever = store.as_retriever(search_kwargs={"k": 1})
    assert retriever.invoke("why does dough get bigger")[0].metadata == {"about": "bread"}
    assert asyncio.run(retriever.ainvoke("borrowing to buy a home"))[0].metadata == {"about": "money"}


def test_vectors_are_the_librarys() -> None:
    """Wrong if documents and queries change places, or shortened vectors are not of unit length."""
    embeddings, model = RefembedEmbeddings(str(TWIN), backend="numpy", dimensions=16), refembed.load(TWIN)
    assert isinstance(embeddings, Embeddings)
    found = embeddings.embed_documents(["mars is red", "venus"])
    assert isinstance(found[0][0], float)
    np.testing.assert_array_equal(found, model.encode_document(["mars is red", "venus"], dimensions=16))
    np.testing.assert_array_equal(embeddings.embed_query("mars"), model.encode_query("mars", dimensions=16))
    assert embeddings.embed_documents([]) == []
    assert RefembedEmbeddings(model).model is RefembedEmbeddings(model=model).model is model


def test_asked_by_several_at_once() -> None:
    """Wrong if answers to questions asked at the same time, which LangChain puts on threads, are mixed up."""
    embeddings, texts = RefembedEmbeddings(TWIN), [f"mars {number}" for number in range(20)]

    async def ask() -> list[list[float]]:
        return await asyncio.gather(*map(embeddings.aembed_query, texts))

    assert asyncio.run(ask()) == [embeddings.embed_query(text) for text in texts]


def test_refuses() -> None:
    """Wrong if an option or a text that cannot be is found out only later, or passed over."""
    with pytest.raises(RefembedError, match="dimensions is 0"):
        RefembedEmbeddings(TWIN, dimensions=0)
    with pytest.raises(RefembedError, match="text 1"):
        RefembedEmbeddings(TWIN).embed_documents(["mars", None])
