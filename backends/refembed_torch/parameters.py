"""A checkpoint's tensors as PyTorch's, and what they are computed in and where."""

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from refembed.checkpoint import TABLE, Checkpoint
from refembed.stored import StoredTensor

from .backend import check_precision, use_cuda


class StoredParameters(Mapping[str, Tensor]):
    """A checkpoint's tensors by name, read when asked for; the table stays mapped, in the file's own type."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.tensors = checkpoint.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        if name == TABLE and isinstance(tensor, StoredTensor):
            return mapped(tensor)
        return torch.from_numpy(np.array(tensor.load(np.float32)))


def mapped(tensor: StoredTensor) -> Tensor:
    """A tensor still in its file, which nobody may write to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not writable, which is meant
        found = torch.from_numpy(tensor.stored)
    return found.view(torch.bfloat16) if tensor.stored.dtype == np.uint16 else found


def float_type(precision: str) -> torch.dtype:
    """PyTorch's name of a precision. Raises RefembedError for one that is not computed in."""
    check_precision(precision)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


def best_device() -> torch.device:
    return torch.device("cuda" if use_cuda() else "cpu")
