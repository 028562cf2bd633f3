"""The ways to reach a port: a Python callable, a command speaking JSON lines, an HTTP server, a file of vectors.

A port is asked for a few things and may answer only some: embed, tokenize, trace, and embed with the prompts left to
it. Whatever goes wrong on its side becomes a PortError, one sentence; the run goes on.
"""

import http.client
import json
import queue
import shlex
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import RefembedError, printable
from .mutation import Text
from .suite import Case

Array = NDArray[Any]
LONGEST_ANSWER = 256 * 2**20
PROTOCOL = 1
CALLS = frozenset({"embed", "tokenize", "trace", "prompts"})
EMBED = frozenset({"embed"})
PATHS = {"openai": "/v1/embeddings", "ollama": "/api/embed", "tei": "/embed", "llamacpp": "/embedding"}
DIALECTS = tuple(PATHS)


class PortError(Exception):
    """What a port did wrong, in one sentence that goes on after "the port"."""

    def __init__(self, said: str) -> None:
        super().__init__(printable(said))


class PortTimeoutError(PortError):
    """It did not answer in time."""


class Port(Protocol):
    """What verify needs of a port.

    name   as reports call it
    can    which of CALLS it answers; without "embed" it has vectors for whole cases only
    """

    name: str
    can: frozenset[str]

    def embed(self, case: Case, prompted: Sequence[str]) -> Any:
        """Vectors of texts that have their prompts, sent together."""

    def embed_prompted(self, case: Case, texts: Sequence[Text]) -> Any:
        """Vectors of texts whose prompts are the port's own business."""

    def tokenize(self, prompted: Sequence[str]) -> Any:
        """The ids of each text, as the port's model sees them."""

    def trace(self, case: Case, prompted: str) -> Any:
        """Stage name -> tensor, for those of the case's stages that the port can show; more do no harm."""

    def close(self) -> None:
        """Let the port go."""


class CallablePort:
    """A Python function from a list of texts to vectors. timeout: seconds to wait, None for as long as it takes."""

    def __init__(
        self,
        function: Callable[[list[str]], Any],
        tokenize: Callable[[list[str]], Any] | None = None,
        trace: Callable[[str], Any] | None = None,
        prompts: Callable[[list[Text]], Any] | None = None,
        name: str = "callable",
        timeout: float | None = None,
    ) -> None:
        self.name, self.function, self.timeout = name, function, timeout
        self.functions: dict[str, Any] = {"tokenize": tokenize, "trace": trace, "prompts": prompts}
        self.can = frozenset({"embed", *(call for call, given in self.functions.items() if given)})

    def embed(self, case: Case, prompted: Sequence[str]) -> Any:
        return within(self.timeout, lambda: self.function(list(prompted)))

    def embed_prompted(self, case: Case, texts: Sequence[Text]) -> Any:
        return within(self.timeout, lambda: self.functions["prompts"](list(texts)))

    def tokenize(self, prompted: Sequence[str]) -> Any:
        return within(self.timeout, lambda: self.functions["tokenize"](list(prompted)))

    def trace(self, case: Case, prompted: str) -> Any:
        return within(self.timeout, lambda: self.functions["trace"](prompted))

    def close(self) -> None:
        pass


def within(seconds: float | None, ask: Callable[[], Any]) -> Any:
    """What ask() gives, or a PortError where it raises, exits or takes longer."""
    answers: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            answers.put((ask(), None))
        except BaseException as error:  # SystemExit too: a port that exits must not end the run as if all were well
            answers.put((None, error))

    if seconds is None:
        run()
    else:
        threading.Thread(target=run, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise PortTimeoutError(f"did not answer within {seconds:g} s") from None
    if isinstance(error, PortError | KeyboardInterrupt):
        raise error
    if error is not None:
        raise PortError(f"raised {type(error).__name__}: {str(error)[:200]}") from error
    return answer


class CommandPort:
    """A program that reads one JSON object a line and answers each with one. Started again after a crash.

    The calls are start, tokenize, embed, trace and stop; spec/protocol.md has them by example.
    """

    def __init__(self, command: str, timeout: float = 60) -> None:
        self.name, self.timeout = command, timeout
        self.process: subprocess.Popen[bytes] | None = None
        self.said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  what it says on standard error
        try:
            self.command = shlex.split(command)
            answer = self.start()
        except (OSError, ValueError, IndexError) as error:
            raise RefembedError("port-command", f"{command!r} cannot be started: {error}") from error
        except PortError as error:
            self.close()
            raise RefembedError("port-start", f"{command} did not start: it {error}") from error
        self.name = printable(str(answer.get("name", command)))[:200]
        can = answer.get("can")
        self.can = CALLS & {"embed", *(call for call in can if isinstance(call, str))} if type(can) is list else EMBED

    def start(self) -> dict[str, Any]:
        """Start the program, and make the first call."""
        self.process = subprocess.Popen(  # noqa: S603
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said
        )
        self.lines: queue.Queue[bytes] = queue.Queue(maxsize=2)  # a program that never stops talking waits
        threading.Thread(target=self.read, args=(self.process, self.lines), daemon=True).start()
        return self.send({"call": "start", "protocol": PROTOCOL})

    @staticmethod
    def read(process: subprocess.Popen[bytes], lines: "queue.Queue[bytes]") -> None:
        assert process.stdout
        while line := process.stdout.readline(LONGEST_ANSWER):
            lines.put(line)
        lines.put(b"")

    def call(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send one object and wait for one back; to a new process where the last one has ended."""
        if self.process is None or self.process.poll() is not None:
            try:
                self.start()
            except (OSError, PortError) as error:
                self.kill()
                raise PortError(f"could not be started again: it {error}") from error
        return self.send(message)

    def send(self, message: dict[str, Any]) -> dict[str, Any]:
        process = self.process
        assert process
        assert process.stdin
        try:
            process.stdin.write(json.dumps(message, ensure_ascii=False).encode() + b"\n")
            process.stdin.flush()
            line = self.lines.get(timeout=self.timeout)
        except queue.Empty:
            self.kill()
            raise PortTimeoutError(f"did not answer within {self.timeout:g} s, and was stopped") from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise PortError(self.ended(line))
        try:
            answer = read_answer(line)
        except PortError:
            self.kill()  # what it says next would be taken for the answer to the next call
            raise
        if not isinstance(answer, dict):
            raise PortError(f"answered {type(answer).__name__}, a JSON object is needed")
        if "error" in answer:
            raise PortError(f"answered with an error: {str(answer['error'])[:200]}")
        return answer

    def ended(self, line: bytes) -> str:
        """Why there is no whole line."""
        if len(line) >= LONGEST_ANSWER:
            self.kill()
            return f"answered with a line of more than {LONGEST_ANSWER} bytes"
        assert self.process
        try:
            status = self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.kill()
            return "closed its standard output"
        self.said.seek(max(0, self.said.seek(0, 2) - 2000))
        words = self.said.read().decode(errors="replace").strip().splitlines()
        return f"ended with status {status}" + (f", saying: {words[-1][:200]}" if words else "")

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def embed(self, case: Case, prompted: Sequence[str]) -> Any:
        return take(self.call({"call": "embed", "texts": list(prompted), "dimensions": case.dimensions}), "vectors")

    def embed_prompted(self, case: Case, texts: Sequence[Text]) -> Any:
        plain = [{"text": text.text, "task": text.task, "title": text.title} for text in texts]
        return take(self.call({"call": "embed", "plain": plain, "dimensions": case.dimensions}), "vectors")

    def tokenize(self, prompted: Sequence[str]) -> Any:
        return take(self.call({"call": "tokenize", "texts": list(prompted)}), "ids")

    def trace(self, case: Case, prompted: str) -> Any:
        return take(self.call({"call": "trace", "text": prompted, "stages": list(case.stages)}), "stages")

    def close(self) -> None:
        process, self.process = self.process, None
        if process is None or process.stdin is None:
            return
        try:
            process.stdin.write(b'{"call": "stop"}\n')
            process.stdin.close()
            process.wait(2)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()


def read_answer(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        long = f"the first {LONGEST_ANSWER} bytes of " if len(line) >= LONGEST_ANSWER else ""
        raise PortError(f"answered something that is not JSON: {long}{line[:60]!r}") from error


def take(answer: dict[str, Any], key: str) -> Any:
    if key not in answer:
        raise PortError(f"answered without {key!r}: {sorted(answer)[:5]}")
    return answer[key]


class HttpPort:
    """A server with one of the interfaces embedding servers have."""

    can = EMBED

    def __init__(
        self, url: str, dialect: str, model: str = "embeddinggemma", timeout: float = 120, key: str = ""
    ) -> None:
        if dialect not in DIALECTS:
            raise RefembedError("port-dialect", f"no dialect {dialect!r}; the dialects are {', '.join(DIALECTS)}")
        if not url.startswith(("http://", "https://")):
            raise RefembedError("port-url", f"{url!r} is no http:// or https:// address")
        self.url = url.rstrip("/")
        self.name = f"{model} at {self.url}"
        self.dialect, self.model, self.timeout, self.key = dialect, model, timeout, key

    def embed(self, case: Case, prompted: Sequence[str]) -> Any:
        texts = list(prompted)
        bodies: dict[str, dict[str, Any]] = {
            "openai": {"model": self.model, "input": texts, "encoding_format": "float"},
            "ollama": {"model": self.model, "input": texts, "truncate": True},
            "tei": {"inputs": texts, "truncate": True},
            "llamacpp": {"content": texts},
        }
        return self.vectors(within(self.timeout, lambda: self.post(bodies[self.dialect])))

    def post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(self.url + PATHS[self.dialect], json.dumps(body).encode(), headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:  # noqa: S310
                return read_answer(answer.read(LONGEST_ANSWER))
        except urllib.error.HTTPError as error:
            raise PortError(f"answered with status {error.code}: {said_by(error)}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise PortTimeoutError(f"did not answer within {self.timeout:g} s") from error
            raise PortError(f"cannot be reached: {type(reason).__name__} {str(reason)[:200]}") from error

    def vectors(self, answer: Any) -> Any:
        try:
            if self.dialect == "openai":
                return [entry["embedding"] for entry in sorted(answer["data"], key=lambda entry: entry["index"])]
            if self.dialect == "ollama":
                return answer["embeddings"]
            if self.dialect == "llamacpp":
                rows = [entry["embedding"] for entry in sorted(answer, key=lambda entry: entry["index"])]
                return [row[0] if row and isinstance(row[0], list) else row for row in rows]
            return answer
        except (KeyError, TypeError, IndexError) as error:
            raise PortError(f"answered in another form than {self.dialect}'s: {str(answer)[:80]}") from error

    def embed_prompted(self, case: Case, texts: Sequence[Text]) -> Any:
        raise PortError("has no way to be given a task")

    def tokenize(self, prompted: Sequence[str]) -> Any:
        raise PortError("has no way to be asked for tokens")

    def trace(self, case: Case, prompted: str) -> Any:
        raise PortError("has no way to be asked for stages")

    def close(self) -> None:
        pass


def said_by(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(200).decode(errors="replace").strip() or error.reason
    except (OSError, http.client.HTTPException):
        return error.reason


class FilePort:
    """Vectors made beforehand: JSON lines of {"case", "vectors"}, or safetensors with "<case>/embedding"."""

    can: frozenset[str] = frozenset()

    def __init__(self, file: Path) -> None:
        self.name = str(file)
        self.kept = read_vectors(file)

    def embed(self, case: Case, prompted: Sequence[str]) -> Any:
        if case.id not in self.kept:
            raise PortError("has no vectors for this case")
        return self.kept[case.id]

    embed_prompted = HttpPort.embed_prompted
    tokenize = HttpPort.tokenize
    trace = HttpPort.trace

    def close(self) -> None:
        pass


def read_vectors(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        if file.suffix == ".safetensors":
            return {name.removesuffix("/embedding"): tensor for name, tensor in load_file(file).items()}
        rows = [json.loads(line) for line in file.read_bytes().split(b"\n") if line.strip()]
        return {str(row["case"]): row["vectors"] for row in rows}
    except OSError as error:
        raise RefembedError("port-file", f"{file}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefembedError(
            "port-file", f'{file}: lines of {{"case": ..., "vectors": ...}} or safetensors needed: {str(error)[:100]}'
        ) from error


def as_vectors(answer: Any, texts: int, dimensions: int, full: int | None = None) -> Array:
    """A port's answer as float64, or the sentence that says what is wrong with it.

    full      how many numbers a whole vector has, where that will do as well
    returns   (texts, dimensions), or (texts, full)
    """
    vectors = as_numbers(answer, "vectors")
    if vectors.ndim != 2:
        raise PortError(f"gave an array of shape {vectors.shape}, ({texts}, {dimensions}) needed")
    if len(vectors) != texts:
        raise PortError(f"gave {len(vectors)} vectors for {texts} texts")
    if vectors.shape[1] not in (dimensions, full):
        raise PortError(f"gave vectors of {vectors.shape[1]} numbers, {dimensions} needed")
    return vectors


def as_numbers(answer: Any, what: str) -> Array:
    """An array of float64. None counts as NaN, as some write it in JSON."""
    try:
        found = np.asarray(answer)
        if found.dtype.kind in "SUbcmM":
            raise TypeError(f"{found.dtype} is no kind of number")
        return found.astype(np.float64)
    except Exception as error:  # from another library's arrays anything may come
        raise PortError(f"gave {what} of unequal length, or something else than numbers") from error
