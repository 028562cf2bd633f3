"""Lesson 2. Norms and the gated MLP.

A layer has two parts. This is the simpler one: it looks at each token alone. Three matrices, and between them a gate:
one matrix says what, the other how much of it passes.

    mlp(x) = down( gelu(gate(x)) * up(x) )               width -> mlp -> width
    gelu(x) = x/2 (1 + tanh( sqrt(2/pi) (x + 0.044715 x^3) ))

Before and after each part stands a norm. It divides a row by its root mean square, then multiplies each number by one
plus a learned weight: weights are stored less one, so that a weight of zero changes nothing.

    norm(x) = x / sqrt( mean(x^2) + epsilon ) * (1 + w)

Read beside it: spec/03-norms.md, spec/06-gated-mlp.md. Check: python spec/lessons/check.py 2
"""

import numpy as np


def linear(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Multiply each row by a stored matrix. There is no bias anywhere in this model.

    x        (..., n)
    weight   (m, n)    stored as (out, in)
    returns  (..., m)
    """
    raise NotImplementedError


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """Each row at unit root mean square, then times one plus the weight.

    x        (..., n)
    weight   (n,)
    epsilon  added to the mean of the squares, so that a row of zeros is no division by zero
    returns  (..., n)
    """
    raise NotImplementedError


def gelu(x: np.ndarray) -> np.ndarray:
    """The Gaussian error linear unit, by its tanh approximation.

    x        (..., n)
    returns  (..., n)
    """
    raise NotImplementedError


def gated_mlp(x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """The feed-forward part of a layer.

    x        (tokens, width)
    weights  "mlp.gate_proj.weight" and "mlp.up_proj.weight" (mlp, width), "mlp.down_proj.weight" (width, mlp)
    returns  (tokens, width)
    """
    raise NotImplementedError
