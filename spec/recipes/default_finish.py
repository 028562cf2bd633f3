"""After training the built-in model: python spec/recipes/default_finish.py MODEL SETS OUT

Writes MODEL once more, with the directions of its vectors evened out: each of the numbers, which are principal
directions from the start (default_start.py), is divided by its own spread over texts of SETS to the power of EVENING.
Few directions in which all texts differ much then count less beside the many in which few do (whitening, Su et al.
2021, in part). Only the last matrix is another. EVENING was chosen by STS-B's dev split and pairs that were held out.
"""

import sys
from pathlib import Path

import numpy as np
from default_texts import read

import refembed
from refembed.checkpoint import open_checkpoint
from refembed.layout import write_checkpoint

EVENING = 0.3
TEXTS, LAST = 400, "3_Dense.linear.weight"


def evening(vectors: np.ndarray, power: float = EVENING) -> np.ndarray:
    """What each number is multiplied by, (dimensions,), so that the spread of vectors (texts, dimensions) is evener.

    No spread counts as smaller than that which a tenth of the numbers is below: what says nothing is not to be heard.
    """
    spread = vectors.std(axis=0, dtype=np.float64)
    factors = np.maximum(spread, np.quantile(spread, 0.1)) ** -power
    return np.asarray(factors / factors.max(), np.float32)


def main(folder: Path, sets: Path, out: Path) -> None:
    checkpoint = open_checkpoint(folder)
    tensors = {name: tensor.load(np.float32) for name, tensor in checkpoint.tensors.items()}
    texts = [query for file in sorted(sets.glob("*.jsonl.gz")) for query, _ in read(file)[:TEXTS]]
    vectors = refembed.load(folder, backend="numpy").encode(texts, task="sentence similarity")
    tensors[LAST] = tensors[LAST] * evening(vectors)[:, None]
    write_checkpoint(out, checkpoint.config, tensors, folder, checkpoint.prompts)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
