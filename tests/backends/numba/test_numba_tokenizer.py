"""The compiled tokenizer gives the ids of the tokenizers library, token for token, or stands back for it."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some
from support import SMALL, missing, tokenizer_json

import refembed
from refembed.checkpoint import open_checkpoint
from refembed.conformance.suite import golden_folder
from refembed.embedder import DEFAULT_MODEL
from refembed.reference import Config
from refembed.tokenizer import Tokenizer

pytest.importorskip("numba")
from refembed_numba import kept as kept_module
from refembed_numba.tokenizer import TABLES, CompiledTokenizer, compile_tables, open_tokenizer
from refembed_torch.train.vocabulary import train_tokenizer

TWIN = golden_folder("twin") / "checkpoint"
CHAPTER = Path(__file__).parents[3] / "spec" / "09-quantised-weights.md"
LETTERS = "ab▁é"
ADDED = ["<pad>", "<eos>", "<bos>", "<unk>"]
WORST = [
    "", " ", "▁", "▁▁ ▁", "  a  ", " " * 70, "\n" * 35 + "a", "\t" * 40, "\r\n\r\n", "a\x00b", "<eos> hi <bos>",
    "<<<eos>>", "<unused5>x", "<unused", "  <h1>  ", "<table><tr> x </table>", "\ufeffa", "e\u0301", "👩‍👩‍👧",
    "\U0010ffff\x7f\ue000", "𠀋𪚥", "ß" * 500, "a" * 3000, "<start_of_turn>user\n", "[multimodal]",
    "\u2028\u2029\u0085\u200b",
]  # fmt: skip
TEXTS = some.text() | some.text(" \n\t▁<>/eosbpadunk1236h") | some.lists(some.sampled_from(WORST)).map("".join)
SAMPLED, AT_ONCE = 20_000, 20_000  # real strings in every run; strings compared at a time


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[list[int] | str]:
    return [found.tolist() if isinstance(found, np.ndarray) else repr(found) for found in tokenizer(texts)]


def both(folder: Path) -> tuple[Tokenizer, Tokenizer]:
    """The compiled tokenizer of a model folder and the library's."""
    return opened(folder / "tokenizer.json", open_checkpoint(folder).config)


def opened(file: Path, config: Config) -> tuple[Tokenizer, Tokenizer]:
    compiled = open_tokenizer(file, config)
    assert isinstance(compiled, CompiledTokenizer), "the library would be compared with itself"
    return compiled, Tokenizer(file, config)


@pytest.fixture(scope="module", params=["twin", "trained"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """The twin's, and one of a larger vocabulary that was trained on a chapter."""
    if request.param == "twin":
        return both(TWIN)
    file = tmp_path_factory.mktemp("trained") / "tokenizer.json"
    trained = train_tokenizer(CHAPTER.read_text().splitlines(), 1500)
    trained.save(str(file))
    return opened(file, replace(SMALL, vocabulary=trained.get_vocab_size()))


def test_small_letters_are_left_to_the_library() -> None:
    """Wrong if the built-in model's tokenizer, which makes capitals small, is read as one that does not."""
    file, config = DEFAULT_MODEL / "tokenizer.json", open_checkpoint(DEFAULT_MODEL).config
    assert not isinstance(open_tokenizer(file, config), CompiledTokenizer)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("REFEMBED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made(merges: list[list[str]], added: list[str] = ADDED, **changed: object) -> dict[str, object]:
    """The content of a tokenizer.json of Gemma's form with these merges."""
    pieces = [*ADDED, *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *(left + right for left, right in merges)]
    vocabulary = {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}
    numbers = iter(range(len(vocabulary), 2 * len(vocabulary)))
    content = json.loads(tokenizer_json(SMALL.vocabulary))
    content["model"] |= {"vocab": vocabulary, "merges": merges}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    content["added_tokens"] = [
        {"id": vocabulary[one] if one in vocabulary else next(numbers), "content": one, **plain} for one in added
    ]
    return content | changed


# ------------------------------------------------------------------------------------------------------------ the ids
@settings(max_examples=300)
@given(texts=some.lists(TEXTS, max_size=5))
@example(texts=WORST)
def test_ids_are_the_librarys(pair: tuple[Tokenizer, Tokenizer], texts: list[str]) -> None:
    """Wrong if any text splits otherwise: special tokens spelled in it, white space, letters outside the vocabulary."""
    compiled, library = pair
    assert ids_of(compiled, texts) == ids_of(library, texts)


@some.composite
def merge_lists(draw: some.DrawFn) -> list[list[str]]:
    """Merges of letters and of what was merged before, many ways to one piece among them."""
    pieces, merges = list(LETTERS), []
    for _ in range(draw(some.integers(0, 12))):
        pair = [draw(some.sampled_from(pieces)), draw(some.sampled_from(pieces))]
        if pair not in merges and len("".join(pair)) < 12:
            merges.append(pair)
            pieces.append("".join(pair))
    return merges


@settings(max_examples=150, deadline=None)
@given(
    merges=merge_lists(),
    added=some.lists(some.text("ab<> ▁", min_size=1, max_size=5), max_size=4, unique=True),
    texts=some.lists(some.text("ab ▁é<>c", max_size=60), max_size=20),
)
@example(merges=[["a", "b"], ["b", "a"], ["ab", "a"], ["a", "ba"]], added=["aa", "aaa"], texts=["ababa", "aba aaaa"])
def test_any_merges_and_added_tokens(tmp_path_factory, merges, added, texts) -> None:
    """Wrong if ranks, places, merges gone out of date or overlapping added tokens are handled in another order."""
    file = tmp_path_factory.mktemp("made") / "tokenizer.json"
    file.write_text(json.dumps(made(merges, [*ADDED, *added])))
    tables = compile_tables(file)
    assert tables is not None
    roomy = SMALL.__class__(**{**vars(SMALL), "vocabulary": 1000})
    assert ids_of(CompiledTokenizer(file, roomy, tables), texts) == ids_of(Tokenizer(file, roomy), texts)


def real_strings(data: Path) -> Iterator[str]:
    """Every distinct string of the data, and then the pieces of raw text: all scripts early, English last."""
    seen: set[int] = set()
    files = sorted(data.glob("*/**/*.gz"), key=lambda file: ("_en" in file.name or "/en." in str(file), file.name))
    readers = [fields(file) for file in files]
    while readers:
        for reader in list(readers):
            found = list(islice(reader, 50))
            if not found:
                readers.remove(reader)
            for text in found:
                if hash(text) not in seen:
                    seen.add(hash(text))
                    yield text


def fields(file: Path) -> Iterator[str]:
    """The texts of a file of JSON lines or of columns."""
    with gzip.open(file, "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            row = json.loads(line) if ".jsonl" in file.name else line.rstrip("\n").split("\t")
            values = row.values() if isinstance(row, dict) else row
            yield from (value for value in values if isinstance(value, str) and value)


def test_real_strings(weights: Path, data: Path) -> None:
    """Wrong if the released vocabulary splits a real string of a hundred languages otherwise."""
    compiled, library = both(weights)
    texts = [*WORST, *islice(real_strings(data), SAMPLED)]
    assert len(texts) > SAMPLED
    assert ids_of(compiled, texts) == ids_of(library, texts)


@pytest.mark.long
def test_a_million_real_strings(weights: Path, data: Path) -> None:
    """The same of a million strings, the shortest pieces of text among them."""
    compiled, library = both(weights)
    strings, count = real_strings(data), 0
    while count < 1_000_000:
        texts = list(islice(strings, AT_ONCE))
        if not texts:
            missing("data", f"{count} distinct strings are there, a million needed")
        assert ids_of(compiled, texts) == ids_of(library, texts)
        count += len(texts)


# ---------------------------------------------------------------------------------------------------------- other forms
OTHER_FORMS = {
    "normalizer": {"normalizer": {"type": "NFC"}},
    "no normalizer": {"normalizer": None},
    "pre-tokenizer": {"pre_tokenizer": {"type": "Whitespace"}},
    "added token with a setting": {
        "added_tokens": [
            {"id": 0, "content": "<pad>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": False,
             "special": True}
        ]
    },
    "added token of another number": {
        "added_tokens": [
            {"id": 999, "content": "ab", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": False}
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_other_forms_are_left_to_the_library(tmp_path: Path, cache: Path, form: str) -> None:
    """Wrong if a file that asks for something else is read as if it did not."""
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(made([["a", "b"]])))
    assert compile_tables(file) is not None, "the rest of the file is of another form already"
    file.write_text(json.dumps(made([["a", "b"]], **OTHER_FORMS[form])))
    assert compile_tables(file) is None


@pytest.mark.parametrize(
    "changed", [{"dropout": 0.1}, {"byte_fallback": False}, {"ignore_merges": True}, {"end_of_word_suffix": "w"}]
)
def test_other_models_are_left_to_the_library(tmp_path: Path, changed: dict[str, object]) -> None:
    """Wrong if a setting of the model is passed over."""
    file, content = tmp_path / "tokenizer.json", made([["a", "b"]])
    content["model"] |= changed
    file.write_text(json.dumps(content))
    assert compile_tables(file) is None


@pytest.mark.parametrize("id", [None, -5, 1.5, "7", 2**40])
def test_ids_that_are_none_are_left_to_the_library(tmp_path: Path, id: object) -> None:
    """Wrong if a number that no row has is taken for a token's, or ends in another error than the library's."""
    file, content = tmp_path / "tokenizer.json", made([["a", "b"]])
    content["model"]["vocab"]["a"] = id
    file.write_text(json.dumps(content))
    assert compile_tables(file) is None


def test_bytes_that_are_missing_are_left_to_the_library(tmp_path: Path, cache: Path) -> None:
    """Wrong if a letter whose bytes have no tokens gets ids all the same: the library makes <unk> of it."""
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer_json(SMALL.vocabulary))
    assert "<0xFF>" not in json.loads(file.read_text())["model"]["vocab"]
    assert type(open_tokenizer(file, SMALL)) is Tokenizer


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"model": 3, "added_tokens": []}', b"[" * 10**5])
def test_no_tokenizer_at_all(tmp_path: Path, cache: Path, content: bytes) -> None:
    """Wrong if a damaged file ends in another error than with any other backend."""
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(refembed.RefembedError) as caught:
        open_tokenizer(file, SMALL)
    assert caught.value.id == "tokenizer-invalid"


def test_a_token_without_a_vector(tmp_path: Path, cache: Path) -> None:
    """Wrong if an added token beyond the embedding table reads other memory, or its name is not said."""
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(made([["a", "b"]], [*ADDED, "<image_soft_token>"])))
    rows = len(json.loads(file.read_text())["model"]["vocab"])
    compiled = open_tokenizer(file, SMALL.__class__(**{**vars(SMALL), "vocabulary": rows}))
    assert isinstance(compiled, CompiledTokenizer)
    good, bad = compiled(["ab", "a<image_soft_token>"])
    assert isinstance(good, np.ndarray)
    assert isinstance(bad, refembed.RefembedError)
    assert (bad.id, bad.index) == ("text-token", 1)
    assert "<image_soft_token>" in str(bad)


# ------------------------------------------------------------------------------------------------------------ the cache
def test_made_once_and_again_when_the_file_changes(tmp_path: Path, cache: Path, monkeypatch) -> None:
    """Wrong if tables of one file are used for another, or made in every process."""
    file = tmp_path / "tokenizer.json"
    for merges, ids in (([["a", "b"]], 264), ([["b", "a"], ["a", "b"]], 265)):
        file.write_text(json.dumps(made(merges)))
        config = SMALL.__class__(**{**vars(SMALL), "vocabulary": 1000})
        assert ids_of(open_tokenizer(file, config), ["ab"]) == [[2, ids, 1]]
        with monkeypatch.context() as patched:
            patched.setattr("refembed_numba.tokenizer.compile_tables", lambda file: pytest.fail("made again"))
            assert ids_of(open_tokenizer(file, config), ["ab"]) == [[2, ids, 1]]


@pytest.mark.parametrize("damage", ["truncated", "emptied", "missing", "another"])
def test_a_damaged_cache_is_made_again(cache: Path, damage: str) -> None:
    """Wrong if what a full disk or a careless hand left is read as tables."""
    file, config = TWIN / "tokenizer.json", open_checkpoint(TWIN).config
    right = ids_of(open_tokenizer(file, config), WORST)
    (folder,) = (cache / "tokenizers").iterdir()
    victim = folder / "merges.npy"
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(
            {"truncated": victim.read_bytes()[:-4], "emptied": b"", "another": b"\x80\x04N."}[damage]  # a pickle
        )
    assert ids_of(open_tokenizer(file, config), WORST) == right
    assert {one.name for one in folder.iterdir()} == {f"{name}.npy" for name in TABLES}


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch) -> None:
    """Wrong if a read-only home ends in an error: the tables are then made in memory."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("REFEMBED_CACHE", str(tmp_path / "file" / "cache"))
    compiled, library = both(TWIN)
    assert ids_of(compiled, WORST) == ids_of(library, WORST)


@pytest.mark.long
def test_many_processes_at_once(cache: Path) -> None:
    """Wrong if processes that start together trip over each other's files, or leave half a folder."""
    code = (
        "from pathlib import Path; from refembed.checkpoint import open_checkpoint;"
        "from refembed_numba.tokenizer import open_tokenizer;"
        f"folder = Path({str(TWIN)!r});"
        "print(open_tokenizer(folder / 'tokenizer.json', open_checkpoint(folder).config)(['a b'])[0].tolist())"
    )
    environment = {**os.environ, "REFEMBED_CACHE": str(cache)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) for _ in range(3)
    ]
    said = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(said) == 1
    (folder,) = (cache / "tokenizers").iterdir()
    assert {one.stem for one in folder.iterdir()} == set(TABLES)


def test_the_cache_folder_is_the_systems(monkeypatch) -> None:
    """Wrong if $REFEMBED_CACHE or $XDG_CACHE_HOME is passed over."""
    monkeypatch.setenv("REFEMBED_CACHE", "/somewhere")
    assert kept_module.cache_folder() == Path("/somewhere")
    monkeypatch.delenv("REFEMBED_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert kept_module.cache_folder() == Path("/elsewhere/refembed")
