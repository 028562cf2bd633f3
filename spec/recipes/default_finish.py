"""After training the built-in model: python spec/recipes/default_finish.py MODEL SETS OUT

Writes MODEL once more with another last matrix, which does two things to its vectors:

  evening   each number, a principal direction from the start (default_start.py), is divided by its own spread over
            texts of SETS to the power of EVENING. Few directions in which all texts differ much then count less beside
            the many in which few do (whitening, Su et al. 2021, in part)
  rotation  an orthogonal matrix, which changes no whole vector's similarity to another, puts into the first quarter of
            the numbers those directions by which that quarter ranks answers most as whole vectors do: not the longest

EVENING was chosen on an earlier model, by STS-B's dev split and pairs that were held out.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from default_texts import SEED, read

import refembed
from refembed.checkpoint import open_checkpoint
from refembed.layout import write_checkpoint

EVENING = 0.3
TEXTS, PAIRS = 400, 8_000  # the first of each set, which of pair-word are all from one dictionary, FOLDOC
STEPS, BATCH, RATE, TEMPERATURE = 800, 1024, 2e-3, 0.05  # the last is that of the recipe's stage search
LAST = "3_Dense.linear.weight"


def evening(vectors: np.ndarray, power: float = EVENING) -> np.ndarray:
    """What each number is multiplied by, (dimensions,), so that the spread of vectors (texts, dimensions) is evener.

    No spread counts as smaller than that which a tenth of the numbers is below: what says nothing is not to be heard.
    """
    spread = vectors.std(axis=0, dtype=np.float64)
    factors = np.maximum(spread, np.quantile(spread, 0.1)) ** -power
    return np.asarray(factors / factors.max(), np.float32)


def rotation(pairs: Sequence[np.ndarray], steps: int) -> np.ndarray:
    """An orthogonal matrix (n, n) for vectors v @ matrix, whose first quarter keeps most of how whole vectors rank.

    pairs   of each set unit vectors (rows, 2, n) of texts and of what answers them

    Of a batch's texts each has a distribution over all its answers, the softmax of their cosines / TEMPERATURE; by the
    quarter it shall be the same as by the whole (least Kullback-Leibler divergence). The quarter is then in principal
    directions, the longest first, and so are the other numbers: vectors can be cut at the quarter and within it.
    """
    chance = np.random.default_rng(SEED)
    covariance = np.mean([np.einsum("rsi,rsj->ij", rows, rows) / len(rows) for rows in pairs], axis=0)
    fewer = len(covariance) // 4
    directions = torch.tensor(
        principal_directions(np.eye(len(covariance)), covariance)[:, :fewer].copy(), dtype=torch.float32
    )
    optimizer = torch.optim.Adam([directions.requires_grad_()], lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        rows = pairs[chance.integers(len(pairs))]
        batch = torch.from_numpy(rows[chance.permutation(len(rows))[:BATCH]].astype(np.float32))
        whole, quarter = (log_probabilities(one) for one in (batch, batch @ torch.linalg.qr(directions)[0]))
        loss = torch.nn.functional.kl_div(quarter, whole, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    basis, _ = np.linalg.qr(directions.detach().double().numpy(), mode="complete")
    parts = basis[:, :fewer], basis[:, fewer:]
    return np.concatenate([principal_directions(part, covariance) for part in parts], axis=1)


def log_probabilities(pairs: torch.Tensor) -> torch.Tensor:
    """Of each row's first vector over all rows' second ones, from (rows, 2, n) to (rows, rows)."""
    first, second = torch.nn.functional.normalize(pairs, dim=2).unbind(1)
    return torch.log_softmax(first @ second.T / TEMPERATURE, dim=1)


def principal_directions(basis: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The same space's principal directions: orthonormal columns (n, k) to others."""
    _, order = np.linalg.eigh(basis.T @ covariance @ basis)  # of rising length
    return np.asarray(basis @ order[:, ::-1])


def main(folder: Path, sets: Path, out: Path) -> None:
    checkpoint = open_checkpoint(folder)
    tensors = {name: tensor.load(np.float32) for name, tensor in checkpoint.tensors.items()}
    model = refembed.load(folder, backend="numba")
    texts = [query for file in sorted(sets.glob("*.jsonl.gz")) for query, _ in read(file)[:TEXTS]]
    factors = evening(model.encode(texts, task="sentence similarity"))
    pairs = [evened_pairs(model, read(file)[:PAIRS], factors) for file in sorted(sets.glob("pair-*.jsonl.gz"))]
    tensors[LAST] = rotation(pairs, STEPS).T.astype(np.float32) @ (tensors[LAST] * factors[:, None])
    write_checkpoint(out, checkpoint.config, tensors, folder, checkpoint.prompts)


def evened_pairs(model: refembed.Embedder, rows: Sequence[tuple[str, str]], factors: np.ndarray) -> np.ndarray:
    """Evened unit vectors (rows, 2, dimensions) of texts and of what answers them."""
    queries, answers = (list(side) for side in zip(*rows, strict=True))
    vectors = model.encode(queries, task="query"), model.encode(answers, task="document")
    evened = np.stack(vectors, axis=1) * factors
    return np.asarray(evened / np.linalg.norm(evened, axis=2, keepdims=True), np.float32)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
