"""The module that is trained: gradients against the reference's backward pass, poolers, checkpointing, a step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from refembed_torch import attention, losses
from refembed_torch.model import load_model, random_model, trained_shapes
from refembed_torch.training import training_step
from support import LENGTHS, SMALL, configs, random_parameters, texts_of
from torch_support import TWIN, model_of

from refembed.checkpoint import open_checkpoint
from refembed.errors import RefembedError
from refembed.reference import POOLERS, Config, embed
from refembed.reference.backward import embed_batch_gradients

LONG = [60, 9, 33, 1, 18]  # longer than a tile and a window, and several in one


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of 60 tokens is several tiles here, as one of 600 is at the usual size."""
    monkeypatch.setattr(attention, "QUERIES", {"cpu": 16})


def parameters_of(config: Config, seed: int, dtype: type = np.float64) -> dict[str, np.ndarray]:
    """Those of the pooler too."""
    rng = np.random.default_rng(seed)
    more = {name: shape for name, shape in trained_shapes(config).items() if name.startswith("pooling.")}
    return random_parameters(config, seed, dtype) | {
        name: (shape[1] ** -0.5 * rng.standard_normal(shape)).astype(dtype) for name, shape in more.items()
    }


def gradients_of(model: torch.nn.Module, texts: list[np.ndarray], upstream: np.ndarray) -> dict[str, np.ndarray]:
    """With respect to every parameter of the sum of the vectors times upstream."""
    model.zero_grad()
    vectors = model.encode(texts)
    (vectors * torch.tensor(upstream, dtype=vectors.dtype)).sum().backward()
    return {name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()}


# ----------------------------------------------------------------------------------------------------------- gradients
@settings(max_examples=25)
@given(
    config=configs(),
    pooler=some.sampled_from(sorted(POOLERS)),
    lengths=LENGTHS,
    seed=some.integers(0, 99),
    checkpointing=some.booleans(),
)
def test_gradients_are_the_references(
    config: Config, pooler: str, lengths: list[int], seed: int, checkpointing: bool
) -> None:
    """Wrong if packing, tiles, shared products or computing a layer twice loses or doubles any part of a gradient."""
    config = replace(config, pooler=pooler, width=4 * (config.width // 4))
    parameters, texts = parameters_of(config, seed), texts_of(config, lengths)
    upstream = np.random.default_rng(seed).standard_normal((len(texts), config.dimensions))
    model = model_of(parameters, config, checkpointing=checkpointing)
    expected = embed_batch_gradients(upstream, texts, parameters, config)
    found = gradients_of(model, texts, upstream)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, atol=1e-9 * max(1, np.abs(gradient).max()), err_msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_through_onednn(checkpointing: bool) -> None:
    """Wrong if the product that PyTorch has no derivative of is given another one: float32, where it is used."""
    parameters, texts = parameters_of(SMALL, 3), texts_of(SMALL, LONG)
    upstream = np.random.default_rng(3).standard_normal((len(texts), SMALL.dimensions))
    expected = embed_batch_gradients(upstream, texts, parameters, SMALL)
    single = {name: array.astype(np.float32) for name, array in parameters.items()}
    found = gradients_of(model_of(single, SMALL, checkpointing=checkpointing), texts, upstream)
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, atol=2e-5 * np.abs(gradient).max(), err_msg=name)


def test_checkpointing_computes_layers_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if what is computed again is not what was computed, or nothing is computed again and no memory saved."""
    texts, results, calls = texts_of(SMALL, LONG), [], []
    parameters, gelu = parameters_of(SMALL, 5, np.float32), torch.nn.functional.gelu
    monkeypatch.setattr("torch.nn.functional.gelu", lambda x, **options: calls.append(x) or gelu(x, **options))
    for checkpointing, times in ((False, 1), (True, 2)):
        model = model_of(parameters, SMALL, checkpointing=checkpointing)
        calls.clear()
        results.append(gradients_of(model, texts, np.ones((len(texts), SMALL.dimensions))))
        assert len(calls) == times * len(SMALL.layer_kinds)
    for name, gradient in results[0].items():
        np.testing.assert_array_equal(results[1][name], gradient, err_msg=name)


def test_bfloat16_gradients_point_the_same_way() -> None:
    """Wrong if mixed precision loses a parameter's gradient, or keeps it in bfloat16."""
    texts, parameters = texts_of(SMALL, LONG), parameters_of(SMALL, 7, np.float32)
    upstream = np.random.default_rng(7).standard_normal((len(texts), SMALL.dimensions))
    exact = gradients_of(model_of(parameters, SMALL), texts, upstream)
    model = model_of(parameters, SMALL, precision="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, gradient in gradients_of(model, texts, upstream).items():
        cosine = (gradient * exact[name]).sum() / np.linalg.norm(gradient) / np.linalg.norm(exact[name])
        assert cosine > 0.99, name


# ---------------------------------------------------------------------------------------------------------- the module
@settings(max_examples=25)
@given(pooler=some.sampled_from(sorted(POOLERS)), lengths=LENGTHS, cut=some.integers(1, SMALL.dimensions))
def test_poolers_are_the_references(pooler: str, lengths: list[int], cut: int) -> None:
    """Wrong if a text's pooled vector takes in a neighbour's tokens, or Matryoshka's cut is not of unit length."""
    config = replace(SMALL, pooler=pooler)
    parameters, texts = parameters_of(config, 1), texts_of(config, lengths)
    model = model_of(parameters, config)
    expected = np.stack([embed(ids, parameters, config) for ids in texts])
    with torch.no_grad():
        whole, short = model.encode(texts).numpy(), model.encode(texts, cut).numpy()
    np.testing.assert_allclose(whole, expected, atol=1e-12)
    first = expected[:, :cut]
    np.testing.assert_allclose(short, first / np.linalg.norm(first, axis=1, keepdims=True), atol=1e-9)


@pytest.mark.parametrize(
    ("texts", "id", "index", "named"),
    [
        ([], "ids-invalid", None, "no texts"),
        ([[2, 1], []], "ids-invalid", 1, "no token"),
        ([[2, 1], [2, 160, 1]], "ids-invalid", 1, "token 160.*0 to 159.*tokenizer"),
        ([[2, -1, 1]], "ids-invalid", 0, "token -1"),
        ([[2, 1], [2] * 65], "text-too-long", 1, "65 tokens.*64"),
        ([[[2, 1]]], "ids-invalid", 0, "shape \\(1, 2\\)"),
        ([[2.0, 1.0]], "ids-invalid", 0, "float64"),
    ],
)
def test_what_are_no_ids_is_refused(texts: list[Any], id: str, index: int | None, named: str) -> None:
    """Wrong if a batch gives NaN, another text's row or a traceback, or on a device ends all work there."""
    model = random_model(SMALL, device="cpu")
    with pytest.raises(RefembedError, match=named) as caught:
        model([np.array(text, None if text else np.int64) for text in texts])
    assert (caught.value.id, caught.value.index) == (id, index)


@pytest.mark.parametrize("dimensions", [0, -1, SMALL.dimensions + 1])
def test_dimensions_out_of_range_are_refused(dimensions: int) -> None:
    """Wrong if -1 cuts one number off, 0 gives nothing, or more are asked for than there are and not given."""
    with pytest.raises(RefembedError, match=f"{dimensions}.*1 to {SMALL.dimensions}") as caught:
        random_model(SMALL, device="cpu").encode(texts_of(SMALL, [5]), dimensions)
    assert caught.value.id == "option-dimensions"


def test_why_a_way_was_taken_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if nobody can see why a training step is slow."""
    monkeypatch.setattr("refembed_torch.model.choose_way", lambda *_: ("tiles", "varlen: no kernel"))
    model = random_model(SMALL, device="cpu")
    model(texts_of(SMALL, [5]))
    assert (model.ways, model.why_ways) == ({model.device: "tiles"}, {model.device: "varlen: no kernel"})


def test_parameters_have_the_checkpoints_names() -> None:
    """Wrong if a checkpoint's tensors have to be renamed on their way in or out, or one of them is not trained."""
    model, checkpoint = load_model(TWIN, device="cpu"), open_checkpoint(TWIN)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        name: tensor.stored.shape for name, tensor in checkpoint.tensors.items()
    }
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), checkpoint.tensors[name].stored, err_msg=name)
        assert parameter.requires_grad


def test_random_model_is_seeded() -> None:
    """Wrong if two runs of the benchmark measure two models, or a seed is not heeded."""
    one, again, other = (random_model(SMALL, seed=seed, device="cpu") for seed in (4, 4, 5))
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        assert not torch.equal(parameter, other.get_parameter(name))
    assert one(texts_of(SMALL, [5])).isfinite().all()


def test_a_damaged_table_is_not_trained(tmp_path: Path) -> None:
    """Wrong if a table with NaN in it is loaded, and spoils every step that meets the token."""
    from support import write_checkpoint

    from refembed import RefembedError

    parameters = random_parameters(SMALL)
    parameters["embed_tokens.weight"][7, 1] = np.inf
    with pytest.raises(RefembedError, match=r"embed_tokens\.weight") as caught:
        load_model(write_checkpoint(tmp_path / "damaged", SMALL, parameters))
    assert caught.value.id == "tensor-not-finite"


def test_steps_train() -> None:
    """Wrong if a training step leaves out a parameter, or steps do not bring pairs of texts together."""
    torch.manual_seed(0)
    model = random_model(SMALL, device="cpu")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    texts = texts_of(SMALL, [9, 20, 33, 7, 12, 30, 8, 50])
    mask = losses.mask_of(range(4), range(4))

    def loss(vectors: torch.Tensor) -> torch.Tensor:
        return losses.contrastive(losses.split(vectors, 4), mask, temperature=0.1)

    found = [training_step(model, optimizer, texts, loss).item() for _ in range(12)]
    assert found[-1] < 0.1 * found[0]
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
