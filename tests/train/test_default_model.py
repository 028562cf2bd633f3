"""What is made before the built-in model is trained: spec/recipes/default_start.py and default_texts.py."""

import gzip
import io
import json
import re
from collections import Counter
from functools import partial
from pathlib import Path

import default_finish
import default_start
import default_texts
import numpy as np
import pytest
import torch

import refembed
from refembed.prompts import PROMPTS

WORDS = ["boundary layer", "a man plays the guitar", "layers of paint", "the boundary of a field", "man and guitar"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small set."""
    folder = tmp_path_factory.mktemp("default")
    (folder / "sets").mkdir()
    default_texts.write(
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

    default_start.make_tokenizer(out / "sets", data, out / "tokenizer" / "tokenizer.json", pieces=1100, vocabulary=2000)
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


@pytest.fixture(scope="module")
def start(tokenizer, out: Path, data: Path) -> Path:
    """What training begins with."""
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((384, default_start.WIDTH - default_start.SPARE)))[0]
    asked: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(default_start, "FREQUENT", 0.05)  # in so few texts every piece is frequent
        default_start.write_start(out, data, basis, spoken_by(asked))
    assert set(asked.values()) == {1}
    return out / "start"


def test_the_start_is_the_weighted_mean_of_the_pieces(tokenizer, start: Path) -> None:
    """If this failed, training would begin with less than the teacher's own vectors of words: a norm or a layer would
    have changed what the table says.
    """
    model = refembed.load(start, backend="numpy")
    found = model.encode(WORDS, task="sentence similarity")
    table = refembed.checkpoint.open_checkpoint(start).tensors["embed_tokens.weight"].load(np.float32)
    ids = tokenizer.encode_batch([f" {word}" for word in WORDS], add_special_tokens=False)
    means = np.array([table[one.ids][:, : -default_start.SPARE].sum(axis=0) for one in ids])
    cosines = (found[:, : -default_start.SPARE] * means).sum(axis=1) / np.linalg.norm(means, axis=1)
    assert cosines.min() > 0.97
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)


def test_frequent_pieces_say_less(tokenizer) -> None:
    """If this failed, "the" would weigh as much as "guitar" in every text."""
    counts = Counter({tokenizer.token_to_id("▁guitar"): 1, tokenizer.token_to_id("▁the"): 10_000})
    basis = np.eye(384)[:, : default_start.WIDTH - default_start.SPARE]
    table = default_start.table_of(tokenizer, counts, basis, spoken_by(Counter()))[:, : -default_start.SPARE]
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
    default_start.write_turned(tmp_path / "teacher", default_start.basis_of(tmp_path / "teacher"), tmp_path / "vectors")
    found = np.load(tmp_path / "vectors" / "few.queries.npy").astype(np.float64)
    assert found.shape == (500, default_start.WIDTH)
    np.testing.assert_allclose(found @ found.T, rows[:, 0] @ rows[:, 0].T, atol=2e-3)
    lengths = np.square(found).sum(axis=0)
    assert (lengths[:50] > lengths[100:150]).all()  # the first numbers mean the most


def test_small_letters_are_read_as_before(tokenizer) -> None:
    """If this failed, the trained rows of the table would belong to other pieces."""
    before = json.loads(tokenizer.to_str())
    content, kept = default_finish.in_small_letters(before)
    small = type(tokenizer).from_str(json.dumps(content))
    assert small.get_vocab_size() == len(kept) < tokenizer.get_vocab_size()
    for text in [*WORDS, *PROMPTS.values(), "é ñ ü\n\t", "<bos> and"]:
        assert [kept[id] for id in small.encode(text).ids] == tokenizer.encode(text).ids
        assert small.encode(text.upper().replace("<BOS>", "<bos>")).ids == small.encode(text.lower()).ids


def test_a_turn_changes_no_angle_and_brings_first_what_finds() -> None:
    """If this failed, whole vectors would mean something else, or short ones no more than before."""
    chance = torch.Generator().manual_seed(1)
    meaning = 2 * torch.randn(400, 4, generator=chance)

    def side() -> torch.Tensor:  # eight numbers of noise, then four that tell which positive is whose
        rows = torch.cat([torch.randn(400, 8, generator=chance), meaning], 1)
        return torch.nn.functional.normalize(rows, dim=1)

    queries, positives = side(), side()
    turn = default_finish.find_turn([(queries, positives)], lengths=(4, 8), steps=300, batch=256).float()
    torch.testing.assert_close(turn @ turn.T, torch.eye(12), atol=1e-5, rtol=0)

    def found_by(numbers: int, turned: bool) -> float:
        first, second = ((side @ turn.T if turned else side)[:, :numbers] for side in (queries, positives))
        scores = torch.nn.functional.normalize(first, dim=1) @ torch.nn.functional.normalize(second, dim=1).T
        return float((scores.argmax(1) == torch.arange(400)).float().mean())

    assert found_by(4, turned=True) > 0.5 > 0.1 > found_by(4, turned=False)


def test_our_sentences_are_many_and_the_same_each_time() -> None:
    """If this failed, the recipe would be another in every run, or the set mostly repetitions."""
    found = list(default_texts.sentences_of_our_own(2000))
    assert found == list(default_texts.sentences_of_our_own(2000))
    assert len(set(found)) > 1500
    assert not [text for text in found if "  " in text or "{" in text or "\n" in text]


def test_recombined_sentences_are_new_and_the_same_each_time() -> None:
    """If this failed, the student would learn the same texts once more, or others in every run."""
    given = [f"{word} and {other}" for word in WORDS for other in WORDS]
    found = list(default_texts.recombined(given, 2000))
    assert found == list(default_texts.recombined(given, 2000))
    assert len(set(found) - set(given)) > 1000
    known = {word.lower() for text in given for word in re.findall(r"\w+", text)}
    ours = " ".join([*default_texts.FRAMES, *default_texts.JOINTS]).lower()
    assert {word.lower() for text in found for word in re.findall(r"\w+", text)} <= known | {*re.findall(r"\w+", ours)}


def test_other_capitals_change_nothing_else() -> None:
    """If this failed, the teacher's vector would be that of another text."""
    chance = np.random.default_rng(1)
    text = "The boundary layer of a wing, as NASA says it; l'été."
    found = {default_texts.other_capitals(text, chance) for _ in range(200)}
    assert len(found) == 4
    assert {one.lower() for one in found} == {text.lower()}


def test_only_data_for_shipped_models_is_read(monkeypatch) -> None:
    """If this failed, the shipped model might learn from texts that are for research, or of evaluation sets."""
    opened: list[str] = []

    def nothing(file: Path, *_: object, **__: object) -> io.StringIO:
        opened.append(Path(file).relative_to("data").as_posix())
        return io.StringIO()

    monkeypatch.setattr(default_texts.gzip, "open", nothing)
    default_texts.short_texts(Path("data"))
    default_texts.pairs(Path("data"))
    default_texts.paragraphs(Path("data"))
    allowed = """wordnet_gloss wordnet_sense debian_synopsis_en gnome_help libreoffice_help man_search doc_sections_en
    tldr_page nl2bash afriqa"""
    assert {*opened} == {f"train/{name}.jsonl.gz" for name in allowed.split()} | {"train/raw_text/en.tsv.gz"}


def test_varied_sets_are_the_same_rows(out: Path, tmp_path: Path) -> None:
    """If this failed, a row would learn the teacher's vector of another."""
    default_texts.write_varied(out / "sets", tmp_path)
    before, after = (default_texts.read(folder / "few.jsonl.gz") for folder in (out / "sets", tmp_path))
    assert before != after
    assert [(a.lower(), b.lower()) for a, b in before] == [(a.lower(), b.lower()) for a, b in after]


def test_what_is_finished_is_the_same_model(start: Path, tmp_path: Path, monkeypatch) -> None:
    """If this failed, the recipe's last step would spoil what was trained: rows of other pieces, or other angles."""
    rows = [(one, other) for one in WORDS for other in WORDS]
    default_texts.write(tmp_path / "pair-few.jsonl.gz", rows)
    monkeypatch.setattr(default_finish, "find_turn", partial(default_finish.find_turn, steps=2))
    default_finish.main(start, tmp_path, tmp_path / "finished")
    before, after = (refembed.load(folder, backend="numpy") for folder in (start, tmp_path / "finished"))
    vectors, turned = before.encode(WORDS), after.encode([word.upper() for word in WORDS])
    np.testing.assert_allclose(turned @ turned.T, vectors @ vectors.T, atol=1e-5)
    assert np.abs(turned - vectors).max() > 0.01
    assert after.config.vocabulary < before.config.vocabulary


def test_a_token_that_would_move_is_refused(tokenizer) -> None:
    """If this failed, config.json would name another token as the end of a text."""
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"] |= {"A": content["model"]["vocab"].pop("<bos>"), "<bos>": len(content["model"]["vocab"])}
    content["added_tokens"] = [
        token | {"id": content["model"]["vocab"][token["content"]]} for token in content["added_tokens"]
    ]
    with pytest.raises(ValueError, match="would move"):
        default_finish.in_small_letters(content)


def test_a_recipe_is_there_for_each_set() -> None:
    """If this failed, teacher's vectors would be computed that no stage learns, or a stage would look for others."""
    recipe = (Path(__file__).parents[2] / "spec" / "recipes" / "default.toml").read_text()
    source = Path(default_texts.__file__).read_text()
    used = set(re.findall(r"\$REFEMBED_DEFAULT/(?:sets|varied)/([\w-]+)\.jsonl\.gz", recipe))
    made = set(re.findall(r'^        "([\w-]+)": ', source, re.M)) | {"pair-paragraph", default_texts.RECOMBINED}
    assert used == made
