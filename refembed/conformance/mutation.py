"""A model with one thing changed: what a port that has a known defect would compute.

Model is the truth. A Mutation names the few places where a port differs; everything it does not name stays as the
reference has it. Ragged batches come padded here, for the defects that only padding shows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import reference
from ..prompts import prefixes
from ..reference import Config, attention, layer, losses, model, operations, pooling, positions
from ..tokenizer import Tokenizer

REFERENCE_MODULES = (attention, layer, losses, model, operations, pooling, positions)
Array = NDArray[Any]
Functions = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Text:
    """One text as a user gives it."""

    text: str
    task: str | None = None
    title: str | None = None


@dataclass(frozen=True)
class Mutation:
    """Where a port differs. Each part maps the right thing to what the port makes of it.

    prompt       (text, its right prompt) -> what is tokenised
    pieces       (tokenizer, what is tokenised) -> pieces, without BOS and EOS, uncut
    ids          (pieces, config) -> ids
    config       the Config it runs with
    parameters   name -> tensor, (parameters, config) -> parameters
    functions    functions of the reference by name (or module.name), replaced; each may call the right one
    padding      (ids, lengths of its batch, config) -> padded ids and functions
    pool         (states, count of prompt tokens) -> pooled vector
    vector       (raw vector before normalisation, dimensions) -> the final vector
    """

    prompt: Callable[[Text, str], str] | None = None
    pieces: Callable[[Tokenizer, str], Array] | None = None
    ids: Callable[[Array, Config], Array] | None = None
    config: Callable[[Config], Config] | None = None
    parameters: Callable[[Mapping[str, Any], Config], Mapping[str, Any]] | None = None
    functions: Functions = field(default_factory=dict)
    padding: Callable[[Array, Sequence[int], Config], tuple[Array, Functions]] | None = None
    pool: Callable[[Array, int], Array] | None = None
    vector: Callable[[Array, int], Array] | None = None


RIGHT = Mutation()


@contextmanager
def replaced(functions: Functions) -> Iterator[None]:
    """Within, the reference's modules use these functions for their own of the same name."""
    places = []
    for key, function in functions.items():
        where, _, name = key.rpartition(".")
        for module in REFERENCE_MODULES:
            if hasattr(module, name) and module.__name__.endswith(where):
                places.append((module, name, getattr(module, name), function))
    try:
        for module, name, _, function in places:
            setattr(module, name, function)
        yield
    finally:
        for module, name, original, _ in places:
            setattr(module, name, original)


@dataclass(frozen=True)
class Model:
    """The reference with a checkpoint's parameters and tokenizer: the truth that mutations start from."""

    config: Config
    parameters: Mapping[str, Any]
    tokenizer: Tokenizer
    prompts: Mapping[str, str]

    def prompted(self, text: Text, mutation: Mutation = RIGHT) -> str:
        """What is tokenised: prompt and text."""
        titles = None if text.title is None else [text.title]
        (prefix,) = prefixes(1, text.task, None, titles, self.prompts)
        return mutation.prompt(text, prefix) if mutation.prompt else prefix + text.text

    def tokens(self, prompted: str, mutation: Mutation = RIGHT) -> Array:
        """BOS, pieces, EOS, cut to the context at the end of the pieces."""
        return (mutation.ids or right_ids)((mutation.pieces or right_pieces)(self.tokenizer, prompted), self.config)

    def raw(self, ids: Array, batch: Sequence[int], prompt: int = 0, mutation: Mutation = RIGHT) -> Array:
        """The vector of one text before it is normalised.

        batch    the lengths of all texts it was sent with
        prompt   how many tokens BOS and the prompt are
        """
        config = mutation.config(self.config) if mutation.config else self.config
        parameters = mutation.parameters(self.parameters, config) if mutation.parameters else self.parameters
        functions = dict(mutation.functions)
        if mutation.padding:
            ids, padding = mutation.padding(ids, batch, config)
            functions |= padding
        with replaced(functions):
            states = model.encode_tokens(ids, parameters, config)
            if "pool" in functions:
                pooled = functions["pool"](states)
            elif mutation.pool:
                pooled = mutation.pool(states, prompt)
            else:
                pooled = pooling.POOLERS[config.pooler](states, parameters)
            return model.dense_head(pooled, parameters)

    def embed(self, texts: Sequence[Text], dimensions: int | None = None, mutation: Mutation = RIGHT) -> Array:
        """The vectors a port with this mutation gives for texts sent together: (texts, dimensions)."""
        batch = [self.tokens(self.prompted(text, mutation), mutation) for text in texts]
        prompts = [
            1 + len(right_pieces(self.tokenizer, self.prompted(Text("", text.task, text.title)))) for text in texts
        ]
        return self.embed_ids(batch, dimensions, prompts, mutation)

    def embed_ids(
        self, batch: Sequence[Array], dimensions: int | None, prompts: Sequence[int], mutation: Mutation = RIGHT
    ) -> Array:
        """The same from token ids."""
        lengths = [len(ids) for ids in batch]
        kept = dimensions or self.config.dimensions
        finish = mutation.vector or reference.truncate
        raw = [self.raw(ids, lengths, prompt, mutation) for ids, prompt in zip(batch, prompts, strict=True)]
        return np.stack([finish(vector, kept) for vector in raw])


def right_pieces(tokenizer: Tokenizer, prompted: str) -> Array:
    (ids,) = tokenizer([prompted])
    if isinstance(ids, Exception):
        raise ids
    return ids[1:-1]


def right_ids(pieces: Array, config: Config) -> Array:
    """BOS, as many pieces as fit, EOS."""
    return np.array([config.bos, *pieces[: config.context - 2], config.eos])
