"""Texts to vectors: prompts, tokens, cutting, a backend."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .backend import Backend, Encoder, choose_backend, choose_precision, open_tokenizer
from .checkpoint import Checkpoint, open_checkpoint
from .errors import RefembedError
from .hub import find_folder, is_local
from .progress import Progress
from .prompts import prefixes
from .reference import truncate
from .tokenizer import Tokenizer
from .vectors import check_quantize, quantize_vectors, similarity

DEFAULT_MODEL = Path(__file__).parent / "default_model"
BUILT_IN = (
    "no model named: this is the small built-in one, for English. EmbeddingGemma itself is google/embeddinggemma-300m, "
    "once its licence is accepted at https://huggingface.co/google/embeddinggemma-300m"
)
TOKENS_AT_ONCE = 4096  # handed to a backend in one call, so that memory does not grow with the number of texts
Vectors = NDArray[np.float32]


class TextsCut(UserWarning):
    """How many texts were cut at the context, of how many that were given together."""

    def __init__(self, cut: int, texts: int, context: int) -> None:
        super().__init__(f"{cut} of {texts} texts were longer than {context} tokens and were cut")
        self.cut = cut


@dataclass(frozen=True)
class Info:
    """What a loaded model is, for logs and reports.

    model        the folder or hub id it was loaded by
    digest       SHA-256 that names the weights, config and tokenizer
    weights      how its matrices are stored: "float32", "bfloat16", "int4-block", ... (QNT-1)
    backend      its name; why: why this one; precision and threads: what it computes in and with
    dimensions   numbers in an embedding; context: most tokens in a text
    """

    model: str
    digest: str
    weights: str
    backend: str
    why: str
    precision: str
    threads: int
    dimensions: int
    context: int


class Embedder:
    """A loaded model. Made by refembed.load; names follow sentence-transformers where it has the thing."""

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        backend: Backend,
        encoder: Encoder,
        why: str,
        threads: int | None,
    ) -> None:
        self.name, self.checkpoint, self.tokenizer = name, checkpoint, tokenizer
        self.backend, self.encoder, self.why, self.threads = backend, encoder, why, threads
        self.config = checkpoint.config

    @cached_property
    def info(self) -> Info:
        """What this model is. The first look reads every weight once, for the digest."""
        return Info(
            model=self.name,
            digest=self.checkpoint.digest,
            weights=self.checkpoint.weights,
            backend=self.backend.name,
            why=self.why,
            precision=self.encoder.precision,
            threads=self.encoder.threads,
            dimensions=self.config.dimensions,
            context=self.config.context,
        )

    def __repr__(self) -> str:
        return f"<refembed.Embedder {self.name} backend={self.backend.name} precision={self.encoder.precision}>"

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = "document",
        prompt: str | None = None,
        titles: Sequence[str | None] | str | None = None,
        dimensions: int | None = None,
        quantize: str | None = None,
        on_long: str = "cut",
        show_progress: bool = False,
    ) -> NDArray[Any]:
        """The embedding of each text, in the order given.

        texts           one text, or a sequence of them
        task            whose prompt goes before each text: "document", "query", "clustering" ..., or one of MTEB's task
                        types; case does not matter; None for no prompt
        prompt          your own words before each text; task then does not matter
        titles          one for each text, for documents only; None where a text has none
        dimensions      keep the first numbers only, and unit length: 512, 256 and 128 were trained for 768
        quantize        "int8" or "binary", as an index keeps them (MAT-5, MAT-6); similarity() takes all of them
        on_long         "cut" a text beyond the context at its end, keeping EOS, with one warning; or "error"
        show_progress   a line on standard error, where that is a terminal
        returns         (texts, dimensions) float32, each row of unit length, or int8; binary (texts, dimensions/8)
                        uint8; without the first axis for one text

        Raises RefembedError; .index says which text is at fault.
        """
        if isinstance(texts, str):
            titles = [titles] if isinstance(titles, str) else titles
            options: Any = {"dimensions": dimensions, "quantize": quantize, "on_long": on_long}
            return self.encode([texts], task=task, prompt=prompt, titles=titles, **options)[0]
        kept = self.check_dimensions(dimensions)
        check_quantize(quantize, kept)
        batch = raise_first(self.prepare(texts, task=task, prompt=prompt, titles=titles, on_long=on_long))
        return quantize_vectors(self.encode_tokens(batch, kept, show_progress), quantize)

    def encode_query(self, texts: str | Sequence[str], **options: Any) -> NDArray[Any]:
        """encode() with the prompt for search queries."""
        return self.encode(texts, **{"task": "query", **options})

    def encode_document(self, texts: str | Sequence[str], **options: Any) -> NDArray[Any]:
        """encode() with the prompt for documents to be found; takes titles."""
        return self.encode(texts, **{"task": "document", **options})

    def prepare(
        self,
        texts: Sequence[str],
        *,
        task: str | None = "document",
        prompt: str | None = None,
        titles: Sequence[str | None] | str | None = None,
        on_long: str = "cut",
    ) -> list[NDArray[Any] | RefembedError]:
        """What encode() gives the backend for each text, (tokens_i,) int64, or the fault of that text alone.

        For callers who go on without the texts at fault; the options are encode()'s.
        """
        if on_long not in ("cut", "error"):
            raise RefembedError("option-on-long", f"on_long is {on_long!r}, 'cut' or 'error' needed")
        texts = check_texts(texts)
        before = prefixes(len(texts), task, prompt, titles, self.checkpoint.prompts)
        prompted = [p + text if isinstance(text, str) else text for p, text in zip(before, texts, strict=True)]
        return self.cut(self.tokenizer(prompted), on_long)

    def cut(self, batch: list[NDArray[Any] | RefembedError], on_long: str) -> list[NDArray[Any] | RefembedError]:
        """Shorten what is longer than the context, keeping EOS, with one warning; or make it a fault (TOK-7)."""
        context = self.config.context
        result = list(batch)
        for index, ids in enumerate(batch):
            if isinstance(ids, RefembedError) or len(ids) <= context:
                continue
            result[index] = np.append(ids[: context - 1], ids[-1])
            if on_long == "error":
                result[index] = RefembedError("text-too-long", f"has {len(ids)} tokens, at most {context} fit", index)
        cut = sum(not isinstance(new, RefembedError) and new is not old for new, old in zip(result, batch, strict=True))
        if cut:
            warnings.warn(TextsCut(cut, len(batch), context), stacklevel=levels_up())
        return result

    def encode_tokens(
        self,
        batch: Sequence[NDArray[Any]],
        dimensions: int,
        show_progress: bool = False,
        progress: Progress | None = None,
    ) -> Vectors:
        """The embedding of each id array: longest first, a bounded number of tokens at a time, back in input order.

        progress   a larger one that this is a part of
        """
        vectors = np.empty((len(batch), dimensions), np.float32)
        with Progress(len(batch), show_progress) as own:
            most = max(TOKENS_AT_ONCE, getattr(self.encoder, "tokens_at_once", 0))
            for indices in schedule([len(ids) for ids in batch], most):
                with np.errstate(all="ignore"):  # what overflows is found below
                    found = self.encoder.encode([batch[index] for index in indices])
                self.check_vectors(found, indices)
                vectors[indices] = found if dimensions == self.config.dimensions else truncate(found, dimensions)
                (progress or own).add(len(indices))
        return vectors

    def check_vectors(self, found: Vectors, indices: list[int]) -> None:
        """A backend's answer must be embeddings: NaN must never pass for one (OPS-5)."""
        needed = (len(indices), self.config.dimensions)
        if found.shape != needed:
            raise RefembedError(
                "vectors-not-finite", f"backend {self.backend.name} gave vectors {found.shape}, {needed} needed"
            )
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(bad):
            raise RefembedError(
                "vectors-not-finite",
                f"backend {self.backend.name} gave NaN or infinity; the weights may be damaged or not of this model",
                min(indices[place] for place in bad),
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as how to load it: another process maps the same files, and no weight is copied."""
        return reload, (self.name, str(self.checkpoint.folder), self.backend.name, self.encoder.precision, self.threads)

    def check_dimensions(self, dimensions: int | None) -> int:
        """The number of dimensions to keep: all where None, else the first of any length (MAT-3)."""
        most = self.config.dimensions
        if dimensions is None:
            return most
        if isinstance(dimensions, bool) or not isinstance(dimensions, int | np.integer) or not 1 <= dimensions <= most:
            raise RefembedError(
                "option-dimensions", f"dimensions is {dimensions!r}, a whole number from 1 to {most} needed"
            )
        return int(dimensions)

    def similarity(self, first: ArrayLike, second: ArrayLike) -> Vectors:
        """The cosine of every pair of vectors.

        first    (n, d) or (d,), floats, int8 or binary
        second   (m, d) or (d,), likewise
        returns  (n, m) float32
        """
        return similarity(first, second)


def raise_first(batch: list[NDArray[Any] | RefembedError]) -> list[NDArray[Any]]:
    """The batch, where no text is at fault."""
    for ids in batch:
        if isinstance(ids, RefembedError):
            raise ids
    return [ids for ids in batch if not isinstance(ids, RefembedError)]


def levels_up() -> int:
    """warnings.warn's stacklevel for the nearest caller outside refembed, as seen by the function that warns."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and str(frame.f_globals.get("__name__", "")).startswith("refembed."):
        level, frame = level + 1, frame.f_back
    return level


def check_texts(texts: object) -> list[str]:
    """Any sequence of texts as a list; the tokenizer checks each."""
    try:
        if not isinstance(texts, bytes | dict | set | frozenset):
            return list(texts)  # type: ignore[call-overload]
    except TypeError:  # neither a number nor an array of no axes can be gone through
        pass
    raise RefembedError("text-type", f"texts is {type(texts).__name__}, a string or a sequence of strings needed")


def schedule(lengths: Sequence[int], most: int = TOKENS_AT_ONCE) -> list[list[int]]:
    """Indices in groups, longest texts first, each group at most `most` tokens (or one text)."""
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if lengths[index] > room:
            groups.append([])
            room = most
        groups[-1].append(index)
        room -= lengths[index]
    return groups


def load(
    model: str | Path | None = None,
    *,
    backend: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    revision: str | None = None,
) -> Embedder:
    """Load a model.

    model       a folder in the Hugging Face layout, a .gguf file, a hub id ("google/embeddinggemma-300m"), or nothing
                for the small model that comes with refembed
    backend     by name, or nothing for the best that can run here; a named one that cannot is an error
    precision   what to compute in, one of the backend's own; its default for this model where not given: backend numba
                takes a quantised model's weights as they are stored (int8), and makes floats of them for float32
    threads     how many threads to compute with; the backend's choice where not given
    revision    of a hub id: a branch, tag or commit

    Raises RefembedError with one line that says what is wrong and what to do.
    """
    if model is None:
        warnings.warn(BUILT_IN, stacklevel=2)
    if revision is not None and (model is None or is_local(model)):
        raise RefembedError(
            "hub-revision", f"revision {revision!r} is for hub ids; {model or 'the built-in model'} has none"
        )
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise RefembedError("option-threads", f"threads is {threads!r}, a whole number of at least 1 needed")
    chosen, why = choose_backend(backend)
    checkpoint = open_checkpoint(DEFAULT_MODEL if model is None else find_folder(model, revision))
    precision = choose_precision(chosen, precision, checkpoint)
    tokenizer = open_tokenizer(chosen, checkpoint)  # before the weights: its peak is its own
    encoder = chosen.load(checkpoint, precision, threads)
    name = "default" if model is None else str(model)
    return Embedder(name, checkpoint, tokenizer, chosen, encoder, why, threads)


def reload(name: str, folder: str, backend: str, precision: str, threads: int | None) -> Embedder:
    """An unpickled Embedder."""
    model = load(Path(folder), backend=backend, precision=precision, threads=threads)
    model.name = name
    return model
