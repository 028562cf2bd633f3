"""Stage soup: one model whose every weight is the mean of several models' of one shape, trained on different mixtures.

Source: RCP-6, Wortsman et al. 2022, "Model soups"; the paper takes the unweighted mean.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from refembed.checkpoint import TOKENIZER, Checkpoint, open_checkpoint
from refembed.errors import RefembedError
from refembed.layout import BFLOAT16, write_checkpoint
from refembed.prompts import ALIASES, PROMPTS, prompt_of
from refembed.stored import StoredTensor, all_finite, not_finite, widen

from .config import Model, Optimizer, Run, plain, read
from .contrastive import Contrastive, FinetuneSettings, LossSettings
from .data import DataSettings
from .distributed import wait_for_all, world
from .loop import PRODUCT, RESULT, alone, finished, write_json
from .state import digest

PIECE = 2**21  # numbers in float64 at once: 16 MB
BATCHING = ("truncation", "padding")  # of tokenizer.json: what a library last did, not what a text's tokens are
TYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(BFLOAT16)}


@dataclass(frozen=True)
class SoupSettings:
    """A file of stage soup.

    out         the stage's folder, in which model/ will be
    folders     checkpoints to average
    weights     one for each, of which only the proportions count; all the same where none are given
    precision   what the soup is stored in; as the first where ""
    data        sets whose held-out examples the soup and its parts are measured on; they are not where not given
    loss        the one that is measured
    """

    out: Path
    folders: tuple[Path, ...]
    weights: tuple[float, ...] = ()
    precision: Literal["", "float32", "bfloat16"] = ""
    data: DataSettings | None = None
    loss: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        weights_of(len(self.folders), self.weights)


def weights_of(folders: int, weights: Sequence[float]) -> list[float]:
    """One for each folder, 1 where none are given. Raises ValueError for those that give no mean."""
    if folders < 2:
        raise ValueError(f"folders has {folders}, at least 2 needed to average")
    weights = list(weights) or [1.0] * folders
    if len(weights) != folders:
        raise ValueError(f"weights has {len(weights)} numbers for {folders} folders")
    if min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise ValueError(f"weights is {weights}; numbers of at least 0 needed, not all 0")
    return weights


def soup(folders: Sequence[Path | str], out: Path | str, weights: Sequence[float] = (), precision: str = "") -> None:
    """Write the mean of checkpoints as a checkpoint folder, whole or not at all. One tensor is in memory at a time.

    out         a new folder, with the first one's tokenizer and prompts
    weights     one for each folder, of which only the proportions count; all the same where none are given
    precision   float32 or bfloat16; every tensor as the first has it where "". The mean itself is taken in float64

    Raises RefembedError where the folders are not of one model, or cannot be read or written; ValueError for weights.
    """
    of_each = weights_of(len(folders), weights)
    parts = [open_checkpoint(Path(folder)) for folder in folders]
    for part in parts:
        if part.form:
            raise RefembedError(
                "soup-mismatch",
                f"{part.folder} is quantised ({part.form}); average the float checkpoints it is made from",
            )
        if not part.folder.is_dir():
            raise RefembedError("soup-mismatch", f"{part.folder} is a file; average the folders it was made from")
    for other in parts[1:]:
        check_same(parts[0], other)
    first = parts[0]
    means = {
        name: Mean(
            [cast(StoredTensor, part.tensors[name]) for part in parts],
            of_each,
            TYPES.get(precision, tensor.stored.dtype),
        )
        for name, tensor in first.tensors.items()
    }
    write_checkpoint(Path(out), first.config, cast("dict[str, NDArray[Any]]", means), first.folder, first.prompts)


class Mean:
    """The mean of a tensor over checkpoints, which becomes an array only when it is written.

    dtype   to store it in: float32, or uint16 that holds bfloat16
    """

    def __init__(self, tensors: Sequence[StoredTensor], of_each: Sequence[float], dtype: np.dtype[Any]) -> None:
        self.tensors, self.of_each, self.dtype = tensors, of_each, dtype
        self.shape = tensors[0].stored.shape
        self.nbytes = tensors[0].stored.size * dtype.itemsize

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[Any]:
        found = np.empty(self.nbytes // self.dtype.itemsize, self.dtype)
        for start in range(0, len(found), PIECE):
            piece = slice(start, start + PIECE)
            found[piece] = narrow(self.numbers(piece), self.dtype)
        return found.reshape(self.shape)

    def numbers(self, piece: slice) -> NDArray[np.float64]:
        """Some of the mean's, (numbers,)."""
        total = np.zeros((), np.float64)
        for tensor, weight in zip(self.tensors, self.of_each, strict=True):
            values = widen(tensor.stored.reshape(-1)[piece], np.float64)
            if not all_finite(values):
                raise not_finite(tensor.name, tensor.file)
            total = total + weight * values
        return total / sum(self.of_each)


def narrow(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The nearest float32, or of that the nearest bfloat16, ties to the even one."""
    single = values.astype(np.float32)
    if dtype != BFLOAT16:
        return single
    bits = single.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def check_same(one: Checkpoint, other: Checkpoint) -> None:
    """Raise RefembedError that names the first thing in which two checkpoints are not of one model."""
    tasks = dict.fromkeys([*PROMPTS, *ALIASES, *one.prompts, *other.prompts])
    mine, its = ({task: prompt_or_none(task, part.prompts) for task in tasks} for part in (one, other))
    for kind, ours, theirs in (("config field", asdict(one.config), asdict(other.config)), ("prompt", mine, its)):
        for key, value in ours.items():
            if value != theirs[key]:
                raise mismatch(one, other, f"{kind} {key} is {value!r} and {theirs[key]!r}")
    if digest(one.folder / TOKENIZER) != digest(other.folder / TOKENIZER):
        first, second = (json.loads((part.folder / TOKENIZER).read_bytes()) for part in (one, other))
        for key in dict.fromkeys([*first, *second]):
            if key not in BATCHING and first.get(key) != second.get(key):
                raise mismatch(one, other, f"{TOKENIZER} differs in {key!r}")


def prompt_or_none(task: str, own: Mapping[str, str]) -> str | None:
    try:
        return prompt_of(task, own)
    except RefembedError:
        return None


def mismatch(one: Checkpoint, other: Checkpoint, what: str) -> RefembedError:
    return RefembedError(
        "soup-mismatch", f"{one.folder} and {other.folder}: {what}; a mean needs models that started as one"
    )


def run_soup(table: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The stage: the soup in out/model, and what it was made of in out/result.json, which is written last."""
    settings = read(SoupSettings, table, file)
    used = {key: value for key, value in plain(settings).items() if key != "out"}
    stamps = [open_checkpoint(folder).stamp for folder in settings.folders]
    mark = hashlib.sha256(json.dumps([used, stamps], sort_keys=True).encode()).hexdigest()
    out = settings.out
    with alone(out):
        if done := finished(out, mark):
            return done
        if world().rank == 0:
            shutil.rmtree(out / PRODUCT, ignore_errors=True)  # of a run killed before its result was written
            soup(settings.folders, out / PRODUCT, settings.weights, settings.precision)
        wait_for_all()
        held_out = [held_out_figures(folder, settings) for folder in (out / PRODUCT, *settings.folders)]
        result = {
            "folders": list(map(str, settings.folders)),
            "weights": weights_of(len(settings.folders), settings.weights),
            "held_out": {"soup": held_out[0], "parts": held_out[1:]},
            "fingerprint": mark,
            "settings": plain(settings),
        }
        if world().rank == 0:
            write_json(out / RESULT, result)
        wait_for_all()
    return result


def held_out_figures(folder: Path, settings: SoupSettings) -> dict[str, float]:
    """What a finetune run that started from this checkpoint would measure before its first step."""
    if settings.data is None:
        return {}
    run, optimizer = Run(settings.out, steps=1), Optimizer(learning_rate=0)
    return Contrastive(FinetuneSettings(run, Model(folder), settings.data, optimizer, settings.loss)).measure()
