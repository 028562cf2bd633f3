"""The commands as one uses them: what goes in, what comes out, what is said on standard error, what is left on disk."""

import gzip
import io
import json
import os
import pty
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import SMALL, random_parameters, write_checkpoint

import refembed
from refembed import numpy_backend
from refembed.cli import main
from refembed.plugins import installed

SCRIPT = str(Path(sys.executable).with_name("refembed"))
TEXTS = ["the end", "in the air", "", "Ünïcode ✓ \u2028 line", "the end", 'quo"te\\ \t']
FIVE = ["embed", "similarity", "search", "index", "inspect", "doctor"]
USERS = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in this process: its exit status, standard output and standard error."""

    def command(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(one) for one in argv])
        except SystemExit as end:  # argparse's own way out
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return command


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model(small_folder: Path) -> refembed.Embedder:
    return refembed.load(small_folder, backend="numpy")


@pytest.fixture(scope="module")
def built_in() -> refembed.Embedder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return refembed.load(backend="numpy")


@pytest.fixture
def use(small_folder: Path) -> tuple[str, str]:
    return "--model", str(small_folder)


def start(name: str, *argv: object, **options: Any) -> "subprocess.Popen[bytes]":
    """A command as a process of its own, as a user's shell starts it; with NumPy, as all tests here, if not said."""
    options = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": USERS,
    } | options
    return subprocess.Popen([SCRIPT, name, "--backend", "numpy", *map(str, argv)], **options)


def rows_of(out: str) -> list[dict[str, Any]]:
    """The objects of JSON lines; a line of text may hold U+2028, which is no end of a line."""
    assert out == "" or out.endswith("\n")
    return [json.loads(line) for line in out.split("\n")[:-1]]


def vectors_of(out: str) -> np.ndarray:
    return np.array([row["embedding"] for row in rows_of(out)], np.float64)


def lines(path: Path, texts: Sequence[str]) -> Path:
    path.write_bytes("".join(f"{text}\n" for text in texts).encode())
    return path


def objects(path: Path, entries: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def type_in(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def count_encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts of every call of the backend, from here on."""
    counts: list[int] = []
    encode = numpy_backend.NumpyEncoder.encode

    def counted(self: Any, batch: Any) -> Any:
        counts.append(len(batch))
        return encode(self, batch)

    monkeypatch.setattr(numpy_backend.NumpyEncoder, "encode", counted)
    return counts


# ---------------------------------------------------------------------------------------------------------------- embed
def test_embed_arguments(run: Run, use, model) -> None:
    """Vectors of the command line are not those of Python, to the last bit, or stand beside another text."""
    status, out, err = run("embed", *TEXTS, *use)
    rows = rows_of(out)
    assert (status, err) == (0, "")
    assert [row["text"] for row in rows] == TEXTS
    assert [row["index"] for row in rows] == list(range(6))
    np.testing.assert_array_equal(vectors_of(out).astype(np.float32), model.encode_document(TEXTS))
    assert all(str(np.float32(number)) == repr(number) for row in rows for number in row["embedding"]), (
        "digits too many"
    )


def test_embed_with_the_built_in_model(run: Run, built_in) -> None:
    """The first thing anybody tries gives other vectors than Python does, or fails."""
    status, out, _ = run("embed", "Mars is often called the Red Planet.")
    assert status == 0
    expected = built_in.encode_document(["Mars is often called the Red Planet."])
    np.testing.assert_array_equal(vectors_of(out).astype(np.float32), expected)
    np.testing.assert_allclose(np.linalg.norm(vectors_of(out), axis=1), 1, atol=1e-6)


def test_embed_as_a_process(built_in) -> None:
    """The installed script prints something else than JSON lines, or is not there."""
    done = subprocess.run(
        [SCRIPT, "embed", "the end", "Ü", "--backend", "numpy"], capture_output=True, env=os.environ | {"LC_ALL": "C"}
    )
    assert done.returncode == 0
    expected = built_in.encode_document(["the end", "Ü"])
    np.testing.assert_array_equal(vectors_of(done.stdout.decode()).astype(np.float32), expected)


PLAIN = "".join(f"{text}\n" for text in ["the end", "", "in the air"]).encode()
JSONL = b'{"text": "the end", "body": "x"}\n\n  \n{"text": ""}\n{"text": "in the air"}'


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("in.txt", PLAIN, []),
        ("in.txt", PLAIN.removesuffix(b"\n"), []),
        ("in.txt", PLAIN.replace(b"\n", b"\r\n"), []),
        ("in.txt", b"\xef\xbb\xbf" + PLAIN, []),
        ("in.txt.gz", gzip.compress(PLAIN), []),
        ("in.txt.gz", gzip.compress(PLAIN[:5]) + gzip.compress(PLAIN[5:]), []),
        ("in.jsonl", JSONL, []),
        ("in.jsonl.gz", gzip.compress(JSONL), []),
        ("in.jsonl", JSONL.replace(b'"text"', b'"contents"'), ["--text-field", "contents"]),
        ("-", PLAIN, []),
        ("-", JSONL, ["--text-field", "text"]),
    ],
    ids=[
        "txt",
        "no-last-newline",
        "crlf",
        "bom",
        "txt.gz",
        "two-gzips",
        "jsonl",
        "jsonl.gz",
        "text-field",
        "stdin",
        "stdin-jsonl",
    ],
)
def test_embed_input(run: Run, use, model, here, monkeypatch, name: str, content: bytes, options: list[str]) -> None:
    """A form of input gives other texts: a line end in a text, an empty line lost, an object misread."""
    if name == "-":
        type_in(monkeypatch, content)
    else:
        (here / name).write_bytes(content)
    status, out, err = run("embed", "-i", name, *options, *use)
    assert (status, err) == (0, "")
    assert [row["text"] for row in rows_of(out)] == ["the end", "", "in the air"]
    np.testing.assert_array_equal(
        vectors_of(out).astype(np.float32), model.encode_document(["the end", "", "in the air"])
    )


@pytest.mark.parametrize(
    ("name", "options", "format"),
    [
        ("out.jsonl", [], "jsonl"),
        ("out.npy", [], "npy"),
        ("out.safetensors", [], "safetensors"),
        ("out", [], "jsonl"),
        ("out.bin", ["--format", "npy"], "npy"),
        ("out.npy", ["--format", "safetensors"], "safetensors"),
    ],
)
def test_embed_output(run: Run, use, model, here, name: str, options: list[str], format: str) -> None:
    """A file holds other vectors than Python's, another format than its ending says, or something beside it is left."""
    status, out, err = run("embed", *TEXTS, "-o", name, *options, *use)
    assert (status, out, err) == (0, "", "")
    assert [path.name for path in here.iterdir()] == [name]
    expected = model.encode_document(TEXTS)
    if format == "jsonl":
        found = vectors_of((here / name).read_text()).astype(np.float32)
    elif format == "npy":
        found = np.load(here / name)
    else:
        table = load_file(here / name)
        found = table["embeddings"]
        assert table["index"].tolist() == list(range(6))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_embed_output_replaces_and_may_be_read_by_others(run: Run, use, here) -> None:
    """An old file is appended to, or the new one is secret where the user's umask says that others may read."""
    before = os.umask(0o022)
    try:
        (here / "out.jsonl").write_text("old")
        assert run("embed", "a", "-o", "out.jsonl", *use)[0] == 0
    finally:
        os.umask(before)
    assert len(rows_of((here / "out.jsonl").read_text())) == 1
    assert stat.S_IMODE((here / "out.jsonl").stat().st_mode) == 0o644


def test_embed_output_of_a_long_name(run: Run, use, here) -> None:
    """A name the file system allows is refused because a longer one was wanted on the way."""
    name = "o" * 245 + ".jsonl"
    assert run("embed", "a", "-o", name, *use) == (0, "", "")
    assert len(rows_of((here / name).read_text())) == 1


def test_embed_output_through_a_link(run: Run, use, here) -> None:
    """A link is replaced by a file, and what it points to keeps the old vectors."""
    (here / "real").mkdir()
    (here / "real" / "out.jsonl").write_text("old")
    (here / "out.jsonl").symlink_to("real/out.jsonl")
    assert run("embed", "a", "-o", "out.jsonl", *use)[0] == 0
    assert (here / "out.jsonl").is_symlink()
    assert len(rows_of((here / "real" / "out.jsonl").read_text())) == 1


def test_embed_output_into_a_pipe(use, here) -> None:
    """-o /dev/stdout, /dev/null or a named pipe replaces that device by a file; as root, for the whole machine."""
    os.mkfifo(here / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((here / "pipe").read_bytes()), daemon=True)
    reader.start()
    process = start("embed", "the end", "-o", "pipe", *use)
    err = process.communicate(timeout=30)[1]
    assert (process.returncode, err) == (0, b"")
    assert stat.S_ISFIFO((here / "pipe").stat().st_mode)
    reader.join(10)
    assert len(rows_of(read[0].decode())) == 1


@pytest.mark.parametrize(
    ("options", "python"),
    [
        ([], {"task": "document"}),
        (["--task", "query"], {"task": "query"}),
        (["--task", "Clustering"], {"task": "clustering"}),
        (["--task", "STS"], {"task": "sentence similarity"}),
        (["--task", "none"], {"task": None}),
        (["--task", "None"], {"task": None}),
        (["--prompt", "see: "], {"prompt": "see: "}),
        (["--prompt", ""], {"task": None}),
        (["--prompt", "none"], {"prompt": "none"}),
        (["--dimensions", "8"], {"dimensions": 8}),
        (["--dimensions", "40"], {}),
        (["--dimensions", "1"], {"dimensions": 1}),
        (["--backend", "loopback"], {}),
        (["--threads", "1"], {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_embed_options(run: Run, use, model, options: list[str], python: dict[str, Any]) -> None:
    """An option of the command line means something else than in Python, or nothing."""
    status, out, _ = run("embed", *TEXTS, *options, *use)
    assert status == 0
    np.testing.assert_array_equal(vectors_of(out).astype(np.float32), model.encode(TEXTS, **python))


def test_embed_precision(run: Run, use, small_folder) -> None:
    """--precision is read and not used."""
    double = refembed.load(small_folder, backend="numpy", precision="float64").encode_document(TEXTS)
    out = run("embed", *TEXTS, "--precision", "float64", *use)[1]
    np.testing.assert_array_equal(vectors_of(out).astype(np.float32), double)


def test_embed_titles(run: Run, use, model, here) -> None:
    """Titles of a file go to other texts, or a text without one gets another's."""
    entries = [
        {"body": "in the air", "head": "birds"},
        {"body": "a", "head": None},
        {"body": "b"},
        {"body": "c", "head": ""},
    ]
    objects(here / "in.jsonl", entries)
    status, out, err = run("embed", "-i", "in.jsonl", "--text-field", "body", "--title-field", "head", *use)
    assert (status, err) == (0, "")
    expected = model.encode_document(["in the air", "a", "b", "c"], titles=["birds", None, None, None])
    np.testing.assert_array_equal(vectors_of(out).astype(np.float32), expected)
    status, out, err = run("embed", "-i", "in.jsonl", "--text-field", "body", "--title-field", "nobody has it", *use)
    assert (status, out, err.count("[title-field]")) == (2, "", 1), "a misspelt name must not pass as 'no titles'"


@pytest.mark.parametrize("option", ["--text-field", "--title-field"])
def test_fields_of_arguments(run: Run, use, option: str) -> None:
    """A field is asked for where there are none, and the user is not told that it was not used."""
    status, out, err = run("embed", "a", option, "body", *use)
    assert (status, out, err.count("[option-input]")) == (2, "", 1)


def test_embed_cuts_with_one_warning(run: Run, use) -> None:
    """Texts are cut and nobody is told, or each one fills a line."""
    status, out, err = run("embed", "a" * 100, "b", "c" * 200, "--task", "none", *use)
    assert (status, len(rows_of(out))) == (0, 3)
    assert err == "refembed: 2 of 3 texts were longer than 64 tokens and were cut\n"


FAULTY = b'{"text": "one"}\n{"text": 5}\nnonsense\n{"text": "\xff"}\n{"text": "two"}\n'


def test_faulty_lines_have_their_place(run: Run, use, model, here) -> None:
    """A bad line cannot be found again, sinks the good ones, or goes unnoticed by a script."""
    (here / "in.jsonl").write_bytes(FAULTY)
    status, out, err = run("embed", "-i", "in.jsonl", *use)
    assert status == 1
    assert re.findall(r"in\.jsonl:(\d+): .*\[([a-z-]+)\]\n", err) == [
        ("2", "line-field"), ("3", "line-json"), ("4", "line-encoding")]  # fmt: skip
    assert [(row["index"], row["text"]) for row in rows_of(out)] == [(0, "one"), (4, "two")]
    np.testing.assert_array_equal(vectors_of(out).astype(np.float32), model.encode_document(["one", "two"]))


def test_faulty_lines_keep_their_rows(run: Run, use, model, here) -> None:
    """Row i of the array is no longer text i, or a row without a vector looks like one that has one."""
    (here / "in.jsonl").write_bytes(FAULTY)
    expected = model.encode_document(["one", "two"])
    assert run("embed", "-i", "in.jsonl", "-o", "out.npy", *use)[0] == 1
    table = np.load("out.npy")
    assert table.shape == (5, 40)
    np.testing.assert_array_equal(table[[0, 4]], expected)
    assert np.isnan(table[[1, 2, 3]]).all()
    assert run("embed", "-i", "in.jsonl", "-o", "out.safetensors", *use)[0] == 1
    table = load_file("out.safetensors")
    assert table["index"].tolist() == [0, 4]
    np.testing.assert_array_equal(table["embeddings"], expected)


def test_faulty_lines_of_standard_input(run: Run, use, monkeypatch) -> None:
    """A bad line that was piped in has no place."""
    type_in(monkeypatch, b"good\n\xff\n")
    status, out, err = run("embed", "-i", "-", *use)
    assert (status, len(rows_of(out))) == (1, 1)
    assert "stdin:2: " in err


def test_faulty_argument(use) -> None:
    """A text that came from a file name that is no UTF-8 ends in a traceback."""
    process = start("embed", "good", os.fsdecode(b"caf\xe9"), *use)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, len(rows_of(out.decode()))) == (1, 1)
    assert re.fullmatch(r"refembed: left out text 2: .*\[text-encoding\]\n", err.decode())


def test_nothing_but_faulty_lines(run: Run, use, here) -> None:
    """The rare case of no good line at all ends in a traceback, or in success."""
    (here / "in.jsonl").write_bytes(b"1\n2\n")
    assert run("embed", "-i", "in.jsonl", *use)[:2] == (1, "")
    assert run("embed", "-i", "in.jsonl", "-o", "out.npy", *use)[0] == 1
    assert np.load("out.npy").shape == (2, 40)
    assert run("similarity", "a", "-i", "in.jsonl", *use)[:2] == (1, "")
    assert run("search", "in.jsonl", "a", *use)[:2] == (1, "")


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl", "empty.txt.gz", "-"])
def test_empty_input(run: Run, use, here, monkeypatch, name: str) -> None:
    """No texts are no vectors, not a fault: a pipeline over many files stops at the first empty one."""
    if name != "-":
        (here / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    type_in(monkeypatch, b"")
    assert run("embed", "-i", name, *use)[:2] == (0, "")
    for format in ("jsonl", "npy", "safetensors"):
        type_in(monkeypatch, b"")
        assert run("embed", "-i", name, "-o", f"out.{format}", "--dimensions", "8", *use)[0] == 0
    assert (here / "out.jsonl").read_bytes() == b""
    assert np.load("out.npy").shape == load_file("out.safetensors")["embeddings"].shape == (0, 8)
    type_in(monkeypatch, b"")
    assert run("similarity", "a", "-i", name, *use)[:2] == (0, "")
    if name != "-":
        assert run("search", name, "a", *use)[:2] == (0, "")


# ----------------------------------------------------------------------------------------------- whole files or nothing
@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(5, "Input/output error"), RuntimeError("a bug"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("old", [None, "old"])
def test_failure_leaves_no_file(run: Run, use, here, monkeypatch, error: BaseException, old: str | None) -> None:
    """Half a file looks like a whole one, or the old one is gone, or a temporary one stays; or the screen fills."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(numpy_backend.NumpyEncoder, "encode", fail)
    if old:
        (here / "out.npy").write_text(old)
    status, out, err = run("embed", "a", "-o", "out.npy", *use)
    assert (status, out) == (130 if isinstance(error, KeyboardInterrupt) else 2, "")
    assert (len(err.splitlines()), "Traceback" in err) == (1, False)
    assert "output-unwritable" not in err, "the output is not what failed"
    assert [path.name for path in here.iterdir()] == (["out.npy"] if old else [])
    assert not old or (here / "out.npy").read_text() == old


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("place", ["os.fsync", "refembed.output.Npy.join"])
@pytest.mark.parametrize("old", [None, "old"])
def test_failure_while_writing_leaves_no_file(run: Run, use, here, monkeypatch, error, place: str, old) -> None:
    """The disk fills up or somebody presses Ctrl-C while the file is written, and half a file stays under any name."""

    def fail(*given: Any) -> None:
        if len(given) > 1:
            given[1].write(b"half")  # the form's handle
        assert len(list(here.iterdir())) == 1 + bool(old), "nothing was being written: this test shows nothing"
        raise error

    if old:
        (here / "out.npy").write_text(old)
    monkeypatch.setattr(place, fail)
    status, _, err = run("embed", "a", "-o", "out.npy", *use)
    assert (status, len(err.splitlines())) == (130 if isinstance(error, KeyboardInterrupt) else 2, 1)
    assert [path.name for path in here.iterdir()] == (["out.npy"] if old else [])
    assert not old or (here / "out.npy").read_text() == old


def test_a_private_file_stays_private(run: Run, use, here) -> None:
    """Writing again opens a private file to everybody."""
    (here / "out.npy").write_text("old")
    (here / "out.npy").chmod(0o600)
    assert run("embed", "a", "-o", "out.npy", *use)[0] == 0
    assert (here / "out.npy").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("format", ["npy", "safetensors"])
def test_binary_vectors_through_a_pipe(use, here, model, format: str) -> None:
    """A pipe gets half a header, since it has no position to ask for."""
    os.mkfifo(here / "pipe")
    process = start("embed", "a", "-o", "pipe", "--format", format, *use)
    received = (here / "pipe").read_bytes()
    assert process.wait(30) == 0
    (here / "whole").write_bytes(received)
    found = np.load(here / "whole") if format == "npy" else load_file(here / "whole")["embeddings"]
    np.testing.assert_array_equal(found, model.encode(["a"]))


def test_texts_after_an_option(run: Run, use) -> None:
    """Texts behind an option are refused, which is where people write them."""
    assert run("embed", "a", *use, "b") == run("embed", "a", "b", *use)
    assert run("similarity", "a", *use, "b", "the") == run("similarity", "a", "b", "the", *use)
    assert run("embed", "a", "--no-such-option", *use)[0] == 2


def test_a_bug_is_shown_when_asked(run: Run, use, monkeypatch) -> None:
    """Somebody who reports a fault of ours has nothing to report."""
    monkeypatch.setattr(numpy_backend.NumpyEncoder, "encode", lambda *_: 1 / 0)
    assert "ZeroDivisionError" in run("embed", "a", *use)[2]
    process = start("embed", "a", "--debug", "--model", "/nowhere/at/all")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert b"Traceback" in err
    assert b"hub.py" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("old", [None, "old"])
def test_killed_in_the_middle(use, here, number: signal.Signals, old: str | None) -> None:
    """After a kill there is half a file under the name of a whole one, or the old one is gone."""
    lines(here / "in.txt", ["the end in the air"] * 40_000)
    if old:
        (here / "out.npy").write_text(old)
    master, slave = pty.openpty()
    process = start("embed", "-i", "in.txt", "-o", "out.npy", *use, stderr=slave)
    os.close(slave)
    shown = read_terminal(master, until=b"/~40000 texts")  # how many lines there are, only the last one tells
    process.send_signal(number)
    shown += read_terminal(master)
    assert process.wait(30) != 0, "the input was too small to be interrupted"
    assert (here / "out.npy").exists() == bool(old)
    assert not old or (here / "out.npy").read_text() == old
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert shown.endswith(b"refembed: interrupted\r\n")
        assert b"Traceback" not in shown
        names = {path.name for path in here.iterdir()} - {"out.npy"}
        assert names == {"in.txt", "out.npy.partial"}, "a temporary file stays, or nothing to go on from"


def read_terminal(master: int, until: bytes | None = None) -> bytes:
    """What a process shows, till it ends or has shown this."""
    shown = b""
    while until is None or until not in shown:
        try:
            part = os.read(master, 4096)
        except OSError:  # Linux's way to say that nobody writes any more
            part = b""
        if not part:
            break
        shown += part
    return shown


# ------------------------------------------------------------------------------------------------------- standard error
def test_note_on_the_built_in_model(here) -> None:
    """Somebody takes the built-in model for EmbeddingGemma and was not told, or is told more than once."""
    lines(here / "in.txt", ["a", "b"])
    for argv in (["embed", "a"], ["similarity", "a", "b"], ["search", "in.txt", "a"], ["inspect", "a"]):
        done = subprocess.run([SCRIPT, *argv], capture_output=True, text=True)
        assert done.returncode == 0
        assert len(done.stderr.splitlines()) == 1
        assert "https://huggingface.co/google/embeddinggemma-300m" in done.stderr
        assert "the small built-in one" in done.stderr


def test_no_note_with_a_model(run: Run, use, here) -> None:
    """A user of the real weights is told that they are not."""
    lines(here / "in.txt", ["a", "b"])
    for argv in (["embed", "a"], ["similarity", "a", "b"], ["search", "in.txt", "a"], ["inspect", "a"]):
        assert run(*argv, *use)[2] == ""
    assert run("doctor")[2] == ""


def test_progress_only_on_a_terminal(use, here) -> None:
    """A log file fills with progress, a terminal shows none, or the bar stays on the screen or in the output."""
    lines(here / "in.txt", ["the end in the air"] * 700)
    process = start("embed", "-i", "in.txt", "-o", "plain.npy", *use)
    assert (process.communicate(timeout=60), process.returncode) == ((b"", b""), 0)

    master, slave = pty.openpty()
    process = start("embed", "-i", "in.txt", "-o", "shown.npy", *use, stderr=slave)
    os.close(slave)
    shown = read_terminal(master)
    os.close(master)
    assert process.wait(30) == 0
    assert re.search(rb"\d+/~700 texts", shown)
    assert b"\n" not in shown, "one line, again and again"
    assert shown.endswith(b"\r\x1b[K"), "it stays on the screen"
    assert (here / "plain.npy").read_bytes() == (here / "shown.npy").read_bytes()


@pytest.mark.parametrize("name", FIVE)
def test_usage_errors(run: Run, name: str) -> None:
    """A mistyped option gives a traceback or looks like success."""
    status, out, err = run(name, "--no-such-option")
    assert (status, out, "Traceback" in err) == (2, "", False)
    assert re.search(r"^refembed.*: error: \w", err, re.MULTILINE)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["no-such-command"],
        ["embed", "a", "--task", "query", "--prompt", "p"],
        ["embed", "a", "--format", "csv"],
        ["embed", "a", "--dimensions", "many"],
        ["embed", "a", "--on-long", "truncate"],
        ["similarity"],
        ["search", "in.txt"],
        ["search", "in.txt", "a", "-k", "1.5"],
        ["inspect"],
        ["inspect", "a", "--task", "query", "--prompt", "p"],
    ],
    ids=" ".join,
)
def test_wrong_use(run: Run, argv: list[str]) -> None:
    """A command that cannot be meant runs all the same."""
    status, out, err = run(*argv)
    assert (status, out, "Traceback" in err) == (2, "", False)


# ----------------------------------------------------------------------------------------------------------- similarity
def test_similarity_ranks(run: Run, use, model) -> None:
    """The best text is not first, or a score is not the cosine of the query's and the document's vectors."""
    texts = ["the end", "in the air", "birds", "a", "the"]
    query, documents = model.encode("in the", task="query"), model.encode(texts, task="document")
    cosines = {text: float(np.dot(query.astype(float), row)) for text, row in zip(texts, documents, strict=True)}
    status, out, err = run("similarity", "in the", *texts, *use)
    assert (status, err) == (0, "")
    assert out == "".join(f"{cosines[text]:.4f}\t{text}\n" for text in sorted(texts, key=lambda text: -cosines[text]))


def test_similarity_of_one_kind(run: Run, use, here) -> None:
    """With one task for both sides a text is not the most similar to itself; or equal texts change their order."""
    lines(here / "in.txt", ["b", "the end", "a", "the end"])
    status, out, _ = run("similarity", "the end", "-i", "in.txt", "--task", "sentence similarity", *use)
    assert status == 0
    assert out.splitlines()[:2] == ["1.0000\tthe end", "1.0000\tthe end"]


def test_similarity_with_a_file_and_faults(run: Run, use, here) -> None:
    """A bad line sinks the ranking."""
    (here / "in.txt").write_bytes(b"one\n\xff\ntwo\n")
    status, out, err = run("similarity", "one", "-i", "in.txt", "--dimensions", "8", *use)
    assert (status, len(out.splitlines()), "in.txt:2: " in err) == (1, 2, True)


def test_one_line_a_result(run: Run, use, here) -> None:
    """A passage of several lines breaks the list that a script reads line by line, or commands the terminal."""
    objects(here / "in.jsonl", [{"text": "the end\r\n9.9999\tof\x1b[2J it"}, {"text": "a\n"}])
    for argv in (["similarity", "the", "-i", "in.jsonl"], ["search", "in.jsonl", "the"]):
        out = run(*argv, *use)[1]
        assert len(out.splitlines()) == 2
        assert "\x1b" not in out
        assert "the end" in out


# --------------------------------------------------------------------------------------------------------------- search
CORPUS = ["the end", "in the air", "birds", "a", "the the the"]
KEPT = "notes.txt.refembed"


def test_search_finds(run: Run, use, model, here) -> None:
    """Another passage than the most similar one is found, or its place in the file is another's."""
    lines(here / "notes.txt", CORPUS)
    cosines = model.encode_document(CORPUS).astype(float) @ model.encode_query("in the").astype(float)
    order = np.argsort(-cosines)
    expected = [f"{cosines[i]:.4f}\tnotes.txt:{i + 1}\t{CORPUS[i]}" for i in order]
    status, out, err = run("search", "notes.txt", "in the", *use)
    assert (status, out.splitlines(), err) == (0, expected, "")
    assert run("search", "notes.txt", "in the", "-k", "2", *use)[1].splitlines() == expected[:2]
    assert run("search", "notes.txt", "in the", "-k", "1000000", *use)[1].splitlines() == expected


def test_search_leaves_out_blank_lines(run: Run, use, here) -> None:
    """A blank line between two notes is their best answer, or the lines after it have other numbers."""
    lines(here / "notes.txt", ["the end", "", "  ", "in the air"])
    found = run("search", "notes.txt", "in the", *use)[1].splitlines()
    assert sorted(line.split("\t", 1)[1] for line in found) == ["notes.txt:1\tthe end", "notes.txt:4\tin the air"]


def test_search_keeps_and_reuses(run: Run, use, here, monkeypatch) -> None:
    """Every search embeds the whole corpus again."""
    lines(here / "notes.txt", CORPUS)
    counts = count_encoded(monkeypatch)
    first = run("search", "notes.txt", "in the", *use)
    assert sum(counts) == 6
    assert sorted(path.name for path in here.iterdir()) == ["notes.txt", KEPT]
    counts.clear()
    assert run("search", "notes.txt", "in the", *use) == first
    assert run("search", str(here / "notes.txt"), "the end", *use)[0] == 0
    assert sum(counts) == 2, "the two queries"


def other_weights(here: Path, folder: Path) -> list[str]:
    from support import SMALL, random_parameters

    write_checkpoint(folder, SMALL, random_parameters(SMALL, seed=1))
    return []


def other_pooling(here: Path, folder: Path) -> list[str]:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    return []


def other_prompt(here: Path, folder: Path) -> list[str]:
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"document": "doc: "}}')
    return []


def other_context(here: Path, folder: Path) -> list[str]:
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 10}')
    return []


@pytest.mark.parametrize(
    "change",
    [
        other_weights,
        other_pooling,
        other_prompt,
        other_context,
        lambda here, folder: ["--precision", "float64"],
        lambda here, folder: ["--backend", "loopback"],
    ],
    ids=[
        "other-weights",
        "other-pooling",
        "other-prompt",
        "other-context",
        "precision",
        "backend",
    ],
)
def test_search_embeds_again(run: Run, here, tmp_path_factory, monkeypatch, change) -> None:
    """Old vectors answer for a changed model or option, and nobody notices."""
    folder = write_checkpoint(tmp_path_factory.mktemp("model"))
    lines(here / "notes.txt", CORPUS)
    assert run("search", "notes.txt", "in the", "--model", folder)[0] == 0
    options = change(here, folder)
    counts = count_encoded(monkeypatch)
    found = run("search", "notes.txt", "in the", "--model", folder, *options)
    changed = 1 if change is other_context else len(CORPUS)  # one text is longer than the other context
    assert sum(counts) == changed + 1
    shutil.rmtree(here / KEPT)
    assert run("search", "notes.txt", "in the", "--model", folder, *options) == found


@pytest.mark.parametrize(
    ("texts", "new"),
    [
        ([*CORPUS[:-1], "changed"], 1),
        ([*CORPUS, "one more"], 1),
        (["a first line", *CORPUS], 1),
        (CORPUS[::-1], 0),
        (CORPUS[1:3], 0),
        ([*CORPUS, *CORPUS], 0),
    ],
)
def test_search_embeds_what_is_new(run: Run, use, here, monkeypatch, texts: list[str], new: int) -> None:
    """A changed line embeds the whole file again, or old lines are found where others stand now."""
    lines(here / "notes.txt", CORPUS)
    run("search", "notes.txt", "in the", *use)
    lines(here / "notes.txt", texts)
    counts = count_encoded(monkeypatch)
    found = run("search", "notes.txt", "in the", *use)
    assert sum(counts) == new + 1
    shutil.rmtree(here / KEPT)
    anew = run("search", "notes.txt", "in the", *use)
    assert (found[0], found[2]) == (anew[0], anew[2])
    assert sorted(found[1].splitlines()) == sorted(anew[1].splitlines())


def test_search_shortens_what_it_keeps(run: Run, use, model, here, monkeypatch) -> None:
    """Another number of dimensions embeds the corpus again, or spoils the long vectors that are kept."""
    lines(here / "notes.txt", CORPUS)
    long = run("search", "notes.txt", "in the", *use)
    counts = count_encoded(monkeypatch)
    short = run("search", "notes.txt", "in the", "--dimensions", "8", "-k", "1", *use)[1]
    query = model.encode_query("in the", dimensions=8)
    assert short.startswith(f"{np.max(model.encode_document(CORPUS, dimensions=8) @ query):.4f}\t")
    counts.clear()
    assert run("search", "notes.txt", "in the", *use) == long
    assert sum(counts) == 1, "only the query"


def test_search_knows_a_copy_and_its_like(run: Run, here, tmp_path_factory, monkeypatch) -> None:
    """Files of one size and time pass for one model, or a moved model's vectors are all made again."""
    first, moved = (tmp_path_factory.mktemp(name) / "model" for name in ("first", "moved"))
    write_checkpoint(first)
    other = write_checkpoint(tmp_path_factory.mktemp("other"), parameters=random_parameters(SMALL, seed=9))
    for file in (file for folder in (first, other) for file in folder.rglob("*.safetensors")):
        os.utime(file, (1e9, 1e9))
    lines(here / "notes.txt", CORPUS)
    kept = run("search", "notes.txt", "in the", "--model", first)
    assert run("search", "notes.txt", "in the", "--model", other) != kept
    run("search", "notes.txt", "in the", "--model", first)
    shutil.copytree(first, moved)
    counts = count_encoded(monkeypatch)
    assert run("search", "notes.txt", "in the", "--model", moved) == kept
    assert sum(counts) == 1, "only the query"


def test_search_with_titles(run: Run, use, model, here, monkeypatch) -> None:
    """Titles are not embedded, or vectors made without them answer for passages with them."""
    objects(here / "in.jsonl", [{"text": "in the air", "title": "birds"}, {"text": "the end"}])
    cosines = model.encode_document(["in the air", "the end"], titles=["birds", None]) @ model.encode_query("a")
    run("search", "in.jsonl", "a", *use)
    counts = count_encoded(monkeypatch)
    out = run("search", "in.jsonl", "a", "--title-field", "title", *use)[1]
    assert sum(counts) == 2, "the query, and the text that has a title now"
    assert {line.split("\t")[2]: line.split("\t")[0] for line in out.splitlines()} == {
        "in the air": f"{cosines[0]:.4f}",
        "the end": f"{cosines[1]:.4f}",
    }


@pytest.mark.parametrize("name", ["index.json", "segment-*"])
@pytest.mark.parametrize("content", [b"", b"{}", b"no index at all" * 9, "cut", "gone", "folder"])
def test_search_ignores_a_damaged_kept_file(run: Run, use, here, monkeypatch, name, content: bytes | str) -> None:
    """A file damaged by a full disk stands in the way for ever, or its vectors are believed."""
    lines(here / "notes.txt", CORPUS)
    first = run("search", "notes.txt", "in the", *use)
    (kept,) = (here / KEPT).glob(name)
    if content == "cut":
        kept.write_bytes(kept.read_bytes()[:-3])
    elif isinstance(content, str):
        kept.unlink()
        if content == "folder":
            kept.mkdir()
    else:
        kept.write_bytes(content)
    counts = count_encoded(monkeypatch)
    again = run("search", "notes.txt", "in the", *use)
    assert (again[:2], sum(counts)) == (first[:2], 6)
    if (name, content) == ("index.json", "folder"):
        assert re.fullmatch(r"refembed: .*not kept.*\n", again[2])
    else:
        assert again[2] == ""
        assert run("search", "notes.txt", "in the", *use) == first
        assert sum(counts) == 7, "kept anew"


@pytest.mark.parametrize("make", [Path.touch, lambda path: (path.mkdir(), (path / "mine.txt").touch())])
def test_search_harms_nothing_in_its_place(run: Run, use, here, make) -> None:
    """What somebody else keeps where the vectors would go is overwritten, or stands in the way of a search."""
    lines(here / "notes.txt", CORPUS)
    make(here / KEPT)
    status, out, err = run("search", "notes.txt", "in the", *use)
    assert (status, len(out.splitlines())) == (0, 5)
    assert re.fullmatch(r"refembed: the vectors were not kept: .*\n", err)
    assert (here / KEPT).is_file() or [path.name for path in (here / KEPT).iterdir()] == ["mine.txt"]


def test_search_where_nothing_can_be_kept(run: Run, use, here, monkeypatch) -> None:
    """A corpus on a read-only disk cannot be searched, or is embedded every time without a word."""
    lines(here / "notes.txt", CORPUS)
    expected = run("search", "notes.txt", "in the", *use)
    shutil.rmtree(here / KEPT)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.fsync", refuse)  # a disk that takes no more
    status, out, err = run("search", "notes.txt", "in the", *use)
    assert (status, out) == expected[:2]
    assert re.fullmatch(r"refembed: the vectors were not kept: .*notes.*Permission denied.*\n", err)
    assert [path.name for path in here.iterdir()] == ["notes.txt"]


def test_search_warns_once_of_cut_passages(run: Run, use, here) -> None:
    """The same passages are said to be cut twice."""
    lines(here / "notes.txt", ["the " * 100, "a"])
    assert run("search", "notes.txt", "in the", *use)[2].count("were cut") == 1


# -------------------------------------------------------------------------------------------------------------- inspect
def test_inspect_shows_every_stage(run: Run, use, model) -> None:
    """A token or a stage is missing, or a shape or norm is not that of the tensor."""
    status, out, err = run("inspect", "the end", "--task", "query", *use)
    assert (status, err) == (0, "")
    text = "task: search result | query: the end"
    (ids,) = model.tokenizer([text])
    shown = re.findall(r"^ *(\d+) +(\d+)  ('.*')$", out, re.MULTILINE)
    assert [(int(place), int(id)) for place, id, _ in shown] == list(enumerate(ids.tolist()))
    assert [piece for *_, piece in shown][-4:] == ["'e'", "'n'", "'d'", "'<eos>'"]
    trace = model.encoder.trace(ids)
    stages = {
        name: (shape, float(norm))
        for name, shape, norm in re.findall(r"^(\S+) +([\dx]+) +(\S+) +\S+$", out, re.MULTILINE)
    }
    assert list(stages) == list(trace)
    assert {"embedded", "layer.00.attention.query_rotated", "layer.03.out", "pooled", "projected", "embedding"} <= set(
        stages
    )
    for name, tensor in trace.items():
        assert stages[name][0] == "x".join(map(str, tensor.shape))
        assert stages[name][1] == pytest.approx(np.sqrt((tensor.astype(float) ** 2).sum()), rel=1e-5)
    assert stages["embedding"] == ("40", pytest.approx(1, rel=1e-5))


@pytest.mark.parametrize(
    ("options", "count"),
    [([], 15 + 5 + 2 + 1), (["--task", "none"], 3), (["--prompt", "b"], 4)],
    ids=["", "none", "own"],
)
def test_inspect_prompts(run: Run, use, model, options: list[str], count: int) -> None:
    """What is shown is not what embed would do with the same options."""
    status, out, _ = run("inspect", "a", *options, *use)
    prompt = {"--prompt": "b", "--task": ""}.get(options[0], "") if options else "title: none | text: "
    (ids,) = model.tokenizer([prompt + "a"])
    assert status == 0
    assert f"{len(ids)} tokens" in out


def test_inspect_a_long_text(run: Run, use) -> None:
    """A text beyond the context is shown with more tokens than are used, or its cut goes unsaid."""
    status, out, err = run("inspect", "a" * 100, "--task", "none", *use)
    assert (status, "64 tokens" in out, err.count("cut")) == (0, True, 1)


# --------------------------------------------------------------------------------------------------------------- doctor
def test_doctor(run: Run) -> None:
    """Somebody who asks for help cannot say what is installed, what can run and where models are looked for."""
    status, out, err = run("doctor")
    assert (status, err) == (0, "")
    for part in (f"refembed {refembed.__version__}", f"numpy {np.__version__}", "python 3.", "threads", "hub cache"):
        assert part in out
    assert re.search(r"numpy: can run in float32, float64", out)
    assert re.search(r"loopback: can run", out)
    assert str(Path(refembed.__file__).parent / "default_model") in out


def test_doctor_says_why_not(run: Run, here, monkeypatch) -> None:
    """A backend that cannot run or be imported is not listed, hides the others, or gives no reason."""
    about = here / "others-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[refembed.backends]\nbroken = no_such_module_anywhere:BACKEND\nshy = shy_backend:BACKEND\nodd = json:dumps\n"
    )
    (here / "shy_backend.py").write_text(
        "class Shy:\n    name, priority, precisions = 'shy', 5, ('float32',)\n"
        "    def why_not(self): return 'it needs a full moon; wait'\n    def load(self, *_): raise AssertionError\n"
        "BACKEND = Shy()\n"
    )
    monkeypatch.syspath_prepend(str(here))
    status, out, _ = run("doctor")
    assert status == 0
    assert re.search(r"shy: it needs a full moon; wait", out)
    assert re.search(r"broken: cannot be imported: .*no_such_module_anywhere", out)
    assert re.search(r"odd: .*no refembed backend", out)
    assert re.search(r"numpy: can run", out)


def test_packages_are_looked_through_once(run: Run, use, here, monkeypatch) -> None:
    """Wrong if a command looks through all installed packages for every group of entry points."""
    looked: list[object] = []
    monkeypatch.setattr("importlib.metadata.entry_points", lambda *_, **__: looked.append(here) or found)
    found = entry_points()
    installed.cache_clear()
    (here / "in.jsonl").write_text('{"text": "a"}\n')
    assert run("embed", "-i", "in.jsonl", *use)[0] == 0
    assert len(looked) == 1
    installed.cache_clear()


# ------------------------------------------------------------------------------------------------------ the whole thing
def test_version(run: Run) -> None:
    """A bug report cannot name the version."""
    assert run("--version") == (0, f"refembed {refembed.__version__}\n", "")


# every command, and the options it promises
SURFACE = {
    "embed": "TEXT -i -o --task --prompt --text-field --title-field --id-field --faults --restart --progress "
    "--dimensions --model --backend --precision "
    "--threads --format jsonl npy safetensors parquet --debug",
    "similarity": "QUERY TEXT -i --model --backend --precision --threads --debug",
    "search": "CORPUS QUERY -k --model --backend --precision --threads --debug",
    "index": "add remove list show compact DIR FILE --text-field --title-field --id-field --check --quantize --model",
    "inspect": "TEXT --task --prompt --title --html --with --model --backend --precision --threads --debug",
    "doctor": "--warm --debug",
    "bench": "--model --backend --precision --threads --against --python --workload --rounds --first-time --curve "
    "--stream --json --debug",
}


@pytest.mark.parametrize(("name", "words"), SURFACE.items())
def test_documented_surface(run: Run, name: str, words: str) -> None:
    """A command or option that the design and README name is not there."""
    status, out, _ = run(name, "--help")
    assert status == 0
    missing = [word for word in words.split() if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", out)]
    assert not missing


def test_help_lists_the_commands(run: Run) -> None:
    """A command cannot be found, or what its exit status means."""
    status, out, _ = run("--help")
    assert status == 0
    for name in FIVE:
        assert re.search(rf"^    {name}\s+\w+", out, re.MULTILINE)
    assert "Exit status: 0 done, 1 some inputs failed, 2" in out


@pytest.mark.parametrize("name", FIVE)
def test_help_has_an_example_that_works(run: Run, here, use, name: str) -> None:
    """There is no example to copy, or it does not run as printed."""
    out = run(name, "--help")[1]
    examples = re.findall(rf"^ *refembed ({name}\b.*)$", out, re.MULTILINE)
    assert examples
    lines(here / "notes.txt", ["keys are under the mat", "in the air"])
    lines(here / "answers.txt", ["yes", "no"])
    objects(here / "corpus.jsonl", [{"text": "a", "title": "t"}])
    for example in examples:
        argv = shlex.split(example)
        if "--model" in argv:  # the hub is not to be asked here
            argv[argv.index("--model") + 1] = use[1]
        assert run(*argv)[0] == 0, example


LONG = ["the end in the air"] * 400  # their vectors are more than a pipe holds


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("name", ["embed", "similarity", "search", "inspect"])
def test_reader_gone(use, here, name: str, buffered: bool) -> None:
    """`refembed ... | head -1` ends in complaints about a broken pipe."""
    lines(here / "in.txt", LONG if name == "embed" else ["a", "b"])
    argv = {"embed": ["-i", "in.txt"], "similarity": ["a", "b", "c"], "search": ["in.txt", "a"]}
    environment = USERS if buffered else USERS | {"PYTHONUNBUFFERED": "1"}
    process = start(name, *argv.get(name, ["a"]), *use, env=environment)
    assert process.stdout
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("name", ["embed", "similarity"])
def test_full_disk(use, name: str) -> None:
    """Standard output goes to a full disk, and a script believes that all is well, or cannot tell by an id; or a
    traceback comes.
    """
    with open("/dev/full", "wb") as full:
        process = start(name, "a", "b", *use, stdout=full)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err.decode() == "refembed: standard output: No space left on device [output-unwritable]\n"


@pytest.mark.parametrize("name", ["embed", "similarity", "search", "inspect"])
def test_narrow_terminal_encoding(use, here, name: str) -> None:
    """On a terminal that cannot show a character, or with a file name that is no UTF-8, a traceback comes."""
    corpus = lines(here / os.fsdecode(b"caf\xe9.txt"), ["Ü ✓"])
    argv = {"similarity": ["a", "Ü ✓"], "search": [corpus.name, "a"]}
    environment = USERS | {"PYTHONIOENCODING": "ascii"}
    process = start(name, *argv.get(name, ["Ü ✓"]), *use, env=environment)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    assert out


def test_python_m(use) -> None:
    """python -m refembed, which works where the script is not on the path, does not."""
    done = subprocess.run([sys.executable, "-m", "refembed", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"refembed {refembed.__version__}\n")
