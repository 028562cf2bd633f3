"""Damaged and hostile GGUF files: each kind is refused by its own id, on one line, soon, and without taking memory."""

import os
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from gguf_files import (
    BOOL,
    F32,
    I32,
    SMALL,
    STRING,
    U8,
    U32,
    U64,
    Tensor,
    Value,
    pack,
    tensors_of,
    text,
    values_of,
    write_gguf,
)
from hypothesis import given, settings
from hypothesis import strategies as some

import refembed
from refembed.errors import RefembedError
from refembed.gguf.header import LARGEST_HEADER, MOST_ENTRIES

SECONDS, MEBIBYTES = 30, 256  # far above what a refusal needs, also while its memory is watched, which is slow
VALUES, TENSORS = values_of(SMALL), tensors_of(SMALL)
OWN = "gemma-embedding."
WHOLE = pack(list(VALUES.items()), TENSORS)
HEADER = len(WHOLE) - sum(-(-len(tensor.data) // 32) * 32 for tensor in TENSORS)
Spoil = Callable[[Path], object]


def raw(content: bytes) -> Spoil:
    return lambda file: file.write_bytes(content)


def values(**changes: Value | bytes | None) -> Spoil:
    """Other metadata: "__" stands for a dot, a leading one for no architecture before it; None leaves a key out."""
    new = {
        key[2:].replace("__", ".") if key.startswith("__") else OWN + key.replace("__", "."): value
        for key, value in changes.items()
    }
    content = {key: value for key, value in (VALUES | new).items() if value is not None}
    return raw(pack(list(content.items()), TENSORS))


def more(*entries: tuple[str | bytes, Value | bytes], **options: Any) -> Spoil:
    return raw(pack([*VALUES.items(), *entries], TENSORS, **options))


def tensor(name: str, **changes: Any) -> Spoil:
    """One tensor's entry otherwise, the rest in order."""
    assert name in {one.name for one in TENSORS}
    return raw(pack(list(VALUES.items()), [one._replace(**changes) if one.name == name else one for one in TENSORS]))


def without(*names: str) -> Spoil:
    return raw(pack(list(VALUES.items()), [one for one in TENSORS if one.name not in names]))


def with_tensor(*entries: Tensor) -> Spoil:
    return raw(pack(list(VALUES.items()), [*TENSORS, *entries]))


def spoilt(name: str, kind: str, place: int, number: bytes) -> Spoil:
    """One number of a tensor otherwise, in a file of this type."""
    found = []
    for one in tensors_of(SMALL, kind):
        data = one.data[:place] + number + one.data[place + len(number) :] if one.name == name else one.data
        found.append(one._replace(data=data))
    return raw(pack(list(VALUES.items()), found))


def sparse(entries: list[tuple[str, bytes]], size: int) -> Spoil:
    """A file whose last value goes on for that many bytes, which take no room on the disk."""

    def spoil(file: Path) -> None:
        file.write_bytes(pack(entries, [], counts=(0, len(entries)))[:-1] if entries else b"")
        with file.open("r+b") as handle:
            handle.truncate(size)

    return spoil


def endless_norm(file: Path) -> None:
    """The last norm of a hundred million numbers, in a file that has them all and takes no room on the disk."""
    others = [one for one in TENSORS if one.name != "output_norm.weight"]
    file.write_bytes(pack(list(VALUES.items()), [*others, Tensor("output_norm.weight", (10**8,), 30, b"")]))
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size + 2 * 10**8)


def pieces(change: Callable[[list[Any]], Any], key: str = "tokens", kind: int | None = None) -> Spoil:
    """The list of pieces, scores or types otherwise."""
    old = VALUES[f"tokenizer.ggml.{key}"]
    assert isinstance(old, Value)
    return values(**{f"__tokenizer__ggml__{key}": old._replace(value=change(list(old.value)), kind=kind or old.kind)})


def merging(file: Path) -> None:
    """4,159 pieces more, of which nearly each can be made in as many ways as it has letters, and a table with a row
    for each.
    """
    sides = ["a" * size for size in range(64)]
    new = [*sides[2:], *(f"{before}X{after}" for before in sides for after in sides)]
    content = dict(VALUES)
    for key, more in (("tokens", new), ("scores", [-500.0] * len(new)), ("token_type", [1] * len(new))):
        old = content[f"tokenizer.ggml.{key}"]
        assert isinstance(old, Value)
        content[f"tokenizer.ggml.{key}"] = old._replace(value=[*old.value, *more])
    dims, rows = (SMALL.width, SMALL.vocabulary + len(new)), bytes(4 * SMALL.width * len(new))
    tables = [one._replace(dims=dims, data=one.data + rows) if one.name == TABLE else one for one in TENSORS]
    file.write_bytes(pack(list(content.items()), tables))


def put(place: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda old: [*old[:place], value, *old[place + 1 :]]


HUGE = 2**62
TWO = bytes(8)  # two zeros in float32
ARRAY_HEAD = struct.pack("<II", 9, STRING)
NAN = struct.pack("<f", float("nan"))
INFINITY = struct.pack("<e", float("inf"))
Q_NAME, NORM, TABLE = "blk.1.attn_q.weight", "blk.1.attn_norm.weight", "token_embd.weight"

# name: id, what the message must name, how the file is spoilt
BAD: dict[str, tuple[str, str, Spoil]] = {
    # the file's head
    "no-file": ("file-missing", "bad.gguf", lambda file: None),
    "empty": ("gguf-invalid", "empty", raw(b"")),
    "a-folder-in-its-place": ("file-missing", "model.safetensors", lambda file: file.mkdir()),
    "safetensors": ("gguf-invalid", "GGUF", raw(struct.pack("<Q", 2) + b"{}")),
    "older-magic": ("gguf-invalid", "ggjt", raw(b"ggjt" + WHOLE[4:])),
    "three-bytes": ("gguf-invalid", "GGU", raw(b"GGU")),
    "magic-only": ("gguf-truncated", "24", raw(b"GGUF")),
    "version-1": ("gguf-version", "version 1", more(version=struct.pack("<I", 1))),
    "version-4": ("gguf-version", "version 4", more(version=struct.pack("<I", 4))),
    "big-endian": ("gguf-version", "big-endian", more(version=struct.pack(">I", 3))),
    "tensors-without-end": ("gguf-too-large", "tensors", more(counts=(2**64 - 1, len(VALUES)))),
    "keys-without-end": ("gguf-too-large", "keys", more(counts=(len(TENSORS), 2**63))),
    "as-many-keys-as-may-be": ("gguf-", "", more(counts=(len(TENSORS), MOST_ENTRIES))),
    "one-tensor-more-than-there-is": ("gguf-", "", more(counts=(len(TENSORS) + 1, len(VALUES)))),
    "cut-in-the-counts": ("gguf-truncated", "24", raw(WHOLE[:20])),
    "cut-in-a-key": ("gguf-truncated", "30", raw(WHOLE[:30])),
    "cut-in-the-tokens": ("gguf-truncated", "header", raw(WHOLE[: HEADER // 2])),
    "cut-in-the-entries": ("gguf-truncated", "header", raw(WHOLE[: HEADER - 100])),
    "cut-in-the-tensors": ("gguf-truncated", "goes on to byte", raw(WHOLE[: HEADER + 5000])),
    "cut-by-a-byte": ("gguf-truncated", "goes on to byte", raw(WHOLE[:-1])),
    "header-without-end": (
        "gguf-too-large", "header", sparse([("x", struct.pack("<IIQ", 9, U8, 2 * LARGEST_HEADER))], 3 * LARGEST_HEADER)
    ),
    # keys and values
    "text-beyond-the-end": ("gguf-truncated", "header", more(("x", struct.pack("<I", STRING) + text("a", HUGE)))),
    "key-beyond-the-end": ("gguf-truncated", "header", raw(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + b"\xff" * 20)),
    "numbers-without-end": ("gguf-truncated", "header", more(("x", Value(U64, [1], array=True, count=HUGE)))),
    "texts-without-end": ("gguf-truncated", "header", more(("x", ARRAY_HEAD + struct.pack("<Q", HUGE)))),
    "unknown-type": ("gguf-metadata", "type 99", more(("x", struct.pack("<I", 99)))),
    "array-of-arrays": ("gguf-metadata", "type 9", more(("x", struct.pack("<IIQ", 9, 9, 3)))),
    "key-twice": ("gguf-metadata", "general.type", more(("general.type", Value(STRING, "model")))),
    "key-not-utf-8": ("gguf-metadata", "UTF-8", more((b"\xff\xfe", Value(U32, 1)))),
    "value-not-utf-8": ("gguf-metadata", "UTF-8", more(("x", Value(STRING, b"\xff")))),
    "alignment-0": ("gguf-metadata", "alignment", more(("general.alignment", Value(U32, 0)))),
    "alignment-4": ("gguf-metadata", "alignment", more(("general.alignment", Value(U32, 4)))),
    "alignment-48": ("gguf-metadata", "alignment", more(("general.alignment", Value(U32, 48)))),
    "alignment-text": ("gguf-metadata", "alignment", more(("general.alignment", Value(STRING, "32")))),
    "alignment-huge": ("gguf-", "", more(("general.alignment", Value(U64, 2**63)))),
    # which model
    "causal": ("config-causal", "gemma3", values(__general__architecture=Value(STRING, "gemma3"))),
    "said-to-be-causal": ("config-causal", "attention.causal", values(attention__causal=Value(BOOL, True))),
    "another-model": ("config-model-type", "bert", values(__general__architecture=Value(STRING, "bert"))),
    "architecture-a-list": ("config-model-type", "1", values(__general__architecture=Value(U8, [1, 2], array=True))),
    "architecture-another-then-ours-within": (
        "config-model-type", "bert",
        values(__general__architecture=Value(STRING, "bert"), general__architecture=Value(STRING, OWN[:-1])),
    ),
    "architecture-only-within": (
        "config-missing", "general.architecture",
        values(__general__architecture=None, general__architecture=Value(STRING, OWN[:-1])),
    ),
    "architecture-missing": ("config-missing", "general.architecture", values(__general__architecture=None)),
    "sharded": ("weights-sharded", "split.count", values(__split__count=Value(2, 3))),
    "a-later-shard": ("weights-sharded", "split.count", raw(pack([("split.count", Value(2, 3))], []))),
    "shards-a-text": ("weights-sharded", "split.count", values(__split__count=Value(STRING, "1"))),
    "quantised-otherwise": ("config-quantization", "version", values(__general__quantization_version=Value(U32, 1))),
    "dense-missing": ("dense-missing", "dense_2 and no dense_3", without("dense_2.weight", "dense_3.weight")),
    "one-dense-missing": ("dense-missing", "no dense_3", without("dense_3.weight")),
    # numbers
    "width-missing": ("config-missing", "embedding_length", values(embedding_length=None)),
    "width-of-no-architecture": (
        "config-missing", f"{OWN}embedding_length", values(embedding_length=None, __embedding_length=Value(U32, 64))
    ),
    "width-a-text": ("config-type", "embedding_length", values(embedding_length=Value(STRING, "64"))),
    "width-true": ("config-type", "embedding_length", values(embedding_length=Value(BOOL, True))),
    "width-0": ("config-range", "embedding_length", values(embedding_length=Value(U32, 0))),
    "width-another": ("tensor-shape", "(352, 64)", values(embedding_length=Value(U32, 32), dense_2_feat_in=None)),
    "heads-a-list": ("config-type", "head_count", values(attention__head_count=Value(U32, [2, 2, 2], array=True))),
    "heads-of-no-multiple": ("config-heads", "head_count", values(attention__head_count_kv=Value(U32, 3))),
    "head-odd": ("config-heads", "key_length", values(attention__key_length=Value(U32, 31))),
    "value-head-another": ("config-unsupported", "value_length", values(attention__value_length=Value(U32, 16))),
    "context-2": ("config-range", "context_length", values(context_length=Value(U32, 2))),
    "epsilon-nan": ("config-range", "epsilon", values(attention__layer_norm_rms_epsilon=Value(F32, float("nan")))),
    "epsilon-missing": ("config-missing", "epsilon", values(attention__layer_norm_rms_epsilon=None)),
    "base-infinite": ("config-range", "freq_base", values(rope__freq_base=Value(F32, float("inf")))),
    "sliding-base-0": ("config-range", "freq_base_swa", values(rope__freq_base_swa=Value(F32, 0.0))),
    "layers-without-end": ("config-range", "block_count", values(block_count=Value(U32, 2**32 - 1))),
    "layers-more-than-there-are": ("tensor-missing", "layers.3", values(block_count=Value(U32, 4))),
    "layers-fewer-than-there-are": ("tensor-unexpected", "layers.2", values(block_count=Value(U32, 2))),
    "pattern-0": ("config-range", "pattern", values(attention__sliding_window_pattern=Value(U32, 0))),
    "pattern-of-another-length": (
        "config-layer-types", "pattern", values(attention__sliding_window_pattern=Value(BOOL, [True] * 2, array=True))
    ),
    "pattern-of-numbers": (
        "config-layer-types", "pattern", values(attention__sliding_window_pattern=Value(U32, [1] * 3, array=True))
    ),
    "window-1": ("config-range", "sliding_window", values(attention__sliding_window=Value(U32, 1))),
    "rope-scaled": ("config-unsupported", "scaling.type", values(rope__scaling__type=Value(STRING, "yarn"))),
    "softcap": ("config-unsupported", "softcapping", values(attn_logit_softcapping=Value(F32, 50.0))),
    "dense-sizes-another": ("config-unsupported", "dense_2_feat_out", values(dense_2_feat_out=Value(U32, 128))),
    "pooling-none": ("pooling-unsupported", "pooling_type", values(pooling_type=Value(U32, 0))),
    "pooling-a-text": ("pooling-unsupported", "pooling_type", values(pooling_type=Value(STRING, "mean"))),
    "bos-beyond-the-table": ("config-range", "bos", values(__tokenizer__ggml__bos_token_id=Value(U32, 352))),
    # tensors
    "no-dimensions": ("gguf-tensor", "0 dimensions", tensor(NORM, dims=())),
    "five-dimensions": ("gguf-tensor", "5 dimensions", tensor(NORM, dims=(64, 1, 1, 1, 1))),
    "norm-of-a-hundred-million": ("tensor-shape", "norm.weight has shape (100000000,)", endless_norm),
    "dimension-0": ("tensor-shape", "attn_norm", tensor(NORM, dims=(0,))),
    "size-beyond-64-bits": ("gguf-truncated", "attn_norm", tensor(NORM, dims=(2**63, 2**63))),
    "size-beyond-the-file": ("gguf-truncated", "token_embd", tensor(TABLE, dims=(64, 2**40))),
    "tensor-twice": ("gguf-metadata", "twice", with_tensor(TENSORS[0])),
    "tensors-overlap": ("gguf-tensor", "begin", tensor(Q_NAME, offset=0)),
    "tensor-beyond-the-file": ("gguf-tensor", "begin", tensor(Q_NAME, offset=2**63)),
    "a-gap-between": ("gguf-tensor", "begin", tensor(TENSORS[-1].name, offset=2**20)),
    "q6-k": ("tensor-dtype", "Q6_K", tensor(TABLE, kind=14)),
    "unknown-tensor-type": ("tensor-dtype", "type 4000", tensor(TABLE, kind=4000)),
    "a-vector-in-blocks": ("tensor-shape", "Q8_0", tensor(NORM, kind=8, data=bytes(68))),
    "part-of-a-block": ("tensor-shape", "Q4_0", tensor(Q_NAME, kind=2, dims=(48, 64), data=bytes(2000))),
    "tensor-missing": ("tensor-missing", "layers.1.self_attn.q_proj", without(Q_NAME)),
    "table-missing": ("tensor-missing", "token_embd", without(TABLE)),
    "tensor-unexpected": ("tensor-unexpected", "output.weight", with_tensor(Tensor("output.weight", (2,), 0, TWO))),
    "a-bias": ("tensor-unexpected", "attn_q.bias", with_tensor(Tensor("blk.0.attn_q.bias", (64,), 0, bytes(256)))),
    "the-checkpoints-own-name": ("tensor-unexpected", "norm.weight", with_tensor(Tensor("norm.weight", (2,), 0, TWO))),
    "layer-n": ("tensor-unexpected", "blk.N", with_tensor(Tensor("blk.N.attn_norm.weight", (2,), 0, TWO))),
    "another-shape": ("tensor-shape", "q_proj", tensor(Q_NAME, dims=(128, 32))),
    "one-dimension-less": ("tensor-shape", "q_proj", tensor(Q_NAME, dims=(64 * 64,))),
    "table-of-one-dimension": ("tensor-shape", "embed_tokens", tensor(TABLE, dims=(64,), data=bytes(256))),
    "norm-nan": ("tensor-not-finite", "input_layernorm", spoilt(NORM, "F32", 8, NAN)),
    "matrix-nan": ("tensor-not-finite", "q_proj", spoilt(Q_NAME, "F32", 80, NAN)),
    "bfloat16-infinite": ("tensor-not-finite", "q_proj", spoilt(Q_NAME, "BF16", 80, b"\x80\x7f")),
    "q8-scale-infinite": ("tensor-not-finite", "q_proj", spoilt(Q_NAME, "Q8_0", 34 * 7, INFINITY)),
    "q4-scale-nan": ("tensor-not-finite", "q_proj", spoilt(Q_NAME, "Q4_0", 18 * 5, b"\xff\x7f")),
    "table-scale-nan": ("tensor-not-finite", "embed_tokens", spoilt(TABLE, "Q8_0", 34 * 2 * SMALL.bos, b"\xff\x7f")),
    # the tokenizer
    "another-tokenizer": ("gguf-tokenizer", "gpt2", values(__tokenizer__ggml__model=Value(STRING, "gpt2"))),
    "space-before": ("gguf-tokenizer", "prefix", values(__tokenizer__ggml__add_space_prefix=Value(BOOL, True))),
    "space-not-said": ("gguf-tokenizer", "prefix", values(__tokenizer__ggml__add_space_prefix=None)),
    "tokens-missing": ("gguf-tokenizer", "one length", values(__tokenizer__ggml__tokens=None)),
    "tokens-a-number": ("gguf-tokenizer", "one length", values(__tokenizer__ggml__tokens=Value(U32, 3))),
    "scores-missing": ("gguf-tokenizer", "one length", values(__tokenizer__ggml__scores=None)),
    "scores-fewer": ("gguf-tokenizer", "one length", pieces(lambda old: old[:-1], "scores")),
    "scores-whole": ("gguf-tokenizer", "one length", pieces(lambda old: [1] * 352, "scores", I32)),
    "score-nan": ("gguf-tokenizer", "NaN", pieces(put(300, float("nan")), "scores")),
    "types-more": ("gguf-tokenizer", "one length", pieces(lambda old: [*old, 1], "token_type")),
    "token-twice": ("gguf-tokenizer", "same", pieces(put(300, "th"))),
    "token-not-utf-8": ("gguf-tokenizer", "token 300", pieces(put(300, b"\xff"))),
    "token-without-end": ("gguf-tokenizer", "token 300", pieces(put(300, "ab" * 100_000))),
    "merges-without-end": ("gguf-too-large", "merges of", merging),
    "bos-elsewhere": ("tokenizer-special", "<bos>", values(__tokenizer__ggml__bos_token_id=Value(U32, 3))),
    "eos-missing": ("config-missing", "eos", values(__tokenizer__ggml__eos_token_id=None)),
    "no-such-eos": ("tokenizer-special", "<eos>", pieces(put(1, "<end>"))),
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFEMBED_CACHE", str(tmp_path_factory.getbasetemp() / "damaged"))


@contextmanager
def bounded() -> Iterator[None]:
    tracemalloc.start()
    start = time.monotonic()
    try:
        yield
        seconds, (_, peak) = time.monotonic() - start, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < SECONDS
    assert peak < MEBIBYTES * 2**20


def use(file: Path, backend: str = "numpy") -> None:
    """Load it and embed a text; nothing damaged may pass for a model."""
    refembed.load(file, backend=backend).encode(["a red planet"])


@pytest.mark.parametrize("name", BAD)
def test_it_is_refused(name: str, tmp_path: Path) -> None:
    """A file of this kind is taken, or answered with a traceback, slowly, or by taking memory."""
    check_refusal(name, tmp_path, "numpy")


def check_refusal(name: str, tmp_path: Path, backend: str) -> None:
    id, says, spoil = BAD[name]
    file = tmp_path / "bad.gguf"
    spoil(file)
    kept = Path(os.environ["REFEMBED_CACHE"], "gguf")
    before = set(kept.glob("*"))
    with bounded(), pytest.raises(RefembedError) as caught:
        use(file, backend)
    assert caught.value.id == id or (id.endswith("-") and caught.value.id.startswith(id))
    assert says in str(caught.value)
    assert "bad.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    if caught.value.id.startswith("gguf-"):  # of a tokenizer that is none, none is kept
        assert set(kept.glob("*")) == before


@pytest.fixture(scope="module")
def numba_ready(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the rows need is compiled, which takes time and memory of its own."""
    pytest.importorskip("numba")
    for kind in ("F32", "Q8_0", "Q4_0"):
        file = write_gguf(tmp_path_factory.mktemp("whole") / "whole.gguf", kind=kind)
        refembed.load(file, backend="numba").encode("a red planet")


FIRST = {id: name for name, (id, *_) in reversed(BAD.items())}  # of each kind


@pytest.mark.parametrize(
    "name", [name for name in BAD if BAD[name][0] == "tensor-not-finite" or name in FIRST.values()]
)
@pytest.mark.usefixtures("numba_ready")
def test_it_is_refused_by_numba(name: str, tmp_path: Path) -> None:
    """The backend that computes from a file's own blocks takes what NumPy's refuses, or refuses it otherwise."""
    check_refusal(name, tmp_path, "numba")


def test_the_list_is_long() -> None:
    """The kinds have become fewer than was promised."""
    ids = {id for id, *_ in BAD.values() if not id.endswith("-")}
    assert len(BAD) >= 100
    assert len(ids) >= 25
    assert ids >= {id for id in refembed.errors.ERRORS if id.startswith("gguf-")}


@pytest.mark.long
def test_a_header_of_texts_takes_little(tmp_path: Path) -> None:
    """Two million empty texts, as many as a header may hold, take minutes or gigabytes."""
    count = (LARGEST_HEADER - 1000) // 8
    file = tmp_path / "texts.gguf"
    file.write_bytes(pack([("x", ARRAY_HEAD + struct.pack("<Q", count) + bytes(8 * count))], []))
    with bounded(), pytest.raises(RefembedError) as caught:
        use(file)
    assert caught.value.id == "config-missing"


# ----------------------------------------------------------------------------------------------------------------- fuzz
def try_it(content: bytes) -> None:
    """It is a model, or it is refused."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "fuzz.gguf")
        file.write_bytes(content)
        with suppress(RefembedError):
            use(file)


changes = some.lists(some.tuples(some.integers(0, HEADER - 1), some.integers(0, 255)), min_size=1, max_size=8)
words = some.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]) | some.integers(0, 2**64 - 1)


@settings(max_examples=200)
@given(changes)
def test_bytes_of_the_header_changed(changed: list[tuple[int, int]]) -> None:
    """A changed byte of the header ends in something else than a refusal or a model."""
    content = bytearray(WHOLE)
    for place, byte in changed:
        content[place] = byte
    with np.errstate(all="ignore"):
        try_it(bytes(content))


@settings(max_examples=150)
@given(some.integers(0, HEADER - 8), words, some.integers(0, len(WHOLE)))
def test_words_of_the_header_changed(place: int, word: int, end: int) -> None:
    """A count, a length or an offset that lies, in a file that may be cut, takes memory or time, or ends otherwise."""
    with bounded():
        try_it((WHOLE[:place] + struct.pack("<Q", word) + WHOLE[place + 8 :])[: max(end, 64)])


@settings(max_examples=100)
@given(some.binary(max_size=400))
def test_any_bytes_after_the_magic(tail: bytes) -> None:
    """Noise ends in something else than a refusal."""
    try_it(b"GGUF" + struct.pack("<IQQ", 3, len(tail) % 5, len(tail) % 3) + tail)
