"""What small weights and small vectors cost: the released model's forms beside each other.

python tests/bench/forms.py FOLDER PLACE TEXTS [--data DATA] [--rounds N] [--out spec/forms.md]

FOLDER is the float32 checkpoint; in PLACE the other forms are made, calibrated on TEXTS, and every result is kept, so
that a run goes on where the last one ended: remove PLACE/scores-FORM.json to judge a form again, PLACE/speed.json to
time all of them again. DATA (or $REFEMBED_DATA) holds eval/stsb_multi_mt, sick, banking77, cosqa and xquad_r.

Speed and memory are `refembed bench`'s, all forms in turn; scores `refembed evaluate`'s, at 512 tokens; both with the
Numba backend. bfloat16 is a form of storing: its numbers are computed with as float32.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import refembed
from refembed.bench.results import Subject
from refembed.bench.runner import Plan, bench
from refembed.checkpoint import open_checkpoint
from refembed.evaluation.tasks import Choice, Encode, evaluate
from refembed.evaluation.vectors import TextEncoder
from refembed.layout import BFLOAT16, write_checkpoint
from refembed.numpy_backend import usual_threads
from refembed.reference.quantize import FORMS
from refembed.vectors import QUANTIZED, shorten

FLOATS = ("float32", "bfloat16")  # the form, and what it is computed in: float32
TASKS = {  # name -> folder, what of it, the score
    "STS-B en": ("stsb_multi_mt", Choice(languages=["en"]), "spearman"),
    "SICK-R": ("sick", Choice(split="all"), "spearman"),
    "Banking77": ("banking77", Choice(task="classification"), "accuracy"),
    "CoSQA": ("cosqa", Choice(), "ndcg@10"),
    "XQuAD-R": ("xquad_r", Choice(collection="paragraphs", documents="en", languages=["en", "de", "zh"]), "ndcg@10"),
}
LENGTHS = (768, 512, 256, 128)
Scores = dict[str, float]


def make_forms(folder: Path, place: Path, texts: Path) -> dict[str, Path]:
    """Every form's folder, made where it is not there yet."""
    found = {"float32": folder} | {form: place / form for form in ("bfloat16", *FORMS)}
    if not found["bfloat16"].exists():
        checkpoint = open_checkpoint(folder)
        tensors = {name: to_bfloat16(tensor.load(np.float32)) for name, tensor in checkpoint.tensors.items()}
        write_checkpoint(found["bfloat16"], checkpoint.config, tensors, folder, checkpoint.prompts)
    for form in FORMS:
        if not found[form].exists():
            words = ["quantize", folder, found[form], "--format", form, "--calibrate", texts]
            subprocess.run([sys.executable, "-m", "refembed", *map(str, words)], check=True)
    return found


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest, ties to even, as the upper half of a float32."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(BFLOAT16)


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What `file` holds; made and written where it is not there."""
    if not file.exists():
        part = file.with_suffix(".part")
        part.write_text(json.dumps(make(), indent=1))
        part.rename(file)
    return json.loads(file.read_text())


def speed(folders: Mapping[str, Path], rounds: int) -> dict[str, Any]:
    """refembed bench's figures of every form, its own precision where it has one."""
    threads = usual_threads()
    settings = {"backend": "numba", "threads": threads}
    subjects = [
        Subject(form, "refembed", sys.executable, settings | {"model": str(path), "precision": precision_of(form)})
        for form, path in folders.items()
    ]
    return bench(Plan(folders["float32"], threads, rounds), subjects, lambda what: print(what, file=sys.stderr))


def precision_of(form: str) -> str | None:
    return "float32" if form in FLOATS else None


class Remembered:
    """A model's embeddings of lists of texts, each list embedded once, at any length."""

    def __init__(self, encode: TextEncoder) -> None:
        self.encode, self.known = encode, {}

    def at(self, dimensions: int) -> Encode:
        def encode(texts: Sequence[str], task: str, titles: Sequence[str] | None = None) -> Any:
            key = task, tuple(texts), tuple(titles or ())
            if key not in self.known:
                self.known[key] = self.encode(texts, task, titles)
            return shorten(self.known[key], dimensions)

        return encode


def scores(form: str, folder: Path, data: Path, variants: Sequence[tuple[int, str | None]]) -> dict[str, Scores]:
    """Each task's score in percent, of every variant of the vectors: how many numbers, and what is kept of them."""
    model = refembed.load(folder, backend="numba", precision=precision_of(form))
    found: dict[str, Scores] = {variant_name(*one): {} for one in variants}
    for task, (name, choice, score) in TASKS.items():
        remembered = Remembered(TextEncoder(model))
        for dimensions, quantize in variants:
            told = Choice(**{**vars(choice), "quantize": quantize})
            *_, last = evaluate(remembered.at(dimensions), data / "eval" / name, told)  # the mean, of several
            found[variant_name(dimensions, quantize)][task] = last.scores[score]
        print(f"{form} {task}: {found}", file=sys.stderr)
    return found


def variant_name(dimensions: int, quantize: str | None) -> str:
    return f"{dimensions} {quantize or 'float32'}"


# ------------------------------------------------------------------------------------------------------------- the page
HEAD = """# What small weights and small vectors cost

The released model, written by `python tests/bench/forms.py FOLDER PLACE TEXTS --out spec/forms.md` on {processor},
{threads} threads, {date}. Forms are those of [chapter 9](09-quantised-weights.md), calibrated on {texts} as it says
there; bfloat16 is stored so and computed with as float32. Speed is `refembed bench`'s, all forms in turn, {rounds}
rounds: a query of {query:.0f} tokens, documents of {document:.0f}. Cosines are to float32's vectors of those documents.
Scores are `refembed evaluate`'s, in percent, at 512 tokens of context: Spearman for STS-B English and all of SICK-R,
accuracy for Banking77, nDCG@10 for CoSQA and XQuAD-R (questions in English, German and Chinese to English paragraphs).

## Weights

"""
VECTORS = """
## Vectors

The float32 model's embeddings, cut as in [chapter 8](08-matryoshka.md) and kept in 32 bits a number, 8 or one. Queries
of CoSQA and XQuAD-R keep their floats, all documents being scored (MAT-9 with nothing left out).

"""


def size_of(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.rglob('*.safetensors')) / 1e6:.0f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    first, *rest = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([first, "| " + " | ".join("---" for _ in rows[0]) + " |", *rest]) + "\n"


def with_loss(found: Scores, whole: Scores) -> list[str]:
    """Scores, and the mean of what they lose."""
    lost = np.mean([whole[task] - found[task] for task in TASKS])
    return [*(f"{found[task]:.2f}" for task in TASKS), f"{lost:.2f}"]


def page(
    folders: Mapping[str, Path],
    timed: Mapping[str, Any],
    judged: Mapping[str, dict[str, Scores]],
    texts: str,
    date: str,
) -> str:
    rows = {row["name"]: row for row in timed["subjects"]}
    whole = judged["float32"][variant_name(768, None)]
    head = HEAD.format(
        processor=timed["machine"]["processor"], threads=timed["threads"], rounds=timed["rounds"],
        query=timed["workload"]["queries"]["mean_tokens"], document=timed["workload"]["documents"]["mean_tokens"],
        texts=texts, date=date,
    )  # fmt: skip
    columns = ["weights, MB", "peak memory, MiB", "start, s", "query, ms", "tokens/s", "cosine, mean", "least"]
    weights = [["form", *columns, *TASKS, "mean loss"]] + [
        [
            form, size_of(path), f"{row['peak_memory_mib']:.0f}", f"{row['start_s']:.2f}", f"{row['query_p50_ms']:.1f}",
            f"{row['tokens_per_s']:.0f}", f"{row['cosine_mean']:.5f}", f"{row['cosine_least']:.5f}",
            *with_loss(judged[form][variant_name(768, None)], whole),
        ]
        for form, path in folders.items()
        for row in [rows[form]]
    ]  # fmt: skip
    vectors = [["numbers", "kept as", "bytes", *TASKS, "mean loss"]] + [
        [*name.split(), str(bytes_of(*name.split())), *with_loss(found, whole)]
        for name, found in judged["float32"].items()
    ]
    return head + table(weights) + VECTORS + table(vectors)


def bytes_of(dimensions: str, kept_as: str) -> int:
    return int(dimensions) * {"float32": 32, "int8": 8, "binary": 1}[kept_as] // 8


def main() -> None:
    parser = argparse.ArgumentParser(description="What small weights and small vectors cost.")
    parser.add_argument("folder", type=Path, help="the float32 checkpoint")
    parser.add_argument("place", type=Path, help="where forms and results are kept")
    parser.add_argument("texts", type=Path, help="what to calibrate on")
    parser.add_argument("--data", type=Path, default=os.environ.get("REFEMBED_DATA"), help="$REFEMBED_DATA")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--date", default="", help="to be said on the page")
    parser.add_argument("--only", choices=(*FLOATS, *FORMS), help="judge this form and end")
    parser.add_argument("--out", type=Path, help="the page; standard output where not given")
    given = parser.parse_args()
    if given.data is None or not (given.data / "eval").is_dir():  # now, not after an hour of making forms
        parser.error(
            f"--data is {given.data}; a folder that holds eval/{TASKS['STS-B en'][0]} and the others is needed"
        )
    given.place.mkdir(exist_ok=True)
    folders = make_forms(given.folder, given.place, given.texts)
    every = [(length, quantize) for length in LENGTHS for quantize in (None, *QUANTIZED)]
    judged = {
        form: kept(
            given.place / f"scores-{form}.json",
            lambda form=form, path=path: scores(form, path, given.data, every if form == "float32" else every[:1]),
        )
        for form, path in folders.items()
        if given.only in (None, form)
    }
    if given.only:
        return
    timed = kept(given.place / "speed.json", lambda: speed(folders, given.rounds))
    found = page(folders, timed, judged, given.texts.name, given.date)
    if given.out:
        given.out.write_text(found)
    else:
        print(found)


if __name__ == "__main__":
    main()
