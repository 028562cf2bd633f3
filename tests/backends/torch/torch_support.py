"""Small models in PyTorch for the tests here, and what they are held against."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as some
from numpy.typing import NDArray
from refembed_torch.model import TorchModel
from support import random_ids, random_parameters

from refembed.checkpoint import Checkpoint
from refembed.reference import FULL, SLIDING, Config
from refembed.stored import StoredTensor

TWIN = Path(__file__).parents[3] / "golden" / "twin" / "checkpoint"
LENGTHS = some.lists(some.integers(1, 60), min_size=1, max_size=6)


@some.composite
def configs(draw: some.DrawFn) -> Config:
    """Any small model, of sizes that are no multiple of anything."""
    key_heads, head = draw(some.integers(1, 2)), 2 * draw(some.integers(1, 20))
    size = some.integers(8, 90)
    return Config(
        vocabulary=160,
        width=draw(size),
        mlp=draw(size),
        heads=key_heads * draw(some.integers(1, 3)),
        key_heads=key_heads,
        head=head,
        dense=draw(size),
        dimensions=draw(size),
        layer_kinds=tuple(draw(some.lists(some.sampled_from([SLIDING, FULL]), min_size=1, max_size=3))),
        reach=draw(some.integers(1, 40)),
        context=64,
        sliding_base=draw(some.sampled_from([10.0, 10_000.0])),
        full_base=1_000_000.0,
        query_scalar=draw(some.floats(0.5, 4.0)) * head,
        epsilon=draw(some.sampled_from([1e-6, 1e-3])),
    )


def checkpoint_of(config: Config, seed: int = 0) -> Checkpoint:
    """A checkpoint in memory."""
    parameters = random_parameters(config, seed, np.float32)
    return Checkpoint(Path(), config, {name: StoredTensor(name, Path(), p) for name, p in parameters.items()}, {})


def widened(checkpoint: Checkpoint, dtype: type) -> dict[str, NDArray[Any]]:
    return {name: tensor.stored.astype(dtype) for name, tensor in checkpoint.tensors.items()}


def texts_of(config: Config, lengths: list[int]) -> list[NDArray[np.int64]]:
    return [random_ids(config, tokens, seed) for seed, tokens in enumerate(lengths)]


def model_of(parameters: dict[str, NDArray[Any]], config: Config, **options: Any) -> TorchModel:
    """A module with these parameters, in their own float type."""
    model = TorchModel(config, **options)
    if parameters["norm.weight"].dtype == np.float64:
        model = model.double()
        model.dtype = torch.float64  # which nobody trains in, and every gradient can be held to
    model.load_state_dict({name: torch.tensor(array) for name, array in parameters.items()})
    return model
