"""Ports made of the reference with something changed: the twin in any float type, and a Port of a Mutation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refembed.checkpoint import open_checkpoint
from refembed.conformance.mutation import RIGHT, Model, Mutation, Text, replaced
from refembed.conformance.suite import Case, Suite, golden_folder, open_suite
from refembed.reference import collector
from refembed.reference import model as reference_model
from refembed.tokenizer import Tokenizer

Array = NDArray[Any]


@cache
def twin() -> Suite:
    return open_suite(golden_folder("twin"))


@cache
def twin_model(dtype: str = "float32") -> Model:
    """The twin's checkpoint, computed in this type."""
    return opened(golden_folder("twin") / "checkpoint", dtype)


def opened(folder: Path, dtype: str) -> Model:
    """A checkpoint folder, computed in this type."""
    checkpoint = open_checkpoint(folder)
    tokenizer = Tokenizer(folder / "tokenizer.json", checkpoint.config)
    return Model(checkpoint.config, checkpoint.parameters(np.dtype(dtype)), tokenizer, checkpoint.prompts)


@dataclass(frozen=True)
class Remembering(Model):
    """For one mutation: a text is computed once, however often, with which texts and with whose prompt it is asked for.

    Of the texts it is sent with a mutation knows only where it pads, and of its prompt only where it pools.
    """

    known: dict[object, Array] = field(default_factory=dict)

    def raw(self, ids: Array, batch: Sequence[int], prompt: int = 0, mutation: Mutation = RIGHT) -> Array:
        sent_with = tuple(batch) if mutation.padding else None
        key = ids.tobytes(), sent_with, mutation.pool and (mutation.pool, prompt)
        if key not in self.known:
            self.known[key] = super().raw(ids, batch, prompt, mutation)
        return self.known[key].copy()


class MutantPort:
    """A port that has this mutation. What only prompts show, it shows only where it puts them itself.

    after   what it does to its finished vectors
    """

    def __init__(
        self,
        mutation: Mutation = RIGHT,
        dtype: str = "float32",
        after: Callable[[Array], Array] = lambda vectors: vectors,
        prompts_only: bool = False,
        traces: bool = False,
    ) -> None:
        self.name, self.mutation, self.after = "mutant", mutation, after
        self.model = Remembering(**vars(twin_model(dtype)))
        self.given = replace(mutation, prompt=None, pool=None) if prompts_only else mutation
        self.can = frozenset({"embed", "prompts", *(["trace", "tokenize"] if traces else [])})

    def embed(self, case: Case, prompted: Sequence[str]) -> Array:
        return self.run([Text(text) for text in prompted], case, self.given)

    def embed_prompted(self, case: Case, texts: Sequence[Text]) -> Array:
        return self.run(texts, case, self.mutation)

    def run(self, texts: Sequence[Text], case: Case, mutation: Mutation) -> Array:
        with np.errstate(all="ignore"):
            return self.after(self.model.embed(texts, case.dimensions, mutation))

    def tokenize(self, prompted: Sequence[str]) -> list[list[int]]:
        return [self.model.tokens(text, self.given).tolist() for text in prompted]

    def trace(self, case: Case, prompted: str) -> Mapping[str, Array]:
        kept: dict[str, Array] = {}
        config = self.mutation.config(self.model.config) if self.mutation.config else self.model.config
        parameters: Any = self.model.parameters
        if self.mutation.parameters:
            parameters = self.mutation.parameters(parameters, config)
        with replaced(self.mutation.functions):
            ids = self.model.tokens(prompted, self.given)
            reference_model.embed(ids, parameters, config, collector(kept))
        return kept

    def close(self) -> None:
        pass
