"""What the lessons are given: a checkpoint's files, the text cut into symbols, and the twin's right answers."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
Array = np.ndarray
Ranks = Mapping[tuple[str, str], int]


class Tokenizer(NamedTuple):
    """tokenizer.json, read.

    ids       every piece's id
    ranks     pair of neighbouring pieces -> when it is merged: the lowest rank first
    specials  pieces that a text may spell and that are never cut, like <eos>
    """

    ids: Mapping[str, int]
    ranks: Ranks
    specials: Sequence[str]


class Checkpoint(NamedTuple):
    """A model folder.

    settings    config.json, as it is
    parameters  every tensor by its name, float64
    prompts     task -> what stands before the text
    """

    settings: Mapping[str, Any]
    parameters: Mapping[str, Array]
    prompts: Mapping[str, str]
    tokenizer: Tokenizer


@cache
def open_checkpoint(folder: Path = GOLDEN / "twin" / "checkpoint") -> Checkpoint:
    """Read a folder of the released form. The twin's is 48 wide and six layers deep."""
    dense = {
        f"{name}.{key}": array
        for name in ("2_Dense", "3_Dense")
        for key, array in load_file(folder / name / "model.safetensors").items()
    }
    parameters = {name: frozen(array) for name, array in (load_file(folder / "model.safetensors") | dense).items()}
    prompts = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]
    return Checkpoint(
        json.loads((folder / "config.json").read_text()), parameters, prompts, read_tokenizer(folder / "tokenizer.json")
    )


def read_tokenizer(file: Path) -> Tokenizer:
    """The parts of tokenizer.json that byte-pair encoding needs."""
    stored = json.loads(file.read_text())
    specials = {token["content"]: token["id"] for token in stored["added_tokens"]}
    ranks = {tuple(pair): rank for rank, pair in enumerate(stored["model"]["merges"])}
    return Tokenizer(stored["model"]["vocab"] | specials, ranks, sorted(specials, key=len, reverse=True))


def pieces(prompted: str, tokenizer: Tokenizer, merge: Callable[[list[str], Ranks], list[str]]) -> list[int]:
    """The ids of a text's pieces: special tokens whole, all else cut into characters and merged by `merge`.

    A space is written as a low line; a character that is no piece becomes its bytes.
    """
    found: list[int] = []
    for part in re.split("(" + "|".join(map(re.escape, tokenizer.specials)) + ")", prompted):
        if part in tokenizer.specials:
            found.append(tokenizer.ids[part])
        else:
            characters = part.replace(" ", "▁")
            symbols = [
                symbol
                for character in characters
                for symbol in (
                    [character] if character in tokenizer.ids else [f"<0x{byte:02X}>" for byte in character.encode()]
                )
            ]
            found += [tokenizer.ids[piece] for piece in merge(symbols, tokenizer.ranks)]
    return found


def embed(
    texts: Sequence[str],
    tokenize: Callable[[str, Tokenizer, Mapping[str, Any]], Array],
    embed_ids: Callable[[Array, Mapping[str, Array], Mapping[str, Any]], Array],
) -> Array:
    """The twin's vectors of texts that have their prompts already: (texts, dimensions)."""
    twin = open_checkpoint()
    batch = [tokenize(text, twin.tokenizer, twin.settings) for text in texts]
    return np.stack([embed_ids(ids, twin.parameters, twin.settings) for ids in batch])


def frozen(array: Array) -> Array:
    """In float64, and not to be written to: what is given must not be changed."""
    array = array.astype(np.float64) if array.dtype.kind == "f" else array
    array.flags.writeable = False
    return array


@cache
def golden(suite: str) -> tuple[Mapping[str, Any], Mapping[str, Array]]:
    """The cases of golden/twin or golden/losses by id, and their arrays by `case/name`."""
    folder = GOLDEN / suite
    cases = {case["id"]: case for case in json.loads((folder / "manifest.json").read_text())["cases"]}
    files = [folder / f"{name}.safetensors" for name in ("values", "stages")]
    arrays = {name: frozen(array) for file in files if file.exists() for name, array in load_file(file).items()}
    return cases, arrays


def loss(
    asked: Mapping[str, Any],
    log_hardness: Callable[..., Array],
    false_negative_mask: Callable[..., Array],
    contrastive: tuple[Callable[..., float], Callable[..., tuple[Array, ...]]],
    second_moment: tuple[Callable[..., float], Callable[..., Array]],
) -> dict[str, Any]:
    """What a question of `refembed verify --level losses` is answered; each loss comes with its gradient.

    The losses of all lengths are added. Without hard negatives their weight is 0, so its logarithm -infinity.
    """
    names = [name for name in ("queries", "positives", "negatives") if asked[name]]
    sides = [np.array(asked[name], np.float64) for name in names]
    value, gradients = 0.0, [np.zeros_like(side) for side in sides]
    for length in asked["lengths"]:
        q, p, *n = (side[:, :length] for side in sides)
        if asked["loss"] == "spread-out":
            value += sum(second_moment[0](side) for side in (q, p))
            of_sides = [second_moment[1](side) for side in (q, p)]
        else:
            log_w = log_hardness(q, n[0], asked["alpha"]) if n else np.full(len(q), -np.inf)
            mask = false_negative_mask(asked["query_texts"], asked["positive_texts"])
            batch = (q, p, n[0] if n else q, log_w, mask, asked["temperature"])
            value += contrastive[0](*batch)
            of_sides = list(contrastive[1](*batch))
        for whole, part in zip(gradients, of_sides, strict=False):
            whole[:, :length] += part
    return {"value": float(value), "gradients": dict(zip(names, gradients, strict=True))}
