"""Is a port's backward pass right: golden/gradients, the judge and its verdict.

Every parameter of the twin is asked for by two numbers: its gradient's length, and its product with a wave.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import RefembedError, printable
from ..reference import Config, parameter_shapes
from ..reference.backward import embed_batch_gradients
from ..reference.pooling import POOLERS
from .port import PortError, as_numbers, take
from .suite import Suite, check_files, golden_folder, open_suite, read_manifest
from .verify import RIGHT, WRONG, Asking, Outcome, Report, chosen_cases

BOUND = 2e-5  # of a gradient's length; the largest error of a float32 backward is 3.8e-6
MEMBERS = {"checkpoint": str, "number_of_cases": int, "files": dict, "cases": list}
Array = NDArray[Any]


class Texts(NamedTuple):
    """What a case is about: texts of the twin, and the derivative of a loss with respect to their embeddings."""

    checkpoint: Checkpoint
    config: Config  # the twin's, but for its pooler
    prompted: list[str]
    ids: list[Array]  # each (tokens_i,)
    upstream: Array  # (texts, dimensions)
    pooling: Mapping[str, Array]  # the attention pooler's parameters, which no checkpoint has; of the others none

    @property
    def names(self) -> list[str]:
        """Of the parameters, in the order of the forward."""
        *before, up, down = parameter_shapes(self.config)
        return [*before, *self.pooling, up, down]

    def parameters(self, number: DTypeLike) -> dict[str, Array]:
        own = {name: values.astype(number) for name, values in self.pooling.items()}
        return {**self.checkpoint.parameters(np.dtype(number)), **own}


def wave(*shape: int) -> Array:
    """cos(0), cos(1), cos(2) and so on in this shape, row after row."""
    return np.cos(np.arange(np.prod(shape))).reshape(shape)


def texts_of(cases: Sequence[str], pooler: str = "mean", pooling: Mapping[str, Array] | None = None) -> Texts:
    """The first text of each of these cases of golden/twin."""
    twin = open_suite(golden_folder("twin"))
    by_id = {case.id: case for case in twin.cases}
    checkpoint = open_checkpoint(twin.folder / "checkpoint")
    ids = [twin.tokens(by_id[id])[0].astype(np.int64) for id in cases]
    prompted = [by_id[id].prompted[0] for id in cases]
    config = replace(checkpoint.config, pooler=pooler)
    return Texts(checkpoint, config, prompted, ids, wave(len(ids), config.dimensions), pooling or {})


def two_numbers(gradients: Mapping[str, Array]) -> Array:
    """(parameters, 2): each gradient's Euclidean length, and its product with the wave over its entries."""
    return np.array([[np.linalg.norm(one), one.ravel() @ wave(one.size)] for one in gradients.values()], np.float64)


def reference_answer(texts: Texts, number: DTypeLike = np.float64) -> Array:
    """(parameters, 2): the reference's hand-written backward pass, in the order of texts.names."""
    found = embed_batch_gradients(texts.upstream.astype(number), texts.ids, texts.parameters(number), texts.config)
    return two_numbers({name: found[name] for name in texts.names})


# The golden folder ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GradientCase:
    """One golden case.

    asked    the question, as in spec/protocol.md
    answer   parameter -> (2,), its gradient's length and product with the wave, in the order of texts.names
    bound    the largest allowed error of either, of the gradient's length
    """

    id: str
    texts: Texts
    asked: Mapping[str, Any]
    answer: Mapping[str, Array]
    bound: float

    @property
    def about(self) -> str:
        return f"{self.asked['pooler']} pooler, {len(self.asked['texts'])} texts, {len(self.answer)} parameters"

    @property
    def true(self) -> Array:
        """(parameters, 2)"""
        return np.array(list(self.answer.values()))

    def used(self, found: Array) -> Array:
        """(parameters,): how many bounds each parameter's numbers, (parameters, 2), are from the truth."""
        return np.asarray(np.max(np.abs(found - self.true), axis=1) / (self.bound * self.true[:, 0]))


class GradientSuite(Suite):
    """golden/gradients, opened by open_gradients."""

    name = "gradients"

    def read(self, own: Mapping[str, Any]) -> GradientCase:
        pooling = {name: self.values[name].astype(np.float64) for name in own["parameters"]}
        texts = texts_of(own["texts"], own["pooler"], pooling)
        if texts.checkpoint.digest != self.manifest["checkpoint"]:
            raise ValueError("it is of another checkpoint than golden/twin's")
        if own["pooler"] not in POOLERS:
            raise ValueError(f"there is no {own['pooler']} pooler")
        asked: dict[str, Any] = {"texts": texts.prompted, "ids": [ids.tolist() for ids in texts.ids]}
        asked |= {"upstream": texts.upstream.tolist(), "pooler": texts.config.pooler}
        asked |= {"parameters": {name: one.tolist() for name, one in pooling.items()}}
        answer = dict(zip(texts.names, self.values[own["id"]].astype(np.float64), strict=True))
        return GradientCase(own["id"], texts, asked, answer, own["bound"])


def open_gradients(folder: Path) -> tuple[GradientSuite, list[GradientCase]]:
    """Open and check a folder like golden/gradients. Raises RefembedError."""
    manifest = read_manifest(folder / "manifest.json", MEMBERS)
    check_files(folder, manifest, ["values.safetensors"])
    suite = GradientSuite(folder, manifest, ())
    try:
        cases = [suite.read(entry) for entry in manifest["cases"]]
    except (KeyError, TypeError, ValueError) as error:
        raise RefembedError("golden-case", f"{folder}: a case is not complete: {error!r}; fetch it again") from error
    if not 0 < manifest["number_of_cases"] == len(cases) == len({case.id for case in cases}):
        raise RefembedError("golden-count", f"{folder}: other cases than the manifest counts; fetch it again")
    for case in cases:
        whole = case.true.shape == (len(case.answer), 2) and np.all(np.isfinite(case.true))
        if not whole or not np.all(case.true[:, 0] > 0) or not 0 < case.bound < 1:
            raise RefembedError("golden-values", f"{folder}: case {case.id} has numbers or a bound that are none")
    return suite, cases


# The judge ------------------------------------------------------------------------------------------------------------


class GradientPort(Protocol):
    """What is needed of a port: gradients(question) -> {"gradients": {parameter: [length, product]}}."""

    name: str

    def gradients(self, asked: Mapping[str, Any]) -> Any: ...


def verify_gradients(folder: Path, port: GradientPort, patterns: Sequence[str] = ("*",)) -> Report:
    """Ask a port for every parameter's gradient, and say which is the first wrong one on the way back."""
    suite, cases = open_gradients(folder)
    chosen, asking = chosen_cases(cases, patterns, f"{suite.name}; its manifest.json"), Asking()
    outcomes = [outcome for case in chosen for outcome in asking.guarded("gradients", case, partial(ask, case, port))]
    return Report(
        port=printable(port.name),
        suite=suite.name,
        edition=suite.edition,
        shipped=suite.shipped,
        digest=str(suite.manifest["checkpoint"]),
        precision="float32",
        cases=len(chosen),
        visible=0,
        known=0,
        outcomes=tuple(outcomes),
        made_of="numbers",
    )


def ask(case: GradientCase, port: GradientPort) -> Outcome:
    answer = port.gradients(case.asked)
    given = take(answer, "gradients") if isinstance(answer, dict) else None
    if not isinstance(given, dict):
        raise PortError("gave no gradients by the parameters' names")
    found = np.array([pair(take(given, name), name) for name in case.answer])
    used = case.used(found)
    wrong = np.flatnonzero(~(used <= 1))  # NaN too
    if not len(wrong):
        return Outcome("gradients", case.id, RIGHT, float(np.max(used)))
    name, share = [*case.answer][wrong[-1]], float(used[wrong[-1]])
    said = f"{name} is {share:.3g} bounds off, the first on the way back of {len(wrong)} that are wrong"
    return Outcome("gradients", case.id, WRONG, share, said + factor(found, case.true), name)


def pair(given: Any, name: str) -> Array:
    numbers = as_numbers(given, name)
    if numbers.shape != (2,):
        raise PortError(f"gave numbers of shape {numbers.shape} for {name}, its gradient's length and product needed")
    return numbers


def factor(found: Array, true: Array) -> str:
    """What is for certain where all are wrong by one factor: a mean or a scale that belongs to the loss."""
    ratio = float(np.median(found[:, 0] / true[:, 0]))
    alike = np.max(np.abs(found - ratio * true) / true[:, :1]) <= 2 * BOUND * ratio
    return f"; every gradient is {ratio:.6g} times the right one" if alike else ""
