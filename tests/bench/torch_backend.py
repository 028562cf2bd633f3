"""How refembed_torch does beside sentence-transformers on the same texts, in one process: encoding, and training steps.

What `refembed bench --backend torch --train` measures, with more texts at once, more options, and without weights too.

python tests/bench/torch_backend.py [FOLDER] [--precision P] [--compile] [--rounds N] [--documents N] [--examples N]
                                    [--what encode,train] [--device cpu]

Without a folder: seeded random weights of the released shape with the built-in model's tokenizer, so that a machine
with CUDA and no weights needs this one command. Texts are refembed bench's documents (29 to 473 tokens, 122 on average)
and queries. All subjects are asked in turn, after a round that does not count; medians.

Encoding: texts to vectors, tokenising included, and from ids alone. sentence-transformers is given several batch sizes,
and sorts by length itself. Training: forward, backward and AdamW's step, with the contrastive loss over queries,
positives and hard negatives, from ids. sentence-transformers runs each of the three through its own model, padded, as
its losses do. In bfloat16 both keep float32 parameters while training.

Tokens are real ones, never padding. Operations are 2 x weights x tokens plus attention, three times that for training.
The peak is the best product found in this process: bfloat16, 8192 cubed, on CUDA; float32, 3072 cubed, on a CPU.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from refembed_torch.attention import choose_way
from refembed_torch.encoder import TorchEncoder
from refembed_torch.model import random_model
from refembed_torch.parameters import best_device, float_type
from refembed_torch.precision import exact_products
from refembed_torch.products import product
from refembed_torch.saving import save_model
from refembed_torch.timed import step_on

import refembed
from refembed.bench.device import device_peak
from refembed.bench.laws import operations
from refembed.bench.peers import sentence_transformers
from refembed.bench.workload import make_workload, numbered
from refembed.checkpoint import TOKENIZER, open_checkpoint
from refembed.embedder import DEFAULT_MODEL
from refembed.reference import Config
from refembed.tokenizer import Tokenizer

SIDE = 3072
BATCHES = {"cpu": (8, 32), "cuda": (32, 128, 512)}  # of sentence-transformers
DOCUMENTS, EXAMPLES = {"cpu": 128, "cuda": 2048}, {"cpu": 8, "cuda": 128}


class Bench:
    """What is measured, and on what."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder, self.device = given, folder, torch.device(given.device)
        checkpoint = open_checkpoint(folder)
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self.tokenizer = Tokenizer(folder / TOKENIZER, self.config)
        work = make_workload(None, checkpoint.prompts, self.config.context, lambda text: len(self.tokenizer([text])[0]))
        self.queries, self.documents = work["queries"], work["documents"]
        self.peak = peak(self.device)

    def ids(self, texts: list[str]) -> list[np.ndarray]:
        """As both libraries cut them."""
        context = self.config.context
        return [ids if len(ids) <= context else np.append(ids[: context - 1], ids[-1]) for ids in self.tokenizer(texts)]

    def spec(self, precision: str) -> dict[str, Any]:
        """What the peer is told."""
        threads = torch.get_num_threads()
        return {
            "model": str(self.folder),
            "path": "",
            "device": str(self.device),
            "threads": threads,
            "precision": precision,
        }

    def encode(self, precision: str) -> None:
        number = self.given.documents or DOCUMENTS[self.device.type]
        texts = numbered(self.documents, number)
        ids = self.ids(texts)
        model = refembed.load(self.folder, backend="torch", precision=precision)
        encoder = TorchEncoder(self.checkpoint, precision, None, device=self.device, compiling=self.given.compile)
        model.encoder = encoder
        peer = sentence_transformers.open_model(self.spec(precision), precision)
        runs: dict[str, Callable[[], object]] = {
            "refembed texts": lambda: model.encode(texts, task=None),
            "refembed ids": lambda: encoder.encode(ids),
        }
        for size in BATCHES[self.device.type]:
            runs[f"sentence-transformers, {size} at once"] = lambda size=size: peer.encode(
                texts, batch_size=size, normalize_embeddings=True, show_progress_bar=False
            )
        print(f"\nencoding {number} documents in {precision}, attention by {encoder.way} {encoder.why_way}")
        self.report(runs, ids, times=1)

    def train(self, precision: str) -> None:
        examples = self.given.examples or EXAMPLES[self.device.type]
        queries, others = numbered(self.queries, examples), numbered(self.documents, 2 * examples)
        columns = [queries, others[:examples], others[examples:]]
        ids = [self.ids(column) for column in columns]
        options = {"compiling": self.given.compile, "checkpointing": self.given.checkpointing}
        ours = step_on(self.folder, precision, ids, device=self.device, **options)
        theirs = sentence_transformers.training(self.spec(precision), columns)
        way, _ = choose_way(self.config, self.device, float_type(precision), self.given.compile, True)
        print(f"\ntraining steps of {examples} examples in {precision}, attention by {way}")
        self.report({"refembed": ours, "sentence-transformers": theirs}, [text for one in ids for text in one], times=3)

    def report(self, runs: dict[str, Callable[[], object]], ids: list[np.ndarray], times: int) -> None:
        """Take all in turn and print what was found."""
        tokens = sum(map(len, ids))
        work = times * sum(operations(self.config, len(text)) for text in ids)
        spent: dict[str, list[float]] = {name: [] for name in runs}
        last: dict[str, object] = {}
        for _ in range(self.given.rounds + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                last[name] = run()
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                spent[name].append(time.perf_counter() - started)
        print(f"  {len(ids)} texts, {tokens} tokens\n  {'':32}  {'ms':>8}  {'tokens/s':>9}  {'of peak':>7}")
        for name, seconds in spent.items():
            median = statistics.median(seconds[1:])
            print(f"  {name:32}  {1e3 * median:8.1f}  {tokens / median:9.0f}  {work / median / self.peak:7.1%}", end="")
            print(f"  loss {last[name]:.6f}" if isinstance(last[name], float) else "")


def peak(device: torch.device) -> float:
    """Operations a second of the best large product."""
    if device.type == "cuda":
        return 1e9 * device_peak()
    square, best = torch.randn(SIDE, SIDE), float("inf")
    with torch.inference_mode(), exact_products():
        for multiply in (torch.mm, product):
            for _ in range(3):
                started = time.perf_counter()
                multiply(square, square)
                best = min(best, time.perf_counter() - started)
    return 2 * SIDE**3 / best


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", nargs="?", type=Path, help="a checkpoint; none: random weights of the real shape")
    arguments.add_argument("--precision", help="float32, bfloat16 or both with a comma; the device's usual one")
    arguments.add_argument("--device", default=str(best_device()))
    arguments.add_argument("--what", default="encode,train")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--documents", type=int)
    arguments.add_argument("--examples", type=int)
    arguments.add_argument("--compile", action="store_true")
    arguments.add_argument("--checkpointing", action="store_true")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder
        if folder is None:
            folder = Path(scratch, "random")
            save_model(random_model(Config(), device="cpu"), folder, tokenizer=DEFAULT_MODEL)
        bench = Bench(given, folder)
        name = torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"
        print(
            f"PyTorch {torch.__version__} on {name}, {torch.get_num_threads()} threads, "
            f"peak {bench.peak / 1e12:.2f} TFLOP/s"
        )
        usual = "bfloat16" if bench.device.type == "cuda" else "float32"
        for precision in (given.precision or usual).split(","):
            for what in given.what.split(","):
                {"encode": bench.encode, "train": bench.train}[what](precision)


if __name__ == "__main__":
    main()
