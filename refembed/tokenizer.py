"""Text to token ids: the checkpoint's own tokenizer.json, read by the tokenizers library, between BOS and EOS."""

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import RefembedError
from .reference import Config

if TYPE_CHECKING:
    import tokenizers

TEXTS_AT_ONCE = 1024  # keeps the library's own per-text objects from piling up


class Tokenizer:
    """The ids of a text: BOS, its pieces, EOS.

    Padding, truncation and the post-processor that tokenizer.json may carry are not used: a text is never padded, BOS and
    EOS come from config.json, and cutting is the embedder's business. A text that spells a special token becomes that
    token, as in transformers.
    """

    def __init__(self, file: Path, config: Config) -> None:
        self.file, self.config = file, config
        self.library = load_library_tokenizer(file)
        for name, id in (("<bos>", config.bos), ("<eos>", config.eos)):
            if self.library.token_to_id(name) != id:
                raise RefembedError(
                    "tokenizer-special", f"{file}: {name} is token {self.library.token_to_id(name)}, config.json says {id}"
                )
        pieces = self.library.get_vocab_size(with_added_tokens=False)
        if pieces > config.vocabulary:
            raise RefembedError(
                "tokenizer-vocabulary", f"{file} has {pieces} pieces, the embedding table {config.vocabulary} rows"
            )

    def __call__(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """The ids of each text, (tokens_i,) int64, uncut.

        Raises RefembedError with the text's index where one is not a string, not valid Unicode, or spells an added token
        that has no row in the embedding table (<image_soft_token>).
        """
        for index, text in enumerate(texts):
            check_text(text, index)
        ids: list[NDArray[Any]] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            found = self.library.encode_batch_fast(list(texts[start : start + TEXTS_AT_ONCE]), add_special_tokens=False)
            ids += [np.array([self.config.bos, *one.ids, self.config.eos]) for one in found]
        for index, row in enumerate(ids):
            if row.max() >= self.config.vocabulary:
                token = self.library.id_to_token(int(row.max()))
                raise RefembedError("text-token", f"text {index} spells {token}, a token the model has no vector for", index)
        return ids

    def pieces(self, ids: NDArray[Any]) -> list[str]:
        """The written form of each token."""
        return [self.library.id_to_token(int(id)) for id in ids]


def load_library_tokenizer(file: Path) -> "tokenizers.Tokenizer":
    import tokenizers

    if not file.exists():
        raise RefembedError("file-missing", f"{file} is not there; a checkpoint folder needs it")
    try:
        library = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises the bare class
        raise RefembedError("tokenizer-invalid", f"{file} is not a tokenizer: {str(error)[:200]}") from error
    library.no_padding()
    library.no_truncation()
    return_freed_memory()
    return library


def return_freed_memory() -> None:
    """Give back what reading tokenizer.json took and freed, half of the 306 MB that stay otherwise (glibc keeps it)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)


def check_text(text: object, index: int) -> None:
    if not isinstance(text, str):
        raise RefembedError("text-type", f"text {index} is {type(text).__name__}, a string is needed", index)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RefembedError("text-encoding", f"text {index} is not valid Unicode: {error.reason}", index) from error
