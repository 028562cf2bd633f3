"""How far the NumPy backend is from the plain matrix products it is made of, in one process, and its peak memory.

python tests/bench/reference.py FOLDER [--rounds N]

For texts of 18 and 122 tokens: the median time of the whole forward pass, the median time of its matrix products alone
(the same shapes and weights, nothing between them), taken in turn, and their ratio. Last, the process's ru_maxrss.
"""

import argparse
import resource
import statistics
import time
from functools import partial

import numpy as np

import refembed
from refembed.reference import Config


def products(config: Config, parameters, tokens: int):
    """The matrix products of one forward pass as a function without arguments."""
    rng = np.random.default_rng(0)
    rows = {size: rng.standard_normal((tokens, size), np.float32) for size in (config.width, config.mlp)}
    rows[config.heads * config.head] = rng.standard_normal((tokens, config.heads * config.head), np.float32)
    matrices = [
        parameters[f"layers.{index}.{name}.weight"]
        for index in range(len(config.layer_kinds))
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                     "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    ]  # fmt: skip
    query = rng.standard_normal((config.heads, tokens, config.head), np.float32)
    key = rng.standard_normal((1, tokens, config.head), np.float32)
    weights = rng.standard_normal((config.heads, tokens, tokens), np.float32)

    def run() -> None:
        for matrix in matrices:
            rows[matrix.shape[1]] @ matrix.T
        for _ in config.layer_kinds:
            query @ key.swapaxes(1, 2)
            weights @ key

    return run


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder")
    arguments.add_argument("--rounds", type=int, default=15)
    given = arguments.parse_args()
    model = refembed.load(given.folder, backend="numpy")
    print("tokens  forward ms  products ms  ratio")
    for tokens in (18, 122):
        ids = np.append(np.insert(np.arange(1000, 1000 + tokens - 2), 0, model.config.bos), model.config.eos)
        plain = products(model.config, model.encoder.parameters, tokens)
        spent: dict[str, list[float]] = {"forward": [], "products": []}
        for _ in range(given.rounds + 2):
            for name, run in (("forward", partial(model.encoder.encode, [ids])), ("products", plain)):
                started = time.perf_counter()
                run()
                spent[name].append(1e3 * (time.perf_counter() - started))
        forward, alone = (statistics.median(times[2:]) for times in spent.values())
        print(f"{tokens:6}  {forward:10.1f}  {alone:11.1f}  {forward / alone:5.2f}")
    print(f"peak memory (ru_maxrss): {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
