"""refembed bench: what is timed, what it is held against, and a sitting on a small model with stand-in peers."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
from support import SMALL

from refembed.bench.laws import curve_report, operations, stream_report
from refembed.bench.report import as_text
from refembed.bench.results import Subject, collect
from refembed.bench.workload import lengths, make_workload
from refembed.cli import main
from refembed.prompts import PROMPTS
from refembed.reference import FULL, Config

REAL = Config()
WORK = {"queries": ["the end", "in the air", "a thing"], "docs": ["in the end the air", "b"] * 3, "long": ["the " * 6]}


# ------------------------------------------------------------------------------------------------------------ the texts
@pytest.fixture(scope="module")
def count(weights: Path) -> Any:
    """Tokens of a text, by the released tokenizer and the library it was made for."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(weights / "tokenizer.json"))
    return lambda text: len(library.encode(text).ids)


@pytest.fixture(scope="module")
def built_in(count: Any) -> dict[str, Any]:
    return make_workload(None, {}, 2048, count)


def test_built_in_workload_has_its_shape(built_in, count) -> None:
    """Wrong if texts are not as long as the report says, all of one length, or stand behind another prompt."""
    work = built_in
    counted = {kind: [count(text) for text in work[kind]] for kind in ("queries", "documents", "long")}
    assert counted == work["tokens"]
    assert (len(work["queries"]), len(work["documents"]), counted["long"]) == (40, 128, [2000])
    assert mean(counted["queries"]) == 18
    assert mean(counted["documents"]) == 122
    assert min(counted["documents"]) < 40
    assert np.percentile(counted["documents"], [25, 50, 75]) == pytest.approx([67, 104, 161], rel=0.1)  # of manuals
    assert max(counted["documents"]) > 350
    assert all(text.startswith(PROMPTS["query"]) for text in work["queries"])
    assert all(text.startswith(PROMPTS["document"]) for text in work["documents"] + work["long"])
    assert len(set(work["documents"])) == 128


def test_built_in_workload_stays(built_in) -> None:
    """Wrong if other texts are timed than last time: numbers of two versions could not be compared."""
    texts = "\n".join(built_in["queries"] + built_in["documents"] + built_in["long"])
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "e263e88c6e305d20"


@pytest.mark.parametrize(("number", "average"), [(40, 18), (128, 122), (7, 31)])
def test_lengths_have_their_mean(number: int, average: int) -> None:
    """Wrong if rounding moves the mean, or a text has no room for its prompt."""
    sizes = lengths(number, average)
    assert (len(sizes), sum(sizes)) == (number, number * average)
    assert min(sizes) > 10


def test_workload_fits_a_small_context() -> None:
    """Wrong if a text is longer than the model takes."""
    work = make_workload(None, {}, 64, lambda text: len(text) + 2)
    assert max(work["tokens"]["documents"] + work["tokens"]["long"]) == 64


# ------------------------------------------------------------------------------------------------------------- the laws
@pytest.mark.parametrize("tokens", [1, 2, 5, 6, 40])
def test_operations(tokens: int) -> None:
    """Wrong if an operation is left out or counted twice: every product of the forward pass, by hand."""
    c = SMALL
    queries, keys = c.heads * c.head, c.key_heads * c.head
    products = c.width * (2 * queries + 2 * keys + 3 * c.mlp)
    pairs = {
        kind: sum(kind == FULL or abs(i - j) <= c.reach for i in range(tokens) for j in range(tokens))
        for kind in c.layer_kinds
    }
    attention = sum(2 * c.heads * c.head * pairs[kind] for kind in c.layer_kinds)
    dense = c.dense * (c.width + c.dimensions)
    assert operations(c, tokens) == 2 * (len(c.layer_kinds) * tokens * products + attention + dense)


SIZES = [8, 16, 32, 64, 128, 256, 512, 1024, 2048]


def spent(full_layers: int, per_token: float = 1e-4) -> list[float]:
    """Seconds of a model whose work takes 202.9 MFLOP a token and 3,072 a pair in this many layers."""
    return [per_token * (202_899_456 * n + full_layers * 3072 * n * n) / 202_899_456 for n in SIZES]


def test_curve_of_the_right_cost() -> None:
    """Wrong if cost that grows as it should is called steeper, or is predicted otherwise."""
    report = curve_report(REAL, SIZES, spent(4))
    assert [row["predicted_ms"] for row in report["rows"]] == pytest.approx([1e3 * one for one in spent(4)])
    assert report["rows"][4]["us_per_token"] == pytest.approx(1e6 * spent(4)[4] / 128)
    assert report["as_predicted"] is True


def test_curve_without_windows() -> None:
    """Wrong if a model whose sliding layers look at everything passes for one of linear cost."""
    assert curve_report(REAL, SIZES, spent(24))["as_predicted"] is False


def test_curve_too_short_to_tell() -> None:
    """Wrong if a verdict is given on lengths that were not measured."""
    assert curve_report(REAL, SIZES[:7], spent(4)[:7])["as_predicted"] is None


def stream(speed: Any, resident: Any, batches: int = 40) -> dict[str, Any]:
    """The report on batches of 100 texts and 2,000 tokens: speed and resident memory by batch."""
    samples, seconds = [[0, 0, 0.0, 500.0]], 0.0
    for number in range(1, batches + 1):
        seconds += 2000 / speed(number)
        samples.append([100 * number, 2000 * number, seconds, resident(number)])
    return stream_report(samples, 768)


def test_steady_stream() -> None:
    """Wrong if a steady stream is blamed, its figures are not those of its tenths, or its vectors count as a leak."""
    report = stream(lambda _: 1000, lambda number: 500 + 100 * number * 768 * 4 / 2**20)
    assert [row["texts"] for row in report["rows"]] == list(range(400, 4001, 400))
    assert [row["tokens_per_s"] for row in report["rows"]] == pytest.approx([1000] * 10)
    assert (report["throughput_kept"], report["memory_flat"]) == (True, True)


def test_stream_that_slows_and_grows() -> None:
    """Wrong if a stream that loses a fifth of its speed or keeps a MiB a batch passes for steady."""
    report = stream(lambda number: 1000 - 200 * (number > 30), lambda number: 500 + number)
    assert (report["throughput_kept"], report["memory_flat"]) == (False, False)
    assert stream(lambda _: 1000, lambda _: 500, batches=1)["throughput_kept"] is None


# ---------------------------------------------------------------------------------------------------------- the results
def subject(name: str, vectors: Any, failed: str | None = None, **readings: Any) -> Subject:
    """A subject with two rounds of readings: 3 queries, 2 documents in two batch sizes, a long text."""
    rounds = [
        {"query": [0.010, 0.020, 0.030], "documents": {"1": 2.0, "8": 4.0}, "long": [3.0]},
        {"query": [0.040, 0.050, 0.200], "documents": {"1": 1.0, "8": 0.5}, "long": [5.0]},
    ]
    kind = "refembed" if name.startswith("refembed") else name
    settings = {"precision": name.split()[-1]} if kind == "refembed" else {"path": ""}
    rounds = [one | {"vectors": vectors, "memory": 99.0, "version": "1"} for one in rounds]
    return Subject(name, kind, "", settings, failed=failed, rounds=rounds, starts=[9.0, 2.0, 4.0], **readings)


def results(*subjects: Subject) -> dict[str, Any]:
    tokens = {"queries": [10] * 3, "documents": [100, 200], "long": [2000]}
    work = {"queries": ["q"] * 3, "documents": ["d", "e"], "long": ["l"], "tokens": tokens}
    more = {"model": "M", "threads": 1, "rounds": 2}
    return more | collect(subjects, work, REAL, [100.0, 300.0, 200.0])


def test_figures_of_a_subject() -> None:
    """Wrong if a figure is not the one its name says: by hand from the readings."""
    (row,) = results(subject("refembed float32", np.eye(2, 4)))["subjects"]
    assert row["query_p50_ms"] == pytest.approx(35)  # between 30 and 40
    assert row["query_p95_ms"] == pytest.approx(162.5)  # a quarter of the way from 50 to 200 is left
    assert (row["batch"], row["documents_per_s"], row["tokens_per_s"]) == ("1", pytest.approx(2 / 1.5), 200)
    assert (row["long_s"], row["start_s"], row["peak_memory_mib"]) == (4, 3, 99)
    flop = 0.2029e9 * 300 + 3072 * sum(24 * n * n for n in (100, 200)) + 2 * 9.44e6
    assert row["peak_share"] == pytest.approx(flop / 1.5 / 300e9, rel=1e-3)
    assert (row["cosine_mean"], row["cosine_least"]) == (1, 1)


def test_figures_of_training() -> None:
    """Wrong if a step is not three forward passes, the first step counts, or a device is held against the CPU."""
    steps = [{"seconds": s, "loss": loss, "device_gflops": None} for s, loss in ((9.0, 3.0), (2.0, 2.0), (4.0, 1.0))]
    tokens = {"queries": [10] * 3, "documents": [100, 200], "long": [2000], "training": [100, 200, 300]}
    work = {"queries": ["q"] * 3, "documents": ["d", "e"], "long": ["l"], "tokens": tokens}
    on_device = [one | {"device_gflops": 600.0} for one in steps]
    subjects = [
        subject("refembed float32", None, training=steps),
        subject("refembed bfloat16", None, training=on_device),
    ]
    found = {"model": "M", "threads": 1, "rounds": 2} | collect(subjects, work, REAL, [300.0])
    on_cpu, on_cuda = (row["training"] for row in found["subjects"])
    assert (on_cpu["step_ms"], on_cpu["tokens_per_s"], on_cpu["loss"]) == (3000, 200, 3.0)
    flop = 3 * (0.2029e9 * 600 + 3072 * sum(24 * n * n for n in (100, 200, 300)) + 3 * 9.44e6)
    assert on_cpu["peak_share"] == pytest.approx(flop / 3 / 300e9, rel=2e-2)  # 300 tokens are beyond the window
    assert on_cuda["peak_share"] == pytest.approx(on_cpu["peak_share"] / 2)
    assert "a step of training on 1 queries" in as_text(found)
    assert "training" not in results(subject("refembed float32", None))["subjects"][0]


def test_a_device_is_held_against_its_own_peak() -> None:
    """Wrong if what CUDA does is given as a share of what the CPU can do."""
    on_cpu, on_cuda = subject("refembed float32", None), subject("refembed bfloat16", None)
    on_cuda.rounds = [one | {"device_gflops": 1500.0} for one in on_cuda.rounds]
    found = results(on_cpu, on_cuda)
    first, second = (row["peak_share"] for row in found["subjects"])
    assert second == pytest.approx(first / 5)
    assert "refembed bfloat16: against 1500 GFLOP/s (bfloat16, 8192 cubed, on its device)" in as_text(found)


def test_unfair_peer_shows() -> None:
    """Wrong if a peer with other vectors looks as good, or vectors are compared with the wrong one's."""
    right, other = np.eye(2, 4), np.array([[0.8, 0.6, 0, 0], [0, 1, 0, 0]])
    rows = results(subject("refembed int8", other), subject("refembed float32", right))["subjects"]
    assert [(row["cosine_mean"], row["cosine_least"]) for row in rows] == [pytest.approx((0.9, 0.8)), (1, 1)]
    rows = results(subject("refembed float32", right), subject("sentence-transformers", other))["subjects"]
    assert [row["cosine_least"] for row in rows] == pytest.approx([0.8, 1]), "the best known implementation decides"
    rows = results(subject("onnxruntime", np.full((2, 4), np.nan)), subject("refembed float32", right))["subjects"]
    assert rows[0]["cosine_least"] == -1


def test_partly_measured_subject_keeps_its_row() -> None:
    """Wrong if what was measured before a failure is lost, or the failure is."""
    found = results(subject("refembed float32", np.eye(2, 4), failed="it broke"))
    assert "tokens_per_s" in found["subjects"][0]
    text = as_text(found)
    assert "refembed float32 failed: it broke" in text
    assert " 200 " in text


# ------------------------------------------------------------------------------------------------------ a whole sitting
# Stand-ins for other people's libraries: the reference behind their interfaces, told by its "graph" what to do wrong.
GRAPH = """
import json, os, sys
import numpy as np
from refembed.checkpoint import open_checkpoint
from refembed.reference import encode_tokens

class Graph:
    def __init__(self, path):
        self.about = json.load(open(path))
        from pathlib import Path
        checkpoint = open_checkpoint(Path(self.about["model"]))
        self.config, self.parameters = checkpoint.config, checkpoint.parameters(np.float32)
        self.ballast = np.ones(self.about.get("ballast_mib", 0) * 2**17)
        self.calls = 0
        print("what libraries print must not reach the answers")

    def __call__(self, feeds):
        self.calls += 1
        if self.calls > self.about.get("dies_after", 10**9):
            print("Segmentation fault, more or less", file=sys.stderr, flush=True)
            os._exit(3)
        ids, mask = feeds["input_ids"], feeds["attention_mask"]
        assert ids.dtype == mask.dtype == np.int64 and set(np.unique(mask)) <= {0, 1}
        states = np.full((*ids.shape, self.config.width), 1e3, np.float32)  # where the mask is 0
        for row, keep in enumerate(mask.astype(bool)):
            states[row, keep] = encode_tokens(ids[row, keep], self.parameters, self.config)
        return [states * np.float32(1)]
"""
MODULES = {
    "onnxruntime": """
from stand_in_graph import Graph
class SessionOptions: pass
class InferenceSession(Graph):
    def __init__(self, path, options, providers):
        assert options.intra_op_num_threads == 1 and providers == ["CPUExecutionProvider"]
        super().__init__(path)
    def run(self, outputs, feeds):
        return self(feeds)
""",
    "openvino": """
from stand_in_graph import Graph
class Core:
    def read_model(self, path):
        return Graph(path)
    def compile_model(self, graph, device, settings):
        assert settings["INFERENCE_NUM_THREADS"] == 1 and settings["INFERENCE_PRECISION_HINT"] == "f32"
        assert ("DYNAMIC_QUANTIZATION_GROUP_SIZE" in settings) == hasattr(graph, "int8")
        graph.create_infer_request = lambda: graph
        graph.infer = graph
        return graph
""",
    "nncf": """
class CompressWeightsMode: INT8_SYM = "INT8_SYM"
def compress_weights(graph, mode):
    graph.int8 = mode
    for name, matrix in graph.parameters.items():
        if name.startswith("layers.") and matrix.ndim == 2:
            graph.parameters[name] = matrix[::-1]
    return graph
""",
    "torch": "float32 = 'float32'\ndef set_num_threads(threads): assert threads == 1\n",
    "sentence_transformers": """
import refembed
class SentenceTransformer:
    def __init__(self, folder, device, model_kwargs):
        assert device == "cpu" and model_kwargs == {"dtype": "float32"}
        self.model = refembed.load(folder, backend="numpy")
    def encode(self, texts, batch_size, normalize_embeddings, show_progress_bar):
        assert batch_size == len(texts) in (1, 2, 6, 8) and normalize_embeddings
        return self.model.encode(texts, task=None)
""",
    "probe_backend": """
import json, os
from refembed.numpy_backend import NumpyBackend
class Probe(NumpyBackend):
    name, priority = "probe", -1
    def load(self, checkpoint, precision, threads):
        cache = os.environ.get("REFEMBED_CACHE")
        with open(os.environ["PROBE_LOG"], "a") as log:
            print(json.dumps([cache, os.listdir(cache) if cache else None, os.environ["OMP_NUM_THREADS"]]), file=log)
        return super().load(checkpoint, precision, threads)
    def training(self, checkpoint, precision, threads, columns):
        with open(os.environ["PROBE_LOG"], "a") as log:
            print(json.dumps([precision, threads, [[ids.tolist() for ids in column] for column in columns]]), file=log)
        losses = iter([2.5, 2.25, 2.125])
        return lambda: next(losses)
BACKEND = Probe()
""",
}
# 1,000 tokens a second in short prompts, 2,000 in long ones
LLAMA_BENCH = """#!/bin/sh
exec {python} - "$@" <<'END'
import json, sys
told = dict(zip(sys.argv[1::2], sys.argv[2::2]))
sizes = [int(size) for size in told["-p"].split(",")]
assert told["-n"] == "0" and told["-t"] == "1" and int(told["-ub"]) == int(told["-b"]) == max(sizes)
print("llama.cpp says something first")
print(json.dumps([{{"n_prompt": n, "build_commit": "abc", "samples_ns": [10**6 * n // (1 + (n > 200))] * 3}}
                  for n in sizes]))
END
"""


def stand_ins(folder: Path, model: Path) -> dict[str, str]:
    """The environment in which the stand-ins are found."""
    for name, source in {"stand_in_graph": GRAPH, **MODULES}.items():
        (folder / f"{name}.py").write_text(source)
    about = folder / "probe-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[refembed.backends]\nprobe = probe_backend:BACKEND\n")
    (folder / "llama-bench").write_text(LLAMA_BENCH.format(python=sys.executable))
    (folder / "llama-bench").chmod(0o755)
    (folder / "work.json").write_text(json.dumps(WORK))
    for name, more in {"good": {"ballast_mib": 150}, "bad": {"dies_after": 3}}.items():
        (folder / f"{name}.onnx").write_text(json.dumps({"model": str(model), **more}))
    return {
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(folder),
        "LLAMA_BENCH": str(folder / "llama-bench"),
        "PROBE_LOG": str(folder / "probe.log"),
    }


def command(environment: dict[str, str], *argv: object) -> "subprocess.CompletedProcess[str]":
    hurry = "import refembed.bench.runner as r, refembed.cli as c; r.SETTLE_S = 0; raise SystemExit(c.main())"
    call = [sys.executable, "-c", hurry, "bench", *map(str, argv)]
    clean = {key: value for key, value in os.environ.items() if key not in ("REFEMBED_CACHE", "OMP_NUM_THREADS")}
    return subprocess.run(call, env=clean | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def sitting(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any], Path]:
    """refembed in two precisions and every peer, one of them twice, of which one breaks."""
    folder = tmp_path_factory.mktemp("stand-ins")
    environment = stand_ins(folder, small_folder)
    peers = [f"{name}={folder}/good.onnx" for name in ("onnxruntime", "openvino", "openvino-int8")]
    peers += [f"onnxruntime={folder}/bad.onnx", "sentence-transformers", f"llama.cpp={folder}/m.gguf"]
    against = [word for peer in peers for word in ("--against", peer)]
    done = command(
        environment, "--model", small_folder, "--backend", "probe", "--precision", "float32,float64", "--rounds", 1,
        "--workload", folder / "work.json", "--first-time", "--curve", "--stream", 600, "--json", folder / "out.json",
        *against,
    )  # fmt: skip
    assert (folder / "out.json").exists(), done.stderr
    found = json.loads((folder / "out.json").read_text())
    return done, {row["name"]: row for row in found.pop("subjects")} | found, folder


@pytest.mark.long
def test_everything_is_measured(sitting) -> None:
    """Wrong if a figure is missing, impossible, or not in the table."""
    done, found, _ = sitting
    assert done.stderr == ""
    for name in ("refembed probe float32", "refembed probe float64", "onnxruntime good.onnx", "openvino good.onnx"):
        row = found[name]
        assert row["failed"] is None
        assert 0 < row["query_p50_ms"] <= row["query_p95_ms"]
        assert row["documents_per_s"] * mean([40, 23]) == pytest.approx(row["tokens_per_s"], rel=0.2)
        assert 0 < row["peak_share"] < 1
        assert 0.02 < row["start_s"] < 60, "less than an interpreter's own start"
        assert f"\n{name}  " in done.stdout
        assert f"{row['query_p50_ms']:.1f}" in done.stdout
    assert found["matrix_peak_gflops"] == max(found["matrix_readings"])
    assert len(found["matrix_readings"]) > 7
    assert found["workload"]["documents"]["texts"] == 6


@pytest.mark.long
def test_peers_vectors_are_right(sitting) -> None:
    """Wrong if an adapter forgets the mask, the mean or a dense matrix, or mixes up the order of texts."""
    found = sitting[1]
    for name in ("refembed probe float32", "refembed probe float64", "onnxruntime good.onnx", "openvino good.onnx"):
        assert found[name]["cosine_least"] == pytest.approx(1, abs=1e-6)
    assert found["openvino-int8 good.onnx"]["cosine_least"] < 0.9999, "its weights were changed"
    assert found["llama.cpp m.gguf"]["cosine_least"] is None


@pytest.mark.long
def test_failing_peer_sinks_no_other(sitting) -> None:
    """Wrong if a peer that breaks goes unnoticed, gives no reason, or takes the rest with it."""
    done, found, _ = sitting
    reason = "its process ended with 3: Segmentation fault, more or less"
    assert done.returncode == 1
    assert found["onnxruntime bad.onnx"]["failed"] == reason
    assert f"onnxruntime bad.onnx failed: {reason}" in done.stdout
    assert [name for name, row in found.items() if isinstance(row, dict) and row.get("failed")] == [
        "onnxruntime bad.onnx"
    ]


@pytest.mark.long
def test_llama_bench_figures(sitting) -> None:
    """Wrong if llama-bench's nanoseconds become other figures, or nobody says that it does not tokenise."""
    done, found, _ = sitting
    row = found["llama.cpp m.gguf"]
    queries = found["workload"]["queries"]["mean_tokens"]
    assert row["query_p50_ms"] == pytest.approx(round(queries))
    assert (row["tokens_per_s"], row["batch"]) == (pytest.approx(2000), "pp512")
    assert row["long_s"] == pytest.approx(1e-3 * found["workload"]["long"]["most"])
    assert (row["start_s"], row["version"]) == (None, "abc")
    assert "tokenising left out" in done.stdout


@pytest.mark.long
def test_memory_is_the_subjects_own(sitting) -> None:
    """Wrong if a subject's peak holds what another one needed: one has 150 MiB more than the other."""
    found = sitting[1]
    heavy, light = (found[name]["peak_memory_mib"] for name in ("openvino good.onnx", "refembed probe float32"))
    assert 120 < heavy - light < 250
    assert 20 < light < 200


@pytest.mark.long
def test_first_time_starts_with_an_empty_cache(sitting) -> None:
    """Wrong if "first time" finds compiled code, or every start is a first one; or threads are not the number asked."""
    _, found, folder = sitting
    starts = [json.loads(line) for line in (folder / "probe.log").read_text().splitlines()]
    assert [start[:2] for start in starts if start[0]] == [[starts[0][0], []], [starts[1][0], []]]
    assert len(starts) == 2 * (1 + 2)
    assert found["refembed probe float32"]["first_time_s"] > 0
    assert found["onnxruntime good.onnx"]["first_time_s"] is None
    assert {threads for *_, threads in starts} == {str(found["threads"])}


@pytest.mark.long
def test_curve_and_stream_are_measured(sitting) -> None:
    """Wrong if lengths beyond the context are timed, texts are lost in the stream, or the verdicts are not printed."""
    done, found, _ = sitting
    row = found["refembed probe float32"]
    assert [one["tokens"] for one in row["curve"]["rows"]] == [8, 16, 32, 64]
    assert row["curve"]["as_predicted"] is None
    assert row["stream"]["rows"][-1]["texts"] == 600
    assert row["stream"]["seconds"] > 0
    assert "stream" not in found["onnxruntime good.onnx"]
    for words in ("no steeper than predicted", "throughput kept", "memory flat"):
        assert words in done.stdout


def test_training_is_measured(small_folder: Path, tmp_path: Path) -> None:
    """Wrong if a step is timed on other texts than it is said, a text comes twice, or the first counts."""
    environment, file = stand_ins(tmp_path, small_folder), tmp_path / "out.json"
    same = ["--model", small_folder, "--backend", "probe", "--threads", 1, "--workload", tmp_path / "work.json"]
    done = command(environment, *same, "--rounds", 2, "--train", 4, "--json", file)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    (row,) = found["subjects"]
    *_, (precision, threads, columns) = map(json.loads, (tmp_path / "probe.log").read_text().splitlines())
    texts = [tuple(ids) for column in columns for ids in column]
    assert (precision, threads, [len(column) for column in columns]) == ("float32", 1, [4, 4, 4])
    assert len(set(texts)) == 12
    assert (found["workload"]["training"]["texts"], row["training"]["loss"]) == (12, 2.5)
    tokens = row["training"]["tokens_per_s"] * 1e-3 * row["training"]["step_ms"]
    assert sum(map(len, texts)) == pytest.approx(tokens)
    assert "a step of training on 4 queries, positives and hard negatives" in done.stdout
    assert "2.500000" in done.stdout


# ------------------------------------------------------------------------------------------------------------ wrong use
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--against", "faiss"], "no peer 'faiss'; they are sentence-transformers"),
        (["--against", "onnxruntime"], "onnxruntime needs an ONNX encoder"),
        (["--rounds", "0"], "at least 1"),
        (["--threads", "0"], "[option-threads]"),
        (["--backend", "numpy", "--precision", "float32,int8"], "[precision-unknown]"),
        (["--backend", "none"], "[backend-unknown]"),
        (["--backend", "numpy", "--train"], "backend numpy does not train"),
        (["--backend", "torch", "--train", "0"], "at least 1"),
        (["--workload", "missing.json"], "[input-missing]"),
        (["--workload", "bad.json"], "[input-format]"),
        (["--model", "bad.json"], "[hub-name]"),
        (["--json", "no/such/folder.json"], "[output-unwritable]"),
    ],
)
def test_wrong_use(argv: list[str], said: str, tmp_path, monkeypatch, capsys) -> None:
    """Wrong if minutes pass before a mistake on the command line is named, or a traceback names it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text('{"queries": ["a"], "docs": []}')
    monkeypatch.setattr("refembed.cli.bench.bench", lambda *_: pytest.fail("it began"))
    try:
        status = main(["bench", *argv])
    except SystemExit as end:
        status = int(end.code or 0)
    err = capsys.readouterr().err
    assert status == 2
    assert said in err
    assert "Traceback" not in err


def test_missing_peer(small_folder, tmp_path) -> None:
    """Wrong if an interpreter that is not there, or has no such library, ends more than that peer."""
    (tmp_path / "work.json").write_text(json.dumps(WORK))
    same = ["--model", small_folder, "--backend", "loopback", "--workload", tmp_path / "work.json", "--rounds", 1]
    done = command({}, *same, "--python", tmp_path / "python", "--against", "sentence-transformers")
    assert done.returncode == 1
    assert f"sentence-transformers failed: {tmp_path / 'python'} cannot be started: No such file" in done.stdout
    assert "\nrefembed loopback float32  " in done.stdout
