"""Texts to vectors as an evaluation needs them."""

from collections.abc import Sequence

import numpy as np

from ..embedder import Embedder, Vectors
from ..errors import RefembedError
from ..prompts import prefixes

CONTEXT = 512  # tokens: what the published numbers of EmbeddingGemma were measured with, but for long texts (paper)


class TextEncoder:
    """A loaded model behind one call, at one context and one number of dimensions. Each distinct text is embedded once.

    context      most tokens of a text, BOS, EOS and prompt counted; never more than the model's own
    texts, tokens, cut    how many were embedded so far, and how many texts were longer than the context

    Raises RefembedError, as does calling it where a text cannot be embedded.
    """

    def __init__(
        self, model: Embedder, context: int = CONTEXT, dimensions: int | None = None, show_progress: bool = False
    ) -> None:
        if isinstance(context, bool) or not isinstance(context, int) or context < 2:
            raise RefembedError("option-context", f"context is {context!r}, a whole number of at least 2 needed")
        self.model, self.context = model, min(context, model.config.context)
        self.dimensions, self.show_progress = model.check_dimensions(dimensions), show_progress
        self.texts = self.tokens = self.cut = 0

    def __call__(self, texts: Sequence[str], task: str | None, titles: Sequence[str] | None = None) -> Vectors:
        """The embedding of each text: (texts, dimensions) float32. task and titles as in Embedder.encode."""
        keys = list(zip(texts, titles or [""] * len(texts), strict=True))
        place = {key: index for index, key in enumerate(dict.fromkeys(keys))}
        titled = [title for _, title in place] if any(titles or ()) else None  # a prompt of its own takes no titles
        before = prefixes(len(place), task, None, titled, self.model.checkpoint.prompts)
        found = self.model.tokenizer([prompt + text for prompt, (text, _) in zip(before, place, strict=True)])
        batch = []
        for (text, _), ids in zip(place, found, strict=True):
            if isinstance(ids, RefembedError):
                raise RefembedError(ids.id, f"the text {text[:60]!r} {ids.reason}")
            self.cut += len(ids) > self.context
            batch.append(ids if len(ids) <= self.context else np.append(ids[: self.context - 1], ids[-1]))
        self.texts += len(batch)
        self.tokens += sum(map(len, batch))
        vectors = self.model.encode_tokens(batch, self.dimensions, self.show_progress)
        return vectors[[place[key] for key in keys]]
