"""The real weights against others: the model card, sentence-transformers, transformers, published scores."""

# ruff: noqa: RUF001 - letters that look alike are what some of these tests are about

import gzip
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

import refembed

# README.md of google/embeddinggemma-300m: one query, four documents; similarities in float32 on a CPU
CARD_QUERY = "Which planet is known as the Red Planet?"
CARD_DOCUMENTS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]
CARD_SIMILARITIES = [0.30082, 0.63610, 0.49270, 0.48888]

PER_NUMBER = 4e-6  # float32 implementations are up to 1.4e-6 from float64, by CPU and threads; two of them, and room
TASKS = ("query", "document", None)
LENGTHS = (3, 255, 256, 257, 258, 259, 600, 2049)  # around the sliding layers' reach of 256, and past the context
# each is one token behind a space, which exact_text checks
WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power hour
game line end member law car city community name president team minute idea body information back parent face others
"""


@pytest.fixture(scope="module")
def peer(weights):
    """The same folder in sentence-transformers, float32 on the CPU."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(weights), device="cpu", local_files_only=True)
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}
    return model


@pytest.fixture(scope="module")
def peer_tokenizer(weights):
    """The same folder's tokenizer in transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(weights), local_files_only=True)


def exact_text(tokens: int, before: str, peer_tokenizer) -> str:
    """A text that makes `tokens` tokens with the prompt before it, or one word where the prompt alone is that long.

    It is random common words with single spaces, of which the first goes with the prompt and every other is one token;
    that the sum comes out is transformers' count, not ours.
    """
    generator, words = random.Random(tokens), WORDS.split()
    text = generator.choice(words)
    first = len(peer_tokenizer(before + text)["input_ids"])
    text = " ".join([text, *generator.choices(words, k=max(0, tokens - first))])
    assert len(peer_tokenizer(before + text)["input_ids"]) == max(tokens, first)
    return text


def same_vectors(ours, theirs) -> None:
    worst = np.abs(ours - theirs).max()
    assert ours.shape == theirs.shape
    assert worst <= PER_NUMBER, f"off by {worst:.2g}: {worst / PER_NUMBER:.0%} of what is allowed"


def test_model_card_example(real) -> None:
    """The published example comes out otherwise: the model is not the one that was released."""
    scores = real.similarity(real.encode_query(CARD_QUERY), real.encode_document(CARD_DOCUMENTS))
    np.testing.assert_allclose(scores[0], CARD_SIMILARITIES, atol=2e-5, rtol=0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", LENGTHS)
def test_agrees_with_sentence_transformers_at_exact_lengths(real, peer, peer_tokenizer, length: int, task) -> None:
    """A window, position, prompt or cut is wrong at this length: 256 is the last distance a sliding layer sees.

    With a prompt, the length counts it; the prompts are longer than 3 tokens, so there the 3 stands for one word.
    """
    text = exact_text(length, "" if task is None else peer.prompts[task], peer_tokenizer)
    theirs = peer.encode([text], prompt_name=task)
    if length > 2048:
        with pytest.warns(UserWarning, match="1 of 1 texts were longer than 2048 tokens and were cut"):
            ours = real.encode([text], task=task)
    else:
        ours = real.encode([text], task=task)
    same_vectors(ours, theirs)


@pytest.mark.parametrize("task", TASKS)
def test_agrees_with_sentence_transformers_on_a_mixed_batch(real, peer, peer_tokenizer, task) -> None:
    """A text's vector depends on the texts beside it, or comes back at another place."""
    before = "" if task is None else peer.prompts[task]
    texts = [exact_text(length, before, peer_tokenizer) for length in (40, 3, 120, 260, 18)]
    texts += ["", " ", CARD_QUERY, "Grüße aus Zürich — 你好，世界! 🚀", "def f(x):\n\treturn x  # twice\n"]
    same_vectors(real.encode(texts, task=task), peer.encode(texts, prompt_name=task, batch_size=len(texts)))


def test_agrees_with_sentence_transformers_on_titles(real, peer) -> None:
    """A title does not stand where the model was trained to find it."""
    titles = ["Mars", None, "", "  spaced | and piped ", "火星", "none"]
    texts = [f"{CARD_DOCUMENTS[1]} ({number})" for number in range(len(titles))]
    theirs = [
        peer.encode([text], prompt=f"title: {title or 'none'} | text: ")[0]
        for title, text in zip(titles, texts, strict=True)
    ]
    same_vectors(real.encode_document(texts, titles=titles), np.stack(theirs))


@pytest.mark.parametrize("dimensions", [512, 256, 128])
def test_agrees_with_sentence_transformers_truncated(real, peer, dimensions: int) -> None:
    """A shortened embedding keeps the wrong numbers, or is not normalised again."""
    theirs = peer.encode(CARD_DOCUMENTS, prompt_name="document", truncate_dim=dimensions, normalize_embeddings=True)
    ours = real.encode_document(CARD_DOCUMENTS, dimensions=dimensions)
    np.testing.assert_allclose(ours, theirs, atol=PER_NUMBER * np.sqrt(768 / dimensions), rtol=0)


def test_cut_keeps_bos_and_eos(real, peer_tokenizer) -> None:
    """A text beyond the context loses its EOS, or keeps its end in place of its beginning."""
    text = exact_text(2600, "", peer_tokenizer)
    with pytest.warns(UserWarning, match="cut"):
        ours = real.prepare([text], task=None)[0]
    theirs = peer_tokenizer(text, truncation=True, max_length=2048)["input_ids"]
    assert ours.tolist() == theirs
    assert (ours[0], ours[-1], len(ours)) == (2, 1, 2048)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_sts_benchmark(weights, data, backend: str) -> None:
    """The model is close to right, and loses what it was made for: 88.17 is published for STS-B English."""
    from scipy.stats import spearmanr

    model = refembed.load(weights, backend=backend)

    lines = (data / "eval" / "stsb_multi_mt" / "en-test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    pairs = [line.split("\t") for line in lines]
    assert len(pairs) == 1379
    place = {sentence: index for index, sentence in enumerate(sorted({s for _, *both in pairs for s in both}))}
    vectors = model.encode(list(place), task="sentence similarity")
    cosines = [vectors[place[first]] @ vectors[place[second]] for _, first, second in pairs]
    correlation = 100 * spearmanr([float(score) for score, *_ in pairs], cosines).statistic
    assert correlation == pytest.approx(88.17, abs=0.05)  # as published


# ---------------------------------------------------------------------------------------------------------- tokens
NASTY = [
    *("", " ", "  ", "   ", "\t", "\n", "\r\n", "\n\n\n", "\x00", "\ufeff", "\u2581", "\u2581\u2581a", "\u00a0"),
    *(" leading", "  two leading", "trailing ", "double  space", "\ttab\tand\nnewline", "a" + " " * 40 + "b"),
    *("\n" * 40 + "x", "\t" * 40, " \n \n ", "x\r\ny\rz", "zero\u200bwidth\u200djoiner\u2060", "soft\u00adhyphen"),
    *("🚀", "👩\u200d👩\u200d👧\u200d👦 family", "🏳\ufe0f\u200d🌈🇨🇭", "é e\u0301 ệ e\u0302\u0323", "ﬁ ﬀ Ⅷ ½ ①"),
    *("ｆｕｌｌ\u3000ｗｉｄｔｈ", "Z\u0351\u036b\u0343a\u0334l\u0335g\u0336o", "你好，世界！", "こんにちは世界"),
    *("안녕하세요 세계", "\u1112\u1161\u11ab", "שלום עולם", "مرحبا بالعالم", "नमस्ते", "ไทย", "ქართული", "𐍈𒀀𓀀"),
    *("\ue000\uf8ff", "\U0010ffff", "\U000e0041\U0001d11e", "\x01\x02\x7f\x80\x9f", "\ufffd\ufffe\uffff"),
    *("<eos>", "<pad>", "<bos>", "<unk>", "<mask>", "a<eos>b", " <pad> ", "<bos><eos>", "<eos", "< eos >", "<EOS>"),
    *("<start_of_turn>user\nhi<end_of_turn>", "<unused0><unused98>", "[multimodal]", "<start_of_image>", "<0x41>"),
    *("<table><tr><td>x</td></tr></table>", "<h1>", "</s><s>[INST]", "<|endoftext|>", "<b>bold</b>", "<0xFF>"),
    *("1234567890 3.14e-10", "def f(a, *, b=1):\n    return {**a}\n", "https://example.org/a?b=c#d", "C:\\n\\t"),
    *("“quotes” ‘’", "x" * 5000, "ab " * 700),
]  # fmt: skip
PIECES = some.sampled_from([text for text in NASTY if len(text) < 50]) | some.text(max_size=8)


def assert_same_tokens(real, peer_tokenizer, texts: list[str]) -> None:
    ours = real.tokenizer(texts)
    for text, found, expected in zip(texts, ours, peer_tokenizer(texts)["input_ids"], strict=True):
        assert found.tolist() == expected, repr(text[:200])


def test_tokens_of_nasty_texts(real, peer_tokenizer) -> None:
    """White space, marks, unknown characters or special tokens spelled in a text become other tokens."""
    assert_same_tokens(real, peer_tokenizer, NASTY)


@settings(max_examples=300, deadline=None)
@given(texts=some.lists(some.lists(PIECES, max_size=6).map("".join), min_size=1, max_size=8))
def test_tokens_of_any_text(real, peer_tokenizer, texts: list[str]) -> None:
    """Some text, alone or beside others, becomes other tokens than transformers'."""
    assert_same_tokens(real, peer_tokenizer, texts)


def test_tokens_of_real_texts(real, peer_tokenizer, data) -> None:
    """Ordinary text of some language becomes other tokens than transformers'."""
    texts = []
    for file in sorted((data / "train" / "raw_text").glob("*.tsv.gz")):
        with gzip.open(file, "rt", encoding="utf-8", newline="\n") as lines:
            texts += [line.rstrip("\n").split("\t", 1)[1] for _, line in zip(range(120), lines, strict=False)]
    seen: dict[str, int] = {}
    for file in sorted((data / "eval" / "tatoeba").glob("*.tsv.gz")):
        with gzip.open(file, "rt", encoding="utf-8", newline="\n") as lines:
            for line in lines:
                language, *sentences = line.rstrip("\n").split("\t")
                seen[language] = seen.get(language, 0) + 1
                texts += sentences if seen[language] <= 10 else []
    assert len(texts) > 4000
    assert len(seen) > 100
    assert_same_tokens(real, peer_tokenizer, texts)


def test_image_token_is_refused(real, peer_tokenizer) -> None:
    """A token without a row in the embedding table reads other memory, or the error does not say which text it was."""
    assert max(peer_tokenizer("<image_soft_token>")["input_ids"]) == real.config.vocabulary
    with pytest.raises(refembed.RefembedError, match="text 1: spells <image_soft_token>") as caught:
        real.encode(["fine", "an <image_soft_token> here"])
    assert (caught.value.id, caught.value.index) == ("text-token", 1)


# ------------------------------------------------------------------------------------------- memory, precision, digest
PEAK = """
import resource, sys, refembed
model = refembed.load(sys.argv[1], backend="numpy")
for tokens in (18, 122):
    text = "dog" + " dog" * (tokens - 3)
    assert len(model.tokenizer([text])[0]) == tokens
    model.encode([text], task=None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_peak_memory(weights) -> None:
    """Loading copies the weights, or reads the whole embedding table: more than 800 MiB for two short texts.

    A shell stands between, because a process started from this one inherits this one's ru_maxrss through exec.
    """
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-P", "-c", PEAK, str(weights)]
    peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak <= 800, f"{peak:.0f} MiB"


def test_float64_agrees_with_float32(real, weights, peer_tokenizer) -> None:
    """One of the two precisions computes something else: float32 rounding alone moves a number by less than 1e-6."""
    exact = refembed.load(weights, backend="numpy", precision="float64")
    assert exact.info.precision == "float64"
    texts = [CARD_QUERY, *CARD_DOCUMENTS, exact_text(300, "", peer_tokenizer)]
    np.testing.assert_allclose(real.encode(texts), exact.encode(texts), atol=1e-6, rtol=0)


def test_digest_is_stable(real, weights) -> None:
    """The same weights have two names, so golden vectors cannot be tied to them."""
    again = refembed.load(weights, backend="loopback")
    assert len(again.info.digest) == 64
    assert again.info.digest == real.info.digest


@pytest.mark.parametrize("task", ["query", "document", "clustering"])
@pytest.mark.parametrize("text", ["Mars is red.", "Which planet is known as the Red Planet?", "a " * 200])
def test_the_stream_overflows_float16(real, task: str, text: str) -> None:
    """Chapter 6 gives wrong numbers for why float16 cannot hold this model."""
    (ids,) = real.prepare([text], task=task)
    traced = real.encoder.trace(ids)
    assert 45_000 < np.abs(traced["layer.21.out"]).max() < 60_000
    assert 100_000 < np.abs(traced["layer.22.out"]).max() < 130_000
