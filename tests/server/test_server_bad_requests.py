"""Every bad request gets an answer of its own, in its interface's own shape, and harms nobody."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from serving import JSON, Running

import refembed
from refembed.server.dialects import OLLAMA as OLLAMA_DIALECT
from refembed.server.dialects import OPENAI as OPENAI_DIALECT
from refembed.server.dialects import TEI as TEI_DIALECT
from refembed.server.dialects import RequestError

OPENAI, TEI, OLLAMA = "/v1/embeddings", "/embed", "/api/embed"
LONG = "the red planet " * 40
CODES = {  # ids that OpenAI has a code of its own for
    "model-unknown": "model_not_found",
    "path-unknown": "unknown_url",
    "method-unknown": "method_not_supported",
    "text-too-long": "context_length_exceeded",
}


class Bad(NamedTuple):
    """body: bytes as they are; or fields, beside a model and input but for /embed, where ... takes one away."""

    slug: str
    path: str
    body: Any
    status: int
    id: str
    words: str  # a pattern in the message
    method: str = "POST"
    headers: dict[str, str] = JSON


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 1000):
        yield b" " * 1000


ROWS = [
    # JSON
    Bad("no-body", OPENAI, b"", 400, "body-missing", "missing request body"),
    Bad("cut-json", OPENAI, b'{"model": "embedd', 400, "body-json", "unexpected end|EOF|unterminated"),
    Bad("nan", OPENAI, b'{"model": "embeddinggemma", "input": NaN}', 400, "body-json", "column 38"),
    Bad("infinity", OPENAI, b'{"input": "a", "dimensions": Infinity}', 400, "body-json", "column 30"),
    Bad("single-quotes", OPENAI, b"{'input': 'a'}", 400, "body-json", "column 2"),
    Bad("two-objects", OPENAI, b'{"input": "a"} {"input": "b"}', 400, "body-json", "column 16"),
    Bad("bad-utf-8", OPENAI, b'{"input": "\xff\xfe"}', 400, "body-json", "UTF-8"),
    Bad("byte-order-mark", OPENAI, b'\xef\xbb\xbf{"input": "a"}', 400, "body-json", "byte order mark|BOM|column 1"),
    Bad("lone-surrogate", OPENAI, b'{"input": "\\ud800"}', 400, "body-json", "surrogate"),
    Bad("control-letter", OPENAI, b'{"input": "a\nb"}', 400, "body-json", "control character"),
    Bad("nested-deep", OPENAI, b"[" * 20000, 400, "body-json", "(?i)recursion|depth"),
    Bad("json-list", OPENAI, b'["a"]', 400, "field-type", "body is a list"),
    Bad("json-text", OPENAI, b'"a"', 400, "field-type", "body is a string"),
    Bad("json-null", OPENAI, b"null", 400, "field-type", "body is null"),
    # texts and ids
    Bad("no-input", OPENAI, {"input": ...}, 400, "field-missing", "input is missing"),
    Bad("null-input", OPENAI, {"input": None}, 400, "field-type", "input is null"),
    Bad("number", OPENAI, {"input": 5}, 400, "field-type", "input is a whole number"),
    Bad("float", OPENAI, {"input": 0.5}, 400, "field-type", "input is a number with a point"),
    Bad("true", OPENAI, {"input": True}, 400, "field-type", "input is true or false"),
    Bad("object", OPENAI, {"input": {"text": "a"}}, 400, "field-type", "input is an object"),
    Bad("empty", OPENAI, {"input": []}, 400, "input-empty", "input is empty"),
    Bad("mixed", OPENAI, {"input": ["a", 5]}, 400, "field-type", r"input\[1\] is a whole number"),
    Bad("null-among-texts", OPENAI, {"input": ["a", None]}, 400, "field-type", r"input\[1\] is null"),
    Bad("list-among-texts", OPENAI, {"input": ["a", "b", ["c"]]}, 400, "field-type", r"input\[2\] is a list"),
    Bad("nested", OPENAI, {"input": [[[5]]]}, 400, "field-type", r"input\[0\]\[0\] is a list"),
    Bad("no-ids", OPENAI, {"input": [[5], []]}, 400, "input-empty", r"input\[1\] is empty"),
    Bad("negative-id", OPENAI, {"input": [5, -1]}, 400, "ids-invalid", "token id -1, 0 to 767"),
    Bad("id-too-large", OPENAI, {"input": [[5], [768]]}, 400, "ids-invalid", r"input\[1\] has the token id 768"),
    Bad("huge-id", OPENAI, {"input": [5, 2**64 - 1]}, 400, "ids-invalid", "token id 18446744073709551615"),
    Bad("endless-id", OPENAI, {"input": [5, 10**40]}, 400, "field-type", r"input\[1\] is a number with a point"),
    Bad("float-ids", OPENAI, {"input": [5.0, 6.0]}, 400, "field-type", r"input\[0\] is a number with a point"),
    Bad("float-among-ids", OPENAI, {"input": [[5, 6, 7.0]]}, 400, "field-type", r"input\[0\]\[2\] is a number with"),
    Bad("true-as-id", OPENAI, {"input": [True]}, 400, "field-type", r"input\[0\] is true or false"),
    Bad("text-among-ids", OPENAI, {"input": [[5, "a"]]}, 400, "field-type", r"input\[0\]\[1\] is a string"),
    Bad("many-texts", OPENAI, {"input": ["a"] * 41}, 400, "input-many", "41 texts, at most 40"),
    Bad("many-id-lists", OPENAI, {"input": [[5]] * 42}, 400, "input-many", "42 texts, at most 40"),
    Bad("long", OPENAI, {"input": ["a", LONG], "truncate": False}, 400, "text-too-long", "text 1: has .* most 64 fit"),
    Bad("long-ids", OPENAI, {"input": [5] * 99, "truncate": False}, 400, "text-too-long", "text 0: has 101 tokens"),
    Bad("token-without-row", OPENAI, {"input": ["a", "an <image>"]}, 400, "text-token", "text 1: spells <image>"),
    # options
    Bad("no-model", OPENAI, {"model": ...}, 400, "model-missing", "must provide a model"),
    Bad("model-number", OPENAI, {"model": 5}, 400, "field-type", "model is a whole number"),
    Bad("other-model", OPENAI, {"model": "text-embedding-3-small"}, 404, "model-unknown", "'text-embedding-3-small'"),
    Bad("other-task-of-model", OPENAI, {"model": "embeddinggemma:poem"}, 404, "model-unknown", "no task 'poem'"),
    Bad("task-of-no-model", OPENAI, {"model": ":query"}, 404, "model-unknown", "model ':query' does not exist"),
    Bad("dimensions-0", OPENAI, {"dimensions": 0}, 400, "option-dimensions", "dimensions is 0,"),
    Bad("dimensions-negative", OPENAI, {"dimensions": -4}, 400, "option-dimensions", "dimensions is -4"),
    Bad("dimensions-many", OPENAI, {"dimensions": 49}, 400, "option-dimensions", "49, a whole number from 1 to 48"),
    Bad("dimensions-text", OPENAI, {"dimensions": "16"}, 400, "option-dimensions", "dimensions is '16'"),
    Bad("dimensions-float", OPENAI, {"dimensions": 16.0}, 400, "option-dimensions", "dimensions is 16.0"),
    Bad("dimensions-true", OPENAI, {"dimensions": True}, 400, "option-dimensions", "dimensions is True"),
    Bad("encoding-unknown", OPENAI, {"encoding_format": "hex"}, 400, "field-value", "encoding_format is 'hex'"),
    Bad("encoding-number", OPENAI, {"encoding_format": 32}, 400, "field-type", "encoding_format is a whole number"),
    Bad("task-unknown", OPENAI, {"task": "poem"}, 400, "option-task", "no task 'poem'; the tasks are query"),
    Bad("task-number", OPENAI, {"task": 1}, 400, "field-type", "task is a whole number"),
    Bad("task-and-prompt", OPENAI, {"task": "query", "prompt": "q: "}, 400, "task-twice", "task and prompt both say"),
    Bad("task-and-name", OPENAI, {"model": "embeddinggemma:query", "task": "query"}, 400, "task-twice", "model's name"),
    Bad("task-of-ids", OPENAI, {"input": [5], "task": "query"}, 400, "task-ids", "token ids have no place"),
    Bad("prompt-list", OPENAI, {"prompt": ["q: "]}, 400, "field-type", "prompt is a list"),
    Bad("titles-text", OPENAI, {"titles": "Mars"}, 400, "field-type", "titles is a string, a list needed"),
    Bad("titles-few", OPENAI, {"titles": ["Mars", "Venus"]}, 400, "titles-invalid", "2 titles for 1 texts"),
    Bad("title-number", OPENAI, {"titles": [5]}, 400, "titles-invalid", "title is int"),
    Bad(
        "titles-of-queries", OPENAI, {"titles": ["a"], "task": "query"}, 400, "option-prompt", "titles go with the doc"
    ),
    Bad("truncate-text", OPENAI, {"truncate": "END"}, 400, "field-type", "truncate is a string, true or false needed"),
    Bad("unknown-field", OPENAI, {"dimension": 16}, 400, "field-unknown", "supplied: dimension$"),
    # HTTP
    Bad("plain-text", OPENAI, b"a", 415, "body-type", "text/plain", headers={"content-type": "text/plain"}),
    Bad("no-type", OPENAI, b"{}", 415, "body-type", "content-type is missing", headers={}),
    Bad("get", OPENAI, None, 405, "method-unknown", "GET /v1/embeddings; POST needed", "GET"),
    Bad("put", OPENAI, b"{}", 405, "method-unknown", "PUT /v1/embeddings", "PUT"),
    Bad("post-to-models", "/v1/models", b"{}", 405, "method-unknown", "POST /v1/models"),
    Bad("no-such-path", "/v1/embedding", b"{}", 404, "path-unknown", "POST /v1/embedding;"),
    Bad("no-such-model", "/v1/models/gpt", None, 404, "model-unknown", "model 'gpt' does not exist", "GET"),
    Bad("large", OPENAI, b" " * 60001, 413, "body-large", "more than 60000 bytes"),
    # text-embeddings-inference
    Bad("tei-json", TEI, b"{", 400, "Validation", "not JSON"),
    Bad("tei-no-inputs", TEI, {"input": "a"}, 422, "Validation", "inputs is missing"),
    Bad("tei-number", TEI, {"inputs": 5}, 422, "Validation", "inputs is a whole number"),
    Bad("tei-id-among-texts", TEI, {"inputs": ["a", 5]}, 422, "Validation", r"inputs\[1\] is a whole number"),
    Bad("tei-id-too-large", TEI, {"inputs": [5, 768]}, 422, "Validation", "inputs has the token id 768"),
    Bad("tei-slash", TEI + "/", {"inputs": "a"}, 404, "Validation", "POST /embed/"),
    Bad("tei-empty", TEI, {"inputs": []}, 400, "Empty", "inputs is empty"),
    Bad("tei-many", TEI, {"inputs": ["a"] * 41}, 413, "Validation", "41 texts"),
    Bad("tei-long", TEI, {"inputs": LONG, "truncate": False}, 413, "Validation", "at most 64"),
    Bad("tei-token-without-row", TEI, {"inputs": "<image>"}, 422, "Tokenizer", "spells <image>"),
    Bad("tei-normalize", TEI, {"inputs": "a", "normalize": "no"}, 422, "Validation", "normalize is a string"),
    Bad("tei-prompt-name", TEI, {"inputs": "a", "prompt_name": "poem"}, 422, "Validation", "no task 'poem'"),
    Bad("tei-twice", TEI, {"inputs": "a", "prompt_name": "query", "task": "query"}, 422, "Validation", "both say"),
    Bad("tei-left", TEI, {"inputs": "a", "truncation_direction": "Left"}, 422, "Validation", "'Left', only Right"),
    Bad("tei-dimensions", TEI, {"inputs": "a", "dimensions": 99}, 422, "Validation", "dimensions is 99"),
    Bad("tei-get", TEI, None, 405, "Validation", "GET /embed", "GET"),
    # Ollama, whose errors are words alone
    Bad("ollama-json", OLLAMA, b"{", 400, "", "not JSON"),
    Bad("ollama-no-body", OLLAMA, b"", 400, "", "missing request body"),
    Bad("ollama-number", OLLAMA, {"input": 5}, 400, "", "input is a whole number"),
    Bad("ollama-ids", OLLAMA, {"input": [[5]]}, 400, "", r"input\[0\] is a list"),
    Bad("ollama-no-model", OLLAMA, {"model": ...}, 400, "", "must provide a model"),
    Bad("ollama-other-model", OLLAMA, {"model": "llama3:8b"}, 404, "", "'llama3:8b' does not exist"),
    Bad("ollama-other-tag", OLLAMA, {"model": "embeddinggemma:7b"}, 404, "", "no task '7b'"),
    Bad("ollama-long", OLLAMA, {"input": LONG, "truncate": False}, 400, "", "exceeds the context length"),
    Bad("ollama-dimensions", OLLAMA, {"dimensions": -1}, 400, "", "dimensions is -1"),
    Bad("ollama-get", OLLAMA, None, 405, "", "GET /api/embed", "GET"),
    Bad("ollama-path", "/api/generate", b"{}", 404, "", "POST /api/generate"),
]


def body_of(row: Bad) -> Any:
    if not isinstance(row.body, dict):
        return row.body
    usual = {} if row.path.startswith(TEI) else {"model": "embeddinggemma", "input": "a"}
    return {key: value for key, value in (usual | row.body).items() if value is not ...}


def message_of(path: str, answer: Any) -> str:
    """The words of an error, once it has its interface's shape."""
    if path.startswith((TEI, "/info")):
        assert set(answer) == {"error", "error_type"}
        return str(answer["error"])
    if path.startswith("/api/"):
        assert set(answer) == {"error"}
        return str(answer["error"])
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    return str(answer["error"]["message"])


@pytest.fixture(scope="module")
def right(model: refembed.Embedder) -> Any:
    return model.encode(["a right text"], task=None)


def test_there_are_fifty_kinds_and_more() -> None:
    """Wrong if the table shrinks below what was promised."""
    assert len({row.slug for row in ROWS}) == len(ROWS) >= 50


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.slug)
def test_bad_request(row: Bad, server: Running, right: Any) -> None:
    """Wrong if a bad request gets another status, shape, code or message, or the next good one another vector."""
    answer = server.ask(row.path, body_of(row), row.headers, row.method)
    assert answer.status == row.status, answer.body
    assert re.search(row.words, message_of(row.path, answer.json)), answer.body
    if row.path.startswith(TEI):
        assert answer.json["error_type"] == row.id
    elif not row.path.startswith("/api/"):
        assert answer.json["error"]["code"] == CODES.get(row.id, row.id.replace("-", "_"))
        assert answer.json["error"]["type"] == "invalid_request_error"
    assert np.allclose(server.vectors("a right text"), right, atol=1e-6)


def test_each_has_its_own_answer(server: Running) -> None:
    """Wrong if two kinds of bad requests to one interface cannot be told apart by status and message."""
    answers: dict[Any, str] = {}
    for row in ROWS:
        answer = server.ask(row.path, body_of(row), row.headers, row.method)
        said = row.path, answer.status, message_of(row.path, answer.json)
        assert said not in answers, f"{row.slug} is answered as {answers[said]} is"
        answers[said] = row.slug
    assert len(answers) == len(ROWS)


def test_large_body_without_a_length(server: Running) -> None:
    """Wrong if a body that comes in chunks of no stated sum is held beyond the limit."""
    answer = server.ask(OPENAI, chunks(90_000))
    assert answer.status == 413, answer.body
    assert answer.json["error"]["code"] == "body_large"


def test_field_at_fault_is_named(server: Running) -> None:
    """Wrong if OpenAI's param is not the field, by which its client's users find what to change."""
    for body, field in (
        ({"input": ["a", LONG], "truncate": False}, "input"),
        ({"input": "an <image>"}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"task": "poem"}, "task"),
        ({"titles": [1]}, "titles"),
        ({"dimension": 16}, "dimension"),
        ({"model": "gpt"}, "model"),
    ):
        answer = server.ask(OPENAI, {"model": "embeddinggemma", "input": "a", **body})
        assert answer.json["error"]["param"] == field, answer.body


@pytest.mark.parametrize(
    ("id", "status", "type", "tei", "tei_type"),
    [
        ("key-wrong", 401, "invalid_request_error", 401, "Unauthorized"),
        ("body-slow", 408, "invalid_request_error", 408, "Validation"),
        ("queue-full", 429, "requests", 429, "Overloaded"),
        ("compute-failed", 500, "server_error", 424, "Backend"),
        ("server-stopping", 503, "server_error", 503, "Unhealthy"),
        ("server-failed", 503, "server_error", 503, "Unhealthy"),
        ("time-limit", 504, "server_error", 504, "Overloaded"),
    ],
)
def test_what_is_no_fault_of_the_request(id, status, type, tei, tei_type) -> None:
    """Wrong if clients that look at status and type cannot tell when to try again."""
    error = RequestError(id, "why")
    assert (OPENAI_DIALECT.status(error), OPENAI_DIALECT.error(error)["error"]["type"]) == (status, type)
    assert (TEI_DIALECT.status(error), TEI_DIALECT.error(error)) == (tei, {"error": "why", "error_type": tei_type})
    assert (OLLAMA_DIALECT.status(error), OLLAMA_DIALECT.error(error)) == (status, {"error": "why"})


def test_long_message_is_cut(server: Running) -> None:
    """Wrong if an endless value comes back whole."""
    answer = server.ask(OPENAI, {"model": "x" * 50_000, "input": "a"})
    assert answer.status == 404
    assert len(json.dumps(answer.json)) < 1500
