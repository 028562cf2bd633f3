"""Many texts: each its own vector or fault; files larger than memory, and what is left when a run is killed."""

import fcntl
import gzip
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file
from support import SMALL, write_checkpoint

import refembed
from refembed import bulk, progress
from refembed.adapters import parquet as adapter
from refembed.adapters.parquet import Table
from refembed.bulk import encode_each
from refembed.cli import main
from refembed.errors import RefembedError

Run = Callable[..., tuple[int, str, str]]

TEXTS = ["the end", "in the air", "", "birds", "the " * 100]


@pytest.fixture(scope="module")
def model(small_folder) -> refembed.Embedder:
    return refembed.load(small_folder, backend="numpy")


@pytest.mark.parametrize("quantize", [None, "int8", "binary"])
def test_each_text_has_a_vector_or_a_fault(model, quantize) -> None:
    """Wrong if a bad text sinks a good one, a row goes to another text, or a row without a vector looks like one."""
    texts = ["the end", None, "in the air", 5, "\ud800", "birds"]
    found = encode_each(model, texts, quantize=quantize, dimensions=8, task="query")
    good = model.encode_query(["the end", "in the air", "birds"], quantize=quantize, dimensions=8)
    np.testing.assert_array_equal(found.vectors[[0, 2, 5]], good)
    assert found.vectors.dtype == good.dtype
    rest = found.vectors[[1, 3, 4]]
    assert np.isnan(rest).all() if quantize is None else not rest.any()
    assert [fault and fault.id for fault in found.faults] == [
        None, "text-type", None, "text-type", "text-encoding", None]  # fmt: skip


def test_each_with_titles(model) -> None:
    """Wrong if titles move to other texts, or a column of titles that are all empty is refused with a query prompt."""
    titles = ["birds", None, "a"]
    np.testing.assert_array_equal(
        encode_each(model, TEXTS[:3], titles).vectors, model.encode_document(TEXTS[:3], titles=titles)
    )
    queries = encode_each(model, TEXTS[:3], [None] * 3, task="query")
    np.testing.assert_array_equal(queries.vectors, model.encode_query(TEXTS[:3]))


def test_each_of_nothing(model) -> None:
    """Wrong if a part of a table that is empty, or all at fault, ends a job."""
    assert encode_each(model, []).vectors.shape == (0, SMALL.dimensions)
    none = encode_each(model, [None, None], quantize="binary")
    assert (none.vectors.shape, none.vectors.dtype) == ((2, SMALL.dimensions // 8), np.uint8)


@pytest.mark.parametrize(
    ("options", "id"),
    [({"dimensions": 0}, "option-dimensions"), ({"task": "no"}, "option-task"), ({"quantize": "4"}, "option-quantize")],
)
def test_each_refuses_wrong_options(model, options, id) -> None:
    """Wrong if a mistake of the call passes for a fault of every text."""
    with pytest.raises(RefembedError) as caught:
        encode_each(model, ["a"], **options)
    assert caught.value.id == id


# --------------------------------------------------------------------------------------------------------- large files
@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own, with chunks of 8 rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bulk, "ROWS", 8)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], small_folder: Path) -> Run:
    """An embed command in this process: its exit status, standard output and standard error."""

    def command(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["embed", "--model", str(small_folder), "--backend", "numpy", *map(str, argv)])
        return status, *capsys.readouterr()

    return command


WORDS = ["the", "end", "in", "the", "air", "birds", "keys", "are", "under", "a", "mat"]


def ids_of(err: str) -> list[str]:
    """The ids of the errors that were said."""
    return re.findall(r"\[([a-z-]+)\]$", err, re.MULTILINE)


ENTRIES = [
    {"id": f"row {n}", "title": WORDS[n % 3] if n % 4 else None, "text": " ".join(WORDS[n % 5 : 5 + n % 6]) + n * "a"}
    for n in range(43)
]
FAULTY = {3: b"nonsense", 8: b'{"id": "x", "text": 5}', 9: b'{"text": "no id"}', 42: b'{"id": "y", "text": "\xff"}'}
GOOD = [n for n in range(43) if n not in FAULTY]
JOB = ["-i", "in.jsonl.gz", "--title-field", "title", "--id-field", "id"]


def write_input(folder: Path) -> None:
    """43 rows, which are five chunks and three rows; blank lines are none."""
    lines = [FAULTY.get(n) or json.dumps(entry).encode() for n, entry in enumerate(ENTRIES)]
    (folder / "in.jsonl.gz").write_bytes(gzip.compress(b"\n\n".join(lines)))


KILLER = """
import io, json, os, signal, sys
from refembed import bulk, output
from refembed.adapters import parquet_output
from refembed.cli import main

def dying(owner, name, count, last=None):
    real = getattr(owner, name)
    def call(*given, **named):
        nonlocal count
        count -= 1
        if not count:
            if last:
                last(real, *given)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)
    setattr(owner, name, call)

def half(real, log, said, packed):
    whole = io.BytesIO()
    real(bulk.Log(whole), said, packed)
    entry = whole.getvalue()[len(bulk.MAGIC) :]
    log.handle.write(entry[: len(entry) // 2])
    log.handle.flush()

def kill(point, count):
    if point == "chunk":
        dying(bulk, "embed_chunk", count)
    elif point == "torn":
        dying(bulk.Log, "append", count, half)
    elif point == "kept":
        dying(bulk.Log, "append", count, lambda real, *given: real(*given))
    elif point == "joining":
        for form in (*output.FORMS.values(), parquet_output.Parquet):
            dying(form, "join", count, lambda real, form, handle, *rest: (handle.write(b"half"), handle.flush()))
    else:
        dying(bulk, "sync_folder", count)

bulk.ROWS = 8
argv, kills = json.load(sys.stdin)
for format in ("jsonl", "npy", "safetensors", "parquet"):
    for point, count in kills:
        child = os.fork()
        if not child:
            kill(point, count)
            main([*argv, "-o", f"out.{format}", "--faults", f"{format}.faults"])
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, (format, point)
"""
KILLS = [("torn", 1), ("chunk", 2), ("torn", 2), ("kept", 2), ("joining", 1), ("renamed", 1)]


def test_killed_anywhere(run: Run, here, small_folder, monkeypatch, model) -> None:
    """Wrong if a run that was killed before a chunk, amid or after the log's entry of it, while the output is made or
    before the log is gone loses a row, has one twice, or ends in other bytes than one that nobody killed.
    """
    (here / "whole").mkdir()
    for folder in (here, here / "whole"):
        write_input(folder)
    asked = [["embed", *JOB, "--model", str(small_folder), "--backend", "numpy"], KILLS]
    done = subprocess.run(
        [sys.executable, "-c", KILLER], input=json.dumps(asked).encode(), capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    assert re.findall(r"going on after (\d+) rows", done.stderr.decode()) == ["8", "16", "32", "43"] * 4
    texts, titles = [ENTRIES[n]["text"] for n in GOOD], [ENTRIES[n]["title"] for n in GOOD]
    with pytest.warns(UserWarning, match="cut"):
        expected = model.encode_document(texts, titles=titles)
    for format in ("jsonl", "npy", "safetensors", "parquet"):
        names, job = (
            [f"out.{format}", f"{format}.faults"],
            [*JOB, "-o", f"out.{format}", "--faults", f"{format}.faults"],
        )
        assert (here / f"out.{format}.partial").exists()
        status, out, err = run(*job)
        assert (status, out, err.count("going on after 43 rows")) == (1, "", 1)
        np.testing.assert_array_equal(read_vectors(here / names[0]), expected)
        with monkeypatch.context() as patch:
            patch.chdir(here / "whole")
            assert run(*job)[0] == 1
        for name in names:
            assert (here / name).read_bytes() == (here / "whole" / name).read_bytes()
    assert {path.name for path in here.iterdir()} == {"whole", *(path.name for path in (here / "whole").iterdir())}


def read_vectors(file: Path) -> np.ndarray:
    """The vectors of the good rows of test_killed_anywhere, checked to stand beside their own index, id and text."""
    if file.suffix == ".npy":
        table = np.load(file)
        assert np.isnan(table[list(FAULTY)]).all()
        return table[GOOD]
    if file.suffix == ".safetensors":
        found = load_file(file)
        assert found["index"].tolist() == GOOD
        return found["embeddings"]
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.suffix == ".jsonl" else []
    rows = rows or parquet.read_table(file).to_pylist()
    assert [(row["index"], row["id"], row["text"]) for row in rows] == [
        (n, ENTRIES[n]["id"], ENTRIES[n]["text"]) for n in GOOD
    ]
    return np.array([row["embedding"] for row in rows], np.float32)


def test_faults_are_listed(run: Run, here, monkeypatch) -> None:
    """Wrong if a row that was left out cannot be found again, is listed under another's number, or fills the screen."""
    monkeypatch.setattr(bulk, "MOST_LISTED", 3)
    write_input(here)
    _, _, err = run(*JOB, "-o", "out.npy", "--faults", "faults.jsonl")
    listed = [json.loads(line) for line in (here / "faults.jsonl").read_text().splitlines()]
    assert [row["index"] for row in listed] == list(FAULTY)
    assert [row["place"] for row in listed] == [f"in.jsonl.gz:{2 * n + 1}" for n in FAULTY]
    assert [row["id"] for row in listed] == ["line-json", "line-field", "line-field", "line-encoding"]
    assert all(row["reason"] for row in listed)
    assert (err.count("left out in.jsonl.gz"), err.count("left out 4 rows in all")) == (3, 1)
    assert len(re.findall(r"\d+ of 43 texts were longer", err)) == 1, "one warning for all chunks"


def interrupt(monkeypatch: pytest.MonkeyPatch, run: Run, chunks: int, *argv: object) -> None:
    """Run this, and press Ctrl-C after some chunks."""
    real, left = bulk.embed_chunk, [chunks]

    def counted(*given: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(bulk, "embed_chunk", counted)
        assert run(*argv)[0] == 130


OTHERWISE = {
    "dimensions": ["--dimensions", "8"],
    "quantize": ["--quantize", "binary"],
    "on_long": ["--on-long", "error"],
    "prompt": ["--prompt", "see: "],
    "precision": ["--precision", "float64"],
    "threads": ["--threads", "13"],
    "format": ["--format", "safetensors"],
    "text_field": ["--text-field", "body"],
    "title_field": ["--title-field", "title"],
    "id_field": ["--id-field", "id"],
    "input": ["-i", "./in.jsonl"],
}


def test_no_file_takes_anothers_place(run: Run, here) -> None:
    """Wrong if the vectors or the list of faults replace the texts, or each other."""
    (here / "in.jsonl").write_text('{"text": "a text"}\n')
    (here / "link.jsonl").symlink_to("in.jsonl")
    for options in (["-o", "./in.jsonl"], ["-o", "link.jsonl"], ["-o", "out.npy", "--faults", "in.jsonl"],
                    ["-o", "out.npy", "--faults", "./out.npy"]):  # fmt: skip
        status, _, err = run("-i", "in.jsonl", *options)
        assert (status, ids_of(err), (here / "out.npy").exists()) == (2, ["option-input"], False)
    assert (here / "in.jsonl").read_text() == '{"text": "a text"}\n'


def test_other_settings_are_refused(run: Run, here, small_folder, monkeypatch) -> None:
    """Wrong if half a file is of one setting, model or input and half of another, if the user is not told which
    differs, or if the refusal spoils what was there.
    """
    entries = [{"text": f"the end {n}", "title": "a", "body": "b", "id": n} for n in range(30)]
    lines = [json.dumps(entry) + "\n" for entry in entries]
    file = here / "in.jsonl"
    file.write_text("".join(lines))
    job = ["-i", "in.jsonl", "-o", "out.npy"]
    assert run(*job)[0] == 0
    whole = (here / "out.npy").read_bytes()
    interrupt(monkeypatch, run, 2, *job)
    for name, options in OTHERWISE.items():
        status, _, err = run(*job, *options)
        assert (status, ids_of(err), "--restart" in err) == (2, ["output-begun"], True), name
        assert re.search(rf"\b{name} .* and now ", err), err
    shutil.copytree(small_folder, here / "model")
    (here / "model" / "config.json").write_text(
        (small_folder / "config.json").read_text().replace('"rope_theta": 1000000.0', '"rope_theta": 1000.0')
    )
    assert re.search(r"model '\w+' and now '\w+'", run(*job, "--model", here / "model")[2])
    for changed, said in [
        (["{}\n", *lines[1:]], "from row 1 to 8"),
        ([*lines[:15], *lines[16:]], "from row 9 to 16"),
        (lines[:12], "from row 9 to 12"),
        (lines[:8], "more rows than the 8 of the input"),
        ([], "has other rows|more rows than the 0"),
    ]:
        file.write_text("".join(changed))
        assert re.search(said, run(*job)[2])
    file.write_text("".join([*lines[:20], *lines[29:]]))  # what is not done yet may change
    assert (run(*job)[0], np.load(here / "out.npy").shape) == (0, (21, SMALL.dimensions))
    file.write_text("".join(lines))
    interrupt(monkeypatch, run, 2, *job)
    assert run(*job, "--dimensions", "8", "--restart")[0] == 0
    assert np.load(here / "out.npy").shape == (30, 8)
    interrupt(monkeypatch, run, 2, *job)
    assert run(*job)[2] == "refembed: going on after 16 rows\n"
    assert (here / "out.npy").read_bytes() == whole


@pytest.mark.parametrize("place", [0.0, 0.02, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("damage", ["cut", "changed", "sizes"])
def test_a_torn_log(run: Run, here, monkeypatch, place: float, damage: str) -> None:
    """Wrong if what a crash of the machine left of the log is taken for vectors, or ends the job."""
    (here / "in.txt").write_text("".join(f"{text}\n" for text in WORDS * 4))
    assert run("-i", "in.txt", "-o", "out.npy")[0] == 0
    whole = (here / "out.npy").read_bytes()
    interrupt(monkeypatch, run, 4, "-i", "in.txt", "-o", "out.npy")
    log = (here / "out.npy.partial").read_bytes()
    at = int(place * len(log))
    at = max(at, len(bulk.MAGIC)) if damage == "changed" else at
    (here / "out.npy.partial").write_bytes(log[:at] + (b"" if damage == "cut" else b"\0" * 50 + log[at + 50 :]))
    if damage == "sizes":  # of more memory than there is, than an address has, than Python reads as a number
        digits = b"9" * {0.0: 15, 0.02: 18, 0.3: 19, 0.6: 30, 0.99: 5000}[place]
        (here / "out.npy.partial").write_bytes(re.sub(rb"(?m)^(\w{64}) [1-9]\d*", rb"\1 " + digits, log))
    assert run("-i", "in.txt", "-o", "out.npy")[0] == 0
    assert (here / "out.npy").read_bytes() == whole


def test_a_file_that_is_no_log(run: Run, here) -> None:
    """Wrong if another program's file of that name is overwritten."""
    (here / "in.txt").write_text("the end\n" * 30)
    (here / "out.npy.partial").write_text("half a download")
    for options in ([], ["--restart"]):
        assert ids_of(run("-i", "in.txt", "-o", "out.npy", *options)[2]) == ["output-begun"]
    assert (here / "out.npy.partial").read_text() == "half a download"


def test_the_disk_is_full(run: Run, here, monkeypatch) -> None:
    """Wrong if a full disk ends a long run otherwise than in a line, or what was done is lost once there is room."""
    (here / "in.txt").write_text("the end\n" * 30)
    real, left = os.fsync, [3]

    def full(handle: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr("os.fsync", full)
    status, _, err = run("-i", "in.txt", "-o", "out.npy")
    assert (status, ids_of(err)) == (2, ["output-unwritable"])
    assert re.search(r"going on after (8|16) rows", run("-i", "in.txt", "-o", "out.npy")[2])
    assert np.load(here / "out.npy").shape == (30, SMALL.dimensions)


def test_a_folder_that_cannot_be_synced(run: Run, here, monkeypatch) -> None:
    """Wrong if a job fails, its output whole, where the system brings no folder to the disk."""
    (here / "in.txt").write_text("the end\n" * 10)
    real = os.fsync

    def files_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        real(handle)

    monkeypatch.setattr("os.fsync", files_only)
    assert run("-i", "in.txt", "-o", "out.npy")[::2] == (0, "")
    assert {path.name for path in here.iterdir()} == {"in.txt", "out.npy"}


def test_a_private_output(run: Run, here, monkeypatch) -> None:
    """Wrong if the texts of a file that its owner alone may read are, for a while, there for everybody."""
    (here / "in.txt").write_text("the end\n" * 30)
    (here / "out.jsonl").touch(0o600)
    real, modes = os.fsync, set()

    def looked_at(handle: int) -> None:
        modes.update((path.name, path.stat().st_mode & 0o777) for path in here.glob("out.*"))
        real(handle)

    monkeypatch.setattr("os.fsync", looked_at)
    monkeypatch.setattr(Path, "chmod", lambda *given: None)  # which would come after the file was there
    assert run("-i", "in.txt", "-o", "out.jsonl")[0] == 0
    assert modes == {(f"out.jsonl{end}", 0o600) for end in ("", ".partial", ".partial.whole")}


def test_an_input_that_breaks_off(run: Run, here) -> None:
    """Wrong if a file that is cut short passes for whole, or the cut costs what was done before it."""
    content = gzip.compress("".join(f"{n} {n * n}\n" for n in range(30)).encode())
    (here / "in.txt.gz").write_bytes(content[:-12])
    status, out, err = run("-i", "in.txt.gz", "-o", "out.npy")
    assert (status, out, ids_of(err)) == (2, "", ["input-missing"])
    assert {path.name for path in here.iterdir()} == {"in.txt.gz", "out.npy.partial"}
    (here / "in.txt.gz").write_bytes(content)
    assert run("-i", "in.txt.gz", "-o", "out.npy")[2] == "refembed: going on after 24 rows\n"
    assert np.load(here / "out.npy").shape == (30, SMALL.dimensions)


def test_two_processes_on_one_output(run: Run, here, monkeypatch) -> None:
    """Wrong if two runs write into each other's log."""
    (here / "in.txt").write_text("the end\n" * 30)
    interrupt(monkeypatch, run, 1, "-i", "in.txt", "-o", "out.npy")
    before = (here / "out.npy.partial").read_bytes()
    with open(here / "out.npy.partial", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for options in ([], ["--restart"]):
            status, _, err = run("-i", "in.txt", "-o", "out.npy", *options)
            assert (status, ids_of(err)) == (2, ["output-in-use"])
    assert (here / "out.npy.partial").read_bytes() == before
    assert run("-i", "in.txt", "-o", "out.npy")[0] == 0


def test_standard_output_streams(run: Run, here, monkeypatch) -> None:
    """Wrong if lines are held back to the end of the input, or are others than a file's."""
    (here / "in.txt").write_text("".join(f"{text}\n" for text in WORDS * 3))
    assert run("-i", "in.txt", "-o", "out.jsonl")[0] == 0
    whole = (here / "out.jsonl").read_bytes()
    before: list[int] = []
    real = bulk.embed_chunk
    out = io.TextIOWrapper(io.BytesIO(), write_through=True)
    monkeypatch.setattr(bulk, "embed_chunk", lambda *given: (before.append(out.buffer.tell()), real(*given))[1])
    monkeypatch.setattr(sys, "stdout", out)
    run("-i", "in.txt")
    assert out.buffer.getvalue() == whole
    assert before == sorted(set(before)), "each chunk is out before the next is made"


def test_standard_input_goes_on(run: Run, here, monkeypatch) -> None:
    """Wrong if what was piped in cannot be gone on with when it is piped in again."""
    content = "".join(f"{text}\n" for text in WORDS * 3)
    (here / "in.txt").write_text(content)
    assert run("-i", "in.txt", "-o", "whole.npy")[0] == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    interrupt(monkeypatch, run, 2, "-i", "-", "-o", "out.npy")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    assert "going on after 16 rows" in run("-i", "-", "-o", "out.npy")[2]
    assert (here / "out.npy").read_bytes() == (here / "whole.npy").read_bytes()


def test_a_title_that_nobody_has(run: Run, here) -> None:
    """Wrong if a mistyped field is found after all was embedded, or titles that begin late are none."""
    lines = [json.dumps({"text": "a", "title": None if n < 20 else "b"}) + "\n" for n in range(30)]
    (here / "in.jsonl").write_text("".join(lines))
    assert "[title-field]" in run("-i", "in.jsonl", "-o", "out.npy", "--title-field", "titel")[2]
    assert not list(here.glob("out*"))
    assert run("-i", "in.jsonl", "-o", "out.npy", "--title-field", "title")[0] == 0


def test_ids_of_two_kinds(run: Run, here) -> None:
    """Wrong if a column of ids cannot be of one type, or no id at all passes for one."""
    ids = [1, "1", 2, None, True, 2**63, "\ud800"]
    (here / "in.jsonl").write_text("".join(json.dumps({"text": "a", "id": id}) + "\n" for id in ids))
    status, _, err = run("-i", "in.jsonl", "-o", "out.parquet", "--id-field", "id")
    assert (status, re.findall(r"in\.jsonl:(\d): 'id'", err)) == (1, ["2", "4", "5", "6", "7"])
    assert parquet.read_table("out.parquet")["id"].to_pylist() == [1, 2]


def test_progress_without_a_terminal(run: Run, here, monkeypatch) -> None:
    """Wrong if a log file has no line to tell how long it will take, or one that nobody asked for."""
    (here / "in.txt").write_text("the end\n" * 40)
    monkeypatch.setattr(progress, "SECONDS_OF_A_LOG", 0)
    assert run("-i", "in.txt", "-o", "out.npy")[2] == ""
    lines = run("-i", "in.txt", "-o", "out.npy", "--progress")[2].splitlines()
    assert len(lines) == 5
    assert all(re.fullmatch(r"refembed: \d+/~40 texts, \d+\.\d/s, \d+ s left", line) for line in lines)
    parquet.write_table(pa.table({"text": ["the end"] * 40}), "in.parquet")
    lines = run("-i", "in.parquet", "-o", "out.npy", "--progress")[2].splitlines()
    assert lines[0].startswith("refembed: 8/40 texts, ")


MEASURED = """
import sys, resource
import numpy as np
from refembed import numpy_backend
from refembed.cli import main

def quick(self, batch):
    rows = np.array([np.cos(np.arange(self.config.dimensions) * ids.sum()) for ids in batch], np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)

numpy_backend.NumpyEncoder.encode = quick
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


# with one for each thread of the tokenizers library, what each keeps for itself is up to chance
ONE_ARENA = {"MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
@pytest.mark.parametrize("format", ["jsonl", "npy", "parquet", "safetensors"])
@pytest.mark.long
def test_memory_is_flat(here, format: str) -> None:
    """Wrong if memory grows with the number of rows: 25,000 texts more would be 23 MiB, and as many vectors 24."""
    folder, peaks = write_checkpoint(here / "model", replace(SMALL, dimensions=256)), []
    for count in (5_000, 30_000):
        table = pa.table({"text": ["the end in the air " * 55] * count})  # one text: the tokenizer keeps words
        parquet.write_table(table, "in.parquet", row_group_size=1_000)
        (here / "in.txt").write_text("".join(f"{text}\n" for text in table["text"].to_pylist()))
        source = "in.parquet" if format == "parquet" else "in.txt"
        argv = ["embed", "-i", source, "-o", f"out.{format}", "--model", str(folder), "--backend", "numpy"]
        code = f"import subprocess; subprocess.run([{sys.executable!r}, '-c', {MEASURED!r}, *{argv!r}], check=True)"
        between = [sys.executable, "-S", "-c", code]  # a small process, since ru_maxrss is inherited
        done = subprocess.run(between, capture_output=True, text=True, env=os.environ | ONE_ARENA)
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < 16, peaks


def test_numbers_do_not_depend_on_neighbours(model, small_folder) -> None:
    """Wrong if a chunk's other texts change a vector's last bit, so that where a chunk ends could be seen."""
    texts = [entry["text"][:40] for entry in ENTRIES]
    for one in (model, refembed.load(small_folder, backend="numba")):
        ids = one.prepare(texts)
        together = one.encode_tokens(ids, 8)
        for start in (0, 7, 40):
            np.testing.assert_array_equal(one.encode_tokens(ids[start : start + 3], 8), together[start : start + 3])


# -------------------------------------------------------------------------------------------------------------- Parquet
TEXT_TYPES = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("type", TEXT_TYPES, ids=str)
@pytest.mark.parametrize("id_type", [pa.int32(), pa.string(), pa.uint64()], ids=str)
def test_parquet_types(run: Run, here, model, type: pa.DataType, id_type: pa.DataType) -> None:
    """Wrong if a kind of text column is refused or read as other texts, ids change, or a null row sinks the file."""
    texts, ids = ["the end", None, "Ü \U0001f600", "", "in the air"] * 4, list(range(20))
    columns = {
        "other": pa.array([[1]] * 20),
        "body": pa.array(texts, pa.string()).cast(type),
        "key": pa.array(ids).cast(id_type),
    }
    parquet.write_table(pa.table(columns), "in.parquet", row_group_size=7)
    job = ["-i", "in.parquet", "--text-field", "body", "--id-field", "key", "-o", "out.parquet"]
    status, _, err = run(*job)
    assert (status, re.findall(r"left out in\.parquet:(\d+): ", err)) == (1, ["2", "7", "12", "17"])
    found = parquet.read_table("out.parquet")
    good = [n for n in range(20) if n % 5 != 1]
    assert found["index"].to_pylist() == good
    assert found["id"].to_pylist() == ([str(n) for n in good] if id_type == pa.string() else good)
    assert found["text"].to_pylist() == [texts[n] for n in good]
    expected = model.encode_document([texts[n] for n in good])
    np.testing.assert_array_equal(np.array(found["embedding"].to_pylist(), np.float32), expected)


@pytest.mark.parametrize(
    ("quantize", "type"),
    [(None, pa.list_(pa.float32(), 40)), ("int8", pa.list_(pa.int8(), 40)), ("binary", pa.list_(pa.uint8(), 5))],
)
@pytest.mark.parametrize("texts", [["the end", "a"] * 9, []])
def test_parquet_embeddings(run: Run, here, model, texts, quantize, type) -> None:
    """Wrong if a reader cannot tell how long a row is, or a table of no rows has other columns."""
    (here / "in.txt").write_text("".join(f"{text}\n" for text in texts))
    options = ["--quantize", quantize] if quantize else []
    assert run("-i", "in.txt", "-o", "out.parquet", *options)[0] == 0
    found = parquet.read_table("out.parquet")
    assert found.schema.field("embedding").type.equals(type)
    assert found.column_names == ["index", "text", "embedding"]
    expected = model.encode_document(texts, quantize=quantize)
    assert found["embedding"].to_pylist() == expected.tolist()


def test_parquet_refused(run: Run, here) -> None:
    """Wrong if a column that is not there, or is no text, or a file that is none, ends in a traceback."""
    parquet.write_table(pa.table({"text": [1, 2], "key": [1.5, 2.5], "body": ["a", "b"]}), "in.parquet")
    (here / "none.parquet").write_text("a\n")
    for argv, word, id in [
        (["--text-field", "titel"], "'titel'.*'key', 'body'", "input-columns"),
        ([], "'text' is int64", "input-columns"),
        (["--text-field", "body", "--id-field", "key"], "'key' is double", "input-columns"),
        (["--text-field", "body", "--title-field", "key"], "'key' is double", "input-columns"),
        (["-i", "none.parquet"], "none.parquet", "input-missing"),
        (["-i", "absent.parquet"], "absent.parquet", "input-missing"),
    ]:
        status, _, err = run("-i", "in.parquet", "-o", "out.npy", *argv)
        assert (status, err.count("\n")) == (2, 1)
        assert re.search(rf"{word}.*\[{id}\]", err), err
    assert not (here / "out.npy").exists()


def test_parquet_with_bad_bytes(run: Run, here) -> None:
    """Wrong if one value that is no UTF-8 sinks the file."""
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"], pa.binary()).buffers())
    parquet.write_table(pa.table({"text": bad}), "in.parquet")
    status, out, err = run("-i", "in.parquet")
    assert (status, len(out.splitlines())) == (1, 1)
    assert re.search(r"in\.parquet:2: .*\[text-encoding\]", err)


def test_parquet_reads_as_it_goes(here, monkeypatch) -> None:
    """Wrong if a table is read whole before its first row, or its number of rows is not known from the start."""
    parquet.write_table(pa.table({"text": ["a"] * 5000}), "in.parquet", row_group_size=1000)
    table, read = Table("in.parquet"), []
    assert table.expected() == 5000
    real = adapter.cells_of
    monkeypatch.setattr(adapter, "cells_of", lambda column: (read.append(len(column)), real(column))[1])
    rows = iter(table)
    next(rows)
    assert sum(read) == 1024
    assert (sum(1 for _ in rows), sum(read)) == (4999, 5000)


def test_without_pyarrow(run: Run, here, monkeypatch) -> None:
    """Wrong if the user of a light install is not told what to install, or pyarrow is imported where none is needed."""
    code = (
        "import sys; from refembed.cli import main; main(['embed', 'a', '-o', 'o.npy', '--backend', 'numpy']);"
        "assert not [name for name in sys.modules if name.startswith('pyarrow')];"
        "sys.modules['pyarrow'] = None; sys.exit(main(['embed', 'a', '-o', 'o.parquet']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert ids_of(done.stderr) == ["arrow-missing"]
    assert "pip install 'refembed[arrow]'" in done.stderr
    assert not (here / "o.parquet").exists()
