"""What holds for every model of this kind, whatever its sizes and weights."""

import cmath
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_strategies import FEW, LAW, configs, distinct_ids, largest, normal, seeds
from support import SMALL, random_ids, random_parameters

from refembed.reference import (
    FULL,
    POOLERS,
    SLIDING,
    Config,
    collector,
    dense_head,
    embed,
    embed_batch,
    encode_tokens,
    l2_normalize,
    layer_shapes,
    parameter_shapes,
    reach_of_window,
    truncate,
)
from refembed.reference.attention import attend, attention, merge_heads, split_heads
from refembed.reference.layer import layer
from refembed.reference.operations import gelu, linear, rms_norm, softmax
from refembed.reference.positions import Positions, positions_of, rotary_angles, rotate, window_mask
from refembed.reference.trace import silent

EPS = 2.0**-52  # float64's spacing at 1


def moved(config: Config, kind: str, tokens: int, place: int, seed: int) -> np.ndarray:
    """Which rows a layer of this kind gives differently, to the bit, when the row at `place` is another one."""
    parameters, x = random_parameters(config, seed), normal(seed, tokens, config.width)
    other = x.copy()
    other[place] = normal(seed + 1, config.width)
    positions = positions_of(kind, tokens, config, np.float64)
    before, after = (layer(rows, parameters, 0, config, positions) for rows in (x, other))
    return np.any(before != after, axis=-1)


# Windows --------------------------------------------------------------------------------------------------------------


@LAW
@given(configs(kinds=(SLIDING,), layers=1), st.integers(1, 24), st.data(), seeds)
def test_a_sliding_layer_sees_exactly_its_window(config: Config, tokens: int, data: st.DataObject, seed: int) -> None:
    """If this failed, a token beyond the window would change a result, or one within it would not."""
    place = data.draw(st.integers(0, tokens - 1))
    distance = np.abs(np.arange(tokens) - place)
    np.testing.assert_array_equal(moved(config, SLIDING, tokens, place, seed), distance <= config.reach)


@LAW
@given(configs(kinds=(FULL,), layers=1), st.integers(1, 24), st.data(), seeds)
def test_a_full_layer_sees_everything(config: Config, tokens: int, data: st.DataObject, seed: int) -> None:
    """If this failed, a full layer would be windowed or causal."""
    assert moved(config, FULL, tokens, data.draw(st.integers(0, tokens - 1)), seed).all()


@pytest.mark.parametrize("place", [0, 40, 299, 599])
def test_the_released_window_is_256_and_not_257(place: int) -> None:
    """If this failed, sliding_window 512 would not mean 256 tokens to either side."""
    config = replace(SMALL, reach=reach_of_window(512))
    distance = np.abs(np.arange(600) - place)
    changed = moved(config, SLIDING, 600, place, 3)
    assert changed[distance == 256].all()
    assert not changed[distance == 257].any()
    np.testing.assert_array_equal(changed, distance <= 256)


@LAW
@given(configs(kinds=(SLIDING,), layers=3), st.data(), seeds)
def test_a_stack_of_sliding_layers_sees_the_sum_of_its_windows(config: Config, data: st.DataObject, seed: int) -> None:
    """If this failed, something other than the windows would carry influence along the text, or they would be short.

    Scores near zero spread the weights evenly, so that the faint influence at the farthest place is not rounded away.
    """
    config = replace(config, query_scalar=100.0 * config.head)
    farthest = len(config.layer_kinds) * config.reach
    tokens = farthest + 4
    place = data.draw(st.sampled_from([0, 1, tokens - 1]))
    parameters, ids = random_parameters(config, seed), random_ids(config, tokens, seed)
    other = ids.copy()
    other[place] = (ids[place] + 1) % config.vocabulary
    before, after = encode_tokens(ids, parameters, config), encode_tokens(other, parameters, config)
    distance = np.abs(np.arange(tokens) - place)
    np.testing.assert_array_equal(np.any(before != after, axis=-1), distance <= farthest)


def test_the_mask_is_the_one_drawn_by_hand() -> None:
    """If this failed, a query would see other keys than the drawing's."""
    drawing = ["##....", "###...", ".###..", "..###.", "...###", "....##"]
    drawn = np.array([[mark == "#" for mark in row] for row in drawing])
    np.testing.assert_array_equal(window_mask(6, 1, np.float32), np.where(drawn, 0, -np.inf))


def test_the_released_mask_at_its_edges() -> None:
    """If this failed, 257 tokens would already hide a pair, or 258 hide none, or a query would not see 513 keys."""
    assert not window_mask(257, 256, np.float64).any()
    assert np.argwhere(np.isinf(window_mask(258, 256, np.float64))).tolist() == [[0, 257], [257, 0]]
    assert (window_mask(800, 256, np.float64) == 0).sum(axis=1).max() == 513


@pytest.mark.parametrize(
    ("stored", "reach"), [(512, 256), (257, 256), (129, 128), (10, 5), (6, 3), (2, 1), (1024, 512), (513, 512), (3, 2)]
)
def test_reach_of_window(stored: int, reach: int) -> None:
    """If this failed, a window as stored or as rewritten by a library would be read wrong."""
    assert reach_of_window(stored) == reach


# Positions ------------------------------------------------------------------------------------------------------------


@LAW
@given(st.integers(1, 12), st.integers(1, 300), st.sampled_from([10.0, 1e4, 1e6]), seeds)
def test_rotation_is_multiplication_by_unit_complex_numbers(half: int, tokens: int, base: float, seed: int) -> None:
    """If this failed, pairs would be other numbers, angles other angles, or the turn the other way round.

    Expected: number k of the first half is a real part, number k of the second an imaginary one, multiplied by
    e^{i position base^(-2k/head)}. An angle of up to `tokens` radians rounds by a few of its own units.
    """
    x = normal(seed, 2, tokens, 2 * half)
    found = rotate(x, *rotary_angles(tokens, 2 * half, base, np.float64))
    place = np.random.default_rng(seed).integers(tokens)
    for k in range(half):
        turn = cmath.exp(1j * int(place) * base ** (-2 * k / (2 * half)))
        for row, turned in zip(x[:, place], found[:, place], strict=True):
            expected = complex(row[k], row[k + half]) * turn
            assert abs(complex(turned[k], turned[k + half]) - expected) <= (4 * tokens + 8) * EPS * abs(expected)


@LAW
@given(st.integers(1, 16), st.integers(1, 40), st.sampled_from([10.0, 1e4, 1e6]), seeds)
def test_rotation_keeps_norms(half: int, tokens: int, base: float, seed: int) -> None:
    """If this failed, position would change how long a query or key is, hence how large its scores."""
    x = normal(seed, 3, tokens, 2 * half)
    found = rotate(x, *rotary_angles(tokens, 2 * half, base, np.float64))
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), np.linalg.norm(x, axis=-1), rtol=(2 * half + 8) * EPS)


@LAW
@given(st.integers(1, 16), st.integers(2, 40), st.sampled_from([10.0, 1e4, 1e6]), seeds)
def test_scores_depend_on_distance_alone(half: int, tokens: int, base: float, seed: int) -> None:
    """If this failed, the same pair of words would score otherwise further on in a text."""
    query, key = normal(seed, 2, 2 * half)
    cos, sin = rotary_angles(tokens, 2 * half, base, np.float64)
    scores = rotate(np.tile(query, (tokens, 1)), cos, sin) @ rotate(np.tile(key, (tokens, 1)), cos, sin).T
    allowed = (8 * tokens + 4 * half + 16) * EPS * np.linalg.norm(query) * np.linalg.norm(key)
    for distance in range(1 - tokens, tokens):
        assert np.ptp(np.diagonal(scores, distance)) <= allowed
    assert tokens < 3 or np.ptp(scores) > 1e-6 * abs(scores[0, 0])  # and on distance they do depend


@LAW
@given(configs(), st.integers(1, 12), st.integers(1, 50), seeds)
def test_shifting_all_positions_changes_nothing(config: Config, tokens: int, shift: int, seed: int) -> None:
    """If this failed, attention would know where in the context a text begins."""
    parameters, x, kind = random_parameters(config, seed), normal(seed, tokens, config.width), config.layer_kinds[0]
    here = positions_of(kind, tokens, config, np.float64)
    base = config.sliding_base if kind == SLIDING else config.full_base
    cos, sin = rotary_angles(tokens + shift, config.head, base, np.float64)
    there = Positions(cos[shift:], sin[shift:], here.mask)
    before, after = (attention(x, parameters, 0, config, positions) for positions in (here, there))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-11 * largest(before))


def test_order_of_tokens_matters() -> None:
    """If this failed, positions would not be used at all."""
    parameters, ids = random_parameters(SMALL), random_ids(SMALL, 9)
    assert largest(embed(ids, parameters, SMALL) - embed(ids[::-1], parameters, SMALL)) > 1e-3


# Attention ------------------------------------------------------------------------------------------------------------


@LAW
@given(configs(), st.integers(1, 12), seeds)
def test_shared_keys_are_repeated_keys(config: Config, tokens: int, seed: int) -> None:
    """If this failed, a query head would read the wrong key head: neighbours share one, not every other."""
    parameters, x = random_parameters(config, seed), normal(seed, tokens, config.width)
    positions = positions_of(config.layer_kinds[0], tokens, config, np.float64)
    repeated = dict(parameters)
    for name in ("k_proj", "v_proj"):
        matrix = parameters[f"layers.0.self_attn.{name}.weight"]
        rows = [
            matrix[(h * config.key_heads // config.heads) * config.head :][: config.head] for h in range(config.heads)
        ]
        repeated[f"layers.0.self_attn.{name}.weight"] = np.concatenate(rows)
    before = attention(x, parameters, 0, config, positions)
    after = attention(x, repeated, 0, replace(config, key_heads=config.heads), positions)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * largest(before))


@LAW
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 8), st.integers(1, 9), st.integers(1, 5), seeds)
def test_attend_is_torch_attention(groups: int, shared: int, head: int, tokens: int, reach: int, seed: int) -> None:
    """If this failed, heads, mask, scale or softmax would not be attention's."""
    query = normal(seed, groups * shared, tokens, head)
    key, value = normal(seed + 1, 2, groups, tokens, head)
    mask = window_mask(tokens, reach, np.float64)
    found = attend(query, key, value, mask, 0.37, "", silent)
    tensors = [torch.from_numpy(each)[None] for each in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *tensors, attn_mask=torch.from_numpy(mask), scale=0.37, enable_gqa=True
    )
    np.testing.assert_allclose(found, expected[0].numpy(), rtol=0, atol=1e-13 * largest(value))


@LAW
@given(st.integers(1, 4), st.integers(1, 9), seeds, st.floats(-30, 30))
def test_a_constant_on_a_row_of_scores_changes_nothing(heads: int, tokens: int, seed: int, size: float) -> None:
    """If this failed, softmax would not be over keys, or the mask would do more than hide (a negative control)."""
    query, key, value = normal(seed, 3, heads, tokens, 6)
    mask = window_mask(tokens, 2, np.float64)
    constant = size * normal(seed, tokens, 1)
    before = attend(query, key, value, mask, 0.4, "", silent)
    after = attend(query, key, value, mask + constant, 0.4, "", silent)
    allowed = 8 * EPS * (largest(constant) + largest(query @ key.swapaxes(1, 2)) + tokens) * largest(value)
    np.testing.assert_allclose(after, before, rtol=0, atol=allowed)


@LAW
@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 9))
def test_heads_are_cut_and_merged_in_order(heads: int, tokens: int, head: int) -> None:
    """If this failed, a head would hold every so-manyth number instead of neighbours."""
    x = np.arange(tokens * heads * head).reshape(tokens, heads * head)
    cut = split_heads(x, head)
    for which in range(heads):
        np.testing.assert_array_equal(cut[which], x[:, which * head : (which + 1) * head])
    np.testing.assert_array_equal(merge_heads(cut), x)


# Operations -----------------------------------------------------------------------------------------------------------


@LAW
@given(st.integers(1, 3), st.integers(1, 60), st.floats(0.01, 200), st.floats(-1e3, 1e3), st.data(), seeds)
def test_softmax(rows: int, n: int, spread: float, shift: float, data: st.DataObject, seed: int) -> None:
    """If this failed, weights would not sum to one, would depend on a common shift, or would not be exponentials."""
    scores = spread * normal(seed, rows, n)
    hidden = np.random.default_rng(seed).random((rows, n)) < data.draw(st.floats(0, 0.9))
    hidden[:, data.draw(st.integers(0, n - 1))] = False
    scores[hidden] = -np.inf
    found = softmax(scores)
    assert (found[hidden] == 0).all()
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=2 * n * EPS)
    allowed = 4 * EPS * (largest(scores[~hidden]) + abs(shift) + n)
    np.testing.assert_allclose(softmax(scores + shift), found, rtol=allowed, atol=1e-300)
    for row, weights in zip(scores, found, strict=True):
        terms = [math.exp(score - max(row)) for score in row]
        np.testing.assert_allclose(weights, [term / math.fsum(terms) for term in terms], rtol=2 * n * EPS, atol=1e-300)


def test_softmax_of_scores_beyond_exp() -> None:
    """If this failed, scores of a thousand would overflow."""
    np.testing.assert_array_equal(softmax(np.array([[1e4, 1e4, -np.inf, -1e4]])), [[0.5, 0.5, 0, 0]])


@LAW
@given(st.integers(1, 60), st.integers(-30, 30), seeds)
def test_rms_norm(n: int, power: int, seed: int) -> None:
    """If this failed, size would pass through the norm, or it would divide by another mean than this."""
    x, weight = normal(seed, 4, n), normal(seed + 1, n)
    scaled = rms_norm(x * 2.0**power, weight, 0.0)
    np.testing.assert_array_equal(scaled, rms_norm(x, weight, 0.0))  # powers of two round nothing
    unit = rms_norm(x, np.zeros(n), 0.0)
    np.testing.assert_allclose(np.mean(unit**2, axis=-1), 1, rtol=(n + 8) * EPS)
    for row, found in zip(x, rms_norm(x, weight, 0.125), strict=True):
        root = math.sqrt(math.fsum(number * number for number in row) / n + 0.125)
        expected = [number / root * (1 + w) for number, w in zip(row, weight, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=(n + 8) * EPS)


@LAW
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40))
def test_gelu_is_torch_tanh_gelu(numbers: list[float]) -> None:
    """If this failed, the activation would be the exact form or another approximation."""
    x = np.array(numbers)
    expected = torch.nn.functional.gelu(torch.from_numpy(x), approximate="tanh").numpy()
    np.testing.assert_allclose(gelu(x), expected, rtol=0, atol=4 * EPS * largest(x))


def test_gelu_is_not_the_exact_form() -> None:
    """If this failed, the test above could not tell the two forms apart."""
    x = np.linspace(-4, 4, 101)
    assert largest(gelu(x) - torch.nn.functional.gelu(torch.from_numpy(x)).numpy()) > 1e-4


@LAW
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 20), seeds)
def test_linear_and_unit_length_by_loops(m: int, rows: int, n: int, seed: int) -> None:
    """If this failed, a matrix would be used untransposed, or a length be something else than Euclid's."""
    x, weight = normal(seed, rows, n), normal(seed + 1, m, n)
    expected = [[math.fsum(a * b for a, b in zip(row, column, strict=True)) for column in weight] for row in x]
    np.testing.assert_allclose(linear(x, weight), expected, rtol=0, atol=n * EPS * largest(x) * largest(weight) * n)
    lengths = [[math.sqrt(math.fsum(number * number for number in row))] for row in x]
    np.testing.assert_allclose(l2_normalize(x), x / np.array(lengths), rtol=(n + 4) * EPS)


# The whole ------------------------------------------------------------------------------------------------------------


@FEW
@given(configs(), st.lists(st.integers(1, 14), min_size=1, max_size=5), st.randoms(use_true_random=False), seeds)
def test_batch_order_and_duplicates_change_nothing(
    config: Config, lengths: list[int], random: object, seed: int
) -> None:
    """If this failed, a text's vector would depend on what else is embedded with it, to the last bit."""
    parameters = random_parameters(config, seed)
    texts = [random_ids(config, tokens, seed % 1000 + place) for place, tokens in enumerate(lengths)]
    alone = [embed(ids, parameters, config) for ids in texts]
    order = [*range(len(texts)), *range(len(texts))]
    random.shuffle(order)  # type: ignore[attr-defined]
    together = embed_batch([texts[place] for place in order], parameters, config)
    for place, row in zip(order, together, strict=True):
        np.testing.assert_array_equal(row, alone[place])


@FEW
@given(configs(), st.integers(1, 12), st.data(), seeds)
def test_fewer_dimensions_are_the_first_ones(config: Config, tokens: int, data: st.DataObject, seed: int) -> None:
    """If this failed, a model whose last matrix is cut to k rows would not give what truncating to k gives."""
    parameters, ids = random_parameters(config, seed), random_ids(config, tokens, seed)
    k = data.draw(st.integers(1, config.dimensions))
    fewer = data.draw(st.integers(1, k))
    whole = embed(ids, parameters, config)
    cut = parameters | {"3_Dense.linear.weight": parameters["3_Dense.linear.weight"][:k]}
    short = truncate(whole, k)
    np.testing.assert_allclose(embed(ids, cut, replace(config, dimensions=k)), short, rtol=0, atol=1e-12)
    for vector in (whole, short):
        assert abs(math.sqrt(math.fsum(vector**2)) - 1) <= 4 * EPS
    np.testing.assert_allclose(truncate(short, k), short, rtol=4 * EPS)
    np.testing.assert_allclose(truncate(short, fewer), truncate(whole, fewer), rtol=(4 + k) * EPS)
    direction = short @ whole[:k] / np.linalg.norm(whole[:k])
    assert abs(direction - 1) <= (k + 8) * EPS


@FEW
@given(configs(), st.integers(1, 12), seeds)
def test_head_before_or_after_the_mean(config: Config, tokens: int, seed: int) -> None:
    """If this failed, the head would not be linear; where it stands is no defect (a negative control)."""
    parameters, states = random_parameters(config, seed), normal(seed, tokens, config.width)
    before, after = dense_head(states, parameters).mean(axis=0), dense_head(states.mean(axis=0), parameters)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-12 * largest(dense_head(states, parameters)))


@FEW
@given(configs(), st.integers(1, 10), st.sampled_from([np.float32, np.float64]), seeds)
def test_the_float_type_in_is_the_float_type_everywhere(config: Config, tokens: int, dtype: type, seed: int) -> None:
    """If this failed, some stage would quietly compute in another precision than its parameters'."""
    kept: dict[str, np.ndarray] = {}
    embed(random_ids(config, tokens), random_parameters(config, seed, dtype), config, collector(kept))
    assert kept.pop("tokens").dtype == np.int64
    assert {name: x.dtype for name, x in kept.items()} == dict.fromkeys(kept, np.dtype(dtype))


def test_traced_names_and_their_order() -> None:
    """If this failed, a public tensor name would have changed; ports and golden files are keyed by them."""
    attention_names = (
        "norm query key value query_norm key_norm query_rotated key_rotated scores weights context output update"
    )
    mlp_names = "norm gate up gated output update"
    expected = ["tokens", "embedded"]
    for index in range(4):
        expected += [f"layer.{index:02d}.attention.{name}" for name in attention_names.split()]
        expected += [f"layer.{index:02d}.mlp.{name}" for name in mlp_names.split()] + [f"layer.{index:02d}.out"]
    expected += ["final_norm", "pooled", "projected_up", "projected", "embedding"]
    kept: dict[str, np.ndarray] = {}
    traced = embed(random_ids(SMALL, 9), random_parameters(SMALL), SMALL, collector(kept))
    assert list(kept) == expected
    np.testing.assert_array_equal(traced, embed(random_ids(SMALL, 9), random_parameters(SMALL), SMALL))


def test_the_collector_keeps_copies() -> None:
    """If this failed, a later change of an array would change what was traced."""
    kept: dict[str, np.ndarray] = {}
    tensor = np.ones(3)
    collector(kept)("name", tensor)
    tensor[0] = 5
    np.testing.assert_array_equal(kept["name"], np.ones(3))


def test_parameters_are_not_changed() -> None:
    """If this failed, embedding a text would change the model."""
    parameters, ids = random_parameters(SMALL), random_ids(SMALL, 9)
    for array in (*parameters.values(), ids):
        array.setflags(write=False)
    embed(ids, parameters, SMALL)


# Poolers --------------------------------------------------------------------------------------------------------------


@LAW
@given(st.integers(1, 12), st.integers(1, 10), seeds)
def test_mean_first_and_last_by_loops(tokens: int, width: int, seed: int) -> None:
    """If this failed, a pooler would leave a token out or take another one."""
    states = normal(seed, tokens, width)
    mean = [float(sum(map(Fraction, column)) / tokens) for column in states.T]
    np.testing.assert_allclose(POOLERS["mean"](states, {}), mean, rtol=0, atol=tokens * EPS * largest(states))
    np.testing.assert_array_equal(POOLERS["first"](states, {}), [row[0] for row in states.T])
    np.testing.assert_array_equal(POOLERS["last"](states, {}), [row[-1] for row in states.T])


@LAW
@given(st.integers(1, 12), st.integers(1, 6), seeds)
def test_attention_pooler_is_torch_multi_head_attention(tokens: int, quarter: int, seed: int) -> None:
    """If this failed, heads, scale or projections would not be those of four-head attention with a learned query."""
    width = 4 * quarter
    states, query = normal(seed, tokens, width), normal(seed + 1, 1, width)
    key, value = normal(seed + 2, 2, width, width)
    module = torch.nn.MultiheadAttention(width, 4, bias=False, batch_first=True, dtype=torch.float64)
    module.in_proj_weight.data = torch.from_numpy(np.concatenate([np.eye(width), key, value]))
    module.out_proj.weight.data = torch.eye(width, dtype=torch.float64)
    rows = torch.from_numpy(states)[None]
    with torch.no_grad():
        expected = module(torch.from_numpy(query)[None], rows, rows)[0][0, 0].numpy()
    parameters = {"pooling.query": query, "pooling.key.weight": key, "pooling.value.weight": value}
    found = POOLERS["attention"](states, parameters)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * (1 + largest(expected)))


# Config ---------------------------------------------------------------------------------------------------------------


def test_the_default_config_is_the_released_model() -> None:
    """If this failed, Config() would not be EmbeddingGemma-300M."""
    config, shapes = Config(), parameter_shapes(Config())
    assert len(shapes) == 314 + 2
    assert sum(math.prod(shape) for shape in shapes.values()) == 307_581_696
    assert sum(math.prod(shapes[f"{folder}_Dense.linear.weight"]) for folder in (2, 3)) == 4_718_592
    assert [index for index, kind in enumerate(config.layer_kinds) if kind == FULL] == [5, 11, 17, 23]
    assert len(config.layer_kinds) == 24
    assert config.query_scalar**-0.5 == 1 / 16
    assert shapes["2_Dense.linear.weight"] == (3072, 768)
    assert shapes["3_Dense.linear.weight"] == (768, 3072)
    assert config.reach == reach_of_window(512)


@LAW
@given(configs())
def test_parameter_shapes_are_all_that_is_asked_for(config: Config) -> None:
    """If this failed, the forward would read a parameter no checkpoint is checked for, or leave one unread."""

    class Asked(dict[str, np.ndarray]):
        names: set[str]

        def __getitem__(self, name: str) -> np.ndarray:
            self.names.add(name)
            return super().__getitem__(name)

    asked = Asked(random_parameters(config))
    asked.names = set()
    embed(distinct_ids(config, 3, 0), asked, config)
    assert asked.names == set(parameter_shapes(config))
    assert len(asked.names) == 4 + len(layer_shapes(config)) * len(config.layer_kinds)
