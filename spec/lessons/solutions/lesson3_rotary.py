"""Lesson 3, solved."""

import numpy as np


def rotary_angles(tokens: int, head: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    """A row a position, a column a pair."""
    theta = base ** (-np.arange(0, head, 2) / head)  # (head/2)
    angle = np.arange(tokens)[:, None] * theta  # (tokens, head/2)
    return np.cos(angle), np.sin(angle)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Halves, not neighbours, are the pairs."""
    first, second = np.split(x, 2, axis=-1)  # (..., tokens, head/2) each
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)  # (..., tokens, head)
