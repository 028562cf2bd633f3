"""How refembed_torch does beside sentence-transformers on the same texts, in one process: encoding, and training steps.

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
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from refembed_torch import losses
from refembed_torch.encoder import TorchEncoder
from refembed_torch.model import load_model, random_model
from refembed_torch.parameters import best_device, float_type
from refembed_torch.precision import exact_products
from refembed_torch.products import product
from refembed_torch.saving import save_model
from refembed_torch.training import training_step

import refembed
from refembed.bench.laws import operations
from refembed.bench.workload import make_workload
from refembed.checkpoint import TOKENIZER, open_checkpoint
from refembed.embedder import DEFAULT_MODEL
from refembed.reference import Config
from refembed.tokenizer import Tokenizer

SIDE = {"cpu": 3072, "cuda": 8192}
BATCHES = {"cpu": (8, 32), "cuda": (32, 128, 512)}  # of sentence-transformers
DOCUMENTS, EXAMPLES = {"cpu": 128, "cuda": 2048}, {"cpu": 8, "cuda": 128}
RATE = 1e-5


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

    def sentence_transformers(self, dtype: torch.dtype):
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(self.folder), device=str(self.device), model_kwargs={"dtype": dtype})

    def encode(self, precision: str) -> None:
        number = self.given.documents or DOCUMENTS[self.device.type]
        texts = [f"{text} {place}" for place, text in zip(range(number), cycle(self.documents), strict=False)]
        ids = self.ids(texts)
        model = refembed.load(self.folder, backend="torch", precision=precision)
        encoder = TorchEncoder(self.checkpoint, precision, None, device=self.device, compiling=self.given.compile)
        model.encoder = encoder
        peer = self.sentence_transformers(float_type(precision))
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
        queries = [f"{text} {place}" for place, text in zip(range(examples), cycle(self.queries), strict=False)]
        others = [f"{text} {place}" for place, text in zip(range(2 * examples), cycle(self.documents), strict=False)]
        columns = [queries, others[:examples], others[examples:]]
        ids = [self.ids(column) for column in columns]
        mask = losses.mask_of(*([text.tobytes() for text in column] for column in ids[:2]), self.device)
        packed = [text for column in ids for text in column]
        model = load_model(
            self.folder, precision, device=self.device,
            compiling=self.given.compile, checkpointing=self.given.checkpointing,
        )  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=True)
        peer = self.sentence_transformers(torch.float32).train()
        its_optimizer = torch.optim.AdamW(peer.parameters(), RATE, fused=True)
        features = [
            {name: one.to(self.device) for name, one in peer.preprocess(column).items() if torch.is_tensor(one)}
            for column in columns
        ]

        def loss(vectors: torch.Tensor) -> torch.Tensor:
            return losses.contrastive(losses.split(vectors, examples), mask)

        def its_step() -> float:
            its_optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                found = [peer(dict(column))["sentence_embedding"] for column in features]
            value = loss(torch.cat(found).float())
            value.backward()
            its_optimizer.step()
            return value.item()

        runs = {
            "refembed": lambda: training_step(model, optimizer, packed, loss).item(),
            "sentence-transformers": its_step,
        }
        print(f"\ntraining steps of {examples} examples in {precision}, attention by {self.way(model, packed)}")
        self.report(runs, packed, times=3)

    def way(self, model, packed) -> str:
        model(packed[:2])
        return next(iter(model.ways.values()))

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
    side, dtype = SIDE[device.type], torch.bfloat16 if device.type == "cuda" else torch.float32
    square = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    with torch.inference_mode(), exact_products():
        for multiply in (torch.mm, product):
            for _ in range(3):
                started = time.perf_counter()
                multiply(square, square)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


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
