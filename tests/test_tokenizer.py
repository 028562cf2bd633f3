"""From text to ids with a small tokenizer of Gemma's form: what comes out, what must not leak in, what is refused."""

import json
import warnings
from enum import StrEnum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from support import SMALL, tokenizer_json, write_checkpoint
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

import refembed
from refembed import tokenizer as module
from refembed.tokenizer import Tokenizer

TEXTS = some.lists(some.text(max_size=20) | some.text("the in<eos>pad_bk", max_size=30), max_size=8)
SAMPLES = ["", "the in", "a the", " x  y ", "in <eos> the", "q" * 30, "Ünïcode ✓", "<bos>\n\t"]


@pytest.fixture(scope="module")
def model(small_folder):
    return refembed.load(small_folder, backend="numpy")


@pytest.fixture(scope="module")
def library() -> Library:
    """The same tokenizer used as its makers do, with its own post-processor."""
    return Library.from_str(tokenizer_json(SMALL.vocabulary))


def ids_of(tokenizer, texts) -> list[list[int]]:
    return [ids.tolist() for ids in tokenizer(texts)]


@pytest.mark.parametrize(
    ("text", "middle"),
    [
        ("", []),
        ("a", [6]),
        (" ", [5]),
        ("the in", [33, 5, 34]),
        ("the a", [33, 35]),
        ("th<eos>in", [32, 1, 34]),
        ("<pad><bos><unk> a", [0, 2, 3, 35]),
        ("✓q", [3, 22]),
        ("a\n", [6, 36 + 0x0A]),
    ],
)
def test_written_out(model, text: str, middle: list[int]) -> None:
    """Ids worked out by hand from the vocabulary: BOS, the pieces with special tokens as themselves, EOS."""
    found = model.tokenizer([text])[0]
    assert found.tolist() == [2, *middle, 1]
    assert found.dtype == np.int64


@given(texts=TEXTS)
def test_same_as_the_library_and_batch_is_single(model, library, texts: list[str]) -> None:
    """Ids differ from the tokenizers library's own, or depend on the texts beside."""
    found = ids_of(model.tokenizer, texts)
    assert found == [library.encode(text).ids for text in texts]
    assert found == [ids_of(model.tokenizer, [text])[0] for text in texts]


def test_many_texts_keep_their_order(model, monkeypatch) -> None:
    """Texts handed to the library in several lots come back at another place."""
    texts = [letter * count for count in range(1, 5) for letter in "abcdef"]
    whole = ids_of(model.tokenizer, texts)
    for lot in (1, 5, len(texts), 1000):
        monkeypatch.setattr(module, "TEXTS_AT_ONCE", lot)
        assert ids_of(model.tokenizer, texts) == whole


TRUNCATION = {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 32},
    "direction": "Left",
    "pad_to_multiple_of": 8,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<pad>",
}
OTHER_ENDS = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<eos>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "<eos>", "type_id": 0}},
        {"SpecialToken": {"id": "<eos>", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}},
}


@pytest.mark.parametrize(
    "planted",
    [
        {"truncation": TRUNCATION},
        {"padding": PADDING},
        {"padding": PADDING | {"strategy": "BatchLongest"}},
        {"post_processor": OTHER_ENDS},
        {"post_processor": None},
        {"truncation": TRUNCATION, "padding": PADDING, "post_processor": OTHER_ENDS},
    ],
    ids=lambda planted: "+".join(planted),
)
def test_settings_in_the_file_do_not_leak_in(model, tmp_path, planted) -> None:
    """What a library saved beside the vocabulary cuts, pads or ends every text."""
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(tokenizer_json(SMALL.vocabulary)) | planted))
    changed = [one.ids for one in Library.from_file(str(file)).encode_batch(SAMPLES)]
    assert changed != ids_of(model.tokenizer, SAMPLES), "the plant does nothing: this test would see nothing"
    assert ids_of(Tokenizer(file, SMALL), SAMPLES) == ids_of(model.tokenizer, SAMPLES)


class Shouted(str):
    """A string that prints as another."""

    def __str__(self) -> str:
        return self.upper()

    def __repr__(self) -> str:
        return "shouted"


class Word(StrEnum):
    THE = "the in"


@pytest.mark.parametrize("text", [Shouted("the in"), Word.THE, np.str_("the in")], ids=lambda text: type(text).__name__)
def test_kinds_of_string(model, text) -> None:
    """A string of another type than str is refused, or its printed form is embedded."""
    assert ids_of(model.tokenizer, [text]) == ids_of(model.tokenizer, ["the in"])
    np.testing.assert_array_equal(model.encode([text]), model.encode(["the in"]))
    np.testing.assert_array_equal(model.encode(text), model.encode("the in"))


@pytest.mark.parametrize("texts", [("a", "the"), np.array(["a", "the"]), {"a": 0, "the": 1}.keys(), iter(["a", "the"])])
def test_kinds_of_sequence(model, texts) -> None:
    """Only lists are taken, or another sequence is taken for one text."""
    np.testing.assert_array_equal(model.encode(texts), model.encode(["a", "the"]))


@pytest.mark.parametrize("bad", [None, 3, 1.5, b"bytes", ["list"], ("a", "b"), float("nan"), np.int64(1), {}], ids=repr)
def test_not_a_string(model, bad) -> None:
    """Something that is no text is embedded as if it were, or the error does not say which one it was."""
    with pytest.raises(refembed.RefembedError, match="text 2: is ") as caught:
        model.encode(["fine", "fine too", bad, "fine", 7])
    assert (caught.value.id, caught.value.index) == ("text-type", 2)
    assert type(bad).__name__ in str(caught.value)


@pytest.mark.parametrize("bad", [None, 3, b"bytes", {"a": "b"}, 1.5])
def test_not_a_sequence(model, bad) -> None:
    """Bytes are read as numbers, a mapping as its keys, or a traceback of ours comes out."""
    with pytest.raises(refembed.RefembedError) as caught:
        model.encode(bad)
    assert caught.value.id == "text-type"


@pytest.mark.parametrize("bad", ["\ud800", "fine \udfff", "\udc80abc"])
def test_lone_surrogates(model, bad: str) -> None:
    """Half a character, as os.fsdecode leaves them, is embedded as something else or ends in a library's panic."""
    with pytest.raises(refembed.RefembedError, match="text 1: is not valid Unicode") as caught:
        model.encode(["fine", bad])
    assert (caught.value.id, caught.value.index) == ("text-encoding", 1)


def test_lone_surrogate_in_a_prompt_or_title(model) -> None:
    """The same through the prompt: an error of ours, not a library's."""
    for options in ({"prompt": "\ud800"}, {"titles": ["\ud800"]}):
        with pytest.raises(refembed.RefembedError) as caught:
            model.encode(["fine"], **options)
        assert caught.value.id == "text-encoding"


def test_token_without_a_vector(tmp_path) -> None:
    """An added token beyond the embedding table reads other memory; it is an error, and only where it is spelled."""
    folder = write_checkpoint(tmp_path)
    library = Library.from_str(tokenizer_json(SMALL.vocabulary))
    library.add_special_tokens([AddedToken("<image_soft_token>", normalized=False)])
    assert library.token_to_id("<image_soft_token>") == SMALL.vocabulary
    library.save(str(folder / "tokenizer.json"))
    model = refembed.load(folder, backend="numpy")
    assert model.encode(["fine"]).shape == (1, 40)
    with pytest.raises(refembed.RefembedError, match="text 1: spells <image_soft_token>") as caught:
        model.encode(["fine", "an <image_soft_token>", "fine"])
    assert (caught.value.id, caught.value.index) == ("text-token", 1)


def test_pieces(model) -> None:
    """The written form shown for a token is another token's."""
    assert model.tokenizer.pieces(model.tokenizer(["the a<pad>"])[0]) == ["<bos>", "the", "▁a", "<pad>", "<eos>"]


# ------------------------------------------------------------------------------------------------------- the context
@given(lengths=some.lists(some.integers(0, 2 * SMALL.context), max_size=6))
def test_cut_keeps_the_beginning_and_eos(model, lengths: list[int]) -> None:
    """A long text loses its EOS or its beginning, a short one is touched, or the warning miscounts."""
    texts = ["ab" * (length // 2) + "c" * (length % 2) for length in lengths]
    whole = model.tokenizer(texts)
    long = sum(length + 2 > SMALL.context for length in lengths)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cut = model.prepare(texts, task=None)
    for before, after in zip(whole, cut, strict=True):
        written = before.tolist()
        assert after.tolist() == (written if len(written) <= 64 else [*written[:63], 1])
    said = [str(one.message) for one in caught]
    assert said == ([f"{long} of {len(texts)} texts were longer than 64 tokens and were cut"] if long else [])


def test_encode_warns_once(model) -> None:
    """Cutting goes unsaid, or floods the screen: three long texts are one warning, at the caller's line."""
    texts = ["a" * 62, "b" * 63, "c", "d" * 100, "e" * 5000]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vectors = model.encode(texts, task=None)
    assert [str(one.message) for one in caught] == ["3 of 5 texts were longer than 64 tokens and were cut"]
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = model.encode(["a" * 62, "b" * 62, "c", "d" * 62, "e" * 62], task=None, on_long="error")
    np.testing.assert_array_equal(vectors, kept)


def test_prompt_counts_towards_the_context(model) -> None:
    """A prompt pushes a text beyond the context unseen."""
    room = SMALL.context - 2 - len("see:")
    model.encode(["b" * room], prompt="see:", on_long="error")
    with pytest.raises(refembed.RefembedError):
        model.encode(["b" * (room + 1)], prompt="see:", on_long="error")


def test_long_texts_refused(model) -> None:
    """on_long="error" cuts all the same, or does not say which text and how long."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(refembed.RefembedError, match="text 2: has 72 tokens, at most 64 fit") as caught:
            model.encode(["a", "b" * 62, "c" * 70, "d" * 80], task=None, on_long="error")
    assert (caught.value.id, caught.value.index) == ("text-too-long", 2)


@pytest.mark.parametrize("on_long", ["truncate", "", None, True])
def test_unknown_on_long(model, on_long) -> None:
    """A mistyped choice silently means "cut"."""
    with pytest.raises(refembed.RefembedError) as caught:
        model.encode(["a"], on_long=on_long)
    assert caught.value.id == "option-on-long"
