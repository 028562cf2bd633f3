"""Quantisation-aware training: the reference's rounding in PyTorch, and a model that computes with it."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from refembed_torch import quantization
from refembed_torch.model import TorchModel, load_model, random_model, trained_shapes
from refembed_torch.quantization import fake_quantized, measured_as, round_weights
from support import SMALL, random_ids, random_parameters, write_checkpoint

from refembed.errors import RefembedError
from refembed.reference import embed
from refembed.reference.backward import embed_batch_gradients
from refembed.reference.quantize import FORMS, fake_quantize, fake_quantize_gradient, grid_of

CONFIG = replace(SMALL, width=64, mlp=96, head=32, dense=128, dimensions=32, query_scalar=32.0)  # rows of whole blocks
TEXTS = [random_ids(CONFIG, tokens, seed) for seed, tokens in enumerate([60, 3, 17, 1])]
NAMES = [
    "embed_tokens.weight",
    "layers.3.self_attn.k_proj.weight",
    "layers.0.mlp.up_proj.weight",
    "2_Dense.linear.weight",
]


def rounded(parameters: dict[str, np.ndarray], form: str) -> dict[str, np.ndarray]:
    """As the reference has it."""
    grids = {name: grid_of(form, name) for name in parameters}
    return {name: fake_quantize(array, grids[name]) if grids[name] else array for name, array in parameters.items()}


def same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.dtype == expected.dtype and found.tobytes() == expected.tobytes()


# ------------------------------------------------------------------------------------------------------------ rounding
@settings(max_examples=60)
@given(
    form=some.sampled_from(FORMS),
    name=some.sampled_from(NAMES),
    rows=some.integers(1, 5),
    blocks=some.integers(1, 3),
    exponent=some.integers(-30, 16),  # scales from float16's subnormals to near its largest number, never beyond
    dtype=some.sampled_from([np.float32, np.float64]),
    seed=some.integers(0, 999),
)
def test_rounding_is_the_references(
    form: str, name: str, rows: int, blocks: int, exponent: int, dtype: type, seed: int
) -> None:
    """Wrong if training sees other numbers than the quantised model has, by one bit, at any size of number."""
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((rows, 32 * blocks)) * 2.0**exponent).astype(dtype)
    weight[0, :32] = 0  # a block of nothing
    weight[-1, -3:] = [0.5 * 2.0**exponent, -1.5 * 2.0**exponent, -0.0]  # ties, and a sign that whole numbers lose
    found = fake_quantized({name: torch.from_numpy(weight)}, form)[name].numpy()
    assert same_bits(found, fake_quantize(weight, grid_of(form, name)))


def test_ties_go_to_even() -> None:
    """If this failed, halves would be rounded up: 7 is the largest, so the step is 1, and these are the levels."""
    row = [7.0, 0.5, 1.5, 2.5, -0.5, -1.5, -6.5, 3.49]
    found = fake_quantized({NAMES[0]: torch.tensor([row])}, "mixed-channel")[NAMES[0]]
    assert found.tolist() == [[7, 0, 2, 2, 0, -2, -6, 3]]


def test_norm_weights_stay() -> None:
    """If this failed, norms would be rounded, which no form does."""
    norm = torch.randn(64, requires_grad=True)
    assert (
        fake_quantized({"layers.0.self_attn.q_norm.weight": norm}, FORMS[0])["layers.0.self_attn.q_norm.weight"] is norm
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_passes(form: str, name: str) -> None:
    """If this failed, the gradient would be rounding's own, which is zero, or lose the largest numbers'."""
    rng = np.random.default_rng(1)
    weight, upstream = rng.standard_normal((2, 3, 64)).astype(np.float32)
    parameter = torch.tensor(weight, requires_grad=True)
    fake_quantized({name: parameter}, form)[name].backward(torch.tensor(upstream))
    assert parameter.grad is not None
    assert same_bits(parameter.grad.numpy(), fake_quantize_gradient(upstream, weight, grid_of(form, name)))


def test_what_no_scale_holds_shows() -> None:
    """If this failed, a weight that went to infinity would be rounded to some number, and training go on."""
    for bad in (np.inf, np.nan, 8 * 65504.0):
        weight = torch.ones(2, 64)
        weight[1, 5] = bad
        found = fake_quantized({NAMES[0]: weight}, "mixed-channel")[NAMES[0]]
        assert not found[1].isfinite().any()
        assert found[0].isfinite().all()


# ----------------------------------------------------------------------------------------------------------- the model
def model_of(parameters: dict[str, np.ndarray], **options: object) -> TorchModel:
    """In float64, which nobody trains in and every gradient can be held to."""
    model = TorchModel(CONFIG, **options).double()
    model.dtype = torch.float64
    model.load_state_dict({name: torch.from_numpy(array) for name, array in parameters.items()})
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_model_computes_with_rounded_weights(form: str, checkpointing: bool) -> None:
    """Wrong if any weight, the table's rows among them, is used as it is, or its gradient is not that of the rounded
    model: what the straight-through gradient means. The reference computes both.
    """
    parameters = random_parameters(CONFIG, 3)
    model = model_of(parameters, quantization=form, checkpointing=checkpointing)
    upstream = np.random.default_rng(3).standard_normal((len(TEXTS), CONFIG.dimensions))
    vectors = model.encode(TEXTS)
    (vectors * torch.from_numpy(upstream)).sum().backward()
    used = rounded(parameters, form)
    np.testing.assert_allclose(
        vectors.detach().numpy(), np.stack([embed(ids, used, CONFIG) for ids in TEXTS]), atol=1e-12
    )
    for name, gradient in embed_batch_gradients(upstream, TEXTS, used, CONFIG).items():
        found = model.get_parameter(name)
        np.testing.assert_allclose(found.grad, gradient, atol=1e-9 * max(1, np.abs(gradient).max()), err_msg=name)
        np.testing.assert_array_equal(found.detach().numpy(), parameters[name], err_msg=name)


def test_only_the_rows_of_a_batch_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, each pass would copy the whole table: 805 MB of the released model's."""
    model = random_model(replace(CONFIG, vocabulary=5000), quantization="int4-block")
    seen, on_grid = [], quantization.on_grid
    monkeypatch.setattr(quantization, "on_grid", lambda rows, grid: seen.append(len(rows)) or on_grid(rows, grid))
    model(TEXTS)
    assert sum(map(len, TEXTS)) in seen
    assert max(seen) < 5000


@pytest.mark.parametrize("form", FORMS)
def test_rounding_afterwards(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if a finished model is rounded to other weights than the reference's, or measured as if it were while it is
    not; the table goes in pieces.
    """
    monkeypatch.setattr(quantization, "ROWS", 7)
    parameters = random_parameters(CONFIG, 4, np.float32)
    model = TorchModel(CONFIG)
    model.load_state_dict({name: torch.tensor(array) for name, array in parameters.items()})
    with torch.no_grad():
        whole = model.encode(TEXTS)
        with measured_as(model, form):
            measured = model.encode(TEXTS)
        assert torch.equal(model.encode(TEXTS), whole)
        round_weights(model, form)
        assert torch.equal(model.encode(TEXTS), measured)
    assert not torch.equal(whole, measured)
    for name, expected in rounded(parameters, form).items():
        assert same_bits(model.get_parameter(name).detach().numpy(), expected), name


def test_what_cannot_be_rounded_is_refused(tmp_path: Path) -> None:
    """If this failed, a wrong form would be found out after loading, or a broken model written as a rounded one."""
    folder = write_checkpoint(tmp_path, SMALL)
    with pytest.raises(RefembedError, match=r"int4-block: .* rows of 48 numbers, .* blocks of 32"):
        load_model(folder, device="cpu", quantization="int4-block")
    with pytest.raises(RefembedError, match="no quantised form 'int5'"):
        load_model(folder, device="cpu", quantization="int5")
    model = load_model(folder, device="cpu", quantization="mixed-channel")
    with torch.no_grad():
        model.get_parameter("2_Dense.linear.weight")[2, 3] = torch.inf
    with pytest.raises(RefembedError, match="2_Dense"):
        round_weights(model, "mixed-channel")


def test_a_form_that_does_not_fit_is_refused_before_anything_is_computed() -> None:
    """If this failed, a run whose rounded figures cannot be had would end in a library's error about sizes, and a model
    be rounded in part.
    """
    model = random_model(SMALL, device="cpu")
    before = deepcopy(model.state_dict())
    for refused in (lambda: measured_as(model, "int4-block").__enter__(), lambda: round_weights(model, "int4-block")):
        with pytest.raises(RefembedError, match=r"int4-block: .* blocks of 32"):
            refused()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_every_parameter_that_is_no_norm_is_rounded() -> None:
    """If this failed, a matrix would be left out, as an attention pooler's once was nowhere named."""
    model = random_model(replace(CONFIG, pooler="attention"))
    found = fake_quantized(dict(model.named_parameters()), "int4-block")
    kept = {name for name, parameter in model.named_parameters() if torch.equal(found[name], parameter)}
    assert kept == {name for name in trained_shapes(CONFIG) if name.endswith("norm.weight")}


# ------------------------------------------------------------------------------------------------------------ learning
@pytest.mark.parametrize("seed", [0, 1])
def test_training_so_beats_rounding_afterwards(seed: int) -> None:
    """Wrong if training with 4-bit weights in the forward pass does not find ones that lose less than rounding does.

    The goal is the model's own vectors, so that without rounding no training could better it.
    """
    model, steps = random_model(CONFIG, seed=seed, device="cpu"), 20
    goal = deepcopy(model)

    def apart(lot: int) -> torch.Tensor:
        texts = [random_ids(CONFIG, 4 + number % 20, 1000 * lot + number) for number in range(48)]
        with torch.no_grad():
            expected = goal.encode(texts)
        return (model.encode(texts) - expected).square().sum() / len(texts)

    with torch.no_grad(), measured_as(model, "int4-block"):
        before = float(apart(steps))
    model.quantization = "int4-block"
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
        optimizer.zero_grad()
        apart(step).backward()
        optimizer.step()
    round_weights(model, "int4-block")
    model.quantization = None
    with torch.no_grad():
        assert float(apart(steps)) < 0.5 * before
