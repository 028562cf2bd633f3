"""a server with the interfaces of OpenAI, text-embeddings-inference and Ollama

POST /v1/embeddings, /embed and /api/embed; texts that wait are computed together, and each request gets its own
vectors. No prompt goes before a text unless a request asks for a task, by the field task or by the model's name, as in
embeddinggemma-300m:query; --task sets another default. spec/serving.md of the source distribution has all of it.

refembed serve --model google/embeddinggemma-300m
curl http://127.0.0.1:8080/v1/embeddings -H "Content-Type: application/json" \\
    -d '{"model": "embeddinggemma-300m:query", "input": "Which planet is red?"}'
"""

import argparse
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ..cli.shared import add_model_options, load_model
from ..embedder import Embedder
from ..errors import RefembedError
from ..prompts import PROMPTS, plain, prompt_of

if TYPE_CHECKING:
    from .dialects import Served

NEEDED = ("starlette", "uvicorn", "orjson")
KEY = "REFEMBED_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
KEEP_ALIVE = 75  # seconds an idle connection stays: longer than clients keep theirs, so that they seldom meet its end


def add_arguments(command: argparse.ArgumentParser) -> None:
    place = command.add_argument_group("where")
    place.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (127.0.0.1: here only)")
    place.add_argument("--port", default=8080, type=int, metavar="N", help="port to listen on (8080); 0 for a free one")
    place.add_argument("--api-key", metavar="K", help=f"what clients must send as Bearer; better as ${KEY}")
    texts = command.add_argument_group("texts")
    texts.add_argument("--name", metavar="N", help="the model's name for clients (the last part of --model)")
    texts.add_argument(
        "--task", metavar="T", default="none", help=f"where a request names none (none): {', '.join(PROMPTS)}"
    )
    texts.add_argument("--on-long", choices=("cut", "error"), default="cut", help="texts beyond the context (cut)")
    limits = command.add_argument_group("limits")
    for name, default, help in (
        ("bytes", 8 * 2**20, "of a request's body"),
        ("texts", 2048, "in a request"),
        ("requests", 512, "being answered at once; more are told to come again"),
        ("waiting", 8192, "texts in the queue, likewise"),
    ):
        limits.add_argument(f"--max-{name}", default=default, type=int, metavar="N", help=f"{help} ({default})")
    limits.add_argument(
        "--timeout", default=300.0, type=float, metavar="S", help="seconds for a body to come, and for its answer (300)"
    )
    limits.add_argument(
        "--batch-tokens", type=int, metavar="N", help="computed together at most; by the threads where not given"
    )
    add_model_options(command)


def run(given: argparse.Namespace) -> int:
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise RefembedError(
            "serve-missing", f'serve needs {", ".join(missing)}, which is not installed; pip install "refembed[serve]"'
        )
    check_limits(given)
    with listen(given.host, given.port) as place:  # a port that is taken is found before a model is loaded
        serve(given, place)
    return 0


def check_limits(given: argparse.Namespace) -> None:
    for name in ("max_bytes", "max_texts", "max_requests", "max_waiting", "timeout", "batch_tokens"):
        value = getattr(given, name)
        if value is not None and not value > 0:
            raise RefembedError("serve-option", f"--{name.replace('_', '-')} is {value}, more than 0 needed")


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # unnamed, asyncio leaves Nagle's delay on
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, port))
    except (OSError, OverflowError) as error:
        place.close()
        reason = getattr(error, "strerror", None) or error
        raise RefembedError("serve-address", f"{host} port {port}: {reason}; take another --host or --port") from error
    return place


def serve(given: argparse.Namespace, place: socket.socket) -> None:
    """Load the model, answer requests until a signal comes, and finish what was taken."""
    import uvicorn

    from .app import Limits, Server
    from .batching import TOKENS_A_THREAD, Batcher

    model = load_model(given)
    served = what_is_served(given, model)
    model.encode("warm", task=None)  # what is made at first use
    usual = max(getattr(model.encoder, "tokens_at_once", 0), TOKENS_A_THREAD * max(model.encoder.threads, 2))
    batcher = Batcher(model, given.batch_tokens or usual, given.max_waiting)
    key = os.environ.get(KEY) if given.api_key is None else given.api_key
    if not key and given.host not in LOOPBACK:
        print(f"refembed: {given.host} may be reached by others, and there is no key: set ${KEY}", file=sys.stderr)
    app = Server(served, batcher, Limits(given.max_bytes, given.max_requests, given.timeout), key or None)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", ws="none", timeout_keep_alive=KEEP_ALIVE
    )
    host, port = place.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    class Graceful(uvicorn.Server):
        """Refuses new requests from the first signal on, ends with the last request, or at the second signal."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"refembed: {served.name} ({model.backend.name}) at {url}", file=sys.stderr, flush=True)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.should_exit = self.force_exit = app.stopping or not batcher.thread.is_alive()
            app.stopping = True
            if app.metrics.active and not self.force_exit:
                left = f"{app.metrics.active} requests to finish; once more ends it at once"
                print(f"refembed: stopping: {left}", file=sys.stderr, flush=True)

        async def on_tick(self, counter: int) -> bool:
            self.should_exit |= app.stopping and not app.metrics.active
            return await super().on_tick(counter)

    Graceful(config).run([place])
    batcher.close()


def what_is_served(given: argparse.Namespace, model: Embedder) -> "Served":
    """Names and defaults."""
    from .dialects import FAMILY, Served

    name = given.name or (Path(given.model).name.removesuffix(".gguf") if given.model else "built-in")
    names = {name, FAMILY} | ({given.model} if given.model else set())
    if name == f"{FAMILY}-300m":
        names.add(f"{FAMILY}:300m")  # as Ollama has it
    task = None if plain(given.task) == "none" else given.task
    if task is not None:
        prompt_of(task, model.checkpoint.prompts)
    return Served(model, name, frozenset(names), task, given.on_long == "cut", given.max_texts)
