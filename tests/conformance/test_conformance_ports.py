"""The ways to reach a port, with a right one at the other end of each; and ports that misbehave in every way known.

A misbehaving port must cost one sentence for each case it spoils, never the run, and never pass.
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutants import MutantPort, twin, twin_model
from safetensors.numpy import load_file, save_file

import refembed
from refembed.backend import find_backends
from refembed.cli import main
from refembed.conformance import port as port_module
from refembed.conformance.call import plain
from refembed.conformance.mutation import Text
from refembed.conformance.port import DIALECTS, CallablePort, CallPort, CommandPort, FilePort, HttpPort, as_numbers
from refembed.conformance.suite import golden_folder
from refembed.conformance.verify import PATIENCE, RESTARTS, verify
from refembed.embedder import DEFAULT_MODEL
from refembed.errors import ERRORS, RefembedError

PORTS = Path(__file__).parent / "ports"
RIGHT_PROGRAM = f"{sys.executable} {PORTS / 'twin_port.py'}"
BAD_PROGRAM = f"{sys.executable} {PORTS / 'bad_port.py'} answers.json"  # in a test's own folder
SOME = ["prompt-*"]  # eleven cases
LATE = 5  # the case that a misbehaving port spoils: the fifth
NEVER = "the port did not answer within"
NO_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # a machine whose texts are ASCII


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own, with right vectors for the bad program."""
    monkeypatch.chdir(tmp_path)
    right = {
        text: row.tolist()
        for case in twin().cases
        for text, row in zip(case.prompted, twin().vectors(case), strict=True)
    }
    (tmp_path / "answers.json").write_text(json.dumps(right))
    return tmp_path


@pytest.fixture(scope="module")
def model() -> refembed.Embedder:
    return refembed.load(golden_folder("twin") / "checkpoint", backend="numpy")


@pytest.fixture
def embed(model: refembed.Embedder) -> Callable[[list[str]], Any]:
    """What a port's author has: texts to vectors."""

    def embed(texts: list[str]) -> Any:
        return model.encode_tokens(model.cut(model.tokenizer(texts), "cut"), model.config.dimensions)

    return embed


def check_right(report: Any, asked: set[str]) -> None:
    """It conforms, by half of what is allowed at most, and was really asked."""
    assert [outcome for outcome in report.outcomes if outcome.verdict in ("wrong", "failed")] == []
    assert report.conforms
    assert 0 < report.used()[0] <= 0.5
    assert report.cases == 72
    assert {outcome.level for outcome in report.outcomes if outcome.verdict == "right"} == asked


# ---------------------------------------------------------------------------------------------------------- right ports
@pytest.mark.filterwarnings("ignore:.*were cut")
def test_right_callable_conforms(embed):
    """Wrong if a right function is accused, or uses up what it is allowed."""
    check_right(verify(twin(), CallablePort(embed, timeout=60)), {"vectors", "laws"})


@pytest.mark.parametrize("backend", [found.name for found in find_backends() if not found.why_not])
def test_right_backends_conform(backend, capsys):
    """Wrong if one of refembed's own backends does not pass the command that ports are judged by."""
    assert main(["verify", "--backend", backend, "--json", "report.json"]) == 0
    report = json.loads(Path("report.json").read_bytes())
    assert report["conforms"] is True
    assert report["allowed_error_used"]["share"] <= 0.5
    assert {outcome["verdict"] for outcome in report["outcomes"] if outcome["level"] != "stages"} == {"right"}
    assert not capsys.readouterr().err


def test_float64_conforms_with_little_error(capsys):
    """Wrong if the bounds are not around the float64 truth."""
    assert main(["verify", "--backend", "numpy", "--precision", "float64", "--json", "-"]) == 0
    assert "CONFORMS" in capsys.readouterr().out


def test_right_command_conforms():
    """Wrong if a right program is accused, or one of the protocol's calls is not made."""
    port = CommandPort(RIGHT_PROGRAM, 30)
    try:
        assert port.can == {"tokenize", "embed", "trace", "prompts"}
        assert port.name == "twin port"
        check_right(verify(twin(), port), {"tokens", "vectors", "prompts", "stages", "laws"})
        process = port.process
    finally:
        port.close()
    assert process is not None
    assert process.returncode == 0, "it was told to stop"


def answered(dialect: str, asked: Any, embed: Callable[[list[str]], Any]) -> Any:
    """What a server of this dialect answers, as documented; entries out of order where they have a number."""
    texts = asked[{"openai": "input", "ollama": "input", "tei": "inputs", "llamacpp": "content"}[dialect]]
    vectors = [vector.tolist() for vector in embed(texts)]
    entries = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)][::-1]
    return {
        "openai": {"object": "list", "data": entries, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}},
        "ollama": {"model": "m", "embeddings": vectors, "total_duration": 1},
        "tei": vectors,
        "llamacpp": [{"index": entry["index"], "embedding": [entry["embedding"]]} for entry in entries],
    }[dialect]


@contextmanager
def server(answer: Callable[[str, dict[str, Any]], tuple[int, bytes]]) -> Iterator[str]:
    """A server that answers (status, body) to (path, what was asked); its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = answer(self.path, asked)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.daemon_threads = True
    serving.handle_error = lambda *_: None  # type: ignore[method-assign]  a client that has stopped waiting
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{serving.server_port}"
    finally:
        serving.shutdown()
        serving.server_close()


@pytest.mark.filterwarnings("ignore:.*were cut")
@pytest.mark.parametrize("dialect", DIALECTS)
def test_right_server_conforms(dialect, embed):
    """Wrong if a right server is accused, or is not asked where and how its documentation says."""
    paths = {"openai": "/v1/embeddings", "ollama": "/api/embed", "tei": "/embed", "llamacpp": "/embedding"}
    seen = set()

    def answer(path: str, asked: dict[str, Any]) -> tuple[int, bytes]:
        seen.add(path)
        return 200, json.dumps(answered(dialect, asked, embed)).encode()

    with server(answer) as url:
        check_right(verify(twin(), HttpPort(url + "/", dialect, timeout=30)), {"vectors", "laws"})
    assert seen == {paths[dialect]}


@pytest.mark.parametrize("ending", ["jsonl", "safetensors"])
def test_right_file_conforms(ending, here):
    """Wrong if right vectors in a file are accused, or laws are asked of a file, which can answer no question."""
    vectors = {case.id: MutantPort().embed(case, case.prompted) for case in twin().cases}
    file = here / f"vectors.{ending}"
    if ending == "jsonl":
        rows = [{"case": id, "vectors": rows.tolist(), "more": "\u2028"} for id, rows in vectors.items()]
        file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    else:
        save_file({f"{id}/embedding": np.ascontiguousarray(rows, np.float32) for id, rows in vectors.items()}, file)
    report = verify(twin(), FilePort(file))
    check_right(report, {"vectors"})
    assert {outcome.verdict for outcome in report.outcomes if outcome.level == "laws"} == {"not asked"}


# --------------------------------------------------------------------------------------------- callables that misbehave
def spoilt(embed: Callable[[list[str]], Any], spoil: Callable[[Any], Any]) -> CallablePort:
    """Right but for the fifth case."""
    calls: list[None] = []

    def function(texts: list[str]) -> Any:
        calls.append(None)
        return spoil(embed(texts)) if len(calls) == LATE else embed(texts)

    return CallablePort(function, timeout=1)


def raising(error: BaseException) -> Callable[[Any], Any]:
    def spoil(vectors: Any) -> Any:
        raise error

    return spoil


class Unusual:
    """An array of another library that NumPy cannot have."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("on another device")


SPOILT = {
    "nan": (lambda v: v * np.nan, "wrong", "a vector holds NaN or infinity"),
    "infinity": (lambda v: v + np.inf, "wrong", "a vector holds NaN or infinity"),
    "none-in-places": (lambda v: [[None, *row[1:]] for row in v.tolist()], "wrong", "a vector holds NaN or infinity"),
    "zeros": (lambda v: v * 0, "wrong", "a vector is all zeros"),
    "another-text": (lambda v: v[:, ::-1], "wrong", "bounds; cosine"),
    "one-number-short": (lambda v: v[:, 1:], "failed", "the port gave vectors of 47 numbers, 48 needed"),
    "one-vector-more": (lambda v: np.concatenate([v, v]), "failed", "the port gave 2 vectors for 1 text"),
    "no-vector": (lambda v: [], "failed", "the port gave an array of shape (0,), (1, 48) needed"),
    "one-flat-vector": (lambda v: v[0], "failed", "the port gave an array of shape (48,), (1, 48) needed"),
    "a-vector-a-token": (lambda v: [v], "failed", "the port gave an array of shape (1, 1, 48), (1, 48) needed"),
    "ragged": (lambda v: [[1.0, 2.0], [1.0]], "failed", "unequal length, or something else than numbers: lengths 1, 2"),
    "ragged-within": (lambda v: [[[1.0, 2.0], [1.0]]], "failed", "the port gave vectors of unequal length"),
    "words": (lambda v: [["1.0"] * 48], "failed", "something else than numbers: str"),
    "bytes": (lambda v: b"abc", "failed", "something else than numbers: bytes"),
    "complex": (lambda v: v + 1j, "failed", "something else than numbers"),
    "a-dictionary": (lambda v: {"vectors": v}, "failed", "something else than numbers: a dict of ['vectors']"),
    "none": (lambda v: None, "failed", "the port gave an array of shape ()"),
    "too-large": (lambda v: [[10**400] * 48], "failed", "something else than numbers"),
    "unusual-array": (lambda v: Unusual(), "failed", "something else than numbers: Unusual (on another device)"),
    "raises": (raising(KeyError("no such model")), "failed", "the port raised KeyError: 'no such model'"),
    "raises-words": (raising(ValueError("a\x00b\x1b[31m\ud800")), "failed", "the port raised ValueError: a\\x00b\\x1b"),
    "exits": (raising(SystemExit(0)), "failed", "the port raised SystemExit: 0"),
    "hangs": (lambda v: time.sleep(3), "failed", "the port did not answer within 1 s"),
}


@pytest.mark.parametrize("slug", SPOILT)
def test_spoilt_answer_is_said_and_the_run_goes_on(slug, embed):
    """Wrong if one bad answer ends the run, passes, or is not described; or if it is laid to a known mistake."""
    spoil, verdict, said = SPOILT[slug]
    report = verify(twin(), spoilt(embed, spoil), levels=["vectors"], cases=SOME)
    assert [outcome.verdict for outcome in report.outcomes] == ["right"] * 4 + [verdict] + ["right"] * 6
    assert said in report.outcomes[LATE - 1].said
    assert report.outcomes[LATE - 1].said.isprintable()
    assert not report.conforms
    assert report.explanations == ()


CALLED = """
import ctypes, json, os, signal, sys

answers = json.load(open("answers.json"))

def embed(texts):
    print("embedding", len(texts), "texts")
    if texts == [{text!r}]:
        {harm}
    return [answers[text] for text in texts]
"""
HARMS = {
    "exits-at-once": ("os._exit(0)", "the port ended with status 0"),
    "exits": ("sys.exit(0)", "the port raised SystemExit: 0"),
    "crashes": ("ctypes.string_at(0)", "the port was killed by SIGSEGV"),
    "is-killed": ("os.kill(os.getpid(), signal.SIGKILL)", "the port was killed by SIGKILL"),
    "raises": ("raise KeyError('no such model \\ud800')", "the port raised KeyError: 'no such model \\ud800'"),
    "gives-a-dict": ("return {'vectors': 1}", "the port gave something else than numbers: a dict of ['vectors']"),
    "gives-a-coroutine": ("return (x for x in texts)", "the port gave something else than numbers: generator"),
    "gives-words": ("return [['a']]", "something else than numbers: str"),
    "gives-nothing": ("return None", "the port gave an array of shape ()"),
    "hangs": ("import time; time.sleep(60)", "the port did not answer within 5 s, and was stopped"),
}


@pytest.mark.parametrize("how", HARMS)
def test_function_that_takes_its_process_down_is_described_and_the_run_goes_on(how, here):
    """Wrong if a function that exits or crashes ends verify, a run that prints is no JSON, or the cause is not said."""
    harm, said = HARMS[how]
    spoilt = [case for case in twin().cases if case.id.startswith("prompt-")][LATE - 1]
    (here / "called_port.py").write_text(CALLED.format(text=spoilt.prompted[0], harm=harm))
    port = CallPort("called_port:embed", timeout=5)
    try:
        report = verify(twin(), port, levels=["vectors"], cases=SOME)
    finally:
        port.close()
    assert [outcome.verdict for outcome in report.outcomes] == ["right"] * 4 + ["failed"] + ["right"] * 6
    assert said in report.outcomes[LATE - 1].said
    assert report.port == "called_port:embed"


def test_function_that_exits_each_time_could_not_be_verified(here, capsys):
    """Wrong if verify ends with the status of the port's own exit, which is that of a pass."""
    (here / "called_port.py").write_text("import os\ndef embed(texts):\n    os._exit(0)\n")
    assert main(["verify", "--call", "called_port", "--cases", "prompt-*"]) == 2
    out = capsys.readouterr().out
    assert out.endswith("COULD NOT BE VERIFIED: no answer of the right form\n")
    assert f"vectors prompt-query and {RESTARTS - 1} others: the port ended with status 0" in out
    assert f"the port was not asked again, after {RESTARTS} such failures in a row" in out


def test_function_finds_its_own_modules_and_no_input(here):
    """Wrong if a port's own report.py is taken for refembed's, or its input() reads what verify says."""
    (here / "report.py").write_text("MINE = True\n")
    (here / "called_port.py").write_text(
        "import json, sys, report\nanswers = json.load(open('answers.json'))\n"
        "def embed(texts):\n    assert report.MINE and not sys.stdin.read()\n    return [answers[t] for t in texts]\n"
    )
    assert main(["verify", "--call", "called_port:embed", "--cases", "prompt-*,batch-*"]) == 0


def torch_forms() -> dict[str, Any]:
    import torch

    rows = torch.tensor([[0.5, -0.25], [1.5, 2.0]])
    return {
        "bfloat16": rows.bfloat16(),
        "float16": rows.half(),
        "a gradient": rows.clone().requires_grad_(),
        "a list of tensors with gradients": [row.clone().requires_grad_() for row in rows],
        "an array": rows.numpy(),
        "a list of arrays": list(rows.numpy()),
        "a tuple of tuples": ((0.5, -0.25), (1.5, 2.0)),
        "a list of scalars": [list(row) for row in rows.numpy()],
        "a list of tensors of no axis": [list(row.bfloat16()) for row in rows],
    }


@pytest.mark.parametrize("form", torch_forms())
def test_anything_like_an_array_is_taken(form):
    """Wrong if a port must convert what it has before it can be verified."""
    found = torch_forms()[form]
    right = [[0.5, -0.25], [1.5, 2.0]]
    assert json.loads(json.dumps(plain(found), default=float)) == right
    assert as_numbers(found, "vectors").tolist() == right


@pytest.mark.parametrize("threads", [None, 60])
def test_interrupt_is_no_fault_of_the_port(threads, embed):
    """Wrong if Control-C is counted as a wrong answer, and the run goes on."""
    port = CallablePort(raising(KeyboardInterrupt()), timeout=threads)
    with pytest.raises(KeyboardInterrupt):
        verify(twin(), port, levels=["vectors"], cases=SOME)


def test_port_that_never_answers_is_not_waited_for_each_time():
    """Wrong if a port that hangs costs its timeout for every case and level."""
    began = time.perf_counter()
    report = verify(twin(), CallablePort(lambda texts: time.sleep(30), timeout=0.2))
    assert time.perf_counter() - began < 10
    failed = [outcome for outcome in report.outcomes if outcome.verdict == "failed"]
    assert len(failed) == 72 + 12
    assert all(outcome.said.startswith(NEVER) for outcome in failed[:PATIENCE])
    assert all("was not asked again" in outcome.said for outcome in failed[PATIENCE:])
    assert not report.answered


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([[1, 2], [3]], "no list of ids for each of 1 text"),
        (None, "no list of ids"),
        ([["a"]], "gave ids of unequal length, or something else than numbers"),
        ([[[1], [2]]], "shape (2, 1)"),
        ([5], "shape ()"),
        ([[2, 5, 1]], "3 ids, 18 needed; first difference at place 1"),
        ([[]], "0 ids, 18 needed; first difference at place 0"),
    ],
)
def test_wrong_tokens_are_described(ids, said, embed):
    """Wrong if a port's ids of a bad form end the run, or the place where right ones first differ is not named."""
    report = verify(twin(), CallablePort(embed, tokenize=lambda texts: ids), levels=["tokens"], cases=["prompt-query"])
    assert said in report.outcomes[0].said
    assert not report.conforms


@pytest.mark.parametrize(
    ("stages", "verdict", "said"),
    [
        ([1], "failed", "no stages by name"),
        ({"pooled": [[1.0], [1.0, 2.0]]}, "failed", "gave pooled of unequal length"),
        ({"pooled": [1.0]}, "failed", "gave a pooled of shape (1,), (48,) needed"),
        ({"layer.00.out": np.zeros((0, 48))}, "failed", "gave a layer.00.out of shape (0, 48)"),
        ({"pooled": [float("nan")] * 48}, "wrong", "pooled is off"),
        ({"something": [1.0]}, "not asked", "none of the stored stages"),
    ],
)
def test_wrong_stages_are_described(stages, verdict, said, embed):
    """Wrong if stages of a bad form end the run or pass."""
    port = CallablePort(embed, trace=lambda text: stages)
    report = verify(twin(), port, levels=["vectors", "stages"], cases=["prompt-query"])
    assert report.outcomes[-1].verdict == verdict
    assert said in report.outcomes[-1].said


def test_text_that_depends_on_its_company_breaks_the_laws(embed):
    """Wrong if a vector that changes with the batch, its order or a duplicate conforms because each batch was right."""

    def function(texts: list[str]) -> Any:
        vectors = embed(texts)
        return vectors if len(set(texts)) == len(texts) == 2 else vectors + 1e-3

    report = verify(twin(), CallablePort(function), levels=["laws"], cases=["batch-small-gap", "batch-wide-gap"])
    assert [(o.law, o.verdict) for o in report.outcomes][:3] == [
        ("alone", "wrong"),
        ("reversed", "right"),
        ("doubled", "wrong"),
    ]
    assert "a vector changes by 0.001 when sent alone" in report.outcomes[0].said


# --------------------------------------------------------------------------------- machines whose texts are not UTF-8
def test_inputs_are_json_where_output_is_not_utf8():
    """Wrong if `golden inputs` writes what no JSON reader takes, on a machine without UTF-8."""
    command = [sys.executable, "-m", "refembed", "golden"]
    for words in (["inputs", "twin"], ["show", "twin", "text-emoji"]):
        done = subprocess.run([*command, *words], capture_output=True, check=True, env=os.environ | NO_UTF8)
        rows = [json.loads(line) for line in done.stdout.decode("ascii").splitlines()]
        cases = {case.id: list(case.prompted) for case in twin().cases if words[0] == "inputs" or case.id == words[2]}
        if words[0] == "inputs":
            assert {row["case"]: row["prompted"] for row in rows} == cases
        else:
            assert rows[0]["prompted"] == cases["text-emoji"]


@pytest.mark.parametrize("way", [["--command", BAD_PROGRAM], ["--call", "called_port:embed"]], ids=lambda way: way[0])
def test_port_is_asked_whole_texts_where_input_is_not_utf8(way, here):
    """Wrong if a right port gets spoilt texts because its standard input is not UTF-8."""
    (here / "called_port.py").write_text(CALLED.format(text="", harm="pass"))
    words = [sys.executable, "-m", "refembed", "verify", *way, "--cases", "text-*", "--levels", "vectors"]
    done = subprocess.run(words, capture_output=True, env=os.environ | NO_UTF8)
    assert (done.returncode, done.stderr) == (0, b"")


# ---------------------------------------------------------------------------------------------- programs that misbehave
PROGRAMS = {
    "hang": "the port did not answer within 3 s, and was stopped",
    "crash": "the port ended with status 3, saying: segmentation fault, as it were",
    "exit": "the port ended with status 0",
    "not-json": "the port answered something that is not JSON: b'Segmentation fault",
    "half-a-line": "the port ended with status 0",
    "a-list": "the port answered list, a JSON object is needed",
    "no-vectors": "the port answered without 'vectors': ['embeddings']",
    "error": "the port answered with an error: out of memory \\x00\\x1b[31m\\ud800",
    "null": "the port gave an array of shape ()",
    "killed": "the port was killed by SIGSEGV",
    "words": "something else than numbers: str",
    "deep": "the port answered something that is not JSON",
    "huge-line": "the port answered with a line of more than 1000000 bytes",
    "huge-number": "something else than numbers",
    "closed": "the port closed its standard output",
}


@pytest.mark.parametrize("how", PROGRAMS)
def test_program_that_misbehaves_is_described_and_the_run_goes_on(how, monkeypatch):
    """Wrong if a program that fails once ends the run, is not started again, or what went wrong is not said."""
    monkeypatch.setattr(port_module, "LONGEST_ANSWER", 1_000_000)
    port = CommandPort(f"{BAD_PROGRAM} {how}", timeout=3)
    try:
        report = verify(twin(), port, levels=["vectors"], cases=["prompt-[qdfc]*"])
    finally:
        port.close()
    verdicts = [outcome.verdict for outcome in report.outcomes]
    assert verdicts == ["right"] * 4 + ["failed"] + ["right"] * (len(verdicts) - LATE)
    assert PROGRAMS[how] in report.outcomes[LATE - 1].said
    assert not report.conforms


def test_program_that_echoes_could_not_be_verified(capsys):
    """Wrong if a program that only sends back what it is sent, and so starts well, gets a verdict."""
    assert main(["verify", "--command", "cat", "--cases", "prompt-*"]) == 2
    assert "the port answered without 'vectors'" in capsys.readouterr().out


def test_program_whose_abilities_cannot_be_read_is_asked_for_vectors_only():
    """Wrong if a slip in the first answer ends the run, or a program is asked for what it did not offer."""
    port = CommandPort(f"{BAD_PROGRAM} can-a-word", timeout=5)
    port.close()
    assert port.can == {"embed"}


def test_program_that_answers_twice_is_not_trusted():
    """Wrong if a program whose answers belong to earlier calls conforms, or ends the run."""
    port = CommandPort(f"{BAD_PROGRAM} two-lines", timeout=3)
    try:
        report = verify(twin(), port, levels=["vectors"], cases=SOME)
    finally:
        port.close()
    assert not report.conforms
    assert len(report.outcomes) == 11


@pytest.mark.parametrize("how", ["always-exits", "always-not-json"])
def test_program_that_fails_each_time_is_not_started_each_time(how):
    """Wrong if a port that ends or babbles whatever it is asked is started again for every case, which takes long."""
    port = CommandPort(f"{BAD_PROGRAM} {how}", timeout=5)
    try:
        report = verify(twin(), port)
    finally:
        port.close()
    asked = [outcome.said for outcome in report.outcomes if outcome.verdict == "failed"]
    assert len(asked) == 72 + 12
    assert not [said for said in asked[:RESTARTS] if "was not asked again" in said]
    assert set(asked[RESTARTS:]) == {f"the port was not asked again, after {RESTARTS} such failures in a row"}


def test_port_that_answers_in_a_wrong_form_is_asked_on(embed):
    """Wrong if cases that could be judged are not, because others had answers of a wrong shape."""
    wide = {text for case in twin().cases[: 2 * RESTARTS] for text in case.prompted}

    def function(texts: list[str]) -> Any:
        return embed(texts)[:, 1:] if wide & set(texts) else embed(texts)

    report = verify(twin(), CallablePort(function), levels=["vectors"], cases=["prompt-*", "text-*"])
    verdicts = [outcome.verdict for outcome in report.outcomes]
    assert verdicts[: 2 * RESTARTS] == ["failed"] * 2 * RESTARTS
    assert set(verdicts[2 * RESTARTS :]) == {"right"}


def test_program_that_cannot_start_twice_is_described():
    """Wrong if a program that crashes and then does not start again ends the run with an error of ours."""
    port = CommandPort(f"{BAD_PROGRAM} only-once", timeout=5)
    try:
        report = verify(twin(), port, levels=["vectors"], cases=SOME)
    finally:
        port.close()
    assert [outcome.verdict for outcome in report.outcomes] == ["right"] * 4 + ["failed"] * 7
    assert "could not be started again: it ended with status 1, saying: only once" in report.outcomes[LATE].said


@pytest.mark.parametrize(
    ("command", "id", "said"),
    [
        ("no-such-program --x", "port-command", "No such file"),
        ("", "port-command", "the command is empty"),
        (" ", "port-command", "the command is empty"),
        ("'unfinished", "port-command", "No closing quotation"),
        ("/", "port-command", "ermission denied"),
        (f"{BAD_PROGRAM} exit-at-start", "port-start", "ended with status 1, saying: no such model"),
        (f"{BAD_PROGRAM} banner", "port-start", "not JSON: b'Loading the model"),
        (f"{BAD_PROGRAM} silent-at-start", "port-start", "did not answer within 1 s"),
        ("true", "port-start", "ended with status 0"),
    ],
)
def test_program_that_does_not_start_is_an_error(command, id, said, capsys):
    """Wrong if a program that was never there gets a verdict, or its author no reason."""
    assert main(["verify", "--command", command, "--timeout", "1"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert f"[{id}]" in err
    assert said in err


# ----------------------------------------------------------------------------------------------- servers that misbehave
def replies(embed: Callable[[list[str]], Any]) -> dict[str, tuple[Callable[[Any], tuple[int, bytes]], str]]:
    return {
        "500": (lambda asked: (500, b"CUDA error"), "the port answered with status 500: CUDA error"),
        "404": (lambda asked: (404, b""), "the port answered with status 404: Not Found"),
        "429-binary": (lambda asked: (429, b"\xff\x00"), "the port answered with status 429"),
        "not-json": (lambda asked: (200, b"<html>"), "the port answered something that is not JSON: b'<html>'"),
        "empty": (lambda asked: (200, b""), "the port answered something that is not JSON: b''"),
        "another-form": (lambda asked: (200, b'{"x": 1}'), "answered in another form than openai's: {'x': 1}"),
        "a-number": (lambda asked: (200, b"5"), "answered in another form than openai's"),
        "no-index": (lambda asked: (200, b'{"data": [{"embedding": [1]}]}'), "answered in another form than openai's"),
        "nan": (lambda asked: (200, b'{"data": [{"index": 0, "embedding": [NaN]}]}'), "gave vectors of 1 numbers"),
        "index-twice": (
            lambda asked: (200, b'{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [2]}]}'),
            "the port gave the indexes [0, 0], each from 0 on once needed",
        ),
        "index-from-one": (lambda asked: (200, b'{"data": [{"index": 1, "embedding": [1]}]}'), "gave the indexes [1]"),
        "index-a-word": (lambda asked: (200, b'{"data": [{"index": "0", "embedding": [1]}]}'), "the indexes ['0']"),
        "slow": (lambda asked: (time.sleep(2), (200, b"[]"))[1], "the port did not answer within 0.5 s"),
    }


@pytest.mark.parametrize("how", replies(lambda texts: texts))
def test_server_that_misbehaves_is_described_and_the_run_goes_on(how, embed):
    """Wrong if a server that fails once ends the run, or what it answered is not said."""
    reply, said = replies(embed)[how]
    calls: list[None] = []

    def answer(path: str, asked: dict[str, Any]) -> tuple[int, bytes]:
        calls.append(None)
        if len(calls) == LATE:
            return reply(asked)
        return 200, json.dumps(answered("openai", asked, embed)).encode()

    with server(answer) as url:
        report = verify(twin(), HttpPort(url, "openai", timeout=0.5), levels=["vectors"], cases=SOME)
    assert [outcome.verdict for outcome in report.outcomes] == ["right"] * 4 + ["failed"] + ["right"] * 6
    assert said in report.outcomes[LATE - 1].said
    if how != "nan":  # a vector of a wrong length is judged as anyone's
        assert report.outcomes[LATE - 1].said.endswith(f" ({url}/v1/embeddings)")


@pytest.mark.filterwarnings("ignore:.*were cut")
def test_same_index_for_every_vector_does_not_pass(embed):
    """Wrong if a server that gives every vector the index 0, whose order is then nobody's, conforms."""

    def answer(path: str, asked: dict[str, Any]) -> tuple[int, bytes]:
        data = [{"index": 0, "embedding": vector.tolist()} for vector in embed(asked["input"])]
        return 200, json.dumps({"data": data}).encode()

    with server(answer) as url:
        report = verify(twin(), HttpPort(url, "openai", timeout=30), levels=["vectors"])
    assert {o.case.partition("-")[0] for o in report.outcomes if o.verdict == "failed"} == {"batch"}


@pytest.mark.parametrize("rows", [2, 3])
def test_server_that_does_not_pool_does_not_pass(rows, embed):
    """Wrong if llama.cpp without pooling, which gives a vector for each token, is judged by the first of them."""

    def answer(path: str, asked: dict[str, Any]) -> tuple[int, bytes]:
        vectors = [vector.tolist() for vector in embed(asked["content"])]
        return 200, json.dumps([{"index": i, "embedding": [one] * rows} for i, one in enumerate(vectors)]).encode()

    with server(answer) as url:
        report = verify(twin(), HttpPort(url, "llamacpp", timeout=30), levels=["vectors"], cases=SOME)
    assert {outcome.verdict for outcome in report.outcomes} == {"failed"}
    assert f"the port gave {rows} vectors for one text: it does not pool" in report.outcomes[0].said


@pytest.mark.filterwarnings("ignore:.*were cut")
@pytest.mark.parametrize("end", ["/v1", "/v1/", "/v1/embeddings"])
def test_address_as_clients_are_given_it_will_do(end, embed):
    """Wrong if the base address of OpenAI's clients, or the whole one, is asked for a path that is not there."""
    seen = set()

    def answer(path: str, asked: dict[str, Any]) -> tuple[int, bytes]:
        seen.add(path)
        return 200, json.dumps(answered("openai", asked, embed)).encode()

    with server(answer) as url:
        assert verify(twin(), HttpPort(url + end, "openai", timeout=30), levels=["vectors"], cases=SOME).conforms
    assert seen == {"/v1/embeddings"}


@pytest.mark.parametrize("said", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n[1"])
def test_what_is_no_server_is_described(said):
    """Wrong if something that speaks no HTTP, or stops in the middle, ends the run with a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def speak() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(said)

        threading.Thread(target=speak, daemon=True).start()
        port = HttpPort(f"http://127.0.0.1:{listening.getsockname()[1]}", "tei", timeout=5)
        report = verify(twin(), port, levels=["vectors"], cases=["prompt-query"])
        listening.shutdown(socket.SHUT_RDWR)
    assert report.outcomes[0].verdict == "failed"
    assert report.outcomes[0].said.startswith(
        ("the port cannot be reached: ", "the port answered something that is not")
    )


def test_server_that_drips_is_not_waited_for():
    """Wrong if a server that sends a byte now and then holds the run for ever: each byte is in time."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")
                for _ in range(40):
                    connection.sendall(b" ")
                    time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        port = HttpPort(f"http://127.0.0.1:{listening.getsockname()[1]}", "tei", timeout=0.5)
        began = time.perf_counter()
        report = verify(twin(), port, levels=["vectors"], cases=["prompt-query"])
    assert time.perf_counter() - began < 3
    assert "did not answer within 0.5 s" in report.outcomes[0].said


def test_server_that_is_not_there_could_not_be_verified(capsys):
    """Wrong if a port that never answered is said to be wrong, or right."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    assert main(["verify", "--url", url, "--cases", "prompt-*"]) == 2
    out = capsys.readouterr().out
    assert "cannot be reached: ConnectionRefusedError" in out
    assert out.rstrip().endswith("COULD NOT BE VERIFIED: no answer of the right form")


# ----------------------------------------------------------------------------------------- ports that cannot be reached
def bracketed(id: str) -> str:
    """The end of an error's line."""
    return f"[{id}]\n"


def error_of(ask: Callable[[], Any]) -> str:
    with pytest.raises(RefembedError) as caught:
        ask()
    return caught.value.id


def test_address_and_dialect_are_checked():
    """Wrong if a slip in the options is found only as a failure of every case, or a local file is read as a server."""
    assert error_of(lambda: HttpPort("file:///etc/passwd", "openai")) == "port-url"
    assert error_of(lambda: HttpPort("localhost:8080", "openai")) == "port-url"
    assert error_of(lambda: HttpPort("http://localhost", "smoke-signals")) == "port-dialect"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"not json"),
        ("a.jsonl", b"5"),
        ("a.jsonl", b'{"case": "x"}'),
        ("a.jsonl", b"\xff"),
        ("a.jsonl", b"[" * 100_000),
        ("a.safetensors", b"\x00" * 4),
        ("a.safetensors", b""),
        ("missing.jsonl", None),
        ("missing.safetensors", None),
    ],
)
def test_file_that_cannot_be_read_is_an_error(name, content, here):
    """Wrong if a broken file of vectors gets a verdict, or a traceback."""
    if content is not None:
        (here / name).write_bytes(content)
    assert error_of(lambda: FilePort(here / name)) == "port-file"


def test_case_that_stands_in_a_file_twice_is_an_error(here):
    """Wrong if which of two answers is judged is a matter of their order."""
    row = json.dumps({"case": "prompt-query", "vectors": [[1.0]]})
    (here / "a.jsonl").write_text(f"{row}\n\n{row}\n")
    with pytest.raises(RefembedError, match=r"line 3: case prompt-query stands there a second time"):
        FilePort(here / "a.jsonl")


def test_file_without_a_case_fails_that_case_only(here):
    """Wrong if vectors that are not there pass, or their absence hides the verdict on the others."""
    case = twin().cases[0]
    row = {"case": case.id, "vectors": twin().vectors(case).tolist()}
    (here / "a.jsonl").write_text(json.dumps(row))
    report = verify(twin(), FilePort(here / "a.jsonl"), cases=SOME)
    verdicts = [outcome.verdict for outcome in report.outcomes if outcome.level == "vectors"]
    assert verdicts == ["right"] + ["failed"] * 10
    assert not report.conforms


@pytest.mark.parametrize(
    "module",
    [
        "",
        "embed = 5",
        "import no_such_module",
        "raise ValueError('not today')",
        "import sys; sys.exit(0)",
        "def embed(:",
        "def other(texts): pass",
    ],
)
def test_function_that_cannot_be_imported_is_an_error(module, here, monkeypatch, capsys):
    """Wrong if a module that breaks, or exits with 0, as it is imported looks like a pass."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (here / "broken_port.py").write_text(module)
    monkeypatch.delitem(sys.modules, "broken_port", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert main(["verify", "--call", "broken_port:embed"]) == 2
    assert capsys.readouterr().err.endswith(bracketed("port-call"))


# ----------------------------------------------------------------------------------------------- nothing to be verified
@pytest.mark.parametrize(
    ("options", "id"),
    [
        ({"cases": ["no-such-*"]}, "verify-no-case"),
        ({"cases": ["prompt-*", "no-such-*"]}, "verify-no-case"),
        ({"cases": []}, "verify-no-case"),
        ({"levels": []}, "verify-level"),
        ({"levels": ["vector"]}, "verify-level"),
        ({"precision": "float16"}, "verify-precision"),
        ({"levels": ["tokens", "stages", "prompts"]}, "verify-nothing"),
        ({"levels": ["laws"], "cases": ["prompt-*"]}, "verify-nothing"),
    ],
)
def test_no_case_run_is_an_error(options, id, embed):
    """Wrong if a run in which nothing was compared looks like a pass, or like a verdict at all."""
    assert error_of(lambda: verify(twin(), CallablePort(embed), **options)) == id


def test_suite_without_weights_asks_for_a_folder(here, capsys):
    """Wrong if a backend is verified with other weights than the suite's without being told which."""
    copy = here / "twin"
    for file in (file for file in twin().folder.rglob("*") if file.is_file() and "checkpoint" not in file.parts):
        (copy / file.relative_to(twin().folder)).parent.mkdir(parents=True, exist_ok=True)
        (copy / file.relative_to(twin().folder)).write_bytes(file.read_bytes())
    manifest = json.loads((copy / "manifest.json").read_bytes())
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if "checkpoint" not in name}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", "--suite", str(copy), "--backend", "numpy"]) == 2
    assert capsys.readouterr().err.endswith(bracketed("verify-checkpoint"))


def test_other_weights_are_noted(here, capsys):
    """Wrong if somebody verifies other weights than the golden vectors belong to, and is not told."""
    copy = shutil.copytree(golden_folder("twin") / "checkpoint", here / "changed")
    tensors = load_file(copy / "model.safetensors")
    save_file(tensors | {"norm.weight": tensors["norm.weight"] + 1}, copy / "model.safetensors")
    assert main(["verify", "--backend", "numpy", "--checkpoint", str(copy), "--cases", "text-empty"]) == 1
    assert "holds other files than these golden vectors were made with" in capsys.readouterr().err


def test_another_model_is_not_judged(capsys):
    """Wrong if a model that is not the suite's gets a verdict, as if it were a port with mistakes."""
    assert main(["verify", "--backend", "numpy", "--checkpoint", str(DEFAULT_MODEL)]) == 2
    said = capsys.readouterr().err
    assert said.endswith(bracketed("verify-checkpoint"))
    assert "name its own golden vectors by --suite" in said


def test_a_checkpoint_that_is_not_there_is_named(capsys):
    """Wrong if a misspelt folder is answered with what the suite lacks, which here it does not even lack."""
    for name in ("nowhere/at/all", "x" * 300):
        assert main(["verify", "--backend", "numpy", "--checkpoint", name]) == 2
        error = capsys.readouterr().err
        assert name in error
        assert error.endswith(bracketed("folder-missing"))


def test_command_with_spaces_and_quotes_is_split_as_a_shell_would(here):
    """Wrong if a program in a folder with a space in its name cannot be reached."""
    folder = here / "with space"
    folder.mkdir()
    program = folder / "port.py"
    program.write_text('import sys; [print(\'{"name": "quoted"}\', flush=True) for line in sys.stdin]')
    port = CommandPort(f"{sys.executable} {shlex.quote(str(program))}", 10)
    port.close()
    assert port.name == "quoted"
    assert port.can == {"embed"}


def test_texts_are_sent_with_their_prompts():
    """Wrong if what a port embeds is not what the reference embeds for the same text and task."""
    model = twin_model()
    for case in twin().cases:
        assert [model.prompted(text) for text in case.texts] == list(case.prompted)
        assert all(isinstance(text, Text) for text in case.texts)


def test_every_id_of_ports_and_verify_is_tested():
    """Wrong if there is a way to refuse a run that no test here has seen."""
    written = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    ids = [id for id in ERRORS if id.startswith(("verify-", "port-"))]
    assert len(ids) >= 10
    assert [id for id in ids if f'"{id}"' not in written] == []
