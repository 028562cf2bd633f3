"""The four operations everything else is made of. Each computes in, and returns, its input's float type."""

import math

import numpy as np

from .trace import Array


def linear(x: Array, weight: Array) -> Array:
    """Multiply by a stored matrix. No bias anywhere in this model.

    x        (..., n)
    weight   (m, n)    stored (out, in), so it is used transposed
    returns  (..., m)

    Source: OPS-1. Trap: a dense matrix used untransposed or of the wrong size (defect D3).
    Witness: golden/twin length-two.
    """
    return x @ weight.T  # (..., m)


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """Scale each row to unit root mean square, then by one plus its learned weight.

    x        (..., n)  any float type; computed and returned in it
    weight   (n,)      stored less one: zero leaves the row as it is
    epsilon  scalar    added to the mean square, 1e-6 in the checkpoint
    returns  (..., n)

    Source: OPS-2, OPS-6, Gemma 3. Trap: the one left out, or folded into the file already and added twice (defect F2).
    Witness: golden/twin length-reach.
    """
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)  # (..., 1)
    scale = 1 / np.sqrt(mean_square + epsilon)  # (..., 1)
    return x * scale * (1 + weight)  # (..., n)


def gelu(x: Array) -> Array:
    """The Gaussian error linear unit by its tanh approximation: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    x        (..., n)
    returns  (..., n)

    Source: OPS-3, "gelu_pytorch_tanh". Trap: the exact form with erf is up to 7e-5 away in the embedding (defect F4).
    Witness: golden/twin length-ladder-1.
    """
    inner = math.sqrt(2 / math.pi) * (x * (1 + 0.044715 * (x * x)))  # (..., n)
    return 0.5 * x * (1 + np.tanh(inner))  # (..., n)


def softmax(scores: Array) -> Array:
    """Exponentials of each row, divided by their sum.

    scores   (..., n)  -inf where nothing may be seen; at least one finite score a row
    returns  (..., n)  each row sums to 1

    Source: OPS-4. The row's largest score is taken off first, which changes nothing and keeps exp() in range.
    Trap: a row with every key masked is 0/0 (defect C1); without padding there is no such row.
    Witness: golden/twin length-window.
    """
    shifted = scores - np.max(scores, axis=-1, keepdims=True)  # (..., n)
    exponentials = np.exp(shifted, out=shifted)  # (..., n), in place: no array of a long text is larger
    return np.divide(exponentials, np.sum(exponentials, axis=-1, keepdims=True), out=exponentials)  # (..., n)


def l2_normalize(x: Array) -> Array:
    """Divide each row by its Euclidean length.

    x        (..., n)  not all zero
    returns  (..., n)  unit length

    Source: OPS-5.
    Witness: golden/twin batch-twins.
    """
    return x / np.sqrt(np.sum(np.square(x), axis=-1, keepdims=True))  # (..., n)
