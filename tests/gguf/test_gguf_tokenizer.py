"""The tokenizer.json that is made of a GGUF file's pieces: the released one again, and kept whole or not at all."""

import gzip
import json
import multiprocessing
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import SMALL, pieces_of, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as some
from refembed_numba.tokenizer import CompiledTokenizer
from refembed_numba.tokenizer import open_tokenizer as open_compiled

from refembed.checkpoint import open_checkpoint
from refembed.errors import RefembedError
from refembed.gguf import tokenizer as gguf_tokenizer
from refembed.gguf.tokenizer import BEYOND, CONTROL, USER_DEFINED, Vocabulary, tokenizer_file, tokenizer_json
from refembed.tokenizer import Tokenizer

ADDED = -1000.0  # llama.cpp's score of every added token


def fields_of(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer: whole numbers, bytes, and four bytes."""
    at = 0

    def whole() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = message[at]
            at, number, shift = at + 1, number | (byte & 127) << shift, shift + 7
            if byte < 128:
                return number

    while at < len(message):
        field, kind = divmod(whole(), 8)
        if kind == 0:
            yield field, whole()
            continue
        size = whole() if kind == 2 else 4
        at += size
        yield field, message[at - size : at]


def converted(folder: Path) -> Vocabulary:
    """The released tokenizer.model as llama.cpp's converter writes it (_create_vocab_sentencepiece)."""
    messages = [
        dict(fields_of(one)) for field, one in fields_of((folder / "tokenizer.model").read_bytes()) if field == 1
    ]
    texts = [one[1] for one in messages]
    scores = [struct.unpack("<f", one[2])[0] if 2 in one else 0.0 for one in messages]
    types = [one.get(3, 1) for one in messages]
    added = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    for id, token in ((int(id), token) for id, token in added.items() if int(id) < len(texts)):
        content = token["content"]
        special = token["special"] or content in ("<pad>", "<mask>") or content.startswith("<unused")
        types[id] = CONTROL if special else USER_DEFINED
        texts[id] = (content if special else content.replace("▁", " ")).encode()
        scores[id] = ADDED
    return Vocabulary(texts, np.array(scores, np.float32), np.array(types, np.int32), 2, 1)


@pytest.fixture(scope="module")
def released(weights: Path) -> dict[str, Any]:
    return json.loads((weights / "tokenizer.json").read_bytes())


@pytest.fixture(scope="module")
def made(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer.json of the released vocabulary, through a GGUF file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFEMBED_CACHE", str(tmp_path_factory.mktemp("cache")))
        return tokenizer_file(weights, converted(weights))


def test_the_released_tokenizer_comes_back(made: Path, released: dict[str, Any]) -> None:
    """One of 514,906 merges, 262,144 pieces or 6,415 added tokens is another, or stands elsewhere."""
    found = json.loads(made.read_bytes())
    for content in (found, released):  # which of the added are special the file does not say; no id depends on it
        for token in content["added_tokens"]:
            del token["special"]
    for key in ("vocab", "merges"):
        assert found["model"][key] == released["model"][key], key  # not in one: what differs would be printed for hours
    assert found == released


@pytest.fixture(scope="module")
def tokenizers(made: Path, weights: Path) -> tuple[Tokenizer, Tokenizer, Tokenizer]:
    """Of the released file; of the made one, by the library and compiled."""
    config = open_checkpoint(weights).config
    compiled = open_compiled(made, config)
    assert isinstance(compiled, CompiledTokenizer)
    return Tokenizer(weights / "tokenizer.json", config), Tokenizer(made, config), compiled


def assert_same_ids(tokenizers: tuple[Tokenizer, ...], texts: list[str]) -> None:
    needed, *others = (
        [one if isinstance(one, RefembedError) else one.tolist() for one in t(texts)] for t in tokenizers
    )
    for found in others:
        for text, right, ids in zip(texts, needed, found, strict=True):
            assert ids == right or str(ids) == str(right), text


def test_ids_of_real_texts(tokenizers, data: Path) -> None:
    """A text in one of 112 languages, or of code, gets other ids than by the released tokenizer.json."""
    texts = []
    for file in sorted((data / "eval" / "tatoeba").rglob("*.gz")):
        with gzip.open(file, "rt") as handle:
            texts += [line.rstrip("\n").split("\t")[1] for line in handle]
    with gzip.open(data / "eval" / "cosqa" / "corpus.jsonl.gz", "rt") as handle:
        texts += [json.loads(line)["text"] for line in handle]
    chosen = texts[:: max(1, len(texts) // 6000)]
    assert len(chosen) >= 5000
    assert_same_ids(tokenizers, [*chosen, f"an {BEYOND} here"])


@settings(max_examples=300)
@given(some.lists(some.text() | some.text("\n\t ▁<>/abhipstunmak0123 ", max_size=30), max_size=8))
def test_ids_of_any_text(tokenizers, texts: list[str]) -> None:
    """A text gets other ids than by the released tokenizer.json."""
    assert_same_ids(tokenizers, texts)


# ---------------------------------------------------------------------------------------------------------------- kept
def small() -> Vocabulary:
    pieces, scores, types = zip(*pieces_of(SMALL), strict=True)
    texts = [piece.encode() for piece in pieces]
    return Vocabulary(texts, np.array(scores, np.float32), np.array(types, np.int32), SMALL.bos, SMALL.eos)


def test_merges_go_by_score(tmp_path: Path) -> None:
    """Of two ways to read a text the one of the lower score is taken, or of two ways to make a piece none."""
    merges = tokenizer_json(tmp_path, small())["model"]["merges"]
    assert merges[0] == ("▁▁", "▁")  # what the converter gave -1000 comes first, the longest at its head
    made = ["".join(pair) for pair in merges]
    assert made.index("\n\n") < made.index("in") < made.index("ing") < made.index("▁the")
    assert [pair for pair in merges if "".join(pair) == "the"] == [("th", "e"), ("t", "he")]


def test_beyond_the_table(tmp_path: Path) -> None:
    """Text that spells the token without a row is read as pieces here and refused in the folder (TOK-9)."""
    added = tokenizer_json(tmp_path, small())["added_tokens"]
    assert (added[-1]["content"], added[-1]["id"]) == (BEYOND, SMALL.vocabulary)


@pytest.mark.parametrize(
    ("bound", "count"),
    [
        ("MOST_MERGES", lambda content: len(content["model"]["merges"])),
        ("MOST_LETTERS", lambda content: sum(len(left + right) for left, right in content["model"]["merges"])),
        ("MOST_ADDED", lambda content: len(content["added_tokens"])),
    ],
)
def test_what_is_made_of_pieces_has_a_bound(bound: str, count, tmp_path: Path, monkeypatch) -> None:
    """A small file's pieces make a tokenizer.json of any size, or one that is refused is kept."""
    monkeypatch.setenv("REFEMBED_CACHE", str(tmp_path / "cache"))
    size = count(tokenizer_json(tmp_path, small()))
    monkeypatch.setattr(gguf_tokenizer, bound, size - 1)
    with pytest.raises(RefembedError, match=f"at most .*{size - 1}") as caught:
        tokenizer_file(tmp_path, small())
    assert caught.value.id == "gguf-too-large"
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(gguf_tokenizer, bound, size)
    assert tokenizer_file(tmp_path, small()).exists()


def test_it_is_made_once(tmp_path: Path, monkeypatch) -> None:
    """Every load makes it anew, another vocabulary gets this one's, or something is left beside it."""
    monkeypatch.setenv("REFEMBED_CACHE", str(tmp_path))
    first = tokenizer_file(tmp_path, small())
    stat = first.stat()
    assert tokenizer_file(tmp_path, small()) == first
    assert first.stat().st_mtime_ns == stat.st_mtime_ns
    assert [file.name for file in first.parent.iterdir()] == ["tokenizer.json"]
    vocabulary = small()
    scores = vocabulary.scores.copy()
    scores[-1] += 0.5
    others = [
        vocabulary._replace(scores=scores),
        vocabulary._replace(eos=3),
        vocabulary._replace(texts=vocabulary.texts[:-1]),
    ]
    others[-1] = others[-1]._replace(scores=vocabulary.scores[:-1], types=vocabulary.types[:-1])
    assert len({first, *(tokenizer_file(tmp_path, other) for other in others)}) == 4


def make(folder: Path) -> str:
    return tokenizer_file(folder, small()).read_text()


def test_processes_that_make_it_at_once(tmp_path: Path, monkeypatch) -> None:
    """Of two processes one reads what the other has half written."""
    monkeypatch.setenv("REFEMBED_CACHE", str(tmp_path))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(make, [tmp_path] * 8, chunksize=1)
    assert set(found) == {json.dumps(tokenizer_json(tmp_path, small()), ensure_ascii=False)}


def test_both_tokenizers_read_a_small_one(tmp_path: Path, monkeypatch) -> None:
    """The compiled tokenizer gives the file up for another form, or reads it otherwise than the library."""
    monkeypatch.setenv("REFEMBED_CACHE", str(tmp_path))
    checkpoint = open_checkpoint(write_gguf(tmp_path / "small.gguf"))
    compiled = open_compiled(checkpoint.tokenizer, checkpoint.config)
    assert isinstance(compiled, CompiledTokenizer)
    texts = ["the planet is red", "  a   b\n\n\nc", "日本 <mask><eos>", f"an {BEYOND}", ""]
    assert_same_ids((Tokenizer(checkpoint.tokenizer, checkpoint.config), compiled), texts)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch) -> None:
    """Without a place for the tokenizer the answer is a traceback, or does not say what to do."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REFEMBED_CACHE", str(tmp_path / "file"))
    with pytest.raises(RefembedError, match="REFEMBED_CACHE") as caught:
        tokenizer_file(tmp_path, small())
    assert caught.value.id == "output-unwritable"
