"""How the Numba backend does beside the NumPy one and beside NumPy's own matrix products, in one process.

python tests/bench/numba_backend.py FOLDER [--threads N] [--rounds N] [--numpy]

For a short query (18 tokens), 16 documents of 122 tokens and one text of 2,000 tokens: the median time of float32,
int8, the matrix products of one forward pass alone through NumPy's BLAS (all texts stacked into one matrix, attention
left out) and, with --numpy, the NumPy backend, taken in turn. BLAS has the threads that OPENBLAS_NUM_THREADS says.
"""

import argparse
import statistics
import time
from functools import partial

import numpy as np

import refembed
from refembed.reference import Config

SHAPES = {"query": [18], "documents": [122] * 16, "long": [2000]}


def products(config: Config, parameters, tokens: int) -> None:
    """The matrix products of one forward pass over this many rows."""
    rows = {
        size: np.ones((tokens, size), np.float32) for size in {config.width, config.mlp, config.heads * config.head}
    }
    for name, matrix in parameters.items():
        if name.startswith("layers.") and matrix.ndim == 2:
            rows[matrix.shape[1]] @ matrix.T


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--numpy", action="store_true", help="the NumPy backend too, which is slow")
    given = arguments.parse_args()
    models = {
        kind: refembed.load(given.folder, backend="numba", precision=kind, threads=given.threads)
        for kind in ("float32", "int8")
    }
    plain = refembed.load(given.folder, backend="numpy")
    rng = np.random.default_rng(0)
    print(f"{'texts':>10}  {'what':>8}  {'median ms':>9}  {'least ms':>8}  {'tokens/s':>8}")
    for name, lengths in SHAPES.items():
        texts = [rng.integers(4, plain.config.vocabulary, tokens) for tokens in lengths]
        runs = {kind: partial(model.encoder.encode, texts) for kind, model in models.items()}
        runs["BLAS"] = partial(products, plain.config, plain.encoder.parameters, sum(lengths))
        if given.numpy:
            runs["numpy"] = partial(plain.encoder.encode, texts)
        spent: dict[str, list[float]] = {what: [] for what in runs}
        for _ in range(given.rounds * (5 if name == "query" else 1)):
            for what, run in runs.items():
                started = time.perf_counter()
                run()
                spent[what].append(time.perf_counter() - started)
        for what, times in spent.items():
            median = statistics.median(times)
            print(f"{name:>10}  {what:>8}  {1e3 * median:9.1f}  {1e3 * min(times):8.1f}  {sum(lengths) / median:8.0f}")


if __name__ == "__main__":
    main()
