"""One step of training. Which texts, for how long and at what rate is the business of whoever calls it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from .model import TorchModel
from .precision import exact_products


def training_step(
    model: TorchModel,
    optimizer: torch.optim.Optimizer,
    texts: Sequence[NDArray[Any] | Tensor],
    loss: Callable[[Tensor], Tensor],
) -> Tensor:
    """Forward, backward and the optimizer's step.

    texts     id arrays (tokens_i,), packed as they come
    loss      of the raw vectors (texts, dimensions)
    returns   the loss before the step, a number that stays on the device
    """
    optimizer.zero_grad(set_to_none=True)
    with exact_products():
        value = loss(model(texts))
        value.backward()
    optimizer.step()
    return value.detach()
