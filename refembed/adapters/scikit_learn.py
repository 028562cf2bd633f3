"""Any refembed model as a scikit-learn transformer of texts.

    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from refembed.adapters.scikit_learn import TextEmbedder

    classifier = make_pipeline(TextEmbedder("google/embeddinggemma-300m"), LogisticRegression())
    classifier.fit(["Mars looks red.", "My bank is shut."], ["space", "money"]).predict(["Venus is hot."])

It learns nothing, so that fit may be left out. Clones and copies in other processes are made of its parameters alone;
the model is loaded when the first text comes, once a process.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from ..embedder import Embedder, Vectors, load
from ..errors import RefembedError

opened = lru_cache(maxsize=2)(load)  # the copies that a search over parameters makes share it


class TextEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A sequence of texts becomes a table (texts, dimensions) float32.

    model        a folder, a .gguf file, a hub id, or nothing for the built-in one
    task         whose prompt goes before each text: "classification", "clustering", "sentence similarity" ...
    prompt       your own words before each text; task then does not matter
    dimensions   keep the first numbers only, and unit length
    backend, precision, threads   as refembed.load takes them

    Raises RefembedError from transform, never before.
    """

    def __init__(
        self, model: str | Path | None = None, task: str | None = "classification", prompt: str | None = None,
        dimensions: int | None = None, backend: str | None = None, precision: str | None = None,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        self.model, self.task, self.prompt, self.dimensions = model, task, prompt, dimensions
        self.backend, self.precision, self.threads = backend, precision, threads

    def loaded(self) -> Embedder:
        return opened(self.model, backend=self.backend, precision=self.precision, threads=self.threads)

    def fit(self, X: object = None, y: object = None) -> Self:  # noqa: N803 (scikit-learn's name)
        return self

    def transform(self, X: Iterable[str]) -> Vectors:  # noqa: N803
        if isinstance(X, str) or getattr(X, "ndim", 1) != 1:  # going through a data frame gives its columns' names
            raise RefembedError(
                "text-type",
                f"X is {type(X).__name__}; a sequence or one column of texts is needed: 'text', not ['text']",
            )
        return self.loaded().encode(list(X), task=self.task, prompt=self.prompt, dimensions=self.dimensions)

    @property
    def _n_features_out(self) -> int:
        return self.loaded().check_dimensions(self.dimensions)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit, tags.input_tags.string, tags.input_tags.one_d_array = False, True, True
        tags.input_tags.two_d_array, tags.transformer_tags.preserves_dtype = False, []
        return tags
