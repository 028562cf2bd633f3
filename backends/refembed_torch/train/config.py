"""Training files: TOML tables read into frozen dataclasses, with no key unknown, missing or of another type.

The dataclass is the documentation of its table: a stage's own stands in the stage's module, the shared ones here.
"""

import dataclasses
import difflib
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from refembed.errors import RefembedError

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Run:
    """[run]: how long, from what seed, and what is kept.

    out             the run's own folder: log.jsonl, curves.svg, state/, result.json, model/
    steps           of the optimizer
    save_every      steps between states; a killed run goes on from the last
    keep            how many states stay
    measure_every   steps between held-out figures; 0 for the beginning and the end alone
    parallel        under torchrun: ddp, every process holds all weights, or fsdp, each a part
    """

    out: Path
    steps: int
    seed: int = 0
    save_every: int = 100
    keep: int = 2
    measure_every: int = 100
    parallel: Literal["ddp", "fsdp"] = "ddp"

    def __post_init__(self) -> None:
        at_least(self, steps=1, save_every=1, keep=1, measure_every=0)


@dataclass(frozen=True)
class Optimizer:
    """[optimizer]: AdamW and its schedule.

    warm_up        share of the steps over which the rate rises from nearly nothing
    decay          what the rate does then: linear or cosine down to nothing, or constant
    weight_decay   of matrices, not of norms
    clip           greatest length of the whole gradient; 0 for none
    """

    learning_rate: float
    warm_up: float = 0.1
    decay: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.0
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        at_least(self, learning_rate=0, warm_up=0, weight_decay=0, clip=0)
        if self.warm_up > 1:
            raise ValueError(f"warm_up is {self.warm_up}, a share of the steps, at most 1")
        if not (all(0 <= beta < 1 for beta in self.betas) and 0 < self.epsilon < float("inf")):
            raise ValueError("betas lie in [0, 1) and epsilon is a number above 0")


@dataclass(frozen=True)
class Model:
    """[model]: the checkpoint folder to start from, and how it is computed.

    precision       what matrices multiply in: float32, or bfloat16 with parameters kept in float32
    checkpointing   compute each layer twice and keep only what lies between layers: less memory, a third more time
    compiling       let torch.compile make the layers, which pays on CUDA
    """

    folder: Path
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpointing: bool = False
    compiling: bool = False


def at_least(settings: object, **least: float) -> None:
    """Raise ValueError for the first of these fields below its least value, or no number."""
    for name, value in least.items():
        if not value <= getattr(settings, name) < float("inf"):
            raise ValueError(f"{name} is {getattr(settings, name)}, at least {value} needed")


def load(file: Path) -> dict[str, Any]:
    """A TOML file's tables. Raises RefembedError where it cannot be read."""
    try:
        return tomllib.loads(file.read_bytes().decode())
    except FileNotFoundError as error:
        raise RefembedError("train-config", f"{file} is not there") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RefembedError("train-config", f"{file} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise RefembedError("train-config", f"{file} is not TOML: {error}") from error


def read(kind: type[Settings], table: Mapping[str, Any], file: Path, where: str = "") -> Settings:
    """A table as the dataclass that describes it.

    file     the TOML file: paths in it are taken from its folder, and errors name it
    where    the table's own name, for errors
    """
    if not isinstance(table, Mapping):
        raise wrong(file, where, f"is {shown(table)}, a table needed")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            known = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
            raise wrong(file, joined(where, key), f"is not a key of this table; {known}")
    for name, field in fields.items():
        if name not in table and field.default is field.default_factory is dataclasses.MISSING:
            raise wrong(file, joined(where, name), "is missing")
    values = {key: value_of(hints[key], value, file, joined(where, key)) for key, value in table.items()}
    try:
        return kind(**values)
    except RefembedError:
        raise
    except ValueError as error:
        raise wrong(file, where, str(error)) from error


def value_of(hint: Any, value: Any, file: Path, where: str) -> Any:
    """One value as its field's type, which is a plain one, a path, a dataclass, a choice, or a tuple or dict."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return read(typing.cast(type, hint), value, file, where)
    if origin in (types.UnionType, typing.Union):  # X | None: what is there is an X
        return value_of(next(part for part in inner if part is not type(None)), value, file, where)
    if origin is Literal:
        if value not in inner:
            raise wrong(file, where, f"is {shown(value)}, one of {', '.join(map(str, inner))} needed")
        return value
    if origin is tuple:
        return tuple_of(inner, value, file, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise wrong(file, where, f"is {shown(value)}, a table needed")
        return {key: value_of(inner[1], item, file, joined(where, key)) for key, item in value.items()}
    if hint is Path and isinstance(value, str):
        return path_of(value, file, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise wrong(file, where, f"is {shown(value)}, {WORDS.get(hint, hint)} needed")
    return value


def path_of(value: str, file: Path, where: str) -> Path:
    """A path from the TOML file's folder, with ~ and $NAME, a variable of the environment, in it.

    Absolute, so that a run is the same one wherever it is started from.
    """
    found = os.path.expandvars(value)
    if "$" in found:
        raise wrong(file, where, f"is {value!r}, and the environment has no such variable")
    if not found or "\0" in found:
        raise wrong(file, where, f"is {value!r}, a path needed")
    return (file.parent / Path(found).expanduser()).absolute()


def tuple_of(inner: tuple[Any, ...], value: Any, file: Path, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise wrong(file, where, f"is {shown(value)}, an array needed")
    kinds = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
    if len(value) != len(kinds):
        raise wrong(file, where, f"has {len(value)} values, {len(kinds)} needed")
    return tuple(
        value_of(kind, item, file, f"{where}[{index}]")
        for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}


def joined(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def shown(value: object) -> str:
    return "a table" if isinstance(value, Mapping) else repr(value)


def wrong(file: Path, where: str, what: str) -> RefembedError:
    return RefembedError("train-config", f"{file}: {where or 'the whole'} {what}")


def plain(settings: Any) -> Any:
    """Settings as JSON holds them, for logs and for telling whether two runs are the same."""
    if dataclasses.is_dataclass(settings):
        return {field.name: plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {key: plain(value) for key, value in settings.items()}
    if isinstance(settings, tuple | list):
        return [plain(value) for value in settings]
    return str(settings) if isinstance(settings, Path) else settings
