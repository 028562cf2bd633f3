"""Randomness as a function of a seed and a place, so that a run has no random state but its seed and its step."""

import hashlib
import json

import numpy as np


def generator(seed: int, *place: int | str) -> np.random.Generator:
    """The same numbers whenever the seed and the place are the same, on any machine.

    place    what the numbers are for: generator(seed, "wordnet_gloss", epoch)
    """
    words = hashlib.sha256(json.dumps([seed, *place]).encode()).digest()
    return np.random.Generator(np.random.Philox(np.frombuffer(words, "<u8", count=2)))
