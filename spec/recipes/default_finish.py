"""After training the built-in model: python spec/recipes/default_finish.py MODEL SETS OUT

Writes MODEL once more, changed in two ways.

Its tokenizer makes capitals small, and the 14,000 pieces with capitals are left out: its teacher knows none either, and
each was seen too seldom. On STS-B the model is 1.4 points better so, on XQuAD-R, which asks for names, one worse.

Its vectors are turned: no angle between two of them changes, but their first 64 and 128 numbers are those that find,
among texts of SETS/pair-*.jsonl.gz, what belongs together as whole vectors would. Only the last matrix is another.
Principal directions, which training began with, keep distances best; at 64 numbers STS-B is two points worse with them.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from default_texts import SEED, read
from refembed_torch.forward import unit
from refembed_torch.train.vocabulary import BYTES
from torch import Tensor
from torch.nn import functional

import refembed
from refembed.checkpoint import TOKENIZER, open_checkpoint
from refembed.layout import write_checkpoint

LENGTHS, TEMPERATURE = (64, 128), 0.05
ROWS, BATCH, STEPS, RATE = 4000, 1024, 400, 2e-2
TABLE, LAST = "embed_tokens.weight", "3_Dense.linear.weight"
Pairs = list[tuple[Tensor, Tensor]]  # each set's queries and positives, (rows, dimensions), of unit length


def vectors_of(model: refembed.Embedder, sets: Path) -> Pairs:
    found = []
    for file in sorted(sets.glob("pair-*.jsonl.gz")):
        queries, positives = (list(side) for side in zip(*read(file)[:ROWS], strict=True))
        sides = model.encode_query(queries), model.encode_document(positives)
        found.append((torch.from_numpy(sides[0]), torch.from_numpy(sides[1])))
    return found


def find_turn(pairs: Pairs, lengths: Sequence[int] = LENGTHS, steps: int = STEPS, batch: int = BATCH) -> Tensor:
    """A rotation (dimensions, dimensions), whose first rows were trained and whose others fill it up.

    Loss, for each length: the cross entropy of each query's own positive among the batch's, and the KL divergence of
    the scores of all from what they would be with whole vectors.
    """
    chance = torch.Generator().manual_seed(SEED)
    width = pairs[0][0].shape[1]
    weights = torch.eye(width)[: max(lengths)].clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        queries, positives = pairs[step % len(pairs)]
        rows = torch.randperm(len(queries), generator=chance)[:batch]
        queries, positives = queries[rows], positives[rows]
        directions, _ = torch.linalg.qr(weights.T)  # (width, longest); the first columns do not depend on the others
        whole = functional.softmax(queries @ positives.T / TEMPERATURE, 1)
        loss = torch.zeros(())
        for length in lengths:
            first = directions[:, :length]
            scores = unit(queries @ first) @ unit(positives @ first).T / TEMPERATURE  # (batch, batch)
            loss = loss + functional.cross_entropy(scores, torch.arange(len(rows)))
            loss = loss + functional.kl_div(functional.log_softmax(scores, 1), whole, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    filled = torch.cat([weights.detach().T, torch.eye(width).flip(1)], 1).double()  # (width, longest + width)
    turn, _ = torch.linalg.qr(filled)  # (width, width): what the first columns span, and then what is left
    return turn.T


def in_small_letters(content: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """A tokenizer.json's content that makes capitals small and has no piece with any, and the ids that are left."""
    model = content["model"]
    kept = sorted((id, piece) for piece, id in model["vocab"].items() if piece == piece.lower() or piece in BYTES)
    vocabulary = {piece: place for place, (_, piece) in enumerate(kept)}
    merges = [[left, right] for left, right in model["merges"] if {left, right, left + right} <= vocabulary.keys()]
    for token in content["added_tokens"]:
        if vocabulary[token["content"]] != token["id"]:
            raise ValueError(f"{token['content']} would move from {token['id']}, which config.json may name")
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, content["normalizer"]]}
    changed = content | {"normalizer": normalizer, "model": model | {"vocab": vocabulary, "merges": merges}}
    return changed, [id for id, _ in kept]


def main(folder: Path, sets: Path, out: Path) -> None:
    checkpoint = open_checkpoint(folder)
    content, kept = in_small_letters(json.loads((folder / TOKENIZER).read_bytes()))
    tensors = {name: tensor.load(np.float32) for name, tensor in checkpoint.tensors.items()}
    tensors[TABLE] = tensors[TABLE][kept]
    config = replace(checkpoint.config, vocabulary=len(kept))
    with TemporaryDirectory() as place:
        small = Path(place) / "small"
        (Path(place) / TOKENIZER).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        write_checkpoint(small, config, tensors, Path(place), checkpoint.prompts)
        turn = find_turn(vectors_of(refembed.load(small, backend="numba", precision="float32"), sets)).numpy()
        tensors[LAST] = (turn @ tensors[LAST]).astype(np.float32)
        write_checkpoint(out, config, tensors, Path(place), checkpoint.prompts)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
