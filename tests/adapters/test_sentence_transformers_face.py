"""sentence-transformers' own class and refembed's face of it run the same code on the same folders, to the same end."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support import SMALL, random_parameters

import refembed
from refembed.adapters import sentence_transformers as face
from refembed.errors import RefembedError
from refembed.layout import write_checkpoint

ROOT = Path(__file__).parents[2]
TWIN = ROOT / "golden/twin/checkpoint"
TEXTS = ["mars is red", "", "the night\nis  long", "Zürich 火星", "a the in " * 60, "red is mars", "venus"]


@pytest.fixture(scope="module")
def peer() -> Iterator[ModuleType]:
    """The package itself. Of more threads than it has processors to itself PyTorch makes a tenfold wait."""
    import sentence_transformers
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield sentence_transformers
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, small_folder: Path) -> Path:
    """A small random model in the released layout, whose settings say more than the twin's."""
    folder = tmp_path_factory.mktemp("released") / "small"
    prompts = {"document": "doc: ", "passage": "other: ", "STS": "a b "}
    write_checkpoint(folder, SMALL, random_parameters(SMALL, dtype=np.float32), small_folder, prompts)
    settings = folder / "config_sentence_transformers.json"
    text = settings.read_text().replace('"cosine"', '"euclidean", "truncate_dim": 24')
    settings.write_text(text.replace('"default_prompt_name": null', '"default_prompt_name": "STS"'))
    return folder


# --------------------------------------------------------------------- what people write, as they write it
def encoding(package: Any, folder: str) -> dict[str, Any]:
    model = package.SentenceTransformer(folder, device="cpu", trust_remote_code=True)
    import torch

    found = {
        "plain": model.encode(TEXTS),
        "named": model.encode(sentences=TEXTS, batch_size=2, show_progress_bar=False),
        "one": model.encode("mars is red"),
        "none": model.encode([]),
        "tuple": model.encode(tuple(TEXTS[:2])),
        "array": model.encode(np.array(TEXTS[:2])),
        "prompt name": model.encode(TEXTS, "STS"),
        "prompt": model.encode(TEXTS, prompt="title: red | text: "),
        "no prompt": model.encode(TEXTS, prompt=""),
        "query": model.encode_query(TEXTS),
        "query by another prompt": model.encode_query(TEXTS, prompt_name="document"),
        "document": model.encode_document(TEXTS, normalize_embeddings=True),
        "document by another prompt": model.encode_document(TEXTS[:2], prompt_name="query"),
        "document in words": model.encode_document("venus", prompt="say: "),
        "shortened": model.encode(TEXTS, truncate_dim=8),
        "shortened, of length one": model.encode(TEXTS, truncate_dim=8, normalize_embeddings=True),
        "tensor": model.encode(TEXTS, convert_to_tensor=True),
        "tensor of one": model.encode("venus", convert_to_tensor=True, truncate_dim=9),
        "tensor of none": model.encode([], convert_to_tensor=True),
        "tensors": model.encode(TEXTS[:2], convert_to_numpy=False),
        "as it is": model.encode(TEXTS, precision=None),
        "bits": model.encode(TEXTS, precision="ubinary"),
        "signed bits": model.encode(TEXTS, precision="binary", truncate_dim=13),
        "int8": model.encode(TEXTS, precision="int8").astype(int),
        "uint8": model.encode(TEXTS, precision="uint8").astype(int),
    }
    queries, documents = model.encode_query(TEXTS[:3]), model.encode_document(TEXTS[2:])
    scores = model.similarity(queries, documents)
    found |= {
        "similarity": scores,
        "similarity of one": model.similarity(queries[0], documents),
        "similarity of tensors": model.similarity(torch.tensor(queries), list(torch.tensor(documents))),
        "pairs": model.similarity_pairwise(queries, documents[:3]),
        "best": torch.topk(scores[0], k=1).values,
        "best of all": scores.numpy().argmax(axis=1) if isinstance(scores, torch.Tensor) else None,
        "dimension": model.get_embedding_dimension(),
        "length": (model.max_seq_length, model.eval().get_max_seq_length()),
        "prompts": model.prompts,
        "default prompt": model.default_prompt_name,
        "similarity function": model.similarity_fn_name,
        "device": str(model.device),
        "moved": str(model.to("cpu").device),
        "ids": model.tokenizer("mars is red")["input_ids"],
        "number of tokens": len(model.tokenizer.encode(TEXTS[4], truncation=False)),
        "tokenized": {name: model.tokenize(TEXTS)[name] for name in ("input_ids", "attention_mask")},
    }
    model.max_seq_length = 12
    with model.truncate_embeddings(6):
        found["cut"] = model.encode(TEXTS)
    return found | {"not shortened any more": model.encode(TEXTS[:1]), "length set": model.max_seq_length}


def settings(package: Any, folder: str) -> dict[str, Any]:
    options: Any = {"prompts": {"query": "q: ", "mine": "a the "}, "default_prompt_name": "mine", "truncate_dim": 16}
    model = package.SentenceTransformer(
        folder, similarity_fn_name="dot", local_files_only=True, model_kwargs={"torch_dtype": "float32"}, **options
    )
    vectors = model.encode(TEXTS)
    return {
        "default prompt": vectors,
        "another": model.encode(TEXTS, prompt_name="query", truncate_dim=99),
        "query": model.encode_query("venus"),
        "document": model.encode_document("venus"),
        "dot": model.similarity(vectors, vectors),
        "pairs": model.similarity_pairwise(vectors[0], vectors[1]),
        "dimension": model.get_embedding_dimension(),
        "prompts": model.prompts,
    }


def searching(package: Any, folder: str) -> dict[str, Any]:
    model, util = package.SentenceTransformer(folder), package.util
    corpus = model.encode(TEXTS, convert_to_tensor=True)
    query, pair = model.encode(["mars"]), model.encode(TEXTS[2:4])
    return {
        "hits": util.semantic_search(query, corpus, top_k=3),
        "by dot product": util.semantic_search(query, corpus, score_function=util.dot_score, top_k=1),
        "cosines": util.cos_sim(query, corpus),
        "older name": util.pytorch_cos_sim(query[0], corpus[1]),
        "dots": util.dot_score(3 * query, corpus),
        "distances": util.euclidean_sim(query, corpus),
        "city blocks": util.manhattan_sim(query, corpus),
        "pairs of cosines": util.pairwise_cos_sim(3 * pair, pair[::-1].copy()),
        "pairs of dots": util.pairwise_dot_score(pair, pair),
        "pairs of distances": util.pairwise_euclidean_sim(pair, 2 * pair),
        "pairs of city blocks": util.pairwise_manhattan_sim(pair, 2 * pair),
        "calibrated": util.quantize_embeddings(pair, "int8", calibration_embeddings=corpus.numpy()).astype(int),
    }


def evaluating(package: Any, folder: str) -> dict[str, Any]:
    from sentence_transformers.sentence_transformer import evaluation  # the package's own for both

    queries, relevant = {"1": "mars is red", "2": "venus"}, {"1": {"a", "d"}, "2": {"c"}}
    corpus = {"a": "the red planet mars", "b": "the night", "c": "venus is", "d": "a", "e": "red"}
    ranks: Any = {f"{name}_at_k": [1, 3] for name in ("accuracy", "precision_recall", "ndcg", "mrr", "map")}
    retrieval = evaluation.InformationRetrievalEvaluator(queries, corpus, relevant, truncate_dim=8, **ranks)
    pairs = ["mars", "a", "the night"], ["red", "venus is", "night"], [1.0, 0.5, 0.0]
    alike = evaluation.EmbeddingSimilarityEvaluator(*pairs, similarity_fn_names=["cosine", "euclidean"])
    model = package.SentenceTransformer(folder)
    return {name: float(score) for judge in (retrieval, alike) for name, score in judge(model).items()}


def close(found: Any, expected: Any, where: str) -> None:
    """The same kind of thing, and the same numbers to float32 rounding (levels may fall to either side of an edge)."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for name in expected:
            close(found[name], expected[name], f"{where}/{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, one in enumerate(expected):
            close(found[index], one, f"{where}/{index}")
    elif hasattr(expected, "shape"):
        assert (type(found), found.dtype, found.shape) == (type(expected), expected.dtype, expected.shape), where
        level = where.endswith(("int8", "calibrated"))
        np.testing.assert_allclose(found, expected, atol=1 if level else 5e-6, err_msg=where)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=5e-6), where
    else:
        assert found == expected, where


CODE = {"encoding": encoding, "settings": settings, "searching": searching, "evaluating": evaluating}


@pytest.mark.filterwarnings("ignore")  # texts that are cut, ranges of few texts, older names
@pytest.mark.parametrize("model", ["twin", "small"])
@pytest.mark.parametrize("code", CODE.values(), ids=CODE)
def test_code_runs_the_same(peer: ModuleType, released: Path, code: Callable[..., Any], model: str) -> None:
    """Wrong if code written for sentence-transformers gets other vectors, scores, types or shapes from the face: a
    prompt that was not asked for, unit length where none was, another default, another order.
    """
    folder = str(TWIN if model == "twin" else released)
    close(code(face, folder), code(peer, folder), "")


def test_real_weights_run_the_same(peer: ModuleType, weights: Path) -> None:
    """Wrong if the model card's own example, run on the released weights, has other vectors or scores."""

    def card(package: Any) -> dict[str, Any]:
        model = package.SentenceTransformer(str(weights), device="cpu", model_kwargs={"dtype": "float32"})
        query = model.encode_query("Which planet is known as the Red Planet?")
        documents = model.encode_document(
            [
                "Venus is often called Earth's twin because of its similar size and proximity.",
                "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
            ]
        )
        plain = model.encode(["no prompt", "before these"], truncate_dim=128)
        scores = model.similarity(query, documents)
        return {"query": query, "documents": documents, "plain": plain, "scores": scores, "prompts": model.prompts}

    ours = card(face)
    close(ours, card(peer), "")
    np.testing.assert_allclose(ours["scores"], [[0.3011, 0.6359]], atol=2e-3)  # the card's numbers, of bfloat16


# ------------------------------------------------------------------------------------------ without the package
def test_needs_no_pytorch() -> None:
    """Wrong if the face imports PyTorch, or transformers, or gives their types to code that names neither."""
    code = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = sys.modules["sentence_transformers"] = None
from refembed.adapters.sentence_transformers import SentenceTransformer, util
model = SentenceTransformer({str(TWIN)!r}, backend="numpy")
vectors = model.encode(["mars is red", "venus"])
scores = model.similarity(vectors[0], vectors)
print(type(scores).__module__, scores.shape, util.semantic_search(vectors, vectors, top_k=1)[1][0]["corpus_id"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("numpy (1, 2) 1\n", "")


def test_a_gguf_file_has_the_models_prompts() -> None:
    """Wrong if a query of a .gguf model, whose file holds no prompts, is embedded without one."""
    file = ROOT / "tests/gguf/small-q8_0.gguf"
    model = face.SentenceTransformer(str(file))
    ours = refembed.load(file)
    np.testing.assert_array_equal(model.encode_query("the"), ours.encode_query("the"))
    np.testing.assert_array_equal(model.encode("the", prompt_name="STS"), ours.encode("the", task="STS"))


# -------------------------------------------------------------------------------------------- what is not honoured
OPENING: dict[str, dict[str, Any]] = {
    "modules": {"modules": [object()]},
    "attn_implementation": {"model_kwargs": {"attn_implementation": "eager"}},
    "processor_kwargs": {"processor_kwargs": {"padding_side": "left"}},
    "backend 'onnx'": {"backend": "onnx"},
    "backend 'openvino'": {"backend": "openvino"},
    "cuda:7": {"device": "cuda:7", "backend": "numpy"},
    "mps": {"device": "mps"},
    "float16": {"model_kwargs": {"torch_dtype": "float16"}},
    "no prompt 'mine'": {"default_prompt_name": "mine"},
    "revision 'main'": {"revision": "main"},
}
ENCODING: dict[str, dict[str, Any]] = {
    "output_value": {"output_value": "token_embeddings"},
    "output_value=None": {"output_value": None},
    "precision 'int4'": {"precision": "int4"},
    "two embeddings": {"precision": "int8"},
    "no prompt 'sts'": {"prompt_name": "sts"},
    "cuda": {"device": "cuda"},
}


@pytest.mark.parametrize("says", OPENING)
def test_refused_at_opening(says: str) -> None:
    """Wrong if an option that changes what is computed is left out of account."""
    with pytest.raises(RefembedError, match=says):
        face.SentenceTransformer(str(TWIN), **OPENING[says])


@pytest.mark.parametrize("says", ENCODING)
def test_refused_at_encoding(says: str) -> None:
    """Wrong if an option that changes the result is left out of account."""
    with pytest.raises(RefembedError, match=says):
        face.SentenceTransformer(str(TWIN)).encode(["venus"], **ENCODING[says])


def test_refused_by_id() -> None:
    """Wrong if a program cannot tell an option that is not honoured from a fault of the model."""
    with pytest.raises(RefembedError) as caught:
        face.SentenceTransformer(str(TWIN), config_kwargs={"attention_dropout": 0.5})
    assert caught.value.id == "option-unsupported"
    model = face.SentenceTransformer(str(TWIN))
    for length in (2, 65, 1.5):
        with pytest.raises(RefembedError, match="from 3 to 64"):
            model.max_seq_length = length
    with pytest.raises(TypeError, match="pool"):
        model.encode(["venus"], pool={})


def test_a_device_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if on a machine with CUDA a model that is asked for on the CPU, or on CUDA, computes on the other."""
    monkeypatch.setattr("refembed_torch.backend.TorchBackend.device", lambda self: "cuda")
    monkeypatch.setattr("refembed_torch.backend.TorchBackend.priority", 20)
    chosen = {device: face.SentenceTransformer(str(TWIN), device=device) for device in ("cpu", "cuda", "cuda:0", None)}
    assert [model.model.backend.name for model in chosen.values()] == ["numpy", "torch", "torch", "torch"]
    assert [model.device for model in chosen.values()] == ["cpu", "cuda", "cuda", "cuda"]
    with pytest.raises(RefembedError, match="numpy computes on cpu"):
        chosen["cpu"].to("cuda")


def test_the_hubs_client_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a token, a folder for downloads or the word to stay offline does not reach the hub's client."""
    told: dict[str, Any] = {}

    def bring(model: str, **options: Any) -> str:
        told.update(options, model=model)
        return str(TWIN)

    monkeypatch.setattr("huggingface_hub.snapshot_download", bring)
    model = face.SentenceTransformer("org/name", token="t", cache_folder="here", local_files_only=True, revision="v2")
    assert model.model.name == told["model"] == "org/name"
    assert (told["token"], told["cache_dir"], told["local_files_only"], told["revision"]) == ("t", "here", True, "v2")


def test_not_in_the_cache(tmp_path: Path) -> None:
    """Wrong if who asks for local files only is told to look at the network."""
    with pytest.raises(RefembedError, match="local_files_only") as caught:
        face.SentenceTransformer("org/name", cache_folder=str(tmp_path), local_files_only=True)
    assert caught.value.id == "hub-offline"
