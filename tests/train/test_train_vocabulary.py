"""The small tokenizer: Gemma's form, the same from the same text, and one meaning everywhere it is read."""

import json
from pathlib import Path

import numpy as np
import pytest
from gemma_support import sentences
from refembed_torch.train.vocabulary import BYTES, FIRST, UNUSED, alphabet, train_tokenizer

from refembed.errors import RefembedError
from refembed.reference import Config
from refembed.reference.ul2 import MODES, SENTINELS
from refembed.tokenizer import Tokenizer

VOCABULARY = 1000
TEXTS = [
    "the window of a layer",
    "  two  spaces, a\nline and\ta tab ",
    "łódź 東京 🙂",
    "<unused0> marks <mask> and <eos>",
    "",
    "12345",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(sentences(300), VOCABULARY).save(str(place / "tokenizer.json"), pretty=False)
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GemmaTokenizer"}))
    return place


def test_ids_are_gemmas(folder: Path) -> None:
    """Wrong if a special token has another id than everything else assumes, or UL2's tokens are not all there."""
    library = Tokenizer(folder / "tokenizer.json", Config(vocabulary=VOCABULARY)).library
    assert [library.id_to_token(id) for id in range(5)] == ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    found = [library.token_to_id(name) for name in (*MODES.values(), *SENTINELS, *BYTES)]
    assert None not in found
    assert len(set(found)) == len(found)
    assert library.get_vocab_size() <= VOCABULARY


def test_the_same_text_gives_the_same_tokenizer() -> None:
    """Wrong if a resumed run has another vocabulary than it began with. Many letters are equally rare here, which the
    library itself breaks by chance.
    """
    rare = [chr(0x4E00 + code) for code in range(200)]
    made = {train_tokenizer([*sentences(50), *rare], 900).to_str() for _ in range(4)}
    assert len(made) == 1


def test_transformers_reads_it_alike(folder: Path) -> None:
    """Wrong if transformers makes other ids of a text, special tokens, spaces and bytes among it."""
    from transformers import AutoTokenizer

    peer = AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer(folder / "tokenizer.json", Config(vocabulary=VOCABULARY))(TEXTS)
    for text, ids in zip(TEXTS, ours, strict=True):
        assert isinstance(ids, np.ndarray)
        assert list(ids[1:-1]) == peer(text, add_special_tokens=False)["input_ids"], text


def test_texts_come_back(folder: Path) -> None:
    """Wrong if a letter it has never seen is lost: bytes spell it."""
    library = Tokenizer(folder / "tokenizer.json", Config(vocabulary=VOCABULARY)).library
    for text in TEXTS[:3]:
        assert library.decode(library.encode(text, add_special_tokens=False).ids) == text


def test_it_learned_words(folder: Path) -> None:
    """Wrong if training merges nothing: the text's own words are single tokens."""
    library = Tokenizer(folder / "tokenizer.json", Config(vocabulary=VOCABULARY)).library
    assert library.encode("a longer window", add_special_tokens=False).tokens == ["a", "▁longer", "▁window"]


def test_unused_tokens_are_one_token_and_never_made_of_pieces(folder: Path) -> None:
    """Wrong if a sentinel is spelled, or a text that has no sentinel gets one."""
    library = Tokenizer(folder / "tokenizer.json", Config(vocabulary=VOCABULARY)).library
    assert library.encode(UNUSED[-1], add_special_tokens=False).tokens == [UNUSED[-1]]
    seen = {token for text in sentences(50, 1) for token in library.encode(text).tokens}
    assert seen.isdisjoint(UNUSED)


def test_rare_letters_leave_room_for_words() -> None:
    """Wrong if a text of many different letters takes the whole vocabulary: 2 of 5 here cover 99.9 % of it."""
    assert alphabet(["a" * 5000 + "b" * 4990 + "cde"], 10) == ["a", "b"]
    assert alphabet(["cab" * 10], 2) == ["a", "b"]


def test_too_small_a_vocabulary_is_refused() -> None:
    """Wrong if a tokenizer without a piece comes out of it."""
    with pytest.raises(RefembedError, match=f"more than {len(FIRST) + 1}"):
        train_tokenizer(sentences(3), 700)
