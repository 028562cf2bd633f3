"""The tokenizer of a GGUF file as a tokenizer.json, made once and kept, for every tokenizer that reads such a file."""

import hashlib
import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..cache import cache_folder
from ..errors import RefembedError
from ..output import whole_file

KEYS = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # token_type
LONGEST_PIECE = 128  # characters; the released model's longest has 31
MOST_ADDED = 2**16  # tokens; the released model has 6,415
MOST_MERGES = 2**20  # the released model's pieces have 514,906
MOST_LETTERS = 2**23  # of all merges' pieces together; the released model's have 3,117,918
# The released tokenizer has one token beyond the embedding table, which the file has not: text that spells it must be
# refused here as there (TOK-9). Gemma's vocabulary is known by the token that opens an image.
BEYOND, BESIDE = "<image_soft_token>", "<start_of_image>"


class Vocabulary(NamedTuple):
    """A file's pieces, as it has them.

    texts    (pieces) UTF-8
    scores   (pieces) float32: of two merges the one whose piece has more comes first
    types    (pieces) int32
    """

    texts: list[bytes]
    scores: NDArray[np.float32]
    types: NDArray[np.int32]
    bos: int
    eos: int


def read_vocabulary(file: Path, values: Mapping[str, Any], bos: int, eos: int) -> Vocabulary:
    """The pieces of a file, whose lists must be of one length and whose settings EmbeddingGemma's."""
    for key, needed in (("model", "llama"), ("add_space_prefix", False)):
        found = values.get(KEYS + key)
        if type(found) is not type(needed) or found != needed:
            raise RefembedError(
                "gguf-tokenizer",
                f"{file}: {KEYS}{key} is {found!r}, {needed!r} needed: convert the model again, from a folder that has "
                f"Gemma's tokenizer.model",
            )
    texts, scores, types = (values.get(KEYS + key, ()) for key in ("tokens", "scores", "token_type"))
    kinds = [getattr(array, "dtype", None) for array in (scores, types)]
    if not isinstance(texts, list) or kinds != [np.float32, np.int32] or {len(scores), len(types)} != {len(texts)}:
        raise RefembedError(
            "gguf-tokenizer", f"{file}: tokens, scores and token_type of {KEYS} are not three lists of one length"
        )
    if not np.isfinite(scores).all():
        raise RefembedError("gguf-tokenizer", f"{file}: {KEYS}scores holds NaN or infinity")
    return Vocabulary(texts, scores, types, bos, eos)


def tokenizer_file(file: Path, vocabulary: Vocabulary) -> Path:
    """The tokenizer.json of this vocabulary, in the folder for caches; made if it is not there."""
    lengths = np.array([len(text) for text in vocabulary.texts], np.int64)
    digest = hashlib.sha256(f"{vocabulary.bos} {vocabulary.eos}".encode() + Path(__file__).read_bytes())
    for part in (lengths.tobytes(), *vocabulary.texts, vocabulary.scores.tobytes(), vocabulary.types.tobytes()):
        digest.update(part)
    kept = cache_folder() / "gguf" / digest.hexdigest()[:24] / "tokenizer.json"
    if not kept.is_file():
        content = json.dumps(tokenizer_json(file, vocabulary), ensure_ascii=False)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RefembedError(
                "output-unwritable",
                f"{kept.parent}: {error.strerror or error}; a GGUF file's tokenizer is kept there: let REFEMBED_CACHE "
                f"name a folder that can be written",
            ) from error
        with whole_file(kept) as handle:
            handle.write(content.encode())
    return kept


def tokenizer_json(file: Path, vocabulary: Vocabulary) -> dict[str, Any]:
    """The content of the released form: byte-pair encoding with bytes as the last resort, spaces written as low lines.

    Raises RefembedError where two pieces are the same, one is no text, or there are more merges or added
    tokens than any real model has.
    """
    pieces: list[str] = []
    for text, type in zip(vocabulary.texts, vocabulary.types.tolist(), strict=True):
        try:
            piece = text.decode()
        except UnicodeDecodeError as error:
            raise RefembedError("gguf-tokenizer", f"{file}: token {len(pieces)} is not UTF-8") from error
        if len(piece) > LONGEST_PIECE:
            raise RefembedError("gguf-tokenizer", f"{file}: token {len(pieces)} has {len(piece)} characters")
        spaced = type == USER_DEFINED  # in these llama.cpp's converter writes spaces for low lines
        pieces.append(piece.replace(" ", "▁") if spaced else piece)
    ids = {piece: id for id, piece in enumerate(pieces)}
    if len(ids) < len(pieces):
        twice = next(id for id, piece in enumerate(pieces) if ids[piece] != id)
        raise RefembedError("gguf-tokenizer", f"{file}: tokens {twice} and {ids[pieces[twice]]} are the same")
    types = dict(zip(pieces, vocabulary.types.tolist(), strict=True))
    added = [piece for piece in pieces if types[piece] in (UNKNOWN, CONTROL, USER_DEFINED)]
    added += [BEYOND] if BESIDE in ids and BEYOND not in ids else []
    if len(added) > MOST_ADDED:
        raise RefembedError("gguf-too-large", f"{file} has {len(added)} added tokens, at most {MOST_ADDED} expected")
    special = {"<bos>": vocabulary.bos, "<eos>": vocabulary.eos}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": ids.get(piece, len(pieces)),
                "content": piece,
                **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
                "special": types.get(piece) != USER_DEFINED,
            }
            for piece in added
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": between("A", 0),
            "pair": between("A", 0) + between("B", 1),
            "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]} for name, id in special.items()},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>" if "<unk>" in ids else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges(file, ids, vocabulary),
        },
    }


def between(text: str, type: int) -> list[dict[str, dict[str, Any]]]:
    """A post-processor's BOS, text, EOS."""
    bos, eos = ({"SpecialToken": {"id": token, "type_id": type}} for token in ("<bos>", "<eos>"))
    return [bos, {"Sequence": {"id": text, "type_id": type}}, eos]


def merges(file: Path, ids: Mapping[str, int], vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, first the pieces of the highest score.

    The file has scores of ordinary pieces only; the others had 0 before llama.cpp's converter, which is the highest. In
    this order, transformers' for SentencePiece models, the released model's 514,906 come out as its tokenizer.json has
    them.

    Raises RefembedError where there are too many: pieces of a few hundred kilobytes can make a million.
    """
    pieces = list(ids)
    found = array("i")  # ids of left, right, and both together; texts are made when all are counted
    letters = 0
    for piece, id in ids.items():
        pairs = ((ids.get(piece[:at]), ids.get(piece[at:])) for at in range(1, len(piece)))
        known = sorted((left, right) for left, right in pairs if left is not None and right is not None)
        for pair in known:
            found.extend((*pair, id))
        letters += len(known) * len(piece)
        if len(found) > 3 * MOST_MERGES or letters > MOST_LETTERS:
            raise RefembedError(
                "gguf-too-large",
                f"{file}: its first {id + 1} tokens make {len(found) // 3} merges of {letters} letters, at most "
                f"{MOST_MERGES} and {MOST_LETTERS} expected",
            )
    sizes = np.array([len(piece) for piece in pieces])
    scores = np.where(vocabulary.types == NORMAL, vocabulary.scores, 0)
    left, right, both = np.array(found, np.int64).reshape(-1, 3).T
    order = np.lexsort((-sizes[right], -sizes[left], -scores[both]))  # the last counts most
    sides = zip(left[order].tolist(), right[order].tolist(), strict=True)
    return [(pieces[one], pieces[other]) for one, other in sides]
