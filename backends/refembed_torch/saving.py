"""A trained module as a checkpoint folder."""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from refembed.checkpoint import open_checkpoint
from refembed.errors import RefembedError
from refembed.layout import BFLOAT16, write_checkpoint
from refembed.stored import all_finite

from .model import TorchModel
from .parameters import float_type


def save_model(
    model: TorchModel, folder: str | Path, precision: str = "float32", tokenizer: str | Path | None = None
) -> None:
    """Write a folder that refembed.load, sentence-transformers and transformers open, whole or not at all.

    folder      not there yet, or empty
    precision   what the numbers are stored in: float32 or bfloat16
    tokenizer   the checkpoint folder whose tokenizer and prompts go with it; the one the model was loaded from

    Raises RefembedError; where a parameter is not finite, or the tokenizer another model's, nothing is written.
    """
    source = model.source if tokenizer is None else Path(tokenizer)
    if source is None:
        raise RefembedError(
            "folder-missing", "the model was not loaded from a folder; name one whose tokenizer it uses"
        )
    tensors = {name: storable(name, parameter, precision) for name, parameter in model.named_parameters()}
    write_checkpoint(Path(folder), model.config, tensors, source, open_checkpoint(source).prompts)


def storable(name: str, tensor: Tensor, precision: str) -> NDArray[Any]:
    """A parameter as layout.write_tensors takes it. Raises RefembedError where a number is not finite."""
    values = tensor.detach().to("cpu", float_type(precision))
    array: NDArray[Any] = values.view(torch.int16).numpy().view(BFLOAT16) if precision == "bfloat16" else values.numpy()
    if not (all_finite(array) if precision == "float32" else bool(values.isfinite().all())):
        raise RefembedError("tensor-not-finite", f"{name} holds NaN or infinity; nothing was written")
    return array
