"""float32 against float64: each operation within its a-priori bound, the whole model within what rounding can do to it.

u = 2^-24 is the largest relative error of one float32 operation (Higham, Accuracy and Stability, 2.2), and
gamma(k) = k u / (1 - k u) that of k of them in a row (3.1). NumPy's exp and tanh are within 4 units in the last place,
at most 8 u.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference_strategies import LAW, configs, distinct_ids, largest, normal, seeds
from support import SMALL, random_parameters

from refembed.reference import Config, embed
from refembed.reference import attention as attention_module
from refembed.reference import layer as layer_module
from refembed.reference.operations import gelu, l2_normalize, linear, rms_norm, softmax
from refembed.reference.positions import rotary_angles, rotate

U = 2.0**-24


def gamma(k: float) -> float:
    return k * U / (1 - k * U)


def single(seed: int, *shape: int, size: float = 1.0) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The same numbers in float32 and in float64."""
    x = (size * normal(seed, *shape)).astype(np.float32)
    return x, x.astype(np.float64)


# One operation at a time ----------------------------------------------------------------------------------------------

sizes = st.integers(1, 100)


@LAW
@given(sizes, sizes, seeds)
def test_linear_in_float32(n: int, m: int, seed: int) -> None:
    """If this failed, a product would be summed in less than float32.

    n products and n - 1 sums, in any order: |error| <= gamma(n) |x| |W|^T (Higham 3.5).
    """
    (x, x64), (weight, weight64) = single(seed, 3, n), single(seed + 1, m, n)
    error = np.abs(linear(x, weight) - linear(x64, weight64))
    assert (error <= gamma(n) * (np.abs(x64) @ np.abs(weight64).T)).all()


@LAW
@given(sizes, st.floats(1e-3, 1e3), seeds)
def test_rms_norm_in_float32(n: int, size: float, seed: int) -> None:
    """If this failed, a norm would lose digits.

    The mean square is a sum of n positive terms: square, n - 1 sums, a division, epsilon and its rounding make n + 3
    roundings, which the square root halves; root, reciprocal, two products and 1 + w add 5.
    """
    (x, x64), (weight, weight64) = single(seed, 3, n, size=size), single(seed + 1, n)
    exact = rms_norm(x64, weight64, 1e-6)
    assert (np.abs(rms_norm(x, weight, 1e-6) - exact) <= gamma((n + 3) / 2 + 5) * np.abs(exact)).all()


@LAW
@given(sizes, st.floats(1e-3, 1e3), seeds)
def test_unit_length_in_float32(n: int, size: float, seed: int) -> None:
    """If this failed, embeddings would be less than float32's unit length. n roundings halved, root, division."""
    x, x64 = single(seed, 3, n, size=size)
    exact = l2_normalize(x64)
    assert (np.abs(l2_normalize(x) - exact) <= gamma(n / 2 + 2) * np.abs(exact)).all()


@LAW
@given(sizes, st.floats(0.01, 12), seeds)
def test_softmax_in_float32(n: int, size: float, seed: int) -> None:
    """If this failed, attention weights would lose digits.

    The difference d from the row's largest rounds by u |d|, which exp makes a relative error, and adds its own 8 u; the
    sum of positive terms has the worst of these and n - 1 more, the division one.
    """
    scores, scores64 = single(seed, 3, n, size=size)
    exact = softmax(scores64)
    spread = np.ptp(scores64, axis=-1, keepdims=True)
    assert (np.abs(softmax(scores) - exact) <= gamma(2 * (float(np.max(spread)) + 8) + n) * exact + 1e-38).all()


@LAW
@given(sizes, st.floats(1e-3, 20), seeds)
def test_gelu_in_float32(n: int, size: float, seed: int) -> None:
    """If this failed, the activation would lose digits.

    The argument t of tanh has 7 roundings, which tanh takes down by t sech^2(t) <= 0.448, and adds its own 8 u: 11.2 u;
    1 + tanh adds 2 u; times |x|/2 that is 6.6 u |x|, and two products of a result of at most |x| are 2 u |x| more.
    """
    x, x64 = single(seed, n, size=size)
    assert (np.abs(gelu(x) - gelu(x64)) <= gamma(8.6) * np.abs(x64)).all()


@LAW
@given(st.integers(1, 20), st.integers(1, 2048), st.sampled_from([1e4, 1e6]), seeds)
def test_rotation_in_float32(half: int, tokens: int, base: float, seed: int) -> None:
    """If this failed, angles would be computed in float32, which is 1e-4 off at the end of the context.

    A rounded cosine, a product and a sum: 3 roundings of |a cos| + |b sin|, whatever the position.
    """
    x, x64 = single(seed, tokens, 2 * half)
    single_found = rotate(x, *rotary_angles(tokens, 2 * half, base, np.float32))
    cos, sin = rotary_angles(tokens, 2 * half, base, np.float64)
    exact = rotate(x64, cos, sin)
    a, b = np.abs(x64[:, :half]), np.abs(x64[:, half:])
    terms = np.concatenate([a * np.abs(cos) + b * np.abs(sin), b * np.abs(cos) + a * np.abs(sin)], axis=-1)
    assert (np.abs(single_found - exact) <= gamma(3) * terms).all()


# The whole model ------------------------------------------------------------------------------------------------------


class Rounded(np.ndarray):
    """Float64 numbers whose every operation errs by the most float32 rounding can, with a sign thrown each time.

    Elementwise operations err by u times the result, exp and tanh by 8 u; sums, and matrix products, which are sums of
    products, by u times every partial result on the way, the squares of which add up. Numbers from outside (a Python
    constant, a cosine) are rounded on entry. What is exact in float32 stays exact: maximum, shapes, copies.
    """

    __array_priority__ = 1.0  # so that np.concatenate keeps it too
    throw = np.random.default_rng(0)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        given = [self._entered(value) for value in inputs]
        result = getattr(ufunc, method)(*given, **options)
        spread = self._spread(ufunc.__name__, method, given, result, options)
        result = result + spread * self.throw.choice([-1.0, 1.0], np.shape(result))
        if out is None:
            return np.asarray(result).view(Rounded)
        out[0][...] = result
        return out[0]

    @classmethod
    def _entered(cls, value: Any) -> Any:
        array = np.asarray(value)
        if isinstance(value, Rounded) or array.dtype.kind != "f":
            return array.view(np.ndarray)
        inexact = array != array.astype(np.float32)
        return np.where(inexact, array * (1 + U * cls.throw.choice([-1.0, 1.0], array.shape)), array)

    @staticmethod
    def _spread(name: str, method: str, given: list[Any], result: Any, options: dict[str, Any]) -> Any:
        if name == "maximum":
            return 0.0
        if method == "reduce":
            assert name == "add"
            partial = np.cumsum(given[0], axis=options["axis"])
            later = np.moveaxis(partial, options["axis"], 0)[1:]
            return U * np.sqrt(np.sum(later**2, axis=0)).reshape(np.shape(result))
        assert method == "__call__"
        if name == "matmul":
            terms = np.atleast_2d(given[0])[..., :, :, None] * given[1][..., None, :, :]
            partial = np.cumsum(terms, axis=-2)[..., 1:, :]
            spread = U * np.sqrt(np.sum(terms**2, axis=-2) + np.sum(partial**2, axis=-2))
            return spread.reshape(np.shape(result))
        roundings = {"exp": 8, "tanh": 8, "add": 1, "subtract": 1, "multiply": 1, "divide": 1, "sqrt": 1, "square": 1}
        return roundings[name] * U * np.abs(np.where(np.isfinite(result), result, 0))


def traced(ids: NDArray[Any], parameters: dict[str, Any], config: Config) -> dict[str, NDArray[Any]]:
    kept: dict[str, NDArray[Any]] = {}
    kind = type(parameters["norm.weight"])

    def keep(name: str, tensor: NDArray[Any]) -> None:
        assert type(tensor) is kind or name == "tokens", f"{name} is no {kind.__name__} any more"
        kept[name] = np.array(tensor)

    embed(ids, parameters, config, keep)
    kept.pop("tokens")
    return kept


def share_of_allowed_error(config: Config, tokens: int, seed: int, throws: int = 16) -> dict[str, float]:
    """How much of the error that rounding may make is in each float32 tensor.

    To first order the error of a tensor is the sum, over every rounded operation before it, of that operation's error
    times its amplification on the way. Thrown signs make each of these errors as large as it can be and independent, so
    the mean square S^2 of the deviation they cause is the sum of the squares, amplification included. Errors of mean
    zero within the same limits then deviate by more than 6 S with a chance below 2 exp(-6^2 / 2) = 3e-8 (Pinelis 1994,
    theorem 3.5; the model is Higham and Mary 2019). S is measured with `throws` throws; a factor of sqrt(2) allows for
    their mean square being half of the true one. No two tokens are alike, else their errors would be alike too.
    """
    parameters = random_parameters(config, seed, np.float32)
    ids = distinct_ids(config, tokens, seed)
    wide = {name: array.astype(np.float64) for name, array in parameters.items()}
    found, exact = traced(ids, parameters, config), traced(ids, wide, config)
    noisy = {name: array.view(Rounded) for name, array in wide.items()}
    squares = dict.fromkeys(exact, 0.0)
    for _ in range(throws):
        for name, tensor in traced(ids, noisy, config).items():
            squares[name] += float(np.sum((tensor - exact[name]) ** 2)) / throws
    allowed = {name: 6 * math.sqrt(2 * square) for name, square in squares.items()}
    errors = {name: float(np.linalg.norm(found[name] - exact[name])) for name in exact}
    return {name: error and error / allowed[name] for name, error in errors.items()}


@settings(max_examples=15, deadline=None)  # of half a second each
@given(configs(), st.integers(1, 14), seeds)
def test_float32_is_as_close_as_rounding_allows(config: Config, tokens: int, seed: int) -> None:
    """If this failed, some stage would lose more in float32 than float32 has to lose."""
    shares = share_of_allowed_error(config, tokens, seed)
    assert max(shares.values()) <= 1, {name: share for name, share in shares.items() if share > 1}


def coarse(x: NDArray[Any]) -> NDArray[Any]:
    """Rounded to bfloat16's 8 bits when float32; float64 is left alone."""
    if x.dtype != np.float32:
        return x
    return ((x.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (attention_module, "softmax"),
        (attention_module, "rms_norm"),
        (attention_module, "rotate"),
        (layer_module, "gelu"),
        (layer_module, "attention"),
    ],
)
def test_the_bound_sees_a_coarser_stage(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, the bound would be too wide to see one stage rounded to bfloat16."""
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: coarse(right(*given)))
    shares = share_of_allowed_error(SMALL, 11, 5)
    assert shares["embedding"] > 5


def test_the_bound_is_within_reach() -> None:
    """If this failed, the bound would be far wider than what float32 does."""
    shares = share_of_allowed_error(replace(SMALL, vocabulary=60), 14, 1)
    assert max(shares.values()) > 0.02
    assert largest(list(shares.values())) <= 1


def test_without_rounding_nothing_is_thrown(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, the noisy run would differ from the exact one by more than its noise."""
    parameters, ids = random_parameters(SMALL), distinct_ids(SMALL, 9, 0)
    noisy = {name: array.view(Rounded) for name, array in parameters.items()}
    loud = traced(ids, noisy, SMALL)
    monkeypatch.setattr(Rounded, "_spread", staticmethod(lambda *rest: 0.0))
    monkeypatch.setattr(Rounded, "_entered", classmethod(lambda cls, value: np.asarray(value).view(np.ndarray)))
    quiet, exact = traced(ids, noisy, SMALL), traced(ids, parameters, SMALL)
    for name, tensor in exact.items():
        np.testing.assert_array_equal(quiet[name], tensor)
        assert (loud[name] != tensor).any(), name
