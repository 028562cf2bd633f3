"""The three interfaces with real clients: the openai package, plain HTTP, refembed verify; and no vector in another's
place.
"""

import base64
import random
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import openai
import pytest
from serving import Running

import refembed
from refembed.cli import main

TEXTS = ["the red planet", "", "mars looks red " * 3, "venus is hot and " * 30, "a", "earth"]
PAGE = Path(__file__).parents[2] / "spec" / "serving.md"


def close(found: Any, wanted: Any) -> bool:
    return np.shape(found) == np.shape(wanted) and bool(np.allclose(found, wanted, atol=2e-6))


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


# ------------------------------------------------------------------------------------------------------------- openai
@pytest.mark.parametrize("format", ["float", "base64", None])
def test_openai_client_gets_the_librarys_vectors(client, model, format) -> None:
    """Wrong if a vector differs from the library's in either encoding, or in the one the client asks for itself."""
    options: Any = {} if format is None else {"encoding_format": format}
    answer = client.embeddings.create(model="embeddinggemma", input=TEXTS, **options)
    rows = [entry.embedding for entry in answer.data]
    if format == "base64":
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    assert close(rows, model.encode(TEXTS, task=None))
    assert [entry.index for entry in answer.data] == list(range(len(TEXTS)))
    tokens = sum(len(ids) for ids in model.prepare(TEXTS, task=None))
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
    assert (answer.model, answer.object) == ("embeddinggemma", "list")


def test_openai_floats_are_the_same_bits(client, model) -> None:
    """Wrong if a float32 written as a decimal is not the float32 that base64 carries."""
    both = [
        client.embeddings.create(model="twin", input="the red planet", encoding_format=one).data[0].embedding
        for one in ("float", "base64")
    ]
    assert np.array_equal(np.float32(both[0]), np.frombuffer(base64.b64decode(both[1]), "<f4"))


def test_openai_string_dimensions_and_ids(client, model) -> None:
    """Wrong if one string, fewer dimensions or token ids, with or without BOS and EOS, give other vectors."""
    (one,) = client.embeddings.create(model="twin", input="earth", dimensions=16).data
    assert close(one.embedding, model.encode("earth", task=None, dimensions=16))
    whole, short = (model.prepare([text], task=None)[0].tolist() for text in ("the red planet", "a"))
    (alone,) = client.embeddings.create(model="twin", input=whole).data
    assert close(alone.embedding, model.encode("the red planet", task=None))
    both = client.embeddings.create(model="twin", input=[whole[1:-1], short]).data
    assert close([entry.embedding for entry in both], model.encode(["the red planet", "a"], task=None))


def test_openai_models_are_listed(client, model) -> None:
    """Wrong if a listed name is not one that embeds with that task."""
    names = [one.id for one in client.models.list().data]
    assert names[0] == "twin"
    assert client.models.retrieve("twin").owned_by == "refembed"
    assert client.models.retrieve("embeddinggemma").id == "embeddinggemma"
    for name in names[1:]:
        (entry,) = client.embeddings.create(model=name, input="mars").data
        task = name.partition(":")[2].replace("-", " ")
        assert close(entry.embedding, model.encode("mars", task=task)), name


def test_openai_client_raises_its_own_errors(client) -> None:
    """Wrong if the client cannot tell a bad request, a missing model and a wrong path by its own exception types."""
    with pytest.raises(openai.BadRequestError, match="dimensions is 999"):
        client.embeddings.create(model="twin", input="a", dimensions=999)
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="gpt", input="a")
    assert caught.value.code == "model_not_found"


# --------------------------------------------------------------------------------------------------- tasks and prompts
@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"task": "query"}, {"task": "query"}),
        ({"task": "Retrieval-document"}, {"task": "document"}),
        ({"model": "twin:fact-checking"}, {"task": "fact checking"}),
        ({"model": "twin:latest"}, {"task": None}),
        ({"model": "twin:none"}, {"task": None}),
        ({"task": "none"}, {"task": None}),
        ({"prompt": "look: "}, {"prompt": "look: "}),
        ({"titles": ["Mars", None]}, {"task": "document", "titles": ["Mars", None]}),
        ({}, {"task": None}),
    ],
)
def test_task_prompt_and_titles(server, model, asked, wanted) -> None:
    """Wrong if what goes before a text is not what the request says, or anything where it says nothing."""
    answer = server.ask("/v1/embeddings", {"model": "twin", "input": ["red", "hot"], **asked})
    found = [entry["embedding"] for entry in answer.json["data"]]
    assert close(found, model.encode(["red", "hot"], **wanted))


def test_task_in_the_other_interfaces(server, model) -> None:
    """Wrong if prompt_name, task or the name's end do nothing there."""
    wanted = model.encode(["red"], task="query")
    for body in ({"prompt_name": "query"}, {"task": "query"}):
        assert close(server.ask("/embed", {"inputs": "red", **body}).json, wanted)
    for body in ({"model": "twin:query"}, {"model": "twin", "task": "query"}):
        assert close(server.ask("/api/embed", {"input": "red", **body}).json["embeddings"], wanted)


# ------------------------------------------------------------------------------------------------------ the other two
def test_text_embeddings_inference(server, model) -> None:
    """Wrong if /embed gives other vectors or another shape than text-embeddings-inference, for one text or several."""
    assert close(server.ask("/embed", {"inputs": "earth"}).json, model.encode(["earth"], task=None))
    wanted = model.encode(TEXTS, task=None, dimensions=16)
    assert close(server.ask("/embed", {"inputs": TEXTS, "dimensions": 16, "truncate": True}).json, wanted)
    client = huggingface_hub.InferenceClient(model=server.url)  # asks at /
    assert close(client.feature_extraction("earth"), model.encode(["earth"], task=None))
    ids = [one.tolist() for one in model.prepare(["earth", "mars"], task=None)]
    assert close(server.ask("/embed", {"inputs": ids[0][1:-1]}).json, model.encode(["earth"], task=None))
    assert close(server.ask("/embed", {"inputs": ids}).json, model.encode(["earth", "mars"], task=None))
    (raw,) = server.ask("/embed", {"inputs": "earth", "normalize": False}).json
    traced = model.encoder.trace(model.prepare(["earth"], task=None)[0])
    assert close(raw, traced["projected"])
    assert abs(np.linalg.norm(raw) - 1) > 0.1
    about = server.ask("/info").json
    assert (about["model_sha"], about["max_input_length"]) == (model.info.digest, 64)
    assert (about["max_client_batch_size"], about["model_type"]) == (40, {"embedding": {"pooling": "mean"}})


def test_ollama(server, model) -> None:
    """Wrong if /api/embed gives other vectors or another shape than Ollama, which asks for no content type."""
    answer = server.ask("/api/embed", {"model": "embeddinggemma:latest", "input": TEXTS, "options": {"a": 1}}, {})
    assert close(answer.json["embeddings"], model.encode(TEXTS, task=None))
    assert answer.json["model"] == "embeddinggemma:latest"
    assert answer.json["prompt_eval_count"] == sum(len(ids) for ids in model.prepare(TEXTS, task=None))
    assert answer.json["total_duration"] > 0
    short = server.ask("/api/embed", {"model": "twin", "input": "earth", "dimensions": 8}).json["embeddings"]
    assert close(short, model.encode(["earth"], task=None, dimensions=8))
    for nothing in ("", []):
        assert server.ask("/api/embed", {"model": "twin", "input": nothing}).json["embeddings"] == []
    assert server.ask("/api/tags").json["models"][0]["name"] == "twin"
    assert server.ask("/api/version").json == {"version": refembed.__version__}


def test_cut_texts_are_counted(server) -> None:
    """Wrong if a text that was cut is passed over in silence."""
    answer = server.ask("/embed", {"inputs": TEXTS})
    assert answer.headers["x-refembed-cut"] == "1"
    assert "x-refembed-cut" not in server.ask("/embed", {"inputs": "a"}).headers


@pytest.mark.parametrize(
    "options",
    [[], ["--dialect", "tei", "--cases", "length-*"], ["--dialect", "ollama", "--cases", "length-*"]],
    ids=["openai", "tei", "ollama"],
)
def test_verify_finds_it_right(server, options, capsys) -> None:
    """Wrong if the suite for ports does not pass against our own server."""
    assert main(["verify", "--url", server.url, *options]) == 0
    assert "CONFORMS" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------- all together
def test_no_vector_is_swapped(server, model) -> None:
    """Wrong if among many clients at once one gets another's vector, or a bad text beside good ones harms these."""
    words = ["the", "red", "planet", "mars", "looks", "hot", "and", "venus", "is", "a", "title", "none", "text"]
    draw = random.Random(5)
    texts = [" ".join(draw.choices(words, k=draw.choice([1, 3, 8, 20, 40]))) + f" {place}" for place in range(120)]
    truth = model.encode(texts, task=None)

    def client(number: int) -> int:
        own, right = random.Random(number), 0
        for _ in range(8):
            places = own.sample(range(len(texts)), own.choice([1, 1, 2, 7]))
            chosen, size = [texts[place] for place in places], own.choice([48, 16])
            if own.random() < 0.2:
                assert server.ask("/embed", {"inputs": [*chosen, "<image>"]}).status == 422
            body = {"inputs": chosen, "dimensions": size}
            if own.random() < 0.5:
                body = {"model": "twin", "input": chosen, "dimensions": size, "encoding_format": "base64"}
            answer = server.ask("/v1/embeddings" if "model" in body else "/embed", body).json
            rows = (
                answer
                if isinstance(answer, list)
                else [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in answer["data"]]
            )
            wanted = refembed.reference.truncate(truth[places], size)
            right += close(rows, wanted)
        return right

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(client, range(16))) == [8] * 16


def test_page_examples_run(server) -> None:
    """Wrong if a curl line of spec/serving.md is not answered, or the answer does not begin as the page says."""
    blocks = re.findall(r"```sh\n(.*?)```\n(?:\nanswers `([^`]*)`)?", PAGE.read_text(), re.S)
    asked = [(shlex.split(block.replace("\\\n", " ")), said) for block, said in blocks if block.startswith("curl")]
    assert len(asked) >= 6
    for words, said in asked:
        assert words.pop(0) == "curl"
        headers: dict[str, str] = {}
        body = None
        url = ""
        while words:
            word = words.pop(0)
            if word == "-H":
                name, _, value = words.pop(0).partition(": ")
                headers[name.lower()] = value
            elif word == "-d":
                body = words.pop(0).encode()
            else:
                url = word
        path = url.removeprefix("http://127.0.0.1:8080")
        assert path.startswith("/"), url
        answer = server.ask(path, body, headers)
        assert answer.status == 200, (url, answer)
        beginning = said.partition("...")[0]
        assert answer.body.decode().startswith(beginning), (url, answer.body[:200])
