"""What is made before the built-in model is trained: refembed/default_model/prepare.py and texts.py."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import refembed
from refembed.default_model import prepare, texts
from refembed.prompts import PROMPTS

WORDS = ["boundary layer", "a man plays the guitar", "layers of paint", "the boundary of a field", "man and guitar"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small set."""
    folder = tmp_path_factory.mktemp("default")
    (folder / "sets").mkdir()
    texts.write(
        folder / "sets" / "few.jsonl.gz",
        [(one, other) for one in WORDS for other in WORDS] * 4 + [("B M L", "P G quiz vow text")] * 30,
    )
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "train" / "raw_text").mkdir(parents=True)
    with gzip.open(folder / "train" / "raw_text" / "en.tsv.gz", "wt") as lines:
        lines.write("".join(f"somewhere\t{text}, and so on.\n" for text in WORDS))
    return folder


@pytest.fixture(scope="module")
def tokenizer(out: Path, data: Path) -> object:
    from tokenizers import Tokenizer

    prepare.make_tokenizer(out / "sets", data, out / "tokenizer" / "tokenizer.json", pieces=1100, vocabulary=2000)
    return Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))


def spoken_by(encode_of: Counter[str]) -> object:
    """A teacher that has a direction of its own for every word."""

    def encode(words: list[str]) -> np.ndarray:
        encode_of.update(words)
        rows = [np.random.default_rng(list(word.encode())).standard_normal(384) for word in words]
        return np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)

    return encode


@pytest.mark.parametrize("prompt", PROMPTS.values())
def test_a_prompt_is_one_piece(tokenizer, prompt: str) -> None:
    """If this failed, the words of a prompt would be part of every text's meaning, and cost nine tokens each time."""
    assert len(tokenizer.encode(prompt.rstrip(" "), add_special_tokens=False).ids) == 1
    pieces = tokenizer.encode(f"{prompt}boundary", add_special_tokens=False).tokens
    assert pieces[1:] == tokenizer.encode(" boundary", add_special_tokens=False).tokens


def test_words_with_a_capital_are_one_piece_and_others_stay(tokenizer) -> None:
    """If this failed, the first word of a sentence would be letters."""
    split = [tokenizer.encode(f" {word}", add_special_tokens=False).tokens for word in ("boundary", "Boundary")]
    assert split == [["▁boundary"], ["▁Boundary"]]
    assert tokenizer.decode(tokenizer.encode(" The Boundary, éà").ids) == " The Boundary, éà"


def test_the_start_is_the_weighted_mean_of_the_pieces(tokenizer, out: Path, data: Path, monkeypatch) -> None:
    """If this failed, training would begin with less than the teacher's own vectors of words: a norm or a layer would
    have changed what the table says.
    """
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((384, prepare.WIDTH - prepare.SPARE)))[0]
    asked: Counter[str] = Counter()
    monkeypatch.setattr(prepare, "FREQUENT", 0.05)  # in so few texts every piece is frequent
    prepare.write_start(out, data, basis, spoken_by(asked))
    assert set(asked.values()) == {1}
    model = refembed.load(out / "start", backend="numpy")
    found = model.encode(WORDS, task="sentence similarity")
    table = refembed.checkpoint.open_checkpoint(out / "start").tensors["embed_tokens.weight"].load(np.float32)
    ids = tokenizer.encode_batch([f" {word}" for word in WORDS], add_special_tokens=False)
    means = np.array([table[one.ids][:, : -prepare.SPARE].sum(axis=0) for one in ids])
    cosines = (found[:, : -prepare.SPARE] * means).sum(axis=1) / np.linalg.norm(means, axis=1)
    assert cosines.min() > 0.97
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)


def test_frequent_pieces_say_less(tokenizer) -> None:
    """If this failed, "the" would weigh as much as "guitar" in every text."""
    counts = Counter({tokenizer.token_to_id("▁guitar"): 1, tokenizer.token_to_id("▁the"): 10_000})
    basis = np.eye(384)[:, : prepare.WIDTH - prepare.SPARE]
    table = prepare.table_of(tokenizer, counts, basis, spoken_by(Counter()))[:, : -prepare.SPARE]
    rare, common, nothing = (
        np.linalg.norm(table[tokenizer.token_to_id(piece)]) for piece in ("▁guitar", "▁the", "<bos>")
    )
    assert rare > 0.5 > 0.01 > common > nothing == 0


def test_turned_vectors_keep_their_angles(tmp_path: Path) -> None:
    """If this failed, the student would learn other similarities than the teacher's."""
    rows = np.random.default_rng(1).standard_normal((500, 2, 384)) * np.linspace(1, 0, 384) ** 4
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    for folder in ("teacher", "vectors"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "teacher" / "few.npy", rows.astype(np.float16))
    prepare.write_turned(tmp_path / "teacher", prepare.basis_of(tmp_path / "teacher"), tmp_path / "vectors")
    found = np.load(tmp_path / "vectors" / "few.queries.npy").astype(np.float64)
    assert found.shape == (500, prepare.WIDTH)
    np.testing.assert_allclose(found @ found.T, rows[:, 0] @ rows[:, 0].T, atol=2e-3)
    lengths = np.square(found).sum(axis=0)
    assert (lengths[:50] > lengths[100:150]).all()  # the first numbers mean the most


def test_our_sentences_are_many_and_the_same_each_time() -> None:
    """If this failed, the recipe would be another in every run, or the set mostly repetitions."""
    found = list(texts.sentences_of_our_own(2000))
    assert found == list(texts.sentences_of_our_own(2000))
    assert len(set(found)) > 1500
    assert not [text for text in found if "  " in text or "{" in text or "\n" in text]


def test_only_data_for_shipped_models_is_read() -> None:
    """If this failed, the shipped model might learn from texts that are for research, or of evaluation sets."""
    source = Path(texts.__file__).read_text() + Path(prepare.__file__).read_text()
    assert not [name for name in ("sts_scored", "intent_triples", "trecqa_train", "eval") if f'"{name}' in source]


def test_a_recipe_is_there_for_each_set() -> None:
    """If this failed, teacher's vectors would be computed that no stage learns, or a stage would look for others."""
    recipe = (Path(__file__).parents[2] / "spec" / "recipes" / "default.toml").read_text()
    source = Path(texts.__file__).read_text()
    used = {part.partition(".jsonl.gz")[0] for part in recipe.split("$REFEMBED_DEFAULT/sets/")[1:]}
    assert used == {name for name in used if json.dumps(name) in source}
