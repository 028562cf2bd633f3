"""Paths, limits and keys: from a request to the queue, and from vectors to an answer."""

import asyncio
import hmac
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from .. import __version__
from ..errors import RefembedError, printable, shortened
from .batching import Batcher, Vectors
from .dialects import DIALECTS, TEI, Asked, Dialect, RequestError, Served, dialect_of, info, model_list, tags
from .metrics import Metrics

OPEN = ("/health", "/ready")  # no key needed
THROWN_AWAY = 4  # times the limit: how much of a refused body is read on, so that its sender reads the answer
SECONDS_THROWN_AWAY = 5
HELD, BODIES = 64 * 2**20, 8  # bytes of bodies held at once, of all requests: HELD, or so many times the limit of one
SMALL = 8192  # bytes of JSON read, or of vectors written, in less time than it takes to hand them to a thread and back
LONGEST_WAIT = 60  # seconds that Retry-After may say
GONE = 499  # as the status of a request whose client did not wait, in the metrics


@dataclass(frozen=True)
class Limits:
    """bytes: of a body; requests: being answered at once; seconds: for a body to come, and then for its answer."""

    bytes: int
    requests: int
    seconds: float


class Server:
    """The ASGI application.

    stopping  set once: what was taken is finished, what is new is refused
    held      bytes of the bodies of the requests being answered, at most `most_held`
    """

    def __init__(self, served: Served, batcher: Batcher, limits: Limits, key: str | None) -> None:
        self.served, self.batcher, self.limits, self.key = served, batcher, limits, key
        self.metrics, self.stopping = Metrics(), False
        self.held, self.most_held = 0, max(HELD, BODIES * limits.bytes)
        self.workers = ThreadPoolExecutor(2, "refembed-request")  # JSON and tokens, off the event loop
        routes = [Route(dialect.path, self.endpoint(dialect), methods=["POST"]) for dialect in DIALECTS]
        routes += [
            Route("/", self.endpoint(TEI), methods=["POST"]),  # huggingface_hub's client asks there
            Route("/", self.health),  # text-embeddings-inference's other name for it, as open there as the first
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.one_model),
            Route("/info", self.info),
            Route("/api/tags", self.tags),
            Route("/api/version", lambda request: JSONResponse({"version": __version__})),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.counts),
        ]
        self.paths = frozenset(route.path for route in routes)
        handlers: dict[Any, Callable[..., Any]] = {HTTPException: self.refuse_route, RefembedError: self.refuse}
        self.app = Starlette(routes=routes, exception_handlers=handlers)
        self.app.router.redirect_slashes = False  # a redirect has no interface's form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse what need not be looked at, count the rest."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), GONE
        metrics, request = self.metrics, Request(scope, receive)

        async def send_counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        refusal = self.refusal(request)
        metrics.active += not refusal  # what is refused takes no place, and nobody waits for its end
        try:
            if refusal:
                await self.throw_away(request)
                await self.refuse(request, refusal)(scope, receive, send_counted)
            else:
                await self.app(scope, receive, send_counted)
        except ClientDisconnect:
            status = GONE
        finally:
            metrics.active -= not refusal
            path = scope["path"] if scope["path"] in self.paths else "other"
            metrics.observe(path, status, time.perf_counter() - start)

    def refusal(self, request: Request) -> RequestError | None:
        """Why a request is not even looked at."""
        path = request.scope["path"]
        if path in OPEN or (path == "/" and request.method in ("GET", "HEAD")):
            return None
        if self.stopping:
            return RequestError("server-stopping", "the server is stopping; try again, or elsewhere")
        if self.key is not None:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            sent = key.strip().encode("latin-1")  # the header's bytes as they came
            if scheme.lower() != "bearer" or not sent:
                return RequestError("key-wrong", "no API key: send the header Authorization: Bearer KEY")
            if not hmac.compare_digest(sent, self.key.encode()):
                return RequestError("key-wrong", "incorrect API key")
        if self.metrics.active >= self.limits.requests:
            return RequestError("queue-full", f"{self.limits.requests} requests are being answered; try again later")
        return None

    def endpoint(self, dialect: Dialect) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def embed(request: Request) -> Response:
            body = bytearray()
            try:
                start = time.perf_counter()
                await self.fill(body, request, dialect)
                return await self.answer(body, request, dialect, start)
            except asyncio.CancelledError:
                raise RequestError("server-stopping", "the server was stopped at once; try again") from None
            finally:
                self.held -= len(body)

        return embed

    async def answer(self, body: bytearray, request: Request, dialect: Dialect, start: float) -> Response:
        try:
            async with asyncio.timeout(self.limits.seconds):
                asked = await self.work(len(body), dialect.read, self.served, body)
                vectors = await self.vectors(request, asked)
                answer = await self.work(vectors.nbytes, answer_of, dialect, asked, vectors, start)
        except TimeoutError:
            raise RequestError("time-limit", f"no answer within {self.limits.seconds:g} s; send fewer texts") from None
        self.metrics.cut += asked.cut
        headers = {"x-refembed-cut": str(asked.cut)} if asked.cut else None
        return Response(answer, media_type="application/json", headers=headers)

    async def work(self, size: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """A call that takes as long as `size` bytes are many: in a thread, where it would hold up the event loop."""
        if size <= SMALL:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self.workers, function, *arguments)

    async def fill(self, body: bytearray, request: Request, dialect: Dialect) -> None:
        """Read the whole body, of a type and size that are taken, while all bodies together are within memory."""
        most = self.limits.bytes
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json" and not media.endswith("+json") and not dialect.any_media_type:
            await self.throw_away(request)
            raise RequestError("body-type", f"content-type is {media or 'missing'}, application/json needed")
        size, more, full = 0, True, False
        try:
            async with asyncio.timeout(self.limits.seconds):
                while more and size <= most * THROWN_AWAY:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    full = full or self.held + len(part) > self.most_held
                    if size <= most and not full:
                        body += part
                        self.held += len(part)
        except TimeoutError:
            raise RequestError("body-slow", f"the body did not come within {self.limits.seconds:g} s") from None
        if size > most:
            raise RequestError("body-large", f"the body has more than {most} bytes; send fewer texts")
        if full:
            raise RequestError("queue-full", f"bodies of {self.held} bytes are being answered; try again later")

    async def throw_away(self, request: Request) -> None:
        """Read what is left of a body that is refused, within reason."""
        size, more = 0, not self.stopping
        with suppress(TimeoutError):
            async with asyncio.timeout(SECONDS_THROWN_AWAY):
                while more and size <= self.limits.bytes * THROWN_AWAY:
                    message = await request.receive()
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False)

    async def vectors(self, request: Request, asked: Asked) -> Vectors:
        """From the queue; taken out of it where the client goes or the time is over."""
        job = asyncio.wrap_future(self.batcher.submit(asked.ids, asked.raw))
        gone = asyncio.ensure_future(disconnected(request))
        try:
            await asyncio.wait((job, gone), return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                raise ClientDisconnect
            return job.result()
        except (ClientDisconnect, asyncio.CancelledError):
            raise
        except Exception as error:
            said = f"a text could not be computed: {type(error).__name__}: {error}"
            print(f"refembed: {shortened(printable(said))}", file=sys.stderr)
            raise RequestError("compute-failed", f"a text could not be computed: {error}") from error
        finally:
            job.cancel()
            gone.cancel()

    def refuse(self, request: Request, error: RefembedError) -> Response:
        """A refusal as the interface of its path has it."""
        dialect = dialect_of(request.url.path)
        status, headers = dialect.status(error), {}
        if status in (429, 503):
            headers["retry-after"] = str(min(max(1, round(self.batcher.seconds_to_wait())), LONGEST_WAIT))
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(dialect.error(error), status, headers)

    def refuse_route(self, request: Request, error: HTTPException) -> Response:
        """What Starlette's router found wrong."""
        asked = f"{request.method} {request.url.path}"
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            answer = self.refuse(request, RequestError("method-unknown", f"not allowed: {asked}; {allowed} needed"))
            answer.headers["allow"] = allowed
            return answer
        paths = ", ".join(dialect.path for dialect in DIALECTS)
        return self.refuse(
            request, RequestError("path-unknown", f"unknown request URL: {asked}; the paths are {paths}")
        )

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": model_list(self.served, int(self.metrics.started))})

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        listed = model_list(self.served, int(self.metrics.started))
        for one in listed:
            if one["id"] == name:
                return JSONResponse(one)
        if name in self.served.names:  # not listed, so that a list of models does not show one twice
            return JSONResponse(listed[0] | {"id": name})
        raise RequestError(
            "model-unknown", f"the model {name!r} does not exist; it is {self.served.name} here", "model"
        )

    def info(self, request: Request) -> Response:  # in a thread: the digest reads every weight once
        return JSONResponse(info(self.served, self.batcher, self.limits.requests))

    def tags(self, request: Request) -> Response:
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.metrics.started))
        return JSONResponse(tags(self.served, started))

    async def health(self, request: Request) -> Response:
        """Whether it can go on at all."""
        alive = self.batcher.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    async def counts(self, request: Request) -> Response:  # not in a thread: the event loop's own changes them
        return PlainTextResponse(self.metrics.render(self.batcher))

    async def ready(self, request: Request) -> Response:
        """Whether it takes requests now."""
        full = self.batcher.waiting >= self.batcher.most_waiting or self.metrics.active > self.limits.requests
        failed = not self.batcher.thread.is_alive()
        status = "failed" if failed else "stopping" if self.stopping else "full" if full else "ok"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)


async def disconnected(request: Request) -> None:
    """After the body: back when nobody listens any more."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def answer_of(dialect: Dialect, asked: Asked, vectors: Vectors, start: float) -> bytes:
    return dialect.answer(asked, asked.kept(vectors), time.perf_counter() - start)
