"""The real hub client against a small hub on this machine: what is fetched and kept, and how each refusal reads."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from support import write_checkpoint

import refembed

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_made_up_for_this_test"
# beside the model: what is no part of it, and what could run
OTHER = ("README.md", "model.bin", "pytorch_model.bin", "onnx/model.onnx", "modeling_evil.py", "2_Dense/extra.pkl")
NEEDED = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "config_sentence_transformers.json",
    "2_Dense/model.safetensors",
    "3_Dense/model.safetensors",
}
NOT_FOUND = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted"}
FORBIDDEN = {"X-Error-Message": "Please enable access to public gated repositories in your fine-grained token settings"}


class Hub(ThreadingHTTPServer):
    """The part of the hub's HTTP interface that its client uses to download a model.

    folder       what every model here consists of
    requests     (method, path, authorization) of each request, in order
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def authorizations(self) -> set[str | None]:
        """What was sent with each request for the model (the client asks about other things too)."""
        return {authorization for _, path, authorization in self.requests if "open/model" in path}

    def fetched(self) -> set[str]:
        """The files whose content was sent."""
        return {
            path.split(f"{COMMIT}/", 1)[1]
            for method, path, _ in self.requests
            if "/resolve/" in path and method == "GET"
        }


class Answer(BaseHTTPRequestHandler):
    """Models by name: open/*, closed/gated, closed/fine-grained, closed/broken; anything else is not there."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("authorization")
        self.server.requests.append((self.command, path, authorization))
        model = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        if model == "closed/broken":
            self.send(503, b"", {})
        elif not model.startswith("open/") and model not in ("closed/gated", "closed/fine-grained"):
            self.send(401, b"", NOT_FOUND)
        elif path.startswith("/api/models/"):
            self.answer_about(model, path)
        elif model == "closed/gated":
            self.send(403 if authorization else 401, b"", GATED)
        elif model == "closed/fine-grained":
            self.send(403, b"", FORBIDDEN)
        else:
            self.answer_file(path)

    def answer_about(self, model: str, path: str) -> None:
        """What there is in a model; the hub shows that of a gated one too."""
        files = sorted(file for file in self.server.folder.rglob("*") if file.is_file())
        names = [(str(file.relative_to(self.server.folder)), file) for file in files]
        if f"/tree/{COMMIT}" in path:
            tree = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": oid(file)} for name, file in names
            ]
            self.send(200, json.dumps(tree).encode(), {})
        elif path == f"/api/models/{model}" or path.rpartition("/revision/")[2] in ("main", COMMIT):
            siblings = [{"rfilename": name} for name, _ in names]
            about = {"id": model, "modelId": model, "sha": COMMIT, "private": False, "siblings": siblings, "tags": []}
            self.send(200, json.dumps(about).encode(), {})
        else:
            self.send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})

    def answer_file(self, path: str) -> None:
        file = self.server.folder / path.split(f"/resolve/{COMMIT}/", 1)[1]
        self.send(200, file.read_bytes(), {"ETag": f'"{oid(file)}"', "X-Repo-Commit": COMMIT})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model's folder as it lies on the hub, with other files beside it."""
    folder = write_checkpoint(tmp_path_factory.mktemp("hub"))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "find: "}}))
    for name in OTHER:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"raise SystemExit('this ran')")
    return folder


@pytest.fixture
def hub(folder):
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


# prints a line of JSON for each call of refembed.load: the vector of a text, or the error's id and message
CLIENT = """
import json, sys, refembed
for options in json.loads(sys.argv[1]):
    try:
        print(json.dumps({"vector": refembed.load(**options, backend="numpy").encode_query("the air").tolist()}))
    except refembed.RefembedError as error:
        print(json.dumps({"id": error.id, "message": str(error)}))
"""


@pytest.fixture
def load(tmp_path) -> Callable:
    """refembed.load in a fresh process, since the client reads its settings from the environment once."""

    def load(hub: str, *calls: dict, **settings: str) -> list[dict]:
        ours = ("HF_", "HUGGING", "TRANSFORMERS", "HTTP_", "HTTPS_", "ALL_", "http_", "https_", "all_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1", **settings}
        command = [sys.executable, "-P", "-c", CLIENT, json.dumps(calls)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(answers) == len(calls), done.stdout
        return answers

    return load


def expected_vector(folder: Path) -> np.ndarray:
    return refembed.load(folder, backend="numpy").encode_query("the air")


def test_download_then_cache(hub, load, folder) -> None:
    """A hub id loads something else than its folder, brings other files than the model's, or asks the hub each time."""
    (answer,) = load(hub.url, {"model": "open/model"})
    np.testing.assert_allclose(answer["vector"], expected_vector(folder), atol=1e-6)
    assert hub.fetched() == NEEDED
    hub.requests.clear()
    answers = load(hub.url, {"model": "open/model"}, {"model": "open/model", "revision": COMMIT}, HF_HUB_OFFLINE="1")
    for answer in answers:
        np.testing.assert_allclose(answer["vector"], expected_vector(folder), atol=1e-6)
    assert hub.requests == [], "the offline flag was set"
    (answer,) = load(hub.url, {"model": "open/model"})
    assert "vector" in answer
    assert hub.fetched() == set(), "the files were there already"


def test_cache_serves_while_the_hub_is_down(hub, load, folder) -> None:
    """A model that was downloaded cannot be loaded on a train."""
    load(hub.url, {"model": "open/model"})
    (answer,) = load(closed_port(), {"model": "open/model"})
    np.testing.assert_allclose(answer["vector"], expected_vector(folder), atol=1e-6)


def test_token_is_sent(hub, load) -> None:
    """HF_TOKEN is not used: gated models cannot be had even with the licence accepted."""
    load(hub.url, {"model": "open/model"}, HF_TOKEN=TOKEN)
    assert hub.authorizations() == {f"Bearer {TOKEN}"}


def test_no_token_is_sent_where_there_is_none(hub, load) -> None:
    """Some credential goes out that nobody named."""
    load(hub.url, {"model": "open/model"})
    assert hub.authorizations() == {None}


def assert_refused(answer: dict, id: str, *words: str) -> None:
    """The error has this id, is one line, and says these things."""
    assert answer.get("id") == id, answer
    assert "\n" not in answer["message"]
    assert len(answer["message"]) < 300
    for word in words:
        assert word in answer["message"], answer


def test_gated_without_a_token(hub, load) -> None:
    """Everybody's first try at the real model: the error must name the page to accept the licence at, and the login."""
    (answer,) = load(hub.url, {"model": "closed/gated"})
    assert_refused(answer, "hub-access", f"{hub.url}/closed/gated", "licence", "hf auth login", "HF_TOKEN")


def test_gated_with_a_token(hub, load) -> None:
    """Logged in, but the licence not accepted (403): the error must still name the licence's page."""
    (answer,) = load(hub.url, {"model": "closed/gated"}, HF_TOKEN=TOKEN)
    assert_refused(answer, "hub-access", f"{hub.url}/closed/gated", "licence")


def test_token_without_the_right(hub, load) -> None:
    """A fine-grained token that may not read gated models (403 without an error code) reads as if the hub were down."""
    (answer,) = load(hub.url, {"model": "closed/fine-grained"}, HF_TOKEN=TOKEN)
    assert_refused(answer, "hub-access", f"{hub.url}/closed/fine-grained", "token")


def test_not_there(hub, load) -> None:
    """A mistyped name or revision reads as a network problem, or as a traceback of the client's."""
    unknown, revision = load(hub.url, {"model": "google/no-such"}, {"model": "open/model", "revision": "no-such"})
    assert_refused(unknown, "hub-not-found", "google/no-such")
    assert_refused(revision, "hub-not-found", "open/model", "'no-such'")


def test_offline_and_not_cached(hub, load) -> None:
    """The offline flag is passed over, or its error sends the user to look for a network problem."""
    (answer,) = load(hub.url, {"model": "open/model"}, HF_HUB_OFFLINE="1")
    assert_refused(answer, "hub-offline", "open/model", "HF_HUB_OFFLINE")
    assert hub.requests == []


def closed_port() -> str:
    """An address of this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_hub_is_down(load) -> None:
    """No network: a traceback, or a wait without end."""
    down = closed_port()
    (answer,) = load(down, {"model": "open/model"})
    assert_refused(answer, "hub-unreachable", "open/model", down)


def test_hub_is_broken(hub, load) -> None:
    """The hub answers with an error of its own: a traceback, or a message that accuses the user."""
    (answer,) = load(hub.url, {"model": "closed/broken"})
    assert_refused(answer, "hub-unreachable", "closed/broken")


# neither folders nor ids the hub could have; the last ones have the form, and the client knows better
NAMES = [
    "",
    "one-word",
    "a/b/c",
    "/no/such/folder",
    "./no",
    "../no/no",
    "~/no",
    "a b/c",
    "a/b?",
    "https://x/y",
    "a/b\n",
]
CLIENT_NAMES = ["a/b--c", "a/b..c", "a/.b", "a/b.git", "a/" + "b" * 100]


def test_no_name_of_a_model(hub, load) -> None:
    """A mistyped path is asked for on the hub, or reads as a network problem."""
    names = [*NAMES, *CLIENT_NAMES]
    answers = load(hub.url, *({"model": name} for name in names))
    assert {name: answer["id"] for name, answer in zip(names, answers, strict=True)} == dict.fromkeys(names, "hub-name")
    for name, answer in zip(names, answers, strict=True):
        assert_refused(answer, "hub-name", repr(name))
    assert hub.requests == []


def test_a_folder_comes_before_the_hub(tmp_path, monkeypatch) -> None:
    """A folder named like a hub id is passed over, or a Path is asked for on the hub."""
    write_checkpoint(tmp_path / "open" / "model")
    monkeypatch.chdir(tmp_path)
    assert refembed.load("open/model", backend="numpy").info.model == "open/model"
    with pytest.raises(refembed.RefembedError) as caught:
        refembed.load(Path("open/other"), backend="numpy")
    assert caught.value.id == "folder-missing"
