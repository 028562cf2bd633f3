"""The PyTorch backend against the reference and the golden vectors: agreement, and being a backend."""

import inspect
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from refembed_torch import attention, products
from refembed_torch.backend import BACKEND, use_cuda
from refembed_torch.encoder import TorchEncoder
from refembed_torch.packing import passes
from refembed_torch.precision import exact_products
from support import LENGTHS, SMALL, checkpoint_of, configs, missing, random_ids, texts_of, widened, write_checkpoint
from torch_support import model_of

import refembed
from refembed import backend
from refembed.checkpoint import Checkpoint
from refembed.cli import main
from refembed.reference import FULL, SLIDING, Config, collector, embed
from refembed.reference.backward import embed_batch_gradients

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small() -> Checkpoint:
    return checkpoint_of(SMALL)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The CUDA device."""
    if not torch.cuda.is_available():
        missing("device", "run on a machine with a CUDA device and a PyTorch that sees it")
    return torch.device("cuda")


# ----------------------------------------------------------------------------------------------------------- agreement
@settings(max_examples=60)
@given(
    config=configs(),
    lengths=LENGTHS,
    seed=some.integers(0, 99),
    at_once=some.integers(1, 120),
    tile=some.integers(1, 70),
    onednn=some.booleans(),
)
def test_vectors_are_the_references(
    config: Config, lengths: list[int], seed: int, at_once: int, tile: int, onednn: bool
) -> None:
    """Wrong if any shape, window, head grouping, length, pass, tile or way to multiply gives something of its own.

    What a float32 computation may be off by depends on the random model; the reference run in float32 says how much.
    """
    checkpoint = checkpoint_of(config, seed)
    exact, single = widened(checkpoint, np.float64), widened(checkpoint, np.float32)
    texts = texts_of(config, lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "QUERIES", {"cpu": tile})
        if not onednn:
            patch.setattr(products, "onednn", lambda: False)
            patch.setattr(attention, "onednn", lambda: False)
        model = TorchEncoder(checkpoint, "float32", None, device=CPU)
        model.tokens_at_once = at_once
        found = model.encode(texts)
    for ids, vector in zip(texts, found, strict=True):
        expected = embed(ids, exact, config)
        spread = np.abs(embed(ids, single, config) - expected).max()
        assert np.abs(vector - expected).max() <= 1e-6 + 4 * spread


@settings(max_examples=40)
@given(config=configs(), lengths=LENGTHS, seed=some.integers(0, 99))
def test_bfloat16_is_off_by_its_roundings(config: Config, lengths: list[int], seed: int) -> None:
    """Wrong if bfloat16 loses far more at some shape than the rounding of its matrices alone does."""
    checkpoint = checkpoint_of(config, seed)
    exact = widened(checkpoint, np.float64)
    rounded = {name: torch.tensor(p).bfloat16().double().numpy() if p.ndim > 1 else p for name, p in exact.items()}
    texts = texts_of(config, lengths)
    found = TorchEncoder(checkpoint, "bfloat16", None, device=CPU).encode(texts)
    assert found.dtype == np.float32
    expected = np.stack([embed(ids, exact, config) for ids in texts])
    spread = np.abs(np.stack([embed(ids, rounded, config) for ids in texts]) - expected).max()
    assert np.abs(found - expected).max() <= 0.01 + 4 * spread
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def rounded(x: Any) -> Any:
    return torch.tensor(x).bfloat16().double().numpy()


def with_rounded_products(texts: list[Any], exact: dict[str, Any], config: Config) -> np.ndarray:
    """The reference in float64, except that the layers' products get and give numbers of bfloat16."""
    import refembed.reference.attention as of_attention
    import refembed.reference.layer as of_layer

    parameters = {n: rounded(p) if n.startswith("layers.") and p.ndim == 2 else p for n, p in exact.items()}
    linear, rotate, gelu = of_layer.linear, of_attention.rotate, of_layer.gelu
    with pytest.MonkeyPatch.context() as patch:
        for module in (of_attention, of_layer):
            patch.setattr(module, "linear", lambda x, weight: rounded(linear(rounded(x), weight)))
        patch.setattr(of_attention, "rotate", lambda *given: rounded(rotate(*given)))
        patch.setattr(of_layer, "gelu", lambda x: rounded(gelu(x)))
        return np.stack([embed(ids, parameters, config) for ids in texts])


def test_bfloat16_rounds_products_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if norms, rotation, the residual stream, pooling or the head are computed in bfloat16.

    The library's attention rounds within in its own way, so an exact one stands in its place. A number at the very edge
    may still be rounded to the other side, which moves a whole text: hence the median.
    """
    library = attention.by_library

    def exactly(query: torch.Tensor, key: Any, value: Any, mask: Any, scale: float) -> torch.Tensor:
        wide = [None if tensor is None else tensor.double() for tensor in (query, key, value, mask)]
        return library(*wide, scale).to(query.dtype)

    monkeypatch.setattr(attention, "by_library", exactly)
    texts, off, spread = texts_of(SMALL, [60, 3, 17]), [], []
    for seed in range(5):
        checkpoint = checkpoint_of(SMALL, seed)
        exact = widened(checkpoint, np.float64)
        expected = with_rounded_products(texts, exact, SMALL)
        found = TorchEncoder(checkpoint, "bfloat16", None, device=CPU).encode(texts)
        off += list(np.abs(found - expected).max(1))
        spread += list(np.abs(expected - np.stack([embed(ids, exact, SMALL) for ids in texts])).max(1))
    assert np.median(off) <= 0.1 * np.median(spread)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_twin_conforms(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if the backend does not pass the suite that every port is judged by."""
    assert main(["verify", "--backend", "torch", "--precision", precision]) == 0, capsys.readouterr().out


def test_trace_is_the_references(small: Checkpoint) -> None:
    """Wrong if a stage has another stage's numbers, name or place in the order."""
    ids, kept = random_ids(SMALL, 30), {}
    embed(ids, widened(small, np.float64), SMALL, collector(kept))
    found = TorchEncoder(small, "float32", None, device=CPU).trace(ids)
    assert [name for name in kept if name in found] == list(found)
    unseen = {name.split(".", 2)[-1] for name in kept if name not in found}
    assert unseen == {"attention.scores", "attention.weights"}
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, kept[name], atol=2e-5, rtol=1e-5, err_msg=name)


@pytest.mark.long
def test_compiled_is_the_same(small: Checkpoint) -> None:
    """Wrong if torch.compile's layers give other vectors or gradients, or are made anew for every number of tokens."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        missing("compiler", "install g++ or clang++")
    plain = TorchEncoder(small, "float32", None, device=CPU)
    compiled = TorchEncoder(small, "float32", None, device=CPU, compiling=True)
    graphs = torch._dynamo.utils.counters["stats"]
    made = []
    for lengths in ([60, 3, 17], [40, 2], [9] * 6, [60] * 5):
        texts = texts_of(SMALL, lengths)
        np.testing.assert_allclose(compiled.encode(texts), plain.encode(texts), atol=2e-6, rtol=0)
        made.append(graphs["unique_graphs"])
    assert set(made) == {made[0]}
    parameters, texts = widened(small, np.float32), texts_of(SMALL, [60, 3, 17])
    models = [model_of(parameters, SMALL, compiling=compiling) for compiling in (False, True)]
    for model in models:
        model(texts).square().sum().backward()
    for name, parameter in models[0].named_parameters():
        found, expected = models[1].get_parameter(name).grad, parameter.grad
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), name


def test_company_does_not_matter(small: Checkpoint) -> None:
    """Wrong if a text's vector depends on whom it is packed with, on the order, or on how often it comes."""
    texts = texts_of(SMALL, [5, 60, 1, 33, 12])
    model = TorchEncoder(small, "float32", None, device=CPU)
    alone = np.concatenate([model.encode([ids]) for ids in texts])
    assert model.encode([]).shape == (0, SMALL.dimensions)
    for order in ([4, 3, 2, 1, 0], [1, 1, 0, 3, 1]):
        np.testing.assert_allclose(model.encode([texts[place] for place in order]), alone[order], atol=2e-6, rtol=0)


def test_real_weights(weights: Path, real: refembed.Embedder) -> None:
    """Wrong if the released model's vectors are not sentence-transformers' on the same texts."""
    from sentence_transformers import SentenceTransformer

    texts = ["Mars looks red.", "Venus is hot. " * 20, "def f(x): return x", "Der Mond ist aufgegangen. " * 60]
    peer = SentenceTransformer(str(weights), device="cpu", local_files_only=True)
    expected = peer.encode(texts, prompt_name="document", normalize_embeddings=True)
    del peer
    found = refembed.load(weights, backend="torch").encode(texts)
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)
    np.testing.assert_allclose(found, real.encode(texts), atol=1e-6, rtol=0)
    coarse = refembed.load(weights, backend="torch", precision="bfloat16").encode(texts)
    assert (coarse * expected).sum(1).min() >= 0.999


@given(lengths=some.lists(some.integers(1, 2048), max_size=40), at_once=some.integers(1, 4096))
def test_passes_laws(lengths: list[int], at_once: int) -> None:
    """Wrong if a text is left out or comes twice, a pass is larger than it may be, or a longer one comes later."""
    groups = list(passes(lengths, at_once))
    order = [lengths[index] for group in groups for index in group]
    assert order == sorted(order, reverse=True)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or sum(lengths[index] for index in group) <= at_once


# ---------------------------------------------------------------------------------------------------- being a backend
def test_float16_is_refused_with_its_reason(small: Checkpoint, small_folder: Path) -> None:
    """Wrong if float16 is computed in, whose overflow is silent, or is refused without a word on why."""
    with pytest.raises(refembed.RefembedError, match=r"float16.*65,504.*bfloat16") as caught:
        TorchEncoder(small, "float16", None, device=CPU)
    assert caught.value.id == "precision-unknown"
    with pytest.raises(refembed.RefembedError, match="float16") as caught:
        refembed.load(small_folder, backend="torch", precision="float16")
    assert caught.value.id == "precision-unknown"


def test_found_without_importing_torch() -> None:
    """Wrong if refembed, or the search for backends, pays for PyTorch where there is no CUDA driver."""
    if use_cuda():
        pytest.skip("there is a device, so PyTorch has to be asked for it")
    code = "import sys, refembed.backend as b; b.find_backends(); b.choose_backend(None); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert "torch" in {one.name for one in backend.find_backends()}


def test_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a CPU is given PyTorch where the compiled backend is faster, or a CUDA device is left idle."""
    monkeypatch.undo()  # conftest's choice of NumPy
    from refembed_numba.backend import BACKEND as NUMBA

    from refembed.numpy_backend import BACKEND as NUMPY

    monkeypatch.setattr("refembed_torch.backend.use_cuda", lambda: False)
    assert NUMPY.priority < BACKEND.priority < NUMBA.priority
    monkeypatch.setattr("refembed_torch.backend.use_cuda", lambda: True)
    assert BACKEND.priority > NUMBA.priority


def test_why_not(monkeypatch: pytest.MonkeyPatch, small_folder: Path) -> None:
    """Wrong if a machine without PyTorch gets another backend in silence, or a traceback."""
    monkeypatch.setattr("refembed_torch.backend.find_spec", lambda name: None)
    with pytest.raises(refembed.RefembedError, match=r"refembed\[torch\]"):
        refembed.load(small_folder, backend="torch")


def test_a_broken_torch_harms_no_other(tmp_path: Path) -> None:
    """Wrong if a PyTorch that cannot be imported takes all backends with it on a machine with a driver."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.99: cannot open shared object file')")
    code = """if True:
        import refembed_torch.backend as torch_backend
        from refembed import RefembedError, backend
        torch_backend.DRIVERS = ("/",) if driver else ()
        torch_backend.shutil.which = lambda name: None
        print(backend.choose_backend(None)[0].name)
        try:
            backend.choose_backend("torch")[0].load(None, "float32", None)
        except RefembedError as error:
            print(error.id, error)
    """
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    for driver in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", f"driver = {driver}\n{code}"],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        taken, said = done.stdout.splitlines()
        assert taken in ("numba", "numpy")
        assert said.startswith("backend-cannot-run")
        assert "OSError: libcudart.so.99" in said


def test_doctor_says_why_attention_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a machine with CUDA computes by a slow way, and nothing tells its owner so, or what to do."""
    monkeypatch.setattr("refembed_torch.backend.use_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a device")

    def failing(*_: Any) -> Any:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setitem(attention.WAYS, "varlen", failing)
    trial = attention.trial
    monkeypatch.setattr(attention, "trial", lambda way, config, device, *given: trial(way, SMALL, CPU, *given))
    found = BACKEND.describe()
    assert "attention in float32 by tiles" in found
    assert "attention in bfloat16 by tiles (varlen: RuntimeError: no kernel image is available)" in found


def test_settings_are_the_calls_own(small: Checkpoint) -> None:
    """Wrong if threads= or exact float32 products are not heeded, or stay set for everything else in the process."""
    threads, seen = torch.get_num_threads(), []
    model = TorchEncoder(small, "float32", threads + 1, device=CPU)
    finish = model.setup.engine.finish

    def spying(*given: Any) -> torch.Tensor:
        seen.append((torch.get_num_threads(), torch.get_float32_matmul_precision()))
        return finish(*given)

    model.setup = model.setup._replace(engine=model.setup.engine._replace(finish=spying))
    torch.set_float32_matmul_precision("high")
    try:
        model.encode(texts_of(SMALL, [5]))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert model.threads == threads + 1
    assert set(seen) == {(threads + 1, "highest")}
    assert torch.get_num_threads() == threads


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    """Wrong if NaN in a matrix, or in a row of the table that a text uses, passes for a vector."""
    from support import random_parameters

    for name, place in (("layers.1.mlp.up_proj.weight", (3, 4)), ("embed_tokens.weight", (slice(None), 0))):
        parameters = random_parameters(SMALL)
        parameters[name][place] = np.nan
        folder = write_checkpoint(tmp_path / name, SMALL, parameters)
        with pytest.raises(refembed.RefembedError, match="NaN"):
            refembed.load(folder, backend="torch").encode("the air")


# --------------------------------------------------------------------------------------------------------------- CUDA
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_twin_conforms_on_the_device(device: torch.device, precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong if the twin's vectors are others on CUDA."""
    assert TorchEncoder(checkpoint_of(SMALL), precision, None).device.type == device.type
    assert main(["verify", "--backend", "torch", "--precision", precision]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("compiling", [False, True])
def test_released_shape_on_the_device(device: torch.device, compiling: bool) -> None:
    """Wrong if a head of 256, a window of 513 keys or ragged lengths are too much for a kernel, or TF32 is used.

    A short text alone comes last: flex attention takes another kernel for fewer than 128 queries.
    """
    config = replace(Config(), vocabulary=160, layer_kinds=(SLIDING, FULL, SLIDING))
    checkpoint = checkpoint_of(config)
    exact, single = widened(checkpoint, np.float64), widened(checkpoint, np.float32)
    texts = texts_of(config, [18, 700, 1, 257, 258, 130])
    expected = np.stack([embed(ids, exact, config) for ids in texts])
    spread = np.abs(np.stack([embed(ids, single, config) for ids in texts]) - expected).max()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # as many users have it
    try:
        single_encoder = TorchEncoder(checkpoint, "float32", None, device=device, compiling=compiling)
        found = np.concatenate([single_encoder.encode(texts), single_encoder.encode(texts[:1])])
    finally:
        torch.set_float32_matmul_precision(before)
    expected = np.concatenate([expected, expected[:1]])
    assert np.abs(found - expected).max() <= 1e-6 + 4 * spread
    encoder = TorchEncoder(checkpoint, "bfloat16", None, device=device, compiling=compiling)
    coarse = np.concatenate([encoder.encode(texts), encoder.encode(texts[:1])])
    assert (coarse * expected).sum(1).min() >= 0.999


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_on_the_device(device: torch.device, precision: str) -> None:
    """Wrong if flash attention's backward, checkpointing or a cast loses a part of a gradient on CUDA."""
    config = replace(Config(), vocabulary=160, layer_kinds=(SLIDING, FULL), width=256, mlp=96, dense=64, dimensions=64)
    checkpoint = checkpoint_of(config)
    texts = texts_of(config, [18, 300, 1, 257, 258, 130])
    upstream = np.random.default_rng(0).standard_normal((len(texts), config.dimensions))
    expected = embed_batch_gradients(upstream, texts, widened(checkpoint, np.float64), config)
    for checkpointing in (False, True):
        model = model_of(widened(checkpoint, np.float32), config, precision=precision, checkpointing=checkpointing)
        model = model.to(device)
        with exact_products():
            (model.encode(texts) * torch.tensor(upstream, device=device)).sum().backward()
        for name, gradient in expected.items():
            found = model.get_parameter(name).grad.double().cpu().numpy()
            cosine = (found * gradient).sum() / np.linalg.norm(found) / np.linalg.norm(gradient)
            assert cosine > (1 - 1e-8 if precision == "float32" else 0.99), name
        assert set(model.ways.values()) == {"varlen" if precision == "bfloat16" and has_varlen() else "tiles"}


def has_varlen() -> bool:
    """Whether this PyTorch has flash attention with windows for texts of any lengths: since 2.11."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters
