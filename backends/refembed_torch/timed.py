"""A training step to be timed: what `refembed bench --train` asks of a backend."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from . import losses
from .model import load_model
from .precision import using_threads
from .training import training_step

RATE = 1e-5  # any: only the time counts


def step_on(
    folder: str | Path,
    precision: str,
    columns: Sequence[Sequence[NDArray[Any]]],
    threads: int | None = None,
    **options: Any,
) -> Callable[[], float]:
    """A function that takes one step, forward, backward and AdamW's, and gives the contrastive loss before it.

    columns   queries, positives and hard negatives, as many of each: id arrays (tokens_i,)
    options   of load_model
    """
    model = load_model(folder, precision, **options)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=True)
    queries, positives = ([ids.tobytes() for ids in column] for column in columns[:2])
    mask = losses.mask_of(queries, positives, model.device)
    packed = [ids for column in columns for ids in column]

    def loss(vectors: Tensor) -> Tensor:
        return losses.contrastive(losses.split(vectors, len(columns[0])), mask)

    def step() -> float:
        with using_threads(threads or torch.get_num_threads()):
            return training_step(model, optimizer, packed, loss).item()

    return step
