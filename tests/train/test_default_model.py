"""What is made before the built-in model is trained and after: spec/recipes/default_{texts,start,finish}.py."""

import gzip
import io
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import default_finish
import default_start
import default_texts
import numpy as np
import pytest
import torch
from refembed_torch.train.vocabulary import BYTES

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

    file = out / "tokenizer" / "tokenizer.json"
    default_start.make_tokenizer(out / "sets", data, file, ["thursday"], pieces=1100, vocabulary=2000)
    return Tokenizer.from_file(str(file))


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


def test_a_word_that_the_teacher_knows_is_one_piece(tokenizer) -> None:
    """If this failed, "thursday" would be three pieces, for no dictionary or manual speaks of it often enough."""
    assert tokenizer.encode(" Thursday", add_special_tokens=False).tokens == ["▁thursday"]
    assert len(tokenizer.encode(" Wednesday", add_special_tokens=False).tokens) > 1


def test_capitals_are_read_as_small_letters(tokenizer) -> None:
    """If this failed, the first word of a sentence would be letters, and a name in small letters another word."""
    for text in [*WORDS, "The Boundary, ÉÀ"]:
        assert tokenizer.encode(f" {text.upper()}").ids == tokenizer.encode(f" {text.lower()}").ids
    assert tokenizer.encode(" Boundary", add_special_tokens=False).tokens == ["▁boundary"]
    assert tokenizer.decode(tokenizer.encode(" The Boundary, éà").ids) == " the boundary, éà"
    assert not [piece for piece in default_start.by_id(tokenizer) if piece != piece.lower() and piece not in BYTES]
    assert tokenizer.encode("<BOS>").ids[1] != tokenizer.encode("<bos>").ids[1] == tokenizer.token_to_id("<bos>")


@pytest.fixture(scope="module")
def start(tokenizer, out: Path, data: Path) -> Path:
    """What training begins with."""
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((384, 384)))[0]
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
    table = default_start.table_of(tokenizer, counts, np.eye(384), spoken_by(Counter()))[:, : -default_start.SPARE]
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
    assert found.shape == (500, default_start.CONFIG.dimensions)
    np.testing.assert_allclose(found @ found.T, rows[:, 0] @ rows[:, 0].T, atol=2e-3)
    lengths = np.square(found).sum(axis=0)
    assert (lengths[:50] > lengths[100:150]).all()  # the first numbers mean the most


GLOSS = [{"query": "boundary, bound, edge line (noun)"}, {"query": "play (verb)"}, {"query": "layer (noun)"}]


def test_common_words_are_of_their_kind_and_by_how_often_they_are_used() -> None:
    """If this failed, "play" would stand where a thing should, or words that nobody uses as often as those all do."""
    used = ["the boundary of a layer"] * 9 + ["we play at the boundary"] * 7 + ["a bound"]
    assert default_texts.common_words(GLOSS, used, "noun") == ["boundary"] * 4 + ["layer"] * 3
    assert default_texts.common_words(GLOSS, used, "verb") == ["play"] * 2


def test_everyday_sentences_are_many_and_the_same_each_time() -> None:
    """If this failed, the recipe would be another in every run, or the set mostly repetitions."""
    given = ["boundary", "apple", "layer"], ["play", "cut", "ride"], ["A man plays the guitar;", "it rained."]
    found = list(default_texts.everyday(*given, 3000))
    assert found == list(default_texts.everyday(*given, 3000))
    assert len(set(found)) > 1000
    assert not [text for text in found if re.search(r"  |[{}\n]|\ba apple|[;.] ?,|[.;:]\.$", text)]
    for part in ("man plays the guitar", "it rained", "an apple", "cutting", "riding", "my layer"):
        assert any(part in text for text in found), part


def test_recombined_texts_hold_the_words_they_are_given() -> None:
    """If this failed, the student would learn nothing of names and of days, or of nothing but lists of words."""
    known = ["and", *map(str, range(1, default_texts.EMPTY)), "obama", *["some"] * 2000, "kids"]
    given = ["The boundary and the layer", "we see a man"]
    found = list(default_texts.recombined(given, known, 3000))
    assert found == list(default_texts.recombined(given, known, 3000))
    kept = [text for turn, text in enumerate(found) if turn % 3 != 2]
    assert {text.split()[0] for text in kept} == {"The", "we"}  # with a capital, and of two letters
    assert all(text.split()[2] == "and" for text in kept if text.startswith("The"))  # one of the emptiest
    gone = np.mean(["boundary" not in text for text in kept if text.startswith("The")])
    assert gone == pytest.approx(1 / 3, abs=0.06)
    assert any("some" in text.split() for text in kept)
    words = Counter(word for text in found[2::3] for word in text.split())
    assert {"obama", "kids"} < words.keys()
    assert sum(words[str(n)] for n in range(1, default_texts.EMPTY)) > 0.13 * words.total()  # 0.17; evenly 0.09
    assert {len(text.split()) for text in found[2::3]} == set(range(2, 10))


def test_the_teachers_words_are_whole_and_in_their_order() -> None:
    """If this failed, "##ing" or "[unused7]" would be learned as words, or rare ones as the commonest."""
    vocabulary = {"[unused7]": 0, "the": 5, "##ing": 6, "zoo": 9, "b": 1, "obama": 8, "1999": 2, "né": 3}
    assert default_start.words_of_vocabulary(vocabulary) == ["the", "obama", "zoo"]


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("cut", "cutting"),
        ("tie", "tying"),
        ("ride", "riding"),
        ("see", "seeing"),
        ("play", "playing"),
        ("visit", "visiting"),
    ],
)
def test_what_is_being_done_is_spelled_as_english_does(verb: str, expected: str) -> None:
    """If this failed, the student would learn words that nobody writes."""
    assert default_texts.doing(verb) == expected


def test_only_data_for_shipped_models_is_read(monkeypatch) -> None:
    """If this failed, the shipped model might learn from texts that are for research, or of evaluation sets."""
    opened: list[str] = []

    def nothing(file: Path, *_: object, **__: object) -> io.StringIO:
        opened.append(Path(file).relative_to("data").as_posix())
        return io.StringIO()

    monkeypatch.setattr(default_texts.gzip, "open", nothing)
    monkeypatch.setattr(default_texts, "everyday", lambda *_: iter(()))  # there are no words to make them of
    monkeypatch.setattr(default_texts, "recombined", lambda *_: iter(()))
    default_texts.short_texts(Path("data"), [])
    default_texts.pairs(Path("data"))
    default_texts.held_out(Path("data"))
    default_texts.paragraphs(Path("data"))
    allowed = """wordnet_gloss wordnet_sense debian_synopsis_en gnome_help libreoffice_help man_search doc_sections_en
    tldr_page nl2bash afriqa foldoc gcide"""
    assert {*opened} == {f"train/{name}.jsonl.gz" for name in allowed.split()} | {"train/raw_text/en.tsv.gz"}


def test_pairs_held_out_are_not_learned_as_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, a recipe would be chosen by pairs it has learned by heart."""
    monkeypatch.setattr(default_texts, "LEARNED", dict.fromkeys(default_texts.LEARNED, (20, 60)))
    (tmp_path / "train").mkdir()
    for name in default_texts.LEARNED:
        with gzip.open(tmp_path / "train" / f"{name}.jsonl.gz", "wt") as lines:
            for row in range(25 if name == "gcide" else 40):
                lines.write(json.dumps({"lang": "en", "query": f"{name} {row}", "positive": f"answer {row}"}) + "\n")
    learned = {pair for rows in default_texts.pairs(tmp_path).values() for pair in rows}
    assert len(learned) == 20 * len(default_texts.LEARNED)
    left = default_texts.held_out(tmp_path, 10)
    assert [len(rows) for rows in left] == [10, 10, 10, 10, 5]
    assert not learned & {pair for rows in left for pair in rows}


def test_evening_narrows_what_is_wide_and_no_more_than_it_should() -> None:
    """If this failed, the few directions in which all texts differ would still outweigh the others, or noise would."""
    spread = np.array([8.0, 2.0, *[1.0] * 16, 1e-6, 0.0])
    vectors = np.random.default_rng(3).standard_normal((4000, 20)) * spread
    factors = default_finish.evening(vectors, power=0.5)
    np.testing.assert_allclose(factors / factors[2], [8**-0.5, 2**-0.5, *[1] * 16, factors[18], factors[18]], rtol=0.1)
    assert factors[18] == factors[19] == factors.max() < 2 * factors[2]


def test_a_rotation_keeps_whole_vectors_and_makes_a_quarter_rank_more_like_them() -> None:
    """If this failed, whole vectors would be spoiled, or a quarter be no better than the longest directions are."""
    chance = np.random.default_rng(4)
    told = np.array([*[1.0] * 8, *[0.8] * 24])  # pairs agree in what is short, and differ by chance in what is long
    first = chance.standard_normal((600, 32)) * told
    second = np.where(
        np.arange(32) < 8, chance.standard_normal((600, 32)), first + 0.2 * chance.standard_normal((600, 32))
    )
    pairs = np.stack([first, second], axis=1)
    pairs /= np.linalg.norm(pairs, axis=2, keepdims=True)
    matrix = default_finish.rotation([pairs[:500]], steps=200)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(32), atol=1e-6)
    covariance = np.einsum("rsi,rsj->ij", pairs[:500], pairs[:500])

    def differs(directions: np.ndarray) -> float:
        whole, quarter = (
            default_finish.log_probabilities(torch.from_numpy(one)) for one in (pairs[500:], pairs[500:] @ directions)
        )
        return float((whole.exp() * (whole - quarter)).sum(dim=1).mean())

    assert differs(matrix[:, :8]) < 0.8 * differs(default_finish.principal_directions(np.eye(32), covariance)[:, :8])
    for part in (matrix[:, :8], matrix[:, 8:]):
        lengths = np.diag(part.T @ covariance @ part)
        assert (np.diff(lengths) < 1e-9).all()


def test_what_is_finished_is_evened_and_rotated_and_nothing_else(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this failed, the recipe's last step would spoil what was trained."""
    monkeypatch.setattr(default_finish, "STEPS", 20)
    default_texts.write(tmp_path / "few.jsonl.gz", [(one, other) for one in WORDS for other in WORDS])
    default_texts.write(tmp_path / "pair-few.jsonl.gz", [*pairwise(WORDS)])
    default_finish.main(start, tmp_path, tmp_path / "finished")
    before, after = (refembed.load(folder, backend="numpy") for folder in (start, tmp_path / "finished"))
    spoken = [one for one in WORDS for _ in WORDS] + WORDS[:-1]
    factors = default_finish.evening(before.encode(spoken, task="sentence similarity"))
    expected = before.encode(WORDS) * factors
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = after.encode(WORDS)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    assert np.abs(found - expected).max() > 0.01  # rotated
    assert np.abs(found @ found.T - before.encode(WORDS) @ before.encode(WORDS).T).max() > 0.01  # evened


def test_a_recipe_is_there_for_each_set() -> None:
    """If this failed, teacher's vectors would be computed that no stage learns, or a stage would look for others."""
    recipe = (Path(__file__).parents[2] / "spec" / "recipes" / "default.toml").read_text()
    source = Path(default_texts.__file__).read_text()
    used = set(re.findall(r"\$REFEMBED_DEFAULT/sets/([\w-]+)\.jsonl\.gz", recipe))
    made = set(re.findall(r'^        "([\w-]+)": ', source, re.M)) | {"pair-paragraph"}
    assert used == made
