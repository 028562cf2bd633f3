"""The three interfaces: what a request's JSON asks for, and how answers and errors look in each."""

import base64
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from .. import __version__
from ..embedder import Embedder
from ..errors import RefembedError
from ..prompts import PROMPTS, plain, prefixes, prompt_of
from ..reference import truncate
from .batching import Batcher, Vectors

FAMILY = "embeddinggemma"  # a name every server answers to


class Answers(NamedTuple):
    """What a fault is in each interface: the status of OpenAI's and Ollama's, and of text-embeddings-inference's with
    its error_type there.
    """

    status: int
    tei: int
    type: str


# error id -> answers; whatever else is wrong with a request is USUAL
USUAL = Answers(400, 422, "Validation")
ANSWERS = {
    "body-missing": Answers(400, 400, "Validation"),
    "body-json": Answers(400, 400, "Validation"),
    "body-large": Answers(413, 413, "Validation"),
    "body-slow": Answers(408, 408, "Validation"),
    "body-type": Answers(415, 415, "Validation"),
    "input-empty": Answers(400, 400, "Empty"),
    "input-many": Answers(400, 413, "Validation"),
    "text-too-long": Answers(400, 413, "Validation"),
    "text-encoding": Answers(400, 422, "Tokenizer"),
    "text-token": Answers(400, 422, "Tokenizer"),
    "model-unknown": Answers(404, 404, "Validation"),
    "path-unknown": Answers(404, 404, "Validation"),
    "method-unknown": Answers(405, 405, "Validation"),
    "key-wrong": Answers(401, 401, "Unauthorized"),
    "queue-full": Answers(429, 429, "Overloaded"),
    "time-limit": Answers(504, 504, "Overloaded"),
    "server-stopping": Answers(503, 503, "Unhealthy"),
    "server-failed": Answers(503, 503, "Unhealthy"),
    "compute-failed": Answers(500, 424, "Backend"),
}
# error id -> OpenAI's own code for it; the others are the id with underscores
CODES = {
    "key-wrong": "invalid_api_key",
    "model-unknown": "model_not_found",
    "path-unknown": "unknown_url",
    "method-unknown": "method_not_supported",
    "queue-full": "rate_limit_exceeded",
    "text-too-long": "context_length_exceeded",
}
# error id of the library -> the field at fault
FIELDS = {
    "option-task": "task",
    "option-prompt": "prompt",
    "option-dimensions": "dimensions",
    "titles-invalid": "titles",
}
OWN = ("task", "prompt", "titles", "truncate")  # fields that are ours, in every interface
WORDS = {str: "a string", bool: "true or false", list: "a list", dict: "an object", int: "a whole number"}
WORDS |= {float: "a number with a point", type(None): "null"}


class RequestError(RefembedError):
    """A request that is refused; field: which part of it is at fault."""

    def __init__(self, id: str, reason: str, field: str | None = None, index: int | None = None) -> None:
        super().__init__(id, reason, index)
        self.field = field


@dataclass(frozen=True)
class Served:
    """The model behind the server, and what holds for requests that do not say otherwise.

    name        the model's own; names: all it answers to
    task        None for no prompt
    cut         whether texts beyond the context are cut, or refused
    most_texts  in one request
    """

    model: Embedder
    name: str
    names: frozenset[str]
    task: str | None
    cut: bool
    most_texts: int


@dataclass(frozen=True)
class Asked:
    """What a request asks for, ready to compute.

    model  the name as it was given
    ids    of each text, (tokens_i,) int64
    cut    how many of them were longer than the context
    raw    not made unit length
    """

    model: str
    ids: list[NDArray[Any]]
    cut: int
    dimensions: int
    base64: bool
    raw: bool

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))

    def kept(self, vectors: Vectors) -> Vectors:
        """As many dimensions as asked for."""
        if self.dimensions == vectors.shape[1]:
            return vectors
        return np.ascontiguousarray(vectors[:, : self.dimensions] if self.raw else truncate(vectors, self.dimensions))


class Dialect(ABC):
    """What the interfaces have in common. input: the texts' field; fields: all that may be there, None for any."""

    path = ""
    input = "input"
    fields: frozenset[str] | None = None
    any_media_type = False

    def read(self, served: Served, body: bytes | bytearray) -> Asked:
        """What a body asks for. Raises RefembedError."""
        given = parse(body)
        if self.fields is not None and (unknown := sorted(set(given) - self.fields)):
            raise RequestError("field-unknown", f"unrecognized request argument supplied: {unknown[0]}", unknown[0])
        model, suffix = self.model_of(served, given)
        if self.input not in given:
            raise RequestError("field-missing", f"{self.input} is missing: the texts", self.input)
        texts, ids = self.texts(served, given[self.input])
        dimensions = served.model.check_dimensions(self.dimensions(given))
        encoding = take(given, "encoding_format", str) or "float"
        if encoding not in ("float", "base64"):
            raise RequestError(
                "field-value", f"encoding_format is {encoding!r}, float or base64 needed", "encoding_format"
            )
        prompt = prompt_options(served, given, suffix, ids is not None)
        ids = tokens_of(served.model, texts, **prompt) if ids is None else ids
        cut = self.shorten(served, given, ids)
        return Asked(model, ids, cut, dimensions, encoding == "base64", self.raw(given))

    def model_of(self, served: Served, given: dict[str, Any]) -> tuple[str, str | None]:
        """The model's name as given, and the task at its end."""
        name = take(given, "model", str)
        if not name:
            raise RequestError("model-missing", f"you must provide a model parameter: {served.name}", "model")
        if name in served.names:
            return name, None
        base, _, suffix = name.rpartition(":")
        if base not in served.names:
            raise RequestError("model-unknown", f"the model {name!r} does not exist; it is {served.name} here", "model")
        if suffix == "latest":  # as Ollama's clients write it
            return name, None
        if plain(suffix) != "none":
            try:
                prompt_of(suffix, served.model.checkpoint.prompts)
            except RefembedError as error:
                raise RequestError("model-unknown", f"the model {base} has {error.reason}", "model") from error
        return name, suffix

    def texts(self, served: Served, value: Any) -> tuple[list[str], list[NDArray[Any]] | None]:
        """The texts, or the token ids in place of them."""
        if isinstance(value, str):
            return [value], None
        if not isinstance(value, list):
            raise wrong_type(self.input, value, "a string or a list")
        if not value:
            raise RequestError("input-empty", f"{self.input} is empty, at least one text needed", self.input)
        if len(value) > served.most_texts and not isinstance(value[0], int):
            raise RequestError(
                "input-many", f"{self.input} has {len(value)} texts, at most {served.most_texts} fit", self.input
            )
        kinds = set(map(type, value))
        if kinds == {str}:
            return value, None
        return [], self.token_ids(served, value, kinds)

    def token_ids(self, served: Served, value: list[Any], kinds: set[type]) -> list[NDArray[Any]]:
        """BOS and EOS are put around ids that lack them."""
        if type(value[0]) is int:
            return [ids_of(served.model, value, self.input, None)]
        if kinds != {list}:
            raise mixed(self.input, value, type(value[0]) if type(value[0]) is list else str)
        return [ids_of(served.model, row, self.input, index) for index, row in enumerate(value)]

    def dimensions(self, given: dict[str, Any]) -> Any:
        return given.get("dimensions")

    def raw(self, given: dict[str, Any]) -> bool:
        return False

    def shorten(self, served: Served, given: dict[str, Any], ids: list[NDArray[Any]]) -> int:
        """Cut what is beyond the context, keeping EOS, or refuse it (TOK-7); how many there are."""
        said = take(given, "truncate", bool)
        context = served.model.config.context
        long = [index for index, one in enumerate(ids) if len(one) > context]
        if long and not (served.cut if said is None else said):
            raise self.too_long(len(ids[long[0]]), context, long[0])
        for index in long:
            ids[index] = np.append(ids[index][: context - 1], ids[index][-1])
        return len(long)

    def too_long(self, tokens: int, context: int, index: int) -> RequestError:
        return RequestError("text-too-long", f"has {tokens} tokens, at most {context} fit", self.input, index)

    @abstractmethod
    def answer(self, asked: Asked, vectors: Vectors, seconds: float) -> bytes:
        """The JSON of the vectors."""

    def status(self, error: RefembedError) -> int:
        return ANSWERS.get(error.id, USUAL).status

    @abstractmethod
    def error(self, error: RefembedError) -> dict[str, Any]:
        """The JSON of a refusal."""


class OpenAI(Dialect):
    """POST /v1/embeddings; GET /v1/models."""

    path = "/v1/embeddings"
    fields = frozenset(["input", "model", "dimensions", "encoding_format", "user", *OWN])

    def answer(self, asked: Asked, vectors: Vectors, seconds: float) -> bytes:
        rows: list[Any] = list(vectors)
        if asked.base64:
            rows = [base64.b64encode(row).decode() for row in vectors.astype("<f4", copy=False)]
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        usage = {"prompt_tokens": asked.tokens, "total_tokens": asked.tokens}
        return dump({"object": "list", "data": data, "model": asked.model, "usage": usage})

    def error(self, error: RefembedError) -> dict[str, Any]:
        status = self.status(error)
        kind = "requests" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
        code = CODES.get(error.id, error.id.replace("-", "_"))
        return {"error": {"message": str(error), "type": kind, "param": field_of(error, self), "code": code}}


class TextEmbeddingsInference(Dialect):
    """POST /embed, also as /; GET /info, and / for its health."""

    path = "/embed"
    input = "inputs"

    def model_of(self, served: Served, given: dict[str, Any]) -> tuple[str, str | None]:
        return served.name, None

    def raw(self, given: dict[str, Any]) -> bool:
        return take(given, "normalize", bool) is False

    def shorten(self, served: Served, given: dict[str, Any], ids: list[NDArray[Any]]) -> int:
        side = take(given, "truncation_direction", str) or "Right"
        if side.lower() != "right":
            raise RequestError(
                "field-value", f"truncation_direction is {side!r}, only Right is done", "truncation_direction"
            )
        return super().shorten(served, given, ids)

    def answer(self, asked: Asked, vectors: Vectors, seconds: float) -> bytes:
        return dump(list(vectors))

    def status(self, error: RefembedError) -> int:
        return ANSWERS.get(error.id, USUAL).tei

    def error(self, error: RefembedError) -> dict[str, Any]:
        return {"error": str(error), "error_type": ANSWERS.get(error.id, USUAL).type}


class Ollama(Dialect):
    """POST /api/embed; GET /api/tags, /api/version."""

    path = "/api/embed"
    any_media_type = True  # its manual's own examples send none

    def texts(self, served: Served, value: Any) -> tuple[list[str], list[NDArray[Any]] | None]:
        """Nothing is no fault here: no text, no vector."""
        return ([], None) if value in (None, "", []) else super().texts(served, value)

    def token_ids(self, served: Served, value: list[Any], kinds: set[type]) -> list[NDArray[Any]]:
        raise mixed(self.input, value, str)

    def dimensions(self, given: dict[str, Any]) -> Any:
        return None if given.get("dimensions") == 0 else given.get("dimensions")

    def too_long(self, tokens: int, context: int, index: int) -> RequestError:
        return RequestError(
            "text-too-long", f"the input length exceeds the context length: {tokens} tokens, at most {context}", None
        )

    def answer(self, asked: Asked, vectors: Vectors, seconds: float) -> bytes:
        whole = {"model": asked.model, "embeddings": list(vectors)}
        times = {"total_duration": int(seconds * 1e9), "load_duration": 0}
        return dump({**whole, **times, "prompt_eval_count": asked.tokens})

    def error(self, error: RefembedError) -> dict[str, Any]:
        return {"error": str(error)}


OPENAI, TEI, OLLAMA = OpenAI(), TextEmbeddingsInference(), Ollama()
DIALECTS = (OPENAI, TEI, OLLAMA)


def dialect_of(path: str) -> Dialect:
    """Whose errors a path answers with."""
    return OLLAMA if path.startswith("/api/") else TEI if path.rstrip("/") in ("", "/embed", "/info") else OPENAI


# ------------------------------------------------------------------------------------------------------ reading a body
def parse(body: bytes | bytearray) -> dict[str, Any]:
    if not body or body.isspace():
        raise RequestError("body-missing", "missing request body, a JSON object needed")
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError("body-json", f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise wrong_type("the body", given, "an object", None)
    return given


def take(given: Mapping[str, Any], name: str, kind: type) -> Any:
    """A field of one type; None where it is not there."""
    value = given.get(name)
    if value is not None and type(value) is not kind:
        raise wrong_type(name, value, WORDS[kind], name)
    return value


def wrong_type(what: str, value: Any, needed: str, field: str | None = "") -> RequestError:
    return RequestError(
        "field-type", f"{what} is {WORDS[type(value)]}, {needed} needed", what if field == "" else field
    )


def mixed(name: str, value: list[Any], kind: type) -> RequestError:
    """A list whose entries are not all of one kind that is known."""
    index = next(place for place, one in enumerate(value) if type(one) is not kind)
    needed = {str: "texts", list: "lists of token ids", int: "token ids, whole numbers"}[kind]
    found = WORDS[type(value[index])]
    return RequestError("field-type", f"{name}[{index}] is {found}; this list must hold {needed} alone", name)


def prompt_options(served: Served, given: dict[str, Any], suffix: str | None, of_ids: bool) -> dict[str, Any]:
    """task, prompt and titles as Embedder.prepare takes them: said once, or the server's default."""
    said = {name: value for name in ("task", "prompt_name", "prompt") if (value := take(given, name, str)) is not None}
    if suffix is not None:
        said["the model's name"] = suffix
    titles = take(given, "titles", list)
    if len(said) > 1:
        raise RequestError(
            "task-twice", f"{' and '.join(said)} both say what goes before the texts; give one", next(iter(said))
        )
    if of_ids and (said or titles):
        raise RequestError(
            "task-ids", "token ids have no place for a prompt; give texts, or no task", [*said, "titles"][0]
        )
    prompt = said.pop("prompt", None)
    task = next(iter(said.values()), "document" if titles and prompt is None else served.task)
    return {"task": None if task is None or plain(task) == "none" else task, "prompt": prompt, "titles": titles}


def tokens_of(model: Embedder, texts: list[str], **prompt: Any) -> list[NDArray[Any]]:
    """The ids of prompted texts, uncut."""
    before = prefixes(len(texts), prompt["task"], prompt["prompt"], prompt["titles"], model.checkpoint.prompts)
    found = []
    for ids in model.tokenizer([first + text for first, text in zip(before, texts, strict=True)]):
        if isinstance(ids, RefembedError):
            raise ids
        found.append(ids)
    return found


def ids_of(model: Embedder, row: list[Any], name: str, index: int | None) -> NDArray[Any]:
    """Token ids as an array between BOS and EOS."""
    config, place = model.config, name if index is None else f"{name}[{index}]"
    if not row:
        raise RequestError("input-empty", f"{place} is empty, at least one token id needed", name)
    if set(map(type, row)) != {int}:
        raise mixed(place, row, int)
    if min(row) < 0 or max(row) >= config.vocabulary:
        wrong = next(id for id in row if not 0 <= id < config.vocabulary)
        raise RequestError(
            "ids-invalid", f"{place} has the token id {wrong}, 0 to {config.vocabulary - 1} needed", name
        )
    ids = np.array(row, np.int64)
    before = [config.bos] if ids[0] != config.bos else []
    return np.concatenate([before, ids, [config.eos] if ids[-1] != config.eos else []]).astype(np.int64)


def field_of(error: RefembedError, dialect: Dialect) -> str | None:
    """The field at fault."""
    if isinstance(error, RequestError):
        return error.field
    return FIELDS.get(error.id, dialect.input if error.index is not None else None)


# ---------------------------------------------------------------------------------------------------- what is served
def dump(value: Any) -> bytes:
    """JSON, a float32 as the shortest decimal that gives it back."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def model_list(served: Served, created: int) -> list[dict[str, Any]]:
    """OpenAI's list: the model, and by which names it takes a task."""
    names = [served.name, *(f"{served.name}:{task.replace(' ', '-')}" for task in PROMPTS)]
    return [{"id": name, "object": "model", "created": created, "owned_by": "refembed"} for name in names]


def info(served: Served, batcher: Batcher, most_requests: int) -> dict[str, Any]:
    """What text-embeddings-inference's /info has."""
    about = served.model.info
    return {
        "model_id": about.model,
        "model_sha": about.digest,
        "model_dtype": about.precision,
        "model_type": {"embedding": {"pooling": served.model.config.pooler}},
        "max_concurrent_requests": most_requests,
        "max_input_length": about.context,
        "max_batch_tokens": batcher.tokens_at_once,
        "max_batch_requests": None,
        "max_client_batch_size": served.most_texts,
        "auto_truncate": served.cut,
        "tokenization_workers": 1,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }


def tags(served: Served, started: str) -> dict[str, Any]:
    """What Ollama's /api/tags has."""
    about = served.model.info
    details = {"format": "safetensors", "family": "gemma3", "families": ["gemma3"]}
    details |= {"parameter_size": "", "quantization_level": about.weights}
    size = sum(part.nbytes for one in served.model.checkpoint.tensors.values() for part in one.mapped)
    entry = {"name": served.name, "model": served.name, "modified_at": started, "size": size, "digest": about.digest}
    return {"models": [entry | {"details": details}]}
