"""The reference against implementations nobody here wrote: transformers' Gemma3TextModel, tensor by tensor, and
sentence-transformers' and torch's modules for what follows it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from numpy.typing import NDArray
from support import SMALL, config_json, random_ids, random_parameters
from torch import nn
from transformers import Gemma3TextConfig, Gemma3TextModel
from transformers.models.gemma3 import modeling_gemma3

from refembed.reference import (
    FULL,
    SLIDING,
    Config,
    collector,
    dense_head,
    embed,
    encode_tokens,
    parameter_shapes,
    truncate,
)
from refembed.reference.positions import window_mask

Tensors = dict[str, NDArray[Any]]

CONFIGS = {
    "three-heads-on-one": SMALL,
    "four-heads-on-two": Config(
        vocabulary=90,
        width=20,
        mlp=28,
        heads=4,
        key_heads=2,
        head=6,
        dense=32,
        dimensions=12,
        layer_kinds=(FULL, SLIDING, SLIDING),
        reach=3,
        context=32,
        sliding_base=100.0,
        full_base=5_000.0,
        query_scalar=11.0,
        epsilon=1e-4,
    ),
    "two-heads-each-its-own": Config(
        vocabulary=70,
        width=36,
        mlp=16,
        heads=2,
        key_heads=2,
        head=10,
        dense=24,
        dimensions=30,
        layer_kinds=(SLIDING, FULL),
        reach=5,
        context=32,
        query_scalar=40.0,
    ),
}


def lengths(config: Config) -> list[int]:
    """Around the window: reach + 1 is the first length with a pair `reach` apart, the next one has a hidden pair."""
    return sorted({1, 2, config.reach, config.reach + 1, config.reach + 2, 3 * config.reach})


CASES = [(name, tokens) for name, config in CONFIGS.items() for tokens in lengths(config)]


def settings_of(config: Config) -> Gemma3TextConfig:
    """Their config, read from our config.json; they want query_pre_attn_scalar to be a whole number."""
    return Gemma3TextConfig(
        **config_json(config) | {"query_pre_attn_scalar": int(config.query_scalar)}, attn_implementation="eager"
    )


def theirs(config: Config, parameters: Tensors) -> Gemma3TextModel:
    """Their model with our parameters. They halve sliding_window themselves, so they are given the full width."""
    settings = settings_of(config)
    assert settings.sliding_window == config.reach + 1  # compared with '<'
    bases = {kind: settings.rope_parameters[kind]["rope_theta"] for kind in (SLIDING, FULL)}
    assert bases == {SLIDING: config.sliding_base, FULL: config.full_base}
    model = Gemma3TextModel(settings).double().eval()
    encoder = {name: torch.from_numpy(value) for name, value in parameters.items() if "Dense" not in name}
    model.load_state_dict(encoder, strict=True)
    return model


def array(tensor: torch.Tensor) -> NDArray[Any]:
    """Their tensor without the batch of one, as an array of our own."""
    return tensor.detach()[0].numpy().copy()


def heads(config: Config, x: NDArray[Any]) -> NDArray[Any]:
    return x.reshape(len(x), -1, config.head).transpose(1, 0, 2)


def run_theirs(model: Gemma3TextModel, config: Config, ids: NDArray[Any], patch: pytest.MonkeyPatch) -> Tensors:
    """Every tensor of their forward pass, under our names; `masked` is the softmax's input, mask added."""
    seen: Tensors = {"tokens": ids}

    def keep(name: str, shape: Callable[[NDArray[Any]], NDArray[Any]] = lambda x: x) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            seen[name] = shape(array(output))

        return hook

    def keep_input(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            seen[name] = array(inputs[0])

        return hook

    model.embed_tokens.register_forward_hook(keep("embedded"))
    model.norm.register_forward_hook(keep("final_norm"))
    for index, layer in enumerate(model.layers):
        name, attention, mlp = f"layer.{index:02d}", layer.self_attn, layer.mlp
        hooks = {
            f"{name}.attention.norm": layer.input_layernorm,
            f"{name}.attention.query_norm": attention.q_norm,
            f"{name}.attention.key_norm": attention.k_norm,
            f"{name}.attention.output": attention.o_proj,
            f"{name}.attention.update": layer.post_attention_layernorm,
            f"{name}.mlp.norm": layer.pre_feedforward_layernorm,
            f"{name}.mlp.gate": mlp.gate_proj,
            f"{name}.mlp.up": mlp.up_proj,
            f"{name}.mlp.output": mlp.down_proj,
            f"{name}.mlp.update": layer.post_feedforward_layernorm,
            f"{name}.out": layer,
        }
        for ours, module in hooks.items():
            module.register_forward_hook(keep(ours))
        mlp.down_proj.register_forward_hook(keep_input(f"{name}.mlp.gated"))
        for ours, module in {"query": attention.q_proj, "key": attention.k_proj, "value": attention.v_proj}.items():
            module.register_forward_hook(keep(f"{name}.attention.{ours}", lambda x: heads(config, x)))

    attend, softmax = modeling_gemma3.eager_attention_forward, nn.functional.softmax
    inside: list[str] = []

    def attend_and_keep(module: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> Any:
        name = f"layer.{module.layer_idx:02d}.attention"
        inside[:] = [name]
        context, weights = attend(module, query, key, value, *rest, **more)
        seen[f"{name}.query_rotated"], seen[f"{name}.key_rotated"] = array(query), array(key)
        seen[f"{name}.weights"], seen[f"{name}.context"] = array(weights), array(context.transpose(1, 2))
        return context, weights

    def softmax_and_keep(x: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        seen[f"{inside[0]}.masked"] = array(x)
        return softmax(x, *rest, **more)

    with patch.context() as local, torch.no_grad():
        local.setattr(modeling_gemma3, "eager_attention_forward", attend_and_keep)
        local.setattr(nn.functional, "softmax", softmax_and_keep)
        model(input_ids=torch.from_numpy(ids)[None], use_cache=False)
    return seen


@pytest.fixture
def float64_everywhere() -> Iterator[None]:
    """transformers without its four casts to float32, as the golden vectors' oracle has it."""
    with oracle.float64_everywhere():
        yield


def check_every_tensor(name: str, tokens: int, allowed: float, patch: pytest.MonkeyPatch) -> None:
    """Compare every traced tensor with theirs, each to `allowed` of its own largest number."""
    config = CONFIGS[name]
    parameters, ids = random_parameters(config, seed=tokens), random_ids(config, tokens, seed=tokens)
    ours: Tensors = {}
    encode_tokens(ids, parameters, config, collector(ours))
    model = theirs(config, parameters)
    expected = run_theirs(model, config, ids, patch)
    for index, kind in enumerate(config.layer_kinds):
        # Theirs adds the mask before anything can be caught: compare it, and the scores where something is seen.
        masked = expected.pop(f"layer.{index:02d}.attention.masked")
        reach = config.reach if kind == SLIDING else tokens
        seen = np.abs(np.subtract.outer(np.arange(tokens), np.arange(tokens))) <= reach
        np.testing.assert_array_equal(masked > -1e30, np.broadcast_to(seen, masked.shape))
        np.testing.assert_array_equal(window_mask(tokens, reach, np.float64) == 0, seen)
        scores = f"layer.{index:02d}.attention.scores"
        expected[scores] = np.where(seen, masked, ours[scores])
    assert set(ours) == set(expected), "a tensor of one side has no counterpart"
    for tensor, found in ours.items():
        assert found.shape == expected[tensor].shape, tensor
        error = np.max(np.abs(found - expected[tensor])) / max(np.max(np.abs(expected[tensor])), 1e-30)
        assert error <= allowed, f"{tensor}: {error:.2e} of its largest number, {allowed:.0e} allowed"


@pytest.mark.parametrize(("name", "tokens"), CASES)
def test_every_tensor_as_it_comes(name: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, some stage would not compute what Gemma3TextModel does (float64, their float32 casts left in)."""
    check_every_tensor(name, tokens, 1e-6, monkeypatch)


@pytest.mark.parametrize(("name", "tokens"), CASES)
@pytest.mark.usefixtures("float64_everywhere")
def test_every_tensor_in_float64(name: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, a difference too small for the casts to show would be in a formula or a constant."""
    check_every_tensor(name, tokens, 1e-12, monkeypatch)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("float64_everywhere")
def test_the_comparison_sees_small_mistakes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, the comparison would pass a wrong window, base, score scale or epsilon."""
    config = CONFIGS[name]
    wrong = {
        "reach": replace(config, reach=config.reach - 1),
        "base": replace(config, full_base=config.full_base * (1 + 1e-9)),
        "scale": replace(config, query_scalar=config.query_scalar * (1 + 1e-9)),
        "epsilon": replace(config, epsilon=config.epsilon * (1 + 1e-4)),
    }
    tokens = 3 * config.reach
    parameters, ids = random_parameters(config, seed=tokens), random_ids(config, tokens, seed=tokens)
    expected = run_theirs(theirs(config, parameters), config, ids, monkeypatch)["final_norm"]
    for what, other in wrong.items():
        error = np.max(np.abs(encode_tokens(ids, parameters, other) - expected)) / np.max(np.abs(expected))
        assert error > 1e-12, what


def test_names_and_shapes_are_those_of_their_state_dict() -> None:
    """If this failed, a released checkpoint would not fit the names and shapes the reference asks for."""
    for config in CONFIGS.values():
        model = Gemma3TextModel(settings_of(config))
        encoder = {name: shape for name, shape in parameter_shapes(config).items() if "Dense" not in name}
        assert encoder == {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_released_config_has_their_parameter_count() -> None:
    """If this failed, the default Config would not be EmbeddingGemma-300M."""
    config = Config()
    with torch.device("meta"):
        model = Gemma3TextModel(settings_of(config))
    counts = {name: value.numel() for name, value in model.state_dict().items()}
    assert len(counts) == 314
    assert sum(counts.values()) == 302_863_104
    shapes = parameter_shapes(config)
    assert {name: int(np.prod(shapes[name])) for name in counts} == counts


def sentence_modules(config: Config, parameters: Tensors, pooling: str) -> nn.Sequential:
    """sentence-transformers' modules of the released modules.json, float64, with our dense matrices."""
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

    up = Dense(config.width, config.dense, bias=False, activation_function=nn.Identity())
    down = Dense(config.dense, config.dimensions, bias=False, activation_function=nn.Identity())
    up.linear.weight.data = torch.from_numpy(parameters["2_Dense.linear.weight"])
    down.linear.weight.data = torch.from_numpy(parameters["3_Dense.linear.weight"])
    return nn.Sequential(Pooling(config.width, pooling), up, down, Normalize())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("pooler", "pooling"), [("mean", "mean"), ("first", "cls"), ("last", "lasttoken")])
@pytest.mark.usefixtures("float64_everywhere")
def test_embedding_is_sentence_transformers(
    name: str, pooler: str, pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, pooling, the dense head or the unit length would not be the released model's."""
    config = replace(CONFIGS[name], pooler=pooler)
    tokens = 2 * config.reach + 3
    parameters, ids = random_parameters(config, seed=7), random_ids(config, tokens, seed=7)
    states = torch.from_numpy(run_theirs(theirs(config, parameters), config, ids, monkeypatch)["final_norm"])[None]
    features = {"token_embeddings": states, "attention_mask": torch.ones(1, tokens, dtype=torch.int64)}
    with torch.no_grad():
        expected = sentence_modules(config, parameters, pooling)(features)["sentence_embedding"][0].numpy()
    ours: Tensors = {}
    found = embed(ids, parameters, config, collector(ours))
    assert np.max(np.abs(found - expected)) <= 1e-12
    np.testing.assert_array_equal(ours["embedding"], found)
    assert list(ours)[-4:] == ["pooled", "projected_up", "projected", "embedding"]


def test_dense_head_is_two_torch_linears() -> None:
    """If this failed, the head would have a bias, an activation, or a matrix the wrong way round."""
    config = SMALL
    parameters = random_parameters(config, seed=3)
    rows = np.random.default_rng(3).standard_normal((2, 5, config.width))
    up = nn.functional.linear(torch.from_numpy(rows), torch.from_numpy(parameters["2_Dense.linear.weight"]))
    down = nn.functional.linear(up, torch.from_numpy(parameters["3_Dense.linear.weight"]))
    seen: Tensors = {}
    found = dense_head(rows, parameters, collector(seen))
    np.testing.assert_allclose(seen["projected_up"], up.numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found, down.numpy(), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(seen["projected"], found)


@pytest.mark.parametrize("dimensions", [1, 8, 39, 40])
def test_truncate_is_sentence_transformers(dimensions: int) -> None:
    """If this failed, a shortened embedding would not be what sentence-transformers' truncate_dim gives."""
    from sentence_transformers.util import truncate_embeddings

    rows = np.random.default_rng(4).standard_normal((6, 40))
    expected = nn.functional.normalize(truncate_embeddings(torch.from_numpy(rows), dimensions), dim=-1).numpy()
    np.testing.assert_allclose(truncate(rows, dimensions), expected, rtol=0, atol=1e-15)
