"""LlamaIndex's own index, retriever and query engine on refembed's embeddings, without a network."""

import asyncio
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode

import refembed
from refembed.adapters.llama_index import RefembedEmbedding
from refembed.embedder import DEFAULT_MODEL
from refembed.errors import RefembedError

TWIN = Path(__file__).parents[2] / "golden/twin/checkpoint"
FACTS = {
    "planet": "Mars is often called the Red Planet because of its rusty soil.",
    "bread": "Bread rises because yeast turns sugar into gas.",
    "money": "A mortgage is a loan that is secured by a house.",
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a test of the index must reach for no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("llama_index.core.Settings._tokenizer", str.split)  # in place of a fetched one


def test_retrieves() -> None:
    """Wrong if LlamaIndex's index, with nothing else changed, does not find the text that answers, or its query engine
    does not hand it on to the language model.
    """
    nodes = [TextNode(text=text, id_=about) for about, text in FACTS.items()]
    index = VectorStoreIndex(nodes, embed_model=RefembedEmbedding(DEFAULT_MODEL, dimensions=128, embed_batch_size=2))
    retriever = index.as_retriever(similarity_top_k=1)
    (found,) = retriever.retrieve("Which planet looks red?")
    assert found.node_id == "planet"
    assert 0.2 < found.score < 1
    assert asyncio.run(retriever.aretrieve("borrowing to buy a home"))[0].node_id == "money"
    answer = index.as_query_engine(llm=MockLLM(), similarity_top_k=1).query("why does dough get bigger")
    assert [one.node_id for one in answer.source_nodes] == ["bread"]
    assert FACTS["bread"] in str(answer)  # this model repeats what it was given


def test_vectors_are_the_librarys() -> None:
    """Wrong if nodes and queries change places, or shortened vectors are not of unit length."""
    options = {"backend": "numpy"}
    embedding, model = RefembedEmbedding(str(TWIN), dimensions=16, load_options=options), refembed.load(TWIN)
    texts = ["mars is red", "venus", "the night"]
    expected = model.encode_document(texts, dimensions=16)
    np.testing.assert_array_equal(embedding.get_text_embedding_batch(texts), expected)
    np.testing.assert_array_equal(embedding.get_text_embedding("venus"), model.encode_document("venus", dimensions=16))
    np.testing.assert_array_equal(embedding.get_query_embedding("mars"), model.encode_query("mars", dimensions=16))
    np.testing.assert_array_equal(asyncio.run(embedding.aget_text_embedding_batch(texts)), expected)
    np.testing.assert_array_equal(
        asyncio.run(embedding.aget_text_embedding("venus")), model.encode_document("venus", dimensions=16)
    )
    assert RefembedEmbedding(model)._model is model


def test_says_what_it_is_and_comes_back() -> None:
    """Wrong if a saved index does not say which model its vectors are of, or a copy in another process embeds anew."""
    embedding = RefembedEmbedding(TWIN, dimensions=16)
    said = embedding.to_dict()
    assert (said["class_name"], said["model_name"], said["dimensions"]) == ("RefembedEmbedding", str(TWIN), 16)
    again = pickle.loads(pickle.dumps(embedding))
    assert again.get_query_embedding("mars") == embedding.get_query_embedding("mars")
    assert RefembedEmbedding.from_dict(said).get_query_embedding("mars") == embedding.get_query_embedding("mars")
    built_in = RefembedEmbedding.from_dict(RefembedEmbedding(dimensions=16).to_dict())
    assert len(built_in.get_query_embedding("mars")) == 16


def test_refuses() -> None:
    """Wrong if an option that cannot be is found out only with the first text."""
    with pytest.raises(RefembedError, match="dimensions is 4100"):
        RefembedEmbedding(TWIN, dimensions=4100)
