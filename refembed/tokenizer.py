"""Text to token ids: the checkpoint's own tokenizer.json, read by the tokenizers library, between BOS and EOS."""

import ctypes
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import RefembedError
from .reference import Config

if TYPE_CHECKING:
    import tokenizers

LARGEST_FILE = 256 * 2**20
LONGEST_TEXT = 2**20  # characters; more than any context's tokens spell, so nothing that is kept depends on the rest
CHARACTERS_AT_ONCE = 2**20
TEXTS_AT_ONCE = 1024  # keeps the library's own per-text objects from piling up


class Tokenizer:
    """The ids of a text: BOS, its pieces, EOS.

    Padding, truncation and the post-processor that tokenizer.json may carry are not used: a text is never padded, BOS
    and EOS come from config.json, and cutting is the embedder's business. A text that spells a special token becomes
    that token, as in transformers (TOK-1, 4, 5, 6, 8, 9).
    """

    def __init__(self, file: Path, config: Config) -> None:
        self.file, self.config = file, config
        bos, eos, pieces = self.known()
        for name, found, id in (("<bos>", bos, config.bos), ("<eos>", eos, config.eos)):
            if found != id:
                raise RefembedError(
                    "tokenizer-special",
                    f"{file}: {name} is token {found}, config.json says {id}",
                )
        if pieces > config.vocabulary:
            raise RefembedError(
                "tokenizer-vocabulary", f"{file} has {pieces} pieces, the embedding table {config.vocabulary} rows"
            )

    @cached_property
    def library(self) -> "tokenizers.Tokenizer":
        return load_library_tokenizer(self.file)

    def known(self) -> tuple[int | None, int | None, int]:
        """The ids of <bos> and <eos>, and how many pieces there are."""
        pieces = self.library.get_vocab_size(with_added_tokens=False)
        return self.library.token_to_id("<bos>"), self.library.token_to_id("<eos>"), pieces

    def split(self, texts: list[str]) -> Iterable[Sequence[int] | NDArray[Any]]:
        """The ids of each text's pieces."""
        try:
            return [encoding.ids for encoding in self.library.encode_batch_fast(texts, add_special_tokens=False)]
        except BaseException as error:
            raise not_a_tokenizer(self.file, error) from error

    def __call__(self, texts: Sequence[object]) -> list[NDArray[Any] | RefembedError]:
        """The ids of each text, (tokens_i,) int64, uncut; or what is wrong with it: a bad text sinks no other.

        A text is at fault where it is not a string, not valid Unicode, or spells an added token that has no row in the
        embedding table (<image_soft_token>).
        """
        results: list[NDArray[Any] | RefembedError] = []
        for part in lots(texts):
            start = len(results)
            faults = {index: fault for index, text in enumerate(part) if (fault := fault_of(text, start + index))}
            good = [str.__str__(text)[:LONGEST_TEXT] for index, text in enumerate(part) if index not in faults]
            found = iter(self.split(good))
            results += [faults.get(index) or self.finish(next(found), start + index) for index in range(len(part))]
        return results

    def finish(self, pieces: Sequence[int] | NDArray[Any], index: int) -> NDArray[Any] | RefembedError:
        """BOS, pieces, EOS; or the fault of a piece without a row."""
        ids = np.empty(len(pieces) + 2, np.int64)
        ids[0], ids[1:-1], ids[-1] = self.config.bos, pieces, self.config.eos
        largest = int(ids.max())
        if largest >= self.config.vocabulary:
            token = self.library.id_to_token(largest)
            return RefembedError("text-token", f"spells {token}, a token the model has no vector for", index)
        return ids

    def pieces(self, ids: NDArray[Any]) -> list[str]:
        """The written form of each token."""
        return [str(self.library.id_to_token(int(id))) for id in ids]


def lots(texts: Sequence[object]) -> Iterator[list[object]]:
    """The texts in runs that bound what the library holds at once, many times their size."""
    part: list[object] = []
    size = 0
    for text in texts:
        if part and (len(part) == TEXTS_AT_ONCE or size >= CHARACTERS_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(text)
        size += min(len(text), LONGEST_TEXT) if isinstance(text, str) else 0
    if part:
        yield part


def load_library_tokenizer(file: Path) -> "tokenizers.Tokenizer":
    import tokenizers

    if not file.exists():
        raise RefembedError("file-missing", f"{file} is not there; a checkpoint folder needs it")
    try:
        with file.open("rb") as handle:
            handle.read(1)
    except OSError as error:
        raise RefembedError("file-unreadable", f"{file}: {error.strerror or error}") from error
    if file.stat().st_size > LARGEST_FILE:
        raise RefembedError(
            "file-too-large", f"{file} has {file.stat().st_size} bytes, at most {LARGEST_FILE} expected"
        )
    try:
        library = tokenizers.Tokenizer.from_file(str(file))
    except BaseException as error:
        raise not_a_tokenizer(file, error) from error
    library.no_padding()
    library.no_truncation()
    return_freed_memory()
    return library


def not_a_tokenizer(file: Path, error: BaseException) -> BaseException:
    """The library raises the bare Exception, and where it panics a class outside that: both are the file's fault."""
    if isinstance(error, MemoryError) or (
        not isinstance(error, Exception) and type(error).__name__ != "PanicException"
    ):
        return error  # Ctrl-C, too little memory
    return RefembedError("tokenizer-invalid", f"{file} is no tokenizer that works: {str(error)[:200]}")


def return_freed_memory() -> None:
    """Give back what reading tokenizer.json took and freed; glibc would keep it (for the real one, about 180 MB)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)


def fault_of(text: object, index: int) -> RefembedError | None:
    """What keeps this from being a text, if anything."""
    if not isinstance(text, str):
        return RefembedError("text-type", f"is {type(text).__name__}, a string is needed", index)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return RefembedError("text-encoding", f"is not valid Unicode: {error.reason}", index)
    return None
