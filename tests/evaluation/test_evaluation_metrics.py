"""The scores, held to numbers worked out by hand and to other libraries' definitions of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from sklearn.metrics import ndcg_score

from refembed.errors import RefembedError
from refembed.evaluation import metrics

UNIT = np.eye(4, dtype=np.float32)


def turned(cosines: list[float]) -> np.ndarray:
    """Unit vectors in the plane at these cosines from (1, 0)."""
    return np.array([(cosine, math.sqrt(1 - cosine**2)) for cosine in cosines], np.float32)


def test_sts_by_hand() -> None:
    """Wrong if STS correlates something else than cosine with people's scores, or by values where ranks are asked for.

    Ranks of the cosines 1 3 2 4 against 1 2 3 4: rho = 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15) = 0.8.
    """
    cosines = [0.1, 0.9, 0.2, 0.95]
    first = np.tile(np.array([[3.0, 0.0]], np.float32), (4, 1))  # not of unit length: a cosine does not mind
    scores = metrics.sts(first, turned(cosines), [1, 2, 3, 100])
    assert scores["spearman"] == pytest.approx(80)
    assert scores["pearson"] == pytest.approx(100 * np.corrcoef(cosines, [1, 2, 3, 100])[0, 1], abs=1e-4)


def test_sts_of_equal_cosines_is_undefined() -> None:
    """Wrong if a model that gives one vector for everything gets a score."""
    with pytest.warns(Warning, match="constant"):
        scores = metrics.sts(UNIT[[0, 0, 0]], UNIT[[0, 0, 0]], [1, 2, 3])
    assert math.isnan(scores["spearman"])


def test_bitext_by_hand() -> None:
    """Wrong if F1 is not weighted by support, or a sentence that nothing finds does not count as 0.

    Sentences 0 and 1 both find 0, 2 finds 2. F1 of 0: precision 1/2, recall 1: 2/3. Of 1: 0. Of 2: 1. Mean 5/9.
    """
    scores = metrics.bitext(UNIT[[0, 0, 2]], UNIT[[0, 1, 2]])
    assert scores == {"f1": pytest.approx(100 * 5 / 9), "accuracy": pytest.approx(100 * 2 / 3)}


def test_bitext_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if the rows of a later chunk are counted as those of the first."""
    monkeypatch.setattr(metrics, "QUERIES_AT_ONCE", 3)
    vectors = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)
    assert metrics.bitext(vectors, vectors)["f1"] == 100


def test_retrieval_by_hand() -> None:
    """Wrong if gains, discounts, cut-offs or means are not those of trec_eval.

    Query a: relevant by 3 at place 2, by 1 not found within 100, by 0 at place 1.
    DCG = 3 / log2(3), ideal = 3 / log2(2) + 1 / log2(3). Query b: its one document at place 11: no nDCG@10, no MRR@10.
    """
    ids = [f"d{number:03}" for number in range(200)]
    ranking = [(place, 1 - place / 1000) for place in range(150)]
    relevant = {"a": {"d000": 0, "d001": 3, "d199": 1}, "b": {"d010": 1}}
    scores = metrics.retrieval({"a": ranking, "b": ranking}, ids, relevant)
    gain = (3 / math.log2(3)) / (3 + 1 / math.log2(3))
    assert scores == {
        "ndcg@10": pytest.approx(100 * gain / 2),
        "mrr@10": pytest.approx(100 * 0.5 / 2),
        "recall@1": 0,
        "recall@10": pytest.approx(100 * 0.5 / 2),
        "recall@100": pytest.approx(100 * 1.5 / 2),
    }


@given(
    some.lists(some.integers(0, 4), min_size=2, max_size=30).filter(any),
    some.randoms(use_true_random=False),
)
def test_ndcg_is_scikit_learns(relevance: list[int], rng) -> None:
    """Wrong if some relevance or order gives another nDCG@10 than scikit-learn's."""
    scores = rng.sample(range(1000), len(relevance))
    ids = [str(place) for place in range(len(relevance))]
    ranking = [(place, float(scores[place])) for place in sorted(range(len(ids)), key=lambda place: -scores[place])]
    found = metrics.retrieval({"q": ranking}, ids, {"q": dict(zip(ids, relevance, strict=True))})
    assert found["ndcg@10"] == pytest.approx(100 * ndcg_score([relevance], [scores], k=10), abs=1e-4)


@given(some.integers(0, 2**31), some.integers(1, 40), some.integers(1, 12))
def test_rankings(seed: int, documents: int, depth: int) -> None:
    """Wrong if the best documents are not the first, or ties are not broken as trec_eval does: the greater id first."""
    rng = np.random.default_rng(seed)
    vectors = UNIT[rng.integers(0, 4, documents)]  # many alike
    queries = rng.standard_normal((3, 4)).astype(np.float32)
    ids = [str(id) for id in rng.permutation(1000)[:documents]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "DEPTH", depth)
        patch.setattr(metrics, "QUERIES_AT_ONCE", 2)
        found = metrics.rankings(queries, vectors, ids)
    for query, ranking in zip(queries, found, strict=True):
        cosines = vectors @ (query / np.linalg.norm(query))
        expected = sorted(range(documents), key=lambda place: (round(float(cosines[place]), 5), ids[place]))[::-1]
        assert [place for place, _ in ranking] == expected[:depth]


def test_recall_at_words_by_hand() -> None:
    """Wrong if passages are not cut at 5,000 words in order of score, or yes and no count as answers."""
    filler = "word " * 4998  # and the mark below: 4,999
    passages = [filler + ".", "alpha beta gamma"]
    cases = [
        (passages, ["alpha"], True),  # the 5,000th word
        (passages, ["alpha beta"], False),  # ends at the 5,001st
        (passages, [". alpha"], True),  # over the border of two passages, as in the original
        (passages[::-1], ["beta", "gamma"], True),
        (passages[::-1], ["Beta"], False),  # as written
        (passages, ["nothing", "alpha"], True),  # one is enough
    ]
    for found, answers, hit in cases:
        assert metrics.recall_at_words([found], [answers]) == 100 * hit, answers
    assert metrics.recall_at_words([passages] * 3, [["yes"], ["no", "alpha"], ["beta"]]) == 50
    assert math.isnan(metrics.recall_at_words([passages], [["yes", "no"]]))


def test_few_shot_takes_few_of_each_label() -> None:
    """Wrong if a classifier learns from more or fewer examples than MTEB's, or from the same in every experiment."""
    labels = ["a"] * 20 + ["b"] * 9 + ["c"] * 3
    experiments = metrics.few_shot(labels)
    for picked in experiments:
        counts = [sum(labels[index] == label for index in picked) for label in "abc"]
        assert counts == [8, 8, 3]
        assert len(set(picked)) == 19
    assert len({tuple(sorted(picked)) for picked in experiments}) == len(experiments) == 10


def test_classification_by_hand() -> None:
    """Wrong if accuracy is not the share of right answers: here three lie where their label was learnt."""
    train = turned([1.0, 0.99, -1.0, -0.99])
    scores = metrics.classification(
        train, ["a", "a", "b", "b"], [[0, 1, 2, 3]], turned([0.9, 0.8, -0.9, 0.7]), ["a", "a", "b", "b"]
    )
    f1 = (2 * 2 / 5 + 2 * 1 / 3) / 2  # of a: precision 2/3, recall 1; of b: precision 1, recall 1/2
    assert scores == {"accuracy": 75, "f1": pytest.approx(100 * f1)}


def test_clustering_of_separate_labels_is_perfect() -> None:
    """Wrong if texts of one label in one place, far from the others', are not one cluster."""
    labels = ["a", "b", "c"] * 20
    assert metrics.clustering(UNIT[[0, 1, 2] * 20], labels)["v_measure"] == pytest.approx(100)


def test_missing_libraries_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong if somebody without the extra learns it from a traceback, after all the embedding."""
    monkeypatch.setattr(metrics, "find_spec", lambda name: None if name == "sklearn" else object())
    with pytest.raises(RefembedError, match=r"scikit-learn: .*refembed\[evaluate\]") as caught:
        metrics.check_libraries()
    assert caught.value.id == "evaluate-missing"
