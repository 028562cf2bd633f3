"""The ways to reach a port: a Python callable, a command speaking JSON lines, an HTTP server, a file of vectors.

A port is asked for a few things and may answer only some: embed, tokenize, trace, and embed with the prompts left to
it. Whatever goes wrong on its side becomes a PortError, one sentence; the run goes on.
"""

import http.client
import json
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import RefembedError, printable
from . import call
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


class PortLostError(PortError):
    """It ended, cannot be reached, or says what is no JSON: to ask it again takes long or is in vain."""


class PortTimeoutError(PortLostError):
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

    The calls are start, tokenize, embed, trace, loss, gradients and stop; spec/protocol.md has them by example.
    """

    refusal = "answered with an error: "  # before the words of a port that answers so

    def __init__(self, command: str, timeout: float = 60) -> None:
        if not command.strip():
            raise RefembedError("port-command", "the command is empty: it cannot be started; name a program")
        try:
            self.open(shlex.split(command), command, timeout)
        except (OSError, ValueError) as error:
            raise RefembedError("port-command", f"{command!r} cannot be started: {error}") from error
        except PortError as error:
            raise RefembedError("port-start", f"{command} did not start: it {error}") from error

    def open(self, command: list[str], name: str, timeout: float) -> None:
        """Start it for the first time, and read what it can do."""
        self.command, self.name, self.timeout = command, name, timeout
        self.process: subprocess.Popen[bytes] | None = None
        self.said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  what it says on standard error
        try:
            answer = self.start()
        except PortError:
            self.close()
            raise
        self.name = printable(str(answer.get("name", name)))[:200]
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
                raise PortLostError(f"could not be started again: it {error}") from error
        return self.send(message)

    def send(self, message: dict[str, Any]) -> dict[str, Any]:
        process = self.process
        assert process
        assert process.stdin
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            line = self.lines.get(timeout=self.timeout)
        except queue.Empty:
            self.kill()
            raise PortTimeoutError(f"did not answer within {self.timeout:g} s, and was stopped") from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise PortLostError(self.ended(line))
        try:
            answer = read_answer(line)
        except PortError:
            self.kill()  # what it says next would be taken for the answer to the next call
            raise
        if not isinstance(answer, dict):
            raise PortError(f"answered {type(answer).__name__}, a JSON object is needed")
        if "error" in answer:
            raise PortError(f"{self.refusal}{str(answer['error'])[:200]}")
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
        how = f"was killed by {signal_name(-status)}" if status < 0 else f"ended with status {status}"
        return how + (f", saying: {words[-1][:200]}" if words else "")

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

    def loss(self, asked: Mapping[str, Any]) -> Any:
        """Value and gradients of a loss; what is asked is JSON."""
        return self.call({"call": "loss", **asked})

    def gradients(self, asked: Mapping[str, Any]) -> Any:
        """Two numbers of each parameter's gradient, by its name; what is asked is JSON."""
        return self.call({"call": "gradients", **asked})

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


class CallPort(CommandPort):
    """A Python function, MODULE:FUNCTION, looked up from the current folder, in a process of its own."""

    refusal = ""

    def __init__(self, function: str, timeout: float = 60) -> None:
        try:
            self.open([sys.executable, str(call.__file__), function], function, timeout)
        except (OSError, ValueError, PortError) as error:
            raise RefembedError("port-call", f"{function!r} {error}; give MODULE:FUNCTION") from error


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def read_answer(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        long = f"the first {LONGEST_ANSWER} bytes of " if len(line) >= LONGEST_ANSWER else ""
        raise PortLostError(f"answered something that is not JSON: {long}{line[:60]!r}") from error


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
        self.url = url.rstrip("/").removesuffix(PATHS[dialect])
        if dialect == "openai":  # whose clients are given the address with it
            self.url = self.url.removesuffix("/v1")
        self.address = self.url + PATHS[dialect]
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
        try:
            return self.vectors(within(self.timeout, lambda: self.post(bodies[self.dialect])))
        except PortError as error:
            raise type(error)(f"{error} ({self.address})") from error

    def post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(self.address, json.dumps(body).encode(), headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:  # noqa: S310
                return read_answer(answer.read(LONGEST_ANSWER))
        except urllib.error.HTTPError as error:
            raise PortError(f"answered with status {error.code}: {said_by(error)}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise PortTimeoutError(f"did not answer within {self.timeout:g} s") from error
            raise PortLostError(f"cannot be reached: {type(reason).__name__} {str(reason)[:200]}") from error

    def vectors(self, answer: Any) -> Any:
        try:
            if self.dialect == "openai":
                return in_order(answer["data"])
            if self.dialect == "ollama":
                return answer["embeddings"]
            if self.dialect == "llamacpp":
                return [only_row(entry) for entry in in_order(answer)]
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


def in_order(entries: Any) -> list[Any]:
    """The vectors of a list of {"index", "embedding"}, each index from 0 on once."""
    places = {entry["index"]: entry["embedding"] for entry in entries}
    if (
        len(places) != len(entries)
        or not all(type(place) is int for place in places)
        or set(places) - set(range(len(places)))
    ):
        found = [entry["index"] for entry in entries]
        raise PortError(f"gave the indexes {str(found)[:80]}, each from 0 on once needed")
    return [places[place] for place in range(len(places))]


def only_row(vectors: Any) -> Any:
    """llama.cpp gives a list of vectors for a text: of one, where it pools."""
    if not vectors or not isinstance(vectors[0], list):
        return vectors
    if len(vectors) > 1:
        raise PortError(f"gave {len(vectors)} vectors for one text: it does not pool")
    return vectors[0]


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
        return read_lines(file)
    except OSError as error:
        raise RefembedError("port-file", f"{file}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefembedError(
            "port-file", f'{file}: lines of {{"case": ..., "vectors": ...}} or safetensors needed: {str(error)[:100]}'
        ) from error


def read_lines(file: Path) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for place, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            case, vectors = str(row["case"]), row["vectors"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"line {place}: {type(error).__name__} {error}") from error
        if case in kept:
            raise ValueError(f"line {place}: case {case} stands there a second time")
        kept[case] = vectors
    return kept


def as_vectors(answer: Any, texts: int, dimensions: int, full: int | None = None) -> Array:
    """A port's answer as float64, or the sentence that says what is wrong with it.

    full      how many numbers a whole vector has, where that will do as well
    returns   (texts, dimensions), or (texts, full)
    """
    vectors = as_numbers(answer, "vectors")
    if vectors.ndim != 2:
        raise PortError(f"gave an array of shape {vectors.shape}, ({texts}, {dimensions}) needed")
    if len(vectors) != texts:
        raise PortError(f"gave {counted(len(vectors), 'vector')} for {counted(texts, 'text')}")
    if vectors.shape[1] not in (dimensions, full):
        raise PortError(f"gave vectors of {vectors.shape[1]} numbers, {dimensions} needed")
    return vectors


def as_numbers(answer: Any, what: str) -> Array:
    """An array of float64. None counts as NaN, as some write it in JSON."""
    try:
        found = array_of(answer)
        if found.dtype.kind in "SUbcmM":
            raise TypeError(f"{found.dtype} is no kind of number")
        return found.astype(np.float64)
    except Exception as error:  # from another library's arrays anything may come
        reason = described(answer, error)
        raise PortError(f"gave {what} of unequal length, or something else than numbers: {reason}") from error


def array_of(answer: Any) -> Array:
    try:
        return np.asarray(answer)
    except Exception:  # a tensor that its library must convert first
        return np.asarray(call.plain(answer))


def described(answer: Any, error: Exception) -> str:
    """What it is in place of numbers: lists of several lengths, a type, or why it cannot be read."""
    while isinstance(answer, list | tuple) and answer:
        lengths = sorted({len(row) if isinstance(row, list | tuple | np.ndarray) else 0 for row in answer})
        if len(lengths) > 1:
            return f"lengths {', '.join(map(str, lengths[:5]))}"
        answer = answer[0]
    if isinstance(answer, dict):
        return f"a dict of {[str(key) for key in answer][:5]}"
    if isinstance(answer, np.ndarray | np.generic | int | float):
        return str(error)[:120]
    return type(answer).__name__ + (f" ({str(error)[:120]})" if hasattr(answer, "__array__") else "")


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
