"""Small models in PyTorch for the tests here, and what they are held against."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from refembed_torch.model import TorchModel

from refembed.reference import Config

TWIN = Path(__file__).parents[3] / "golden" / "twin" / "checkpoint"


def model_of(parameters: dict[str, NDArray[Any]], config: Config, **options: Any) -> TorchModel:
    """A module with these parameters, in their own float type."""
    model = TorchModel(config, **options)
    if parameters["norm.weight"].dtype == np.float64:
        model = model.double()
        model.dtype = torch.float64  # which nobody trains in, and every gradient can be held to
    model.load_state_dict({name: torch.tensor(array) for name, array in parameters.items()})
    return model
