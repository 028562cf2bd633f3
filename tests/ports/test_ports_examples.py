"""The example ports conform, and the mistakes that the C one can be told to make are named by the diagnosis.

How often they are named at other precisions and in other code, tests/conformance/confusion.py prints.
"""

import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compiled_port import CHECKPOINT, SOURCE, STRICT, compile_port
from safetensors.numpy import load_file
from support import sampled
from tokenizers import Tokenizer

import refembed
from refembed.conformance.defects import CONTROLS, DEFECTS
from refembed.conformance.port import CommandPort
from refembed.conformance.suite import Suite, golden_folder, open_suite
from refembed.conformance.verify import LEVELS, Report, verify
from refembed.reference.quantize import INT8_BLOCK, fake_quantize


def ids_of(table: str) -> list[str]:
    """The ids in a table of twin.c."""
    found = re.search(rf"{table}\[\] = \{{(.*?)\}};", SOURCE.read_text(), re.S)
    return re.findall(r'"([a-z0-9-]+)"', found[1] if found else "")


HERE = Path(__file__).parent
LINES = 60  # of a shim: more would be no example
MISTAKES, UNALTERED, OTHERS = ids_of("DEFECTS"), ids_of("CONTROLS"), ids_of("OTHERS")
JUDGED = ("vectors", "prompts", "laws")
# where a mistake leaves the truth first, on a case with every stage stored
FIRST_STAGES = {
    "embedding-scale-rounded": "embedded",
    "norm-offset-missing": "layer.00.attention.norm",
    "query-key-norm-missing": "layer.00.attention.query_norm",
    "rotary-interleaved": "layer.00.attention.query_rotated",
    "scores-not-scaled": "layer.00.attention.scores",
    "causal": "layer.00.attention.weights",
    "gelu-exact": "layer.00.mlp.gated",
    "rotary-sliding-base-everywhere": "layer.02.attention.query_rotated",
    "pool-last": "pooled",
    "dense-missing": "projected",
}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_port(tmp_path_factory.mktemp("port") / "twin", *STRICT)


@pytest.fixture(scope="module")
def suite() -> Suite:
    return open_suite(golden_folder("twin"))


def verify_command(command: str, folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit status and conformance.json of `refembed verify --command`."""
    file = folder / "conformance.json"
    words = ["-m", "refembed", "verify", "--command", command, "--json", file, *options]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # small matrices: more threads only wait for each other
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=one_thread)
    assert file.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(file.read_text())


def check_conforms(status: int, report: dict[str, Any], levels: set[str]) -> None:
    """Right at these levels, with half of the allowed error to spare."""
    judged = [outcome for outcome in report["outcomes"] if outcome["verdict"] != "not asked"]
    assert [outcome for outcome in judged if outcome["verdict"] != "right"] == []
    assert (status, report["conforms"]) == (0, True)
    assert {outcome["level"] for outcome in judged} == levels
    assert report["allowed_error_used"]["share"] <= 0.5


def verify_mistake(port: Path, suite: Suite, mistake: str, **options: Any) -> Report:
    command = CommandPort(f"{port} {CHECKPOINT} --defect {mistake}")
    try:
        return verify(suite, command, **options)
    finally:
        command.close()


def say(program: Path, *lines: bytes, options: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """What the C port answers to lines, sent at once."""
    done = subprocess.run([program, CHECKPOINT, *options], input=b"\n".join(lines) + b"\n", capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    return [json.loads(line) for line in done.stdout.splitlines()]


# the C port


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_c_port_conforms(port: Path, tmp_path: Path, precision: str) -> None:
    """Wrong if JSON and safetensors are not enough to port the model by, or a right port is accused."""
    command = f"{port} {CHECKPOINT} --precision {precision}"
    check_conforms(*verify_command(command, tmp_path, "--precision", precision), set(LEVELS))


def embedded(port: Path, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the table as the C port looks them up, and as they are stored: (tokens, width)."""
    request = json.dumps({"call": "trace", "text": "Mars, known for its red sky.", "stages": ["embedded", "tokens"]})
    ids = json.dumps({"call": "tokenize", "texts": ["Mars, known for its red sky."]})
    traced, tokens = say(port, request.encode(), ids.encode(), options=("--precision", precision))
    table = load_file(CHECKPOINT / "model.safetensors")["embed_tokens.weight"]
    return np.array(traced["stages"]["embedded"]), table[tokens["ids"][0]]


def test_int8_of_c_port_is_the_chapters(port: Path) -> None:
    """Wrong if its blocks, their scales or their rounding are others than chapter 9 says."""
    found, rows = embedded(port, "int8")
    width = rows.shape[1]
    blocks = fake_quantize(np.pad(rows, ((0, 0), (0, -width % 32))), INT8_BLOCK)[:, :width]
    assert np.abs(blocks - rows).max() > 1e-4 * np.abs(rows).max()
    np.testing.assert_allclose(found, blocks * np.float32(np.sqrt(width)), rtol=1e-6)


def test_bfloat16_of_c_port_is_torchs(port: Path) -> None:
    """Wrong if the nearest bfloat16 is another one than torch's, as where ties do not go to the even one."""
    found, rows = embedded(port, "bfloat16")
    scaled = torch.from_numpy(rows).bfloat16().float() * np.float32(np.sqrt(rows.shape[1]))
    assert found.astype(np.float32).tolist() == scaled.bfloat16().tolist()


@pytest.mark.parametrize(
    "options", [["--precision", "float16"], ["--precision"], ["--defect", "none"], ["--fast", "x"]]
)
def test_c_port_refuses_unknown_options(port: Path, options: list[str]) -> None:
    """Wrong if a misspelt option is a silent float32 port without a mistake."""
    done = subprocess.run([port, CHECKPOINT, *options], input=b"", capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"")
    said = {"float16": "no precision float16; there are float32, bfloat16 and int8", "none": "no such mistake"}
    assert said.get(options[-1], "CHECKPOINT [--precision NAME]") in done.stderr.decode()


def test_c_port_changes_its_mistake(port: Path) -> None:
    """Wrong if a mistake told to the running program differs from one it is started with, or outlives the next one."""
    ask = b'{"call":"embed","texts":["Mars is red and","Venus <eos> is a rather long way off"],"dimensions":8}'
    pairs = ["", "causal", "special-tokens-as-text", "causal+special-tokens-as-text"]
    changes = [json.dumps({"call": "start", "protocol": 1, "defect": pair}).encode() for pair in [*pairs, ""]]
    answers = say(port, *(line for change in changes for line in (change, ask)))[1::2]
    started = [say(port, ask, options=("--defect", pair) if pair else ())[0] for pair in [*pairs, ""]]
    assert answers == started
    assert len({json.dumps(answer) for answer in answers}) == len(pairs)


@pytest.mark.parametrize("mistake", sampled(MISTAKES, 4))
def test_mistake_of_c_port_is_named(port: Path, suite: Suite, mistake: str) -> None:
    """Wrong if the diagnosis knows mistakes in the reference only, not the same ones in other code."""
    report = verify_mistake(port, suite, mistake, levels=("tokens", "vectors", "prompts", "laws"))
    assert not report.conforms
    assert [explanation.defect.id for explanation in report.explanations][:1] == [mistake]


@pytest.mark.parametrize("mistake", sampled(FIRST_STAGES))
def test_first_wrong_stage_of_c_port_is_found(port: Path, suite: Suite, mistake: str) -> None:
    """Wrong if a report sends the port's author to another line than the wrong one."""
    whole = [case.id for case in suite.cases if "layer.00.attention.scores" in case.stages]
    report = verify_mistake(port, suite, mistake, levels=("stages",), cases=whole)
    assert report.first_wrong_stage is not None
    assert report.first_wrong_stage[0] == FIRST_STAGES[mistake]


@pytest.mark.parametrize("control", sampled(UNALTERED))
def test_change_of_c_port_that_alters_nothing_conforms(port: Path, suite: Suite, control: str) -> None:
    """Wrong if code that is written otherwise and computes the same is accused."""
    report = verify_mistake(port, suite, control, levels=JUDGED)
    assert report.conforms
    assert not report.explanations


@pytest.mark.parametrize("other", sampled(OTHERS))
def test_mistake_of_c_port_that_no_catalogue_has_is_unknown(port: Path, suite: Suite, other: str) -> None:
    """Wrong if the diagnosis gives a name to what it does not know."""
    report = verify_mistake(port, suite, other, levels=JUDGED)
    assert not report.conforms
    assert not report.explanations


def test_c_ports_mistakes_are_the_catalogues(port: Path) -> None:
    """Wrong if twin.c lists a mistake that it cannot make, makes one that it does not list, or the ids moved on."""
    used = re.findall(r'has\("([a-z0-9-]+)"\)', SOURCE.read_text())
    assert {*MISTAKES, *UNALTERED, *OTHERS} == set(used)
    assert set(MISTAKES) <= {defect.id for defect in DEFECTS}
    assert set(UNALTERED) <= set(CONTROLS)
    assert not set(OTHERS) & ({defect.id for defect in DEFECTS} | set(CONTROLS))
    assert len({defect.family for defect in DEFECTS if defect.id in MISTAKES}) >= 12
    listed = json.loads(subprocess.run([port, "--list"], capture_output=True, check=True).stdout)
    assert {name: list(ids) for name, ids in listed.items()} == {
        "defects": MISTAKES,
        "controls": UNALTERED,
        "others": OTHERS,
    }
    assert all(" " in what for what in listed["others"].values())


def test_c_tokenizer_is_the_librarys(port: Path) -> None:
    """Wrong if the C port's byte-pair encoding differs on texts that no golden case holds."""
    library = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    parts = [*'▁<\x00\\"\t\n é🔴火', "  ", "\n\n\n", "e\u0301", "the ", "planet", "ing"]
    parts += ["<eos>", "<b>", "<unused0>", "<un"]
    chance = random.Random(0)
    texts = ["".join(chance.choices(parts, k=chance.randrange(14))) for _ in range(500)]
    (answer,) = say(port, json.dumps({"call": "tokenize", "texts": texts}, ensure_ascii=False).encode())
    room = json.loads((CHECKPOINT / "config.json").read_text())["max_position_embeddings"] - 2
    assert answer["ids"] == [[2, *library.encode(text, add_special_tokens=False).ids[:room], 1] for text in texts]


BAD_LINES = [
    b"", b" ", b"{", b"[", b'"', b"nul", b"-", b"1e", b"\x00", b"[,]", b"{1:2}", b"[" * 9999, b'{"a":' * 99, b"null",
    b'{"call"', b'{"call":"nothing"}', b'{"call":"start"} x', b'{"call":"start",}', b'{"call":"embed"}',
    b'{"call":"embed","texts":3}', b'{"call":"embed","texts":[3]}', b'{"call":"embed","texts":[null]}',
    b'{"call":"embed","texts":["a"],"dimensions":0}', b'{"call":"embed","texts":["a"],"dimensions":1e300}',
    b'{"call":"embed","texts":["a"],"dimensions":1.5}', b'{"call":"embed","texts":["a"],"dimensions":"x"}',
    b'{"call":"embed","texts":["\\ud83d"]}', b'{"call":"embed","texts":["\\udd34"]}',
    b'{"call":"embed","texts":["\\u00"]}', b'{"call":"embed","texts":["\xff\xfe"]}',
    b'{"call":"embed","texts":["\xe2\x96"]}', b'{"call":"embed","texts":["\xf0"]}',
    b'{"call":"embed","texts":["a\x00b"]}', b'{"call":"embed","plain":[{}]}', b'{"call":"embed","plain":["a"]}',
    b'{"call":"embed","plain":[{"text":"a","task":"nothing"}]}', b'{"call":"trace"}', b'{"call":"trace","text":"a"}',
    b'{"call":"embed","plain":[{"text":"a","task":"query","title":"x"}]}', b'{"call":"start","defect":"causal+x"}',
]  # fmt: skip


def test_c_port_survives_bad_requests(tmp_path: Path) -> None:
    """Wrong if a bad line ends the example port, or makes it touch memory that is not its own."""
    sanitizers = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    program = compile_port(tmp_path / "twin", *STRICT, *sanitizers)
    good = json.dumps({"call": "embed", "texts": ["Mars \\ is red 🔴 <eos>", "x" * 999, ""], "dimensions": 8}).encode()
    traced = json.dumps({"call": "trace", "text": "a b", "stages": ["layer.05.out", "none"]}).encode()
    answers = say(program, *(line for bad in BAD_LINES for line in (bad, good)), traced)
    assert [set(answer) for answer in answers[:-1:2]] == [{"error"}] * len(BAD_LINES)
    assert all(answer == answers[1] for answer in answers[1:-1:2])
    assert np.shape(answers[1]["vectors"]) == (3, 8)
    assert {stage: np.shape(tensor) for stage, tensor in answers[-1]["stages"].items()} == {"layer.05.out": (4, 48)}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "3_Dense/model.safetensors"])
def test_c_port_refuses_a_damaged_checkpoint(port: Path, tmp_path: Path, name: str) -> None:
    """Wrong if the example port computes with half a file."""
    for file in CHECKPOINT.rglob("*"):
        if file.is_file():
            (tmp_path / file.relative_to(CHECKPOINT)).parent.mkdir(exist_ok=True)
            (tmp_path / file.relative_to(CHECKPOINT)).write_bytes(file.read_bytes())
    (tmp_path / name).write_bytes((CHECKPOINT / name).read_bytes()[:-9])
    done = subprocess.run([port, tmp_path], input=b"", capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"twin: ")


# the shims


@pytest.mark.long
def test_sentence_transformers_conforms(tmp_path: Path) -> None:
    """Wrong if a right port in everyday use is accused, or its stages have other names than spec/tensors.md says."""
    shim = HERE / "sentence_transformers_shim.py"
    check_conforms(*verify_command(f"{sys.executable} {shim} {CHECKPOINT}", tmp_path), set(LEVELS))


class Server(BaseHTTPRequestHandler):
    """OpenAI's interface around refembed."""

    model = refembed.load(CHECKPOINT, backend="numpy")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        vectors = self.model.encode(asked["input"], task=None, dimensions=asked["dimensions"])
        data = [{"index": index, "embedding": vector.tolist()} for index, vector in enumerate(vectors)]
        body = json.dumps({"object": "list", "data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/v1/embeddings"
        running.shutdown()


@pytest.mark.filterwarnings("ignore:.*longer than")  # as some cases are meant to be
def test_http_client_conforms(server: str, tmp_path: Path) -> None:
    """Wrong if the bare HTTP client loses digits, order or dimensions on the way."""
    shim = HERE / "http_client_shim.py"
    check_conforms(*verify_command(f"{sys.executable} {shim} {server}", tmp_path), {"vectors", "laws"})


@pytest.mark.parametrize("shim", sorted(HERE.glob("*_shim.py")), ids=lambda path: path.name)
def test_a_shim_is_short(shim: Path) -> None:
    """Wrong if wrapping a port takes more than the page promises."""
    assert len(shim.read_text().splitlines()) <= LINES
