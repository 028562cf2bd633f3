"""Vectors to scores, in percent. What each score is, and whose definition it follows, is in spec/evaluation.md."""

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice

import numpy as np

from ..embedder import Vectors
from ..errors import RefembedError
from ..vectors import best, similarity, unit_rows

SEED, EXPERIMENTS = 42, 10  # MTEB's, of classification and clustering alike
PER_LABEL = 8  # examples of each label that a classifier is trained on (MTEB)
CLUSTERED, MINI_BATCH = 16384, 512  # texts drawn for one clustering, and k-means' batch (MTEB)
DEPTH = 1000  # passages ranked for a query (MTEB); 5,000 words are far fewer
CUTOFFS = (1, 10, 100)
WORDS = 5000
WORD = re.compile(r"\w+|[^\w\s]")
NO_SPANS = ("yes", "no")  # answers that no passage can be searched for (XOR-Retrieve)
LIBRARIES = {"scipy": "scipy", "sklearn": "scikit-learn", "pytrec_eval": "pytrec-eval-terrier"}
QUERIES_AT_ONCE = 512


def check_libraries() -> None:
    """Raise now what the first score would raise after all the embedding."""
    missing = ", ".join(package for module, package in LIBRARIES.items() if find_spec(module) is None)
    if missing:
        raise RefembedError("evaluate-missing", f"evaluate needs {missing}: pip install 'refembed[evaluate]'")


def sts(first: Vectors, second: Vectors, golds: Sequence[float]) -> dict[str, float]:
    """Correlation of people's scores (pairs) with the cosines of two rows of vectors (pairs, dimensions)."""
    from scipy.stats import pearsonr, spearmanr

    cosines = np.sum(unit_rows(first) * unit_rows(second), axis=1)
    return {
        "spearman": 100 * float(spearmanr(golds, cosines).statistic),
        "pearson": 100 * float(pearsonr(golds, cosines).statistic),
    }


def bitext(first: Vectors, second: Vectors) -> dict[str, float]:
    """How often the most similar row of second is the translation, the row of the same number; as MTEB counts it."""
    from sklearn.metrics import accuracy_score, f1_score

    found = [int(row.argmax()) for scores in chunks(first, second) for row in scores]
    true = range(len(first))
    f1 = f1_score(true, found, average="weighted", zero_division=0)
    return {"f1": 100 * float(f1), "accuracy": 100 * float(accuracy_score(true, found))}


def few_shot(labels: Sequence[str], per_label: int = PER_LABEL) -> list[list[int]]:
    """The training examples of each experiment: the first so many of each label in an order shuffled anew."""
    experiments: list[list[int]] = []
    order = list(range(len(labels)))
    for _ in range(EXPERIMENTS):
        np.random.RandomState(SEED).shuffle(order)  # the same shuffle each time, of what the last one left: MTEB's way
        taken: Counter[str] = Counter()
        experiments.append([])
        for index in order:
            if taken[labels[index]] < per_label:
                taken[labels[index]] += 1
                experiments[-1].append(index)
    return experiments


def classification(
    train: Vectors, taught: Sequence[str], experiments: Sequence[Sequence[int]], test: Vectors, labels: Sequence[str]
) -> dict[str, float]:
    """Logistic regression on a few examples of each label, the mean of the experiments: indices of train."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score

    scores = []
    for picked in experiments:
        model = LogisticRegression(max_iter=100, random_state=SEED)
        model.fit(train[list(picked)], [taught[index] for index in picked])
        found = model.predict(test)
        scores.append((accuracy_score(labels, found), f1_score(labels, found, average="macro")))
    accuracy, f1 = 100 * np.mean(scores, axis=0)
    return {"accuracy": float(accuracy), "f1": float(f1)}


def clustering(vectors: Vectors, labels: Sequence[str]) -> dict[str, float]:
    """V-measure of mini-batch k-means on texts drawn with replacement, the mean over the experiments."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    known, drawn = np.array(labels), random.Random(SEED)  # noqa: S311
    model = MiniBatchKMeans(len(set(labels)), batch_size=MINI_BATCH, n_init=1, random_state=SEED)
    scores = []
    for _ in range(EXPERIMENTS):
        picked = drawn.choices(range(len(labels)), k=CLUSTERED)
        scores.append(v_measure_score(known[picked], model.fit_predict(vectors[picked])))
    return {"v_measure": 100 * float(np.mean(scores))}


Ranking = list[tuple[int, float]]  # documents by their place, best first, with their scores


def rankings(queries: Vectors, documents: Vectors, ids: Sequence[str]) -> list[Ranking]:
    """The best documents of each query. Among equal scores the greater id is first, as trec_eval has it."""
    order = np.array(sorted(range(len(ids)), key=lambda place: ids[place], reverse=True))
    scores = (row for rows in chunks(queries, documents[order]) for row in rows)
    return [[(int(order[place]), float(row[place])) for place in best(row, DEPTH)] for row in scores]


def retrieval(
    ranked: Mapping[str, Ranking], ids: Sequence[str], relevant: Mapping[str, Mapping[str, int]]
) -> dict[str, float]:
    """nDCG@10, MRR@10 and recall, by trec_eval, the mean over queries.

    ranked     query id -> its ranking of the documents whose ids are `ids`
    relevant   query id -> document id -> relevance, above 0 where relevant
    """
    from pytrec_eval import RelevanceEvaluator

    def mean(measures: set[str], depth: int) -> dict[str, float]:
        run = {query: {ids[place]: score for place, score in found[:depth]} for query, found in ranked.items()}
        scores = RelevanceEvaluator({query: dict(relevant[query]) for query in run}, measures).evaluate(run)
        names = next(iter(scores.values()))
        return {name: 100 * float(np.mean([row[name] for row in scores.values()])) for name in names}

    recalls = ",".join(map(str, CUTOFFS))
    found = mean({"ndcg_cut.10", f"recall.{recalls}"}, max(CUTOFFS))
    first = mean({"recip_rank"}, 10)  # trec_eval knows no cut-off for it
    scores = {"ndcg@10": found["ndcg_cut_10"], "mrr@10": first["recip_rank"]}
    return scores | {f"recall@{cutoff}": found[f"recall_{cutoff}"] for cutoff in CUTOFFS}


def recall_at_words(rankings: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]) -> float:
    """The share of questions one of whose answers stands in the first 5,000 words of the passages found (XOR-Retrieve).

    rankings   for each question, the texts of its passages, best first
    answers    for each question, its answers; yes and no do not count, and a question without others is left out
    returns    percent; NaN where no question is left
    """
    hits = []
    for passages, wanted in zip(rankings, answers, strict=True):
        if spans := [answer for answer in wanted if answer not in NO_SPANS]:
            text = " ".join(passages)
            last = next(islice(WORD.finditer(text), WORDS - 1, None), None)
            read = text[: last.end()] if last else text
            hits.append(any(span in read for span in spans))
    return 100 * float(np.mean(hits)) if hits else float("nan")


def chunks(first: Vectors, second: Vectors) -> Iterator[Vectors]:
    """The cosines of each row of first with every row of second, some rows at a time."""
    for start in range(0, len(first), QUERIES_AT_ONCE):
        yield similarity(first[start : start + QUERIES_AT_ONCE], second)
