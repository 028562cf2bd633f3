"""A loaded model, and what code asks of sentence-transformers' besides vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

from ...config_file import SMALLEST, read_json
from ...errors import RefembedError
from ...prompts import ALIASES, PROMPTS
from . import util
from .options import check_device, device_of, open_model

SETTINGS = "config_sentence_transformers.json"


class Loaded:
    """The constructor takes sentence-transformers' options. model is refembed's own."""

    def __init__(
        self, model_name_or_path: str | None = None, *, device: str | None = None, truncate_dim: int | None = None,
        prompts: Mapping[str, str] | None = None, default_prompt_name: str | None = None,
        similarity_fn_name: Any = None, **options: Any,
    ) -> None:  # fmt: skip
        self.model = open_model(model_name_or_path, device, **options)
        folder = self.model.checkpoint.folder
        own = read_json(folder / SETTINGS, required=False)
        bare = PROMPTS | {alias: PROMPTS[task] for alias, task in ALIASES.items()} if folder.is_file() else {}  # GGUF
        self.prompts = {"query": "", "document": ""} | bare | dict(self.model.checkpoint.prompts) | dict(prompts or {})
        self.default_prompt_name = default_prompt_name or own.get("default_prompt_name")
        self.truncate_dim = own.get("truncate_dim") if truncate_dim is None else truncate_dim
        name = similarity_fn_name or own.get("similarity_fn_name") or "cosine"
        self.similarity_fn_name = str(getattr(name, "value", name))  # an enum of theirs, or a string
        self.prompt_named(None)

    def prompt_named(self, name: str | None) -> str:
        name = self.default_prompt_name if name is None else name
        if name is not None and name not in self.prompts:
            raise RefembedError("option-task", f"no prompt {name!r}; this model has {', '.join(self.prompts)}")
        return "" if name is None else self.prompts[name]

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The score of every pair: (n, m), a tensor where PyTorch is imported, else an array."""
        return util.compare(self.similarity_fn_name, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        return util.compare(self.similarity_fn_name, embeddings1, embeddings2, pairwise=True)

    @property
    def device(self) -> str:
        return device_of(self.model.backend)

    def to(self, device: object) -> Self:
        """Itself, where it computes there already."""
        check_device(self.model.backend, device)
        return self

    @property
    def max_seq_length(self) -> int:
        return self.model.config.context

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        least, most = SMALLEST["context"], self.model.checkpoint.config.context
        if not isinstance(value, int) or not least <= value <= most:
            raise RefembedError("option-context", f"max_seq_length is {value!r}, from {least} to {most} needed")
        self.model.config = replace(self.model.config, context=value)

    def get_max_seq_length(self) -> int:
        return self.max_seq_length

    @cached_property
    def tokenizer(self) -> Any:
        """transformers' own, since code does everything with it; needs that package."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model.checkpoint.folder)

    def tokenize(self, texts: Sequence[str]) -> dict[str, Any]:
        options = {"padding": True, "truncation": True, "max_length": self.max_seq_length, "return_tensors": "pt"}
        return dict(self.tokenizer(list(texts), **options))
