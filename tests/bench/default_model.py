"""What the built-in model is worth, for its card: python tests/bench/default_model.py [FOLDER ...] [--data DATA]

Of each FOLDER (the built-in model where none is given) the scores, in percent, on sets that no built-in model learns
from, with whole vectors and with their first quarter. DATA (or $REFEMBED_DATA) holds eval/stsb_multi_mt, banking77,
cranfield and xquad_r. Banking77 is judged with 16 examples of each label, where `refembed evaluate` takes MTEB's 8.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

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
    "Cranfield": ("cranfield", Choice(), "ndcg@10"),
    "XQuAD-R en": ("xquad_r", Choice(collection="paragraphs", documents="en", languages=["en"]), "ndcg@10"),
}


def banking(encode: Encode, folder: Path) -> float:
    """Accuracy of a logistic regression on 16 examples of each label, the mean of ten draws."""
    (found,) = open_folder(folder, "test")
    (train,), (test,) = (found.select(split).values() for split in ("train", "test"))
    taught, labels = ([row["label"] for row in rows] for rows in (train, test))
    vectors, judged = (encode([row["text"] for row in rows], "Classification") for rows in (train, test))
    draws = metrics.few_shot(taught, PER_LABEL)
    return metrics.classification(vectors, taught, draws, judged, labels)["accuracy"]


def scores_of(encode: Encode, data: Path) -> dict[str, float]:
    found = {
        name: evaluate(encode, data / folder, choice)[-1].scores[score]
        for name, (folder, choice, score) in TASKS.items()
    }
    return found | {"Banking77": banking(encode, data / "banking77")}


def measure(model: refembed.Embedder, data: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Scores with whole vectors, then with their first quarter, after the number of dimensions."""
    remembered = Remembered(TextEncoder(model))
    for dimensions in (model.config.dimensions, model.config.dimensions // 4):
        yield dimensions, scores_of(remembered.at(dimensions), data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[DEFAULT_MODEL], metavar="FOLDER")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("REFEMBED_DATA"), required="REFEMBED_DATA" not in os.environ
    )
    given = parser.parse_args()
    names = [*TASKS, "Banking77"]
    print("| model | weights | dimensions |", *(f"{name} |" for name in names))
    print("| --- | --- | --- |", *("--- |" for _ in names))
    for folder in given.folders:
        model = refembed.load(folder)
        for dimensions, found in measure(model, Path(given.data) / "eval"):
            print(
                f"| {folder.name} | {model.info.weights} | {dimensions} |",
                *(f"{found[name]:.2f} |" for name in names),
                flush=True,
            )


if __name__ == "__main__":
    main()
