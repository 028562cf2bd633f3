"""Each hand-written derivative against torch's autograd of torch's own operation, and against finite differences."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference_strategies import FEW, LAW, largest, normal, seeds
from support import SMALL
from torch.nn import functional
from transformers.models.gemma3 import modeling_gemma3

from refembed.reference import POOLERS, dense_head, embed_tokens, l2_normalize, truncate
from refembed.reference.gradients import (
    POOLER_GRADIENTS,
    Gradients,
    dense_head_gradients,
    embed_tokens_gradient,
    gelu_gradient,
    l2_normalize_gradient,
    linear_gradient,
    linear_gradients,
    linear_weight_gradient,
    rms_norm_gradient,
    rms_norm_gradients,
    rms_norm_weight_gradient,
    rotate_gradient,
    softmax_gradient,
    truncate_gradient,
)
from refembed.reference.operations import gelu, linear, rms_norm, softmax
from refembed.reference.positions import rotary_angles, rotate

Array = NDArray[Any]
EPSILON = 1e-3  # large enough to matter beside the mean square
IDS = np.array([7, 3, 7, 0, 3, 7])
COS, SIN = rotary_angles(6, 8, 100.0, np.float64)
WHOLE = torch.from_numpy(np.concatenate([COS, COS], axis=1)), torch.from_numpy(np.concatenate([SIN, SIN], axis=1))
UP, DOWN, QUERY, KEY, VALUE = (
    "2_Dense.linear.weight",
    "3_Dense.linear.weight",
    "pooling.query",
    "pooling.key.weight",
    "pooling.value.weight",
)


class Operation(NamedTuple):
    """One operation: ours, torch's, ours backwards, and the shapes of what it is differentiated by (after any lead)."""

    ours: Callable[..., Array]
    theirs: Callable[..., torch.Tensor]
    gradients: Callable[..., tuple[Array, ...]]  # upstream and what went in -> a derivative each
    shapes: tuple[tuple[int, ...], ...]
    leads: bool = True  # any axes may stand before the first one's own


def in_order(found: Gradients, *names: str) -> tuple[Array, ...]:
    assert set(found.parameters) == set(names)
    return found.x, *(found.parameters[name] for name in names)


def their_attention_pool(states: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    """torch's scaled dot product attention, in four heads."""
    query, key, value = weights[0], states @ weights[1].T, states @ weights[2].T
    query, key, value = (x.unflatten(1, (4, -1)).transpose(0, 1) for x in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten()


def their_rotation(x: torch.Tensor) -> torch.Tensor:
    return modeling_gemma3.apply_rotary_pos_emb(x, x, *WHOLE, unsqueeze_dim=0)[0].reshape(x.shape)


def their_table(table: torch.Tensor) -> torch.Tensor:
    return functional.embedding(torch.from_numpy(IDS), table) * math.sqrt(SMALL.width)


OPERATIONS = {
    "linear": Operation(
        linear, functional.linear, lambda u, x, w: in_order(linear_gradients(u, x, "w", {"w": w}), "w"), ((5,), (7, 5))
    ),
    "rms_norm": Operation(
        lambda x, w: rms_norm(x, w, EPSILON),
        lambda x, w: functional.rms_norm(x, x.shape[-1:], 1 + w, EPSILON),
        lambda u, x, w: in_order(rms_norm_gradients(u, x, "w", {"w": w}, EPSILON), "w"),
        ((9,), (9,)),
    ),
    "gelu": Operation(
        gelu, lambda x: functional.gelu(x, approximate="tanh"), lambda u, x: (gelu_gradient(u, x),), ((6,),)
    ),
    "softmax": Operation(
        softmax, lambda x: functional.softmax(x, -1), lambda u, x: (softmax_gradient(u, softmax(x)),), ((6,),)
    ),
    "l2_normalize": Operation(
        l2_normalize,
        lambda x: functional.normalize(x, dim=-1),
        lambda u, x: (l2_normalize_gradient(u, x),),
        ((7,),),
    ),
    "rotate": Operation(
        lambda x: rotate(x, COS, SIN), their_rotation, lambda u, x: (rotate_gradient(u, COS, SIN),), ((6, 8),)
    ),
    "truncate": Operation(
        lambda x: truncate(x, 4),
        lambda x: functional.normalize(x[..., :4], dim=-1),
        lambda u, x: (truncate_gradient(u, x),),
        ((9,),),
    ),
    "truncate to the whole": Operation(
        lambda x: truncate(x, 9),
        lambda x: functional.normalize(x, dim=-1),
        lambda u, x: (truncate_gradient(u, x),),
        ((9,),),
    ),
    "embed_tokens": Operation(
        lambda table: embed_tokens(IDS, {"embed_tokens.weight": table}, SMALL),
        their_table,
        lambda u, table: (embed_tokens_gradient(u, IDS, SMALL),),
        ((SMALL.vocabulary, SMALL.width),),
        leads=False,
    ),
    "dense_head": Operation(
        lambda x, up, down: dense_head(x, {UP: up, DOWN: down}),
        lambda x, up, down: functional.linear(functional.linear(x, up), down),
        lambda u, x, up, down: in_order(dense_head_gradients(u, x, {UP: up, DOWN: down}), UP, DOWN),
        ((5,), (8, 5), (6, 8)),
    ),
    "mean pooler": Operation(
        lambda x: POOLERS["mean"](x, {}),
        lambda x: x.mean(0),
        lambda u, x: in_order(POOLER_GRADIENTS["mean"](u, x, {})),
        ((6, 4),),
        leads=False,
    ),
    "first pooler": Operation(
        lambda x: POOLERS["first"](x, {}),
        lambda x: x[0],
        lambda u, x: in_order(POOLER_GRADIENTS["first"](u, x, {})),
        ((6, 4),),
        leads=False,
    ),
    "last pooler": Operation(
        lambda x: POOLERS["last"](x, {}),
        lambda x: x[-1],
        lambda u, x: in_order(POOLER_GRADIENTS["last"](u, x, {})),
        ((6, 4),),
        leads=False,
    ),
    "attention pooler": Operation(
        lambda x, q, k, v: POOLERS["attention"](x, {QUERY: q, KEY: k, VALUE: v}),
        their_attention_pool,
        lambda u, x, q, k, v: in_order(
            POOLER_GRADIENTS["attention"](u, x, {QUERY: q, KEY: k, VALUE: v}), QUERY, KEY, VALUE
        ),
        ((6, 8), (1, 8), (8, 8), (8, 8)),
        leads=False,
    ),
}
FEW_NUMBERS = [name for name in OPERATIONS if name != "embed_tokens"]  # finite differences take two runs a number


def inputs(operation: Operation, lead: tuple[int, ...], seed: int) -> tuple[list[Array], Array]:
    """What goes in, and an upstream of the shape of what comes out."""
    first, *rest = operation.shapes
    lead = lead if operation.leads else ()
    arrays = [normal(seed + place, *shape) for place, shape in enumerate([(*lead, *first), *rest])]
    return arrays, normal(seed + len(arrays), *operation.ours(*arrays).shape)


def differences(function: Callable[[Array], Array], x: Array, upstream: Array, step: float = 1e-3) -> Array:
    """The derivative with respect to every number of x of sum(upstream * function(x)), by the five-point rule."""

    def loss(place: int, factor: int) -> float:
        moved = x.copy()
        moved.flat[place] += factor * step
        return float(np.sum(upstream * function(moved)))

    found = [
        (8 * (loss(place, 1) - loss(place, -1)) - (loss(place, 2) - loss(place, -2))) / (12 * step)
        for place in range(x.size)
    ]
    return np.array(found).reshape(x.shape)


leads = st.sampled_from([(), (1,), (3,), (2, 3)])


@pytest.mark.parametrize("name", OPERATIONS)
@FEW
@given(leads, seeds)
def test_derivatives_are_autograds(name: str, lead: tuple[int, ...], seed: int) -> None:
    """If this failed, a derivative would not be that of torch's operation of the same name."""
    operation = OPERATIONS[name]
    arrays, upstream = inputs(operation, lead, seed)
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays]
    out = operation.theirs(*tensors)
    np.testing.assert_allclose(
        out.detach().numpy(), operation.ours(*arrays), rtol=0, atol=1e-12 * (1 + largest(arrays[0]))
    )
    expected = torch.autograd.grad(out, tensors, torch.from_numpy(upstream))
    found = operation.gradients(upstream, *arrays)
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == arrays[place].shape
        assert largest(one - other.numpy()) <= 1e-13 * (1 + largest(other.numpy())), (name, place)


@pytest.mark.parametrize("name", FEW_NUMBERS)
@pytest.mark.parametrize("lead", [(), (2, 3)], ids=str)
def test_derivatives_are_finite_differences(name: str, lead: tuple[int, ...]) -> None:
    """If this failed, a derivative would not be that of the reference's own forward."""
    operation = OPERATIONS[name]
    arrays, upstream = inputs(operation, lead, seed=11)
    found = operation.gradients(upstream, *arrays)
    for place, array in enumerate(arrays):

        def moved(x: Array, place: int = place) -> Array:
            return operation.ours(*arrays[:place], x, *arrays[place + 1 :])

        assert largest(found[place] - differences(moved, array, upstream)) <= 1e-9 * (1 + largest(found[place]))


def test_finite_differences_see_a_missing_part() -> None:
    """If this failed, the rule above would be too coarse to tell a derivative from one that lacks a term."""
    x, upstream = normal(1, 3, 9), normal(2, 3, 9)
    right = differences(lambda rows: rms_norm(rows, np.zeros(9), 1e-6), x, upstream)
    size = np.sqrt(np.mean(x * x, axis=-1, keepdims=True))
    assert largest(upstream / size - right) > 1e-3  # the first path only
    without_epsilon = rms_norm_gradient(upstream, x, np.zeros(9), 0.0)
    assert largest(without_epsilon - right) > 1e-9


# Laws that no other implementation is needed for


@LAW
@given(leads, seeds, st.floats(0.01, 100))
def test_normalisations_pass_nothing_along_the_row(lead: tuple[int, ...], seed: int, factor: float) -> None:
    """If this failed, training would push a vector along itself, which changes no cosine."""
    x, upstream = normal(seed, *lead, 7), normal(seed + 1, *lead, 7)
    for found in (l2_normalize_gradient(upstream, x), rms_norm_gradient(upstream, x, normal(seed + 2, 7), 0.0)):
        assert largest(np.sum(found * x, axis=-1)) <= 1e-12 * (1 + largest(upstream)) * largest(x) / np.min(
            np.linalg.norm(x, axis=-1)
        )
    longer = l2_normalize_gradient(upstream, factor * x)
    np.testing.assert_allclose(
        longer * factor, l2_normalize_gradient(upstream, x), rtol=0, atol=1e-12 * largest(longer * factor)
    )


@LAW
@given(st.integers(2, 8), st.data(), seeds)
def test_softmax_passes_nothing_to_what_is_not_seen(n: int, data: st.DataObject, seed: int) -> None:
    """If this failed, a masked key would be trained, or a row's scores would all move together."""
    seen = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any)))
    scores = np.where(seen, normal(seed, 3, n), -np.inf)
    found = softmax_gradient(normal(seed + 1, 3, n), softmax(scores))
    assert np.all(found[:, ~seen] == 0)
    assert largest(np.sum(found, axis=-1)) <= 1e-14


def test_softmax_by_hand() -> None:
    """If this failed, two equal scores would not share: weights 1/2, upstream 1 and 0, so +1/4 and -1/4."""
    np.testing.assert_array_equal(softmax_gradient(np.array([1.0, 0.0]), np.array([0.5, 0.5])), [0.25, -0.25])


def test_l2_normalize_by_hand() -> None:
    """If this failed, (3, 4) would not have unit row (0.6, 0.8): upstream (1, 0) less 0.6 of it is (0.64, -0.48)."""
    found = l2_normalize_gradient(np.array([1.0, 0.0]), np.array([3.0, 4.0]))
    np.testing.assert_allclose(found, [0.128, -0.096], rtol=1e-15)


def test_rms_norm_by_hand() -> None:
    """If this failed, (1, 1), scale 1, weight less one (0, 1) and upstream (1, 1) would not give (1, 2) less 3/2."""
    row, upstream = np.ones(2), np.ones(2)
    np.testing.assert_allclose(rms_norm_gradient(upstream, row, np.array([0.0, 1.0]), 0.0), [-0.5, 0.5], rtol=1e-15)
    np.testing.assert_allclose(rms_norm_weight_gradient(np.eye(2), np.ones((2, 2)), 0.0), [1, 1], rtol=1e-15)


def test_a_token_that_comes_twice_gets_both() -> None:
    """If this failed, a repeated id would keep one of its gradients, or a token not in the text would get one."""
    upstream = normal(5, len(IDS), SMALL.width)
    found = embed_tokens_gradient(upstream, IDS, SMALL) / math.sqrt(SMALL.width)
    np.testing.assert_allclose(found[7], upstream[0] + upstream[2] + upstream[5], rtol=1e-14)
    np.testing.assert_allclose(found[0], upstream[3], rtol=1e-14)
    assert set(np.flatnonzero(np.any(found, axis=1))) == {0, 3, 7}


@pytest.mark.parametrize("x", [-1e4, -50.0, 0.0, 50.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gelu_far_out(x: float, dtype: type) -> None:
    """If this failed, a large activation would make a gradient of NaN in place of 0 on the left and 1 on the right."""
    assert gelu_gradient(np.ones(1, dtype), np.array([x], dtype)) == (0.5 if x == 0 else float(x > 0))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_float_type_in_is_the_float_type_out(name: str) -> None:
    """If this failed, a derivative would quietly be computed in another precision than its input's."""
    operation = OPERATIONS[name]
    if name == "rotate":
        single = rotary_angles(6, 8, 100.0, np.float32)
        assert rotate_gradient(np.ones((6, 8), np.float32), *single).dtype == np.float32
        return
    arrays, upstream = inputs(operation, (2,), seed=3)
    wide = operation.gradients(upstream, *arrays)
    narrow = operation.gradients(upstream.astype(np.float32), *(array.astype(np.float32) for array in arrays))
    for one, other in zip(narrow, wide, strict=True):
        assert one.dtype == np.float32
        assert largest(one - other) <= 1e-5 * (1 + largest(other))


def test_named_and_plain_forms_agree() -> None:
    """If this failed, the functions that name the parameter would not be the two that do not."""
    x, upstream, weight = normal(1, 4, 5), normal(2, 4, 3), normal(3, 3, 5)
    both = linear_gradients(upstream, x, "w", {"w": weight})
    np.testing.assert_array_equal(both.x, linear_gradient(upstream, weight))
    np.testing.assert_array_equal(both.parameters["w"], linear_weight_gradient(upstream, x))
