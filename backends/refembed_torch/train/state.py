"""A run's state on disk: parameters and the optimizer's tensors, the step and the data's position.

state/00000100/tensors.safetensors and state.json, which holds the digest of the other. A state appears whole or not at
all; nothing is pickled, so nothing in it can run.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from refembed.errors import RefembedError
from refembed.layout import whole_folder

TENSORS, NUMBERS = "tensors.safetensors", "state.json"


class State(NamedTuple):
    """step: how many were made; positions: examples read of each set; tensors by name."""

    step: int
    positions: Mapping[str, int]
    fingerprint: str
    tensors: Mapping[str, Tensor]


def save(folder: Path, state: State, keep: int) -> None:
    """Add a state to the folder of states; the oldest beyond `keep` are removed after it is there.

    Raises RefembedError where it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{state.step:08d}"
    if place.exists():  # a damaged one, which was passed over when the run went on
        shutil.rmtree(place)
    with whole_folder(place) as beside:
        try:
            save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, beside / TENSORS)
        except SafetensorError as error:  # a full disk
            raise RefembedError("output-unwritable", f"{place}: {error}; the last state stays") from error
        numbers = {
            "step": state.step,
            "positions": dict(state.positions),
            "fingerprint": state.fingerprint,
            "sha256": digest(beside / TENSORS),
        }
        (beside / NUMBERS).write_text(json.dumps(numbers, indent=1) + "\n")
    for old in states(folder)[:-keep]:
        shutil.rmtree(old)


def states(folder: Path) -> list[Path]:
    """Their folders, the oldest first."""
    return sorted(place for place in folder.glob("[0-9]" * 8) if place.is_dir())


def latest(folder: Path, fingerprint: str) -> State | None:
    """The newest state that is whole; a damaged one is passed over with a warning.

    Raises RefembedError where the states are of other settings.
    """
    for place in reversed(states(folder)):
        try:
            numbers: dict[str, Any] = json.loads((place / NUMBERS).read_bytes())
            if digest(place / TENSORS) != numbers["sha256"]:
                raise ValueError(f"{TENSORS} was changed")
            found = State(int(numbers["step"]), dict(numbers["positions"]), numbers["fingerprint"], {})
            if found.fingerprint == fingerprint:
                return found._replace(tensors=load_file(place / TENSORS))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            warnings.warn(f"{place} is damaged and passed over: {error}", stacklevel=2)
            continue
        raise RefembedError(
            "train-state", f"{folder} holds the state of a run with other settings; give another out, or remove it"
        )
    return None


def digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
