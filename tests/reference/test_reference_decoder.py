"""The decoder and the copy of weights into it, against transformers' causal Gemma 3 and PyTorch's own attention."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference_strategies import FEW, configs, largest, normal, seeds
from support import SMALL, config_json, random_ids, random_parameters
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from refembed.reference import FULL, SLIDING, Config, encode_tokens, layer_shapes, parameter_shapes
from refembed.reference.decoder import (
    adapt,
    causal_mask,
    cross_attention,
    decode,
    denoising_loss,
    fresh_dense,
    language_model_loss,
    language_model_loss_gradient,
    origins,
    target_logits,
)
from refembed.reference.operations import linear
from refembed.reference.ul2 import Corrupted

Array = NDArray[Any]
CONFIGS = {
    "three-heads-on-one": SMALL,  # a causal window of 8
    "four-heads-on-two": replace(SMALL, width=20, heads=4, key_heads=2, head=6, layer_kinds=(FULL, SLIDING), reach=3),
}
SOURCE = 13  # tokens that the encoder read

# Of one decoder layer and what stands beside the layers, as the names are to be on disk.
LAYER = [
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "post_attention_layernorm",
    "pre_cross_attention_layernorm",
    "cross_attn.q_proj",
    "cross_attn.k_proj",
    "cross_attn.v_proj",
    "cross_attn.o_proj",
    "cross_attn.q_norm",
    "cross_attn.k_norm",
    "post_cross_attention_layernorm",
    "pre_feedforward_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "post_feedforward_layernorm",
]


def parameters_of(config: Config, seed: int = 0) -> dict[str, Array]:
    """Encoder and decoder, no tensor of the one like one of the other."""
    shapes = {name: parameter_shapes(config)[origin] for name, origin in origins(config).items()}
    rng, parameters = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        spread = 0.3 if len(shape) == 1 else 1.0 if name.startswith("embed") else shape[1] ** -0.5
        parameters[name] = spread * rng.standard_normal(shape)
    return parameters


def without_cross_attention(parameters: dict[str, Array]) -> dict[str, Array]:
    """Its last norm's weight at -1: one plus it is 0, and so is the update."""
    off = {name: -np.ones_like(x) for name, x in parameters.items() if "post_cross_attention" in name}
    assert off
    return parameters | off


def tensor(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(x))


def causal(config: Config, parameters: dict[str, Array]) -> Gemma3ForCausalLM:
    """Their decoder-only model with our decoder's own weights, in float64."""
    changed = {"use_bidirectional_attention": False, "query_pre_attn_scalar": int(config.query_scalar)}
    settings = Gemma3TextConfig(**config_json(config) | changed, attn_implementation="eager")
    assert settings.sliding_window == 2 * config.reach
    model = Gemma3ForCausalLM(settings).double().eval()
    own = {name.removeprefix("decoder."): x for name, x in parameters.items() if name.startswith("decoder.")}
    own = {name: x for name, x in own.items() if "cross" not in name} | {
        "embed_tokens.weight": parameters["embed_tokens.weight"]
    }
    missing, unexpected = model.load_state_dict({f"model.{name}": tensor(x) for name, x in own.items()}, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model


def torch_cross_attention(
    x: torch.Tensor, encoded: torch.Tensor, parameters: dict[str, Array], layer: str, config: Config
) -> torch.Tensor:
    """PyTorch's attention between the decoder's tokens and the encoder's states, (tokens, width)."""

    def weight(name: str) -> torch.Tensor:
        return tensor(parameters[f"{layer}.cross_attn.{name}.weight"])

    def heads(rows: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(rows, weight(name)).unflatten(-1, (-1, config.head)).transpose(0, 1)

    def normed(rows: torch.Tensor, name: str) -> torch.Tensor:
        return F.rms_norm(rows, (config.head,), 1 + weight(name), config.epsilon)

    query, key = normed(heads(x, "q_proj"), "q_norm"), normed(heads(encoded, "k_proj"), "k_norm")
    context = F.scaled_dot_product_attention(
        query[None], key[None], heads(encoded, "v_proj")[None], scale=config.query_scalar**-0.5, enable_gqa=True
    )[0]
    return F.linear(context.transpose(0, 1).flatten(1), weight("o_proj"))


@contextmanager
def crossed(
    model: Gemma3ForCausalLM, encoded: torch.Tensor, parameters: dict[str, Array], config: Config
) -> Iterator[None]:
    """Their layers with cross-attention put between their two parts, at the output of the norm after attention."""

    def put_in(index: int, layer: nn.Module) -> list[Any]:
        name, entered = f"decoder.layers.{index}", []

        def norm(rows: torch.Tensor, which: str) -> torch.Tensor:
            weight = tensor(parameters[f"{name}.{which}_cross_attention_layernorm.weight"])
            return F.rms_norm(rows, (config.width,), 1 + weight, config.epsilon)

        def enter(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            entered[:] = [inputs[0]]

        def leave(module: nn.Module, inputs: Any, update: torch.Tensor) -> torch.Tensor:
            stream = (entered[0] + update)[0]
            output = torch_cross_attention(norm(stream, "pre"), encoded, parameters, name, config)
            return update + norm(output, "post")

        return [
            layer.input_layernorm.register_forward_pre_hook(enter),
            layer.post_attention_layernorm.register_forward_hook(leave),
        ]

    hooks = [hook for index, layer in enumerate(model.model.layers) for hook in put_in(index, layer)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def their_logits(model: Gemma3ForCausalLM, ids: Array) -> Array:
    with torch.no_grad(), oracle.float64_everywhere():
        return model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()


def slope(function: Callable[[Array], Any], x: Array, direction: Array, step: float = 1e-4) -> float:
    """The derivative along a direction, by five points."""
    near, far = (function(x + s * direction) - function(x - s * direction) for s in (step, 2 * step))
    return float((8 * near - far) / (12 * step))


# The decoder ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 30])
def test_without_cross_attention_it_is_transformers_causal_model(name: str, tokens: int) -> None:
    """Wrong if self-attention is not Gemma 3's: its direction, its window (twice the reach), its rotation, its norms.

    The windows are 8 and 6 tokens, their own counted, so that 9 is the first length at which both hide something.
    """
    config = CONFIGS[name]
    parameters, ids = without_cross_attention(parameters_of(config)), random_ids(config, tokens)
    states = decode(ids, normal(3, SOURCE, config.width), parameters, config)
    truth = their_logits(causal(config, parameters), ids)
    found = linear(states, parameters["embed_tokens.weight"])
    assert largest(found - truth) < 1e-12 * largest(truth)


@pytest.mark.parametrize("name", CONFIGS)
def test_with_cross_attention_it_is_transformers_and_torchs(name: str) -> None:
    """Wrong if cross-attention stands at another place, is normed otherwise, or the streams are added otherwise."""
    config = CONFIGS[name]
    parameters, ids, encoded = parameters_of(config), random_ids(config, 21), normal(3, SOURCE, config.width)
    model = causal(config, parameters)
    alone = their_logits(model, ids)
    with crossed(model, tensor(encoded), parameters, config):
        truth = their_logits(model, ids)
    found = linear(decode(ids, encoded, parameters, config), parameters["embed_tokens.weight"])
    assert largest(found - truth) < 1e-12 * largest(truth)
    assert largest(found - alone) > 0.01 * largest(truth)


@pytest.mark.parametrize("tokens", [1, SOURCE, 20])
def test_cross_attention_is_torchs(tokens: int) -> None:
    """Wrong if its heads, their sharing, its scale or its norms are others, or it masks or rotates anything."""
    config = CONFIGS["four-heads-on-two"]
    parameters = parameters_of(config)
    x, encoded = normal(1, tokens, config.width), normal(2, SOURCE, config.width)
    truth = torch_cross_attention(tensor(x), tensor(encoded), parameters, "decoder.layers.1", config).numpy()
    own = {name.removeprefix("decoder."): value for name, value in parameters.items()}
    assert largest(cross_attention(x, encoded, own, 1, config) - truth) < 1e-12 * largest(truth)


def test_the_causal_mask_drawn_by_hand() -> None:
    """Wrong if a token sees what comes after it, or not itself, or one more or one less than its window."""
    drawn = """
        1 . . . .
        1 1 . . .
        1 1 1 . .
        . 1 1 1 .
        . . 1 1 1
    """
    seen = np.array([[mark == "1" for mark in row.split()] for row in drawn.split("\n") if row.strip()])
    np.testing.assert_array_equal(causal_mask(5, 3, np.float64) == 0, seen)
    assert np.all(causal_mask(5, 3, np.float32)[~seen] == -np.inf)
    assert causal_mask(5, 3, np.float32).dtype == np.float32


@given(configs(), seeds, st.integers(2, 16), st.data())
@FEW
def test_no_token_sees_a_later_one(config: Config, seed: int, tokens: int, data: st.DataObject) -> None:
    """Wrong if the decoder could read the token that it is to foretell."""
    changed = data.draw(st.integers(1, tokens - 1))
    parameters, encoded = parameters_of(config, seed), normal(seed, 5, config.width)
    ids = random_ids(config, tokens, seed)
    other = ids.copy()
    other[changed] = 4 + (ids[changed] - 3) % (config.vocabulary - 4)
    before, after = (decode(one, encoded, parameters, config) for one in (ids, other))
    assert largest(before[:changed] - after[:changed]) < 1e-12 * largest(before)
    assert largest(before[changed] - after[changed]) > 0


@given(configs(), seeds, st.integers(1, 9))
@FEW
def test_the_order_of_encoder_states_does_not_matter(config: Config, seed: int, source: int) -> None:
    """Wrong if cross-attention had rotation, a window or a mask of its own: places are in the states already."""
    parameters, encoded = parameters_of(config, seed), normal(seed, source, config.width)
    ids, order = random_ids(config, 7, seed), np.random.default_rng(seed).permutation(source)
    found, shuffled = (decode(ids, states, parameters, config) for states in (encoded, encoded[order]))
    assert largest(found - shuffled) < 1e-10 * largest(found)


def test_float32_stays_float32() -> None:
    """Wrong if some step went over to float64, which a user of float32 pays for without knowing."""
    parameters = {name: x.astype(np.float32) for name, x in parameters_of(SMALL).items()}
    example = Corrupted(random_ids(SMALL, 9), random_ids(SMALL, 6)[1:])
    logits = target_logits(example, parameters, SMALL)
    assert logits.dtype == np.float32
    assert language_model_loss(logits, example.targets).dtype == np.float32
    assert language_model_loss_gradient(logits, example.targets).dtype == np.float32


# The loss -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(2, 40), st.floats(-3, 3), seeds)
@FEW
def test_the_loss_and_its_gradient_are_torchs(tokens: int, vocabulary: int, spread: float, seed: int) -> None:
    """Wrong if it is not the mean cross-entropy over target tokens, or its gradient is not that of it."""
    logits = 10**spread * normal(seed, tokens, vocabulary)
    targets = np.random.default_rng(seed).integers(0, vocabulary, tokens)
    theirs = torch.tensor(logits, requires_grad=True)
    value = F.cross_entropy(theirs, torch.from_numpy(targets))
    value.backward()
    np.testing.assert_allclose(language_model_loss(logits, targets), value.item(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        language_model_loss_gradient(logits, targets), theirs.grad.numpy(), rtol=1e-12, atol=1e-14
    )


def test_the_gradient_is_the_slope() -> None:
    """Wrong if the gradient is not that of the loss beside it, whatever PyTorch says."""
    logits, targets, direction = normal(0, 6, 9), np.array([0, 8, 3, 3, 1, 5]), normal(1, 6, 9)
    gradient = language_model_loss_gradient(logits, targets)
    found = slope(lambda x: language_model_loss(x, targets), logits, direction)
    np.testing.assert_allclose(np.sum(gradient * direction), found, rtol=1e-9)


def test_the_loss_by_hand() -> None:
    """Wrong if the logarithm is not natural, or far logits overflow."""
    even, sure = [0.0, 0.0, 0.0, 0.0], [5_000.0, 0.0, 0.0, 0.0]
    assert language_model_loss(np.array([even]), np.array([2])) == pytest.approx(np.log(4), rel=1e-15)
    assert language_model_loss(np.array([sure, sure]), np.array([0, 1])) == 2_500


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_of_a_batch_is_transformers(name: str) -> None:
    """Wrong if targets are not shifted by one behind BOS, an example is weighed by more than its tokens, or EOS is not
    asked for."""
    config = CONFIGS[name]
    parameters = parameters_of(config)
    batch = [Corrupted(random_ids(config, n, n), random_ids(config, m, m)[1:]) for n, m in ((12, 4), (5, 15), (2, 2))]
    assert all(example.targets[-1] == config.eos for example in batch)
    model, logits = causal(config, parameters), []
    for inputs, targets in batch:
        shifted = np.array([config.bos, *targets.tolist()[:-1]])
        with crossed(model, tensor(encode_tokens(inputs, parameters, config)), parameters, config):
            logits.append(torch.from_numpy(their_logits(model, shifted)))
    everything = torch.cat([torch.from_numpy(targets) for _, targets in batch])
    truth = F.cross_entropy(torch.cat(logits), everything, reduction="sum").item() / (3 + 14 + 1)
    assert denoising_loss(batch, parameters, config) == pytest.approx(truth, rel=1e-12)


# Adaptation -----------------------------------------------------------------------------------------------------------


def test_names_are_as_they_are_to_be_on_disk() -> None:
    """Wrong if a name is not the one that is stored, or the table is there twice."""
    layers = {f"decoder.layers.{index}.{part}.weight" for index in range(4) for part in LAYER}
    encoder = {name for name in parameter_shapes(SMALL) if "Dense" not in name}
    assert set(origins(SMALL)) == encoder | layers | {"decoder.norm.weight"}
    assert len(origins(Config())) == 314 + 24 * 21 + 1


def test_cross_attention_starts_as_self_attention() -> None:
    """Wrong if a copied weight is another one's: each is held to the place the name says."""
    parameters = random_parameters(SMALL)
    adapted = adapt(parameters, SMALL)
    for part in LAYER:
        origin = part.replace("cross_attn", "self_attn").replace("pre_cross_attention", "input")
        origin = origin.replace("post_cross_attention", "post_attention")
        for index in range(4):
            found = adapted[f"decoder.layers.{index}.{part}.weight"]
            np.testing.assert_array_equal(found, parameters[f"layers.{index}.{origin}.weight"])
    for name in parameters:
        assert "Dense" in name or np.array_equal(adapted[name], parameters[name])
    np.testing.assert_array_equal(adapted["decoder.norm.weight"], parameters["norm.weight"])


def test_an_adapted_decoder_without_cross_attention_is_the_model_it_came_from() -> None:
    """Wrong if the copy loses what the decoder-only model had learned; the truth is transformers', by its own state."""
    torch.manual_seed(0)
    settings = Gemma3TextConfig(
        **config_json(SMALL) | {"use_bidirectional_attention": False}, attn_implementation="eager"
    )
    model = Gemma3ForCausalLM(settings).double().eval()
    stored = {name.removeprefix("model."): x.detach().numpy() for name, x in model.state_dict().items()}
    adapted, ids = without_cross_attention(adapt(stored, SMALL)), random_ids(SMALL, 20)
    truth = their_logits(model, ids)
    states = decode(ids, normal(3, SOURCE, SMALL.width), adapted, SMALL)
    assert largest(linear(states, adapted["embed_tokens.weight"]) - truth) < 1e-12 * largest(truth)


def test_copies_are_copies() -> None:
    """Wrong if training the decoder in place would train the encoder, or the model that it came from, as well."""
    parameters = {name: x for name, x in random_parameters(SMALL).items() if "Dense" not in name}
    adapted = adapt(parameters, SMALL)
    arrays = [*parameters.values(), *adapted.values()]
    assert len({x.__array_interface__["data"][0] for x in arrays}) == len(arrays)


def test_a_missing_weight_is_named() -> None:
    """Wrong if a checkpoint that lacks a weight became a model with none, or the error did not say which."""
    parameters = random_parameters(SMALL)
    del parameters["layers.2.self_attn.k_norm.weight"]
    with pytest.raises(KeyError, match=r"layers\.2\.self_attn\.k_norm\.weight"):
        adapt(parameters, SMALL)


def test_fresh_dense_matrices_keep_a_rows_size() -> None:
    """Wrong if the head of an adapted model started at another scale, or not as its generator says."""
    config = replace(SMALL, width=300, dense=500, dimensions=200)
    first, again, other = (fresh_dense(config, np.random.default_rng(seed)) for seed in (0, 0, 1))
    shapes = {name: shape for name, shape in parameter_shapes(config).items() if "Dense" in name}
    assert {name: x.shape for name, x in first.items()} == shapes
    for name, x in first.items():
        np.testing.assert_array_equal(x, again[name])
        assert not np.array_equal(x, other[name])
        size = np.mean(np.square(linear(normal(5, 50, x.shape[1]), x)))
        assert 0.9 < size < 1.1


def test_every_parameter_of_the_decoder_matters() -> None:
    """Wrong if a weight is stored and never used."""
    config = replace(SMALL, layer_kinds=(SLIDING, FULL))
    parameters, ids, encoded = parameters_of(config), random_ids(config, 9), normal(3, SOURCE, config.width)
    before = decode(ids, encoded, parameters, config)
    names = [name for name in parameters if name.startswith("decoder.")]
    assert len(names) == 2 * len(LAYER) + 1 > 2 * len(layer_shapes(config))
    for name in names:
        changed = parameters | {name: parameters[name] + 0.1 * normal(7, *parameters[name].shape)}
        assert largest(decode(ids, encoded, changed, config) - before) > 1e-6, name
