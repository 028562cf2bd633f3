"""What is made before the built-in model is trained: spec/recipes/default_start.py and default_texts.py."""

import gzip
import io
import re
from collections import Counter
from pathlib import Path

import default_finish
import default_start
import default_texts
import numpy as np
import pytest
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


@pytest.mark.parametrize(
    ("verb", "expected"),
    [("cut", "cutting"), ("ride", "riding"), ("see", "seeing"), ("play", "playing"), ("visit", "visiting")],
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
    default_texts.short_texts(Path("data"))
    default_texts.pairs(Path("data"))
    default_texts.paragraphs(Path("data"))
    allowed = """wordnet_gloss wordnet_sense debian_synopsis_en gnome_help libreoffice_help man_search doc_sections_en
    tldr_page nl2bash afriqa foldoc gcide"""
    assert {*opened} == {f"train/{name}.jsonl.gz" for name in allowed.split()} | {"train/raw_text/en.tsv.gz"}


def test_evening_narrows_what_is_wide_and_no_more_than_it_should() -> None:
    """If this failed, the few directions in which all texts differ would still outweigh the others, or noise would."""
    spread = np.array([8.0, 2.0, *[1.0] * 16, 1e-6, 0.0])
    vectors = np.random.default_rng(3).standard_normal((4000, 20)) * spread
    factors = default_finish.evening(vectors, power=0.5)
    np.testing.assert_allclose(factors / factors[2], [8**-0.5, 2**-0.5, *[1] * 16, factors[18], factors[18]], rtol=0.1)
    assert factors[18] == factors[19] == factors.max() < 2 * factors[2]


def test_what_is_finished_has_its_directions_evened_and_nothing_else(start: Path, tmp_path: Path) -> None:
    """If this failed, the recipe's last step would spoil what was trained."""
    default_texts.write(tmp_path / "few.jsonl.gz", [(one, other) for one in WORDS for other in WORDS])
    default_finish.main(start, tmp_path, tmp_path / "finished")
    before, after = (refembed.load(folder, backend="numpy") for folder in (start, tmp_path / "finished"))
    vectors, evened = before.encode(WORDS), after.encode(WORDS)
    factors = default_finish.evening(before.encode([one for one in WORDS for _ in WORDS], task="sentence similarity"))
    expected = vectors * factors
    np.testing.assert_allclose(evened, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    assert np.abs(evened - vectors).max() > 0.01


def test_a_recipe_is_there_for_each_set() -> None:
    """If this failed, teacher's vectors would be computed that no stage learns, or a stage would look for others."""
    recipe = (Path(__file__).parents[2] / "spec" / "recipes" / "default.toml").read_text()
    source = Path(default_texts.__file__).read_text()
    used = set(re.findall(r"\$REFEMBED_DEFAULT/sets/([\w-]+)\.jsonl\.gz", recipe))
    made = set(re.findall(r'^        "([\w-]+)": ', source, re.M)) | {"pair-paragraph"}
    assert used == made
